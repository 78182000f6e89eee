"""The memory fit finds what was put in, and leaves the right rows out."""

import csv
from pathlib import Path

import pytest

from planner.calibrate.fit_memory import (
    NOTHING,
    NOTHING_FITTED,
    StartupLog,
    fit_and_test,
    fit_memory,
    leave_group_out,
    leave_one_model_out,
    read_startup_logs,
)
from planner.catalog.load import find_gpu
from planner.catalog.memory_coefficients import read_memory_coefficients
from planner.catalog.models import load_model
from planner.cli import main
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.evidence import Estimate
from planner.formulas.activations import activation_shape
from planner.formulas.kv_cache import kv_layout
from planner.formulas.kv_paging import kv_paging
from planner.formulas.load_target import load_target
from planner.formulas.memory import Card, MemoryCoefficients, Resident, cuda_graph_bytes, memory_budget
from planner.formulas.weights import weights_bytes

GIB = 2**30
MIB = 2**20


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, n=1)


TRUTH = MemoryCoefficients(
    non_torch_bytes=exactly(GIB),
    collective_bytes=exactly(GIB // 2),
    fused_all_reduce_bytes=exactly(2 * GIB),
    cuda_graph_bytes_per_kernel=exactly(30_000),
    overhead_relative_error=0.0,
    sibling_relative_error=0.0,
    untested_relative_error=0.0,
    measured=NOTHING_FITTED.measured,
    provenance="made up",
)


def log(model_name: str, tp: int, extra_bytes: int = 0, version: str = "0.22.1") -> StartupLog:
    """What an engine would log if `TRUTH` and the formulas held, but for some extra bytes."""
    model, parallelism = load_model(model_name), Parallelism(tp=tp)
    card = Card(find_gpu("H200"), parallelism, activation_shape(model, parallelism))
    engine = EngineSettings(
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
        max_model_len=8192,
        gpu_memory_utilization=0.92,
        engine_version=version,
    )
    kv = kv_layout(model, parallelism, paging=kv_paging(engine, card.gpu, model))
    weights = weights_bytes(model, parallelism, load_target(card.gpu, version, engine.max_num_batched_tokens))
    budget = memory_budget(card, Resident(weights), kv, engine, TRUTH)
    return StartupLog(
        run_id=f"{model_name} {tp} {extra_bytes}",
        model=model,
        card=card,
        engine=engine,
        kv=kv,
        weights_bytes=budget.weights_bytes,
        kv_cache_bytes=budget.kv_cache_bytes - extra_bytes,
        kv_cache_tokens=budget.kv_cache_tokens,
        cuda_graph_bytes=cuda_graph_bytes(card, engine, TRUTH),
    )


def test_the_fit_finds_what_was_put_in() -> None:
    logs = [
        log("Qwen/Qwen3-8B", 1),
        log("meta-llama/Llama-3.1-8B", 1),
        log("Qwen/Qwen3-32B", 4, version="0.16.0"),
        log("Qwen/Qwen3-32B", 8, version="0.16.0"),
        log("Qwen/Qwen3-32B", 4),
    ]
    fitted = fit_memory(logs, "test")
    assert fitted.non_torch_bytes.value == pytest.approx(GIB, rel=1e-6)
    assert fitted.collective_bytes.value == pytest.approx(GIB / 2, rel=1e-6)
    assert fitted.fused_all_reduce_bytes.value == pytest.approx(2 * GIB, rel=1e-6)
    assert fitted.cuda_graph_bytes_per_kernel.value == pytest.approx(30_000, rel=1e-4)
    assert (fitted.non_torch_bytes.n, fitted.collective_bytes.n, fitted.fused_all_reduce_bytes.n) == (4, 2, 1)


def test_ranks_alone_tell_what_a_single_gpu_needs() -> None:
    logs = [log("Qwen/Qwen3-32B", tp, version="0.16.0") for tp in (2, 4, 8)]
    fitted = fit_memory(logs, "test")
    assert fitted.non_torch_bytes.value == pytest.approx(GIB, rel=1e-6)
    assert fitted.collective_bytes.value == pytest.approx(GIB / 2, rel=1e-6)


def test_one_odd_run_does_not_move_the_fit_but_widens_it() -> None:
    runs = [log("Qwen/Qwen3-8B", 1, extra) for extra in (0, MIB, 2 * MIB, 3 * MIB, 4 * GIB)]
    fitted = fit_memory(runs, "test").non_torch_bytes
    assert fitted.value == pytest.approx(GIB + 2 * MIB, rel=1e-6)
    assert fitted.high > 2 * GIB


def test_with_one_number_of_ranks_the_whole_is_one_constant() -> None:
    # 1 GiB, two doublings of half a GiB, and 2 GiB where all-reduces are fused
    fused = fit_memory([log("Qwen/Qwen3-32B", 4, version="0.21.0")], "test")
    plain = fit_memory([log("Qwen/Qwen3-32B", 4, version="0.16.0")], "test")
    assert fused.non_torch_bytes.value == pytest.approx(4 * GIB, rel=1e-6)
    assert plain.non_torch_bytes.value == pytest.approx(2 * GIB, rel=1e-6)
    assert fused.collective_bytes == plain.collective_bytes == fused.fused_all_reduce_bytes == NOTHING


def test_encoders_are_part_of_the_fit() -> None:
    logs = [log("Qwen/Qwen3-8B", 1), log("Qwen/Qwen3-VL-8B-Instruct", 1, version="0.16.0")]
    fitted = fit_memory(logs, "test").non_torch_bytes
    assert (fitted.n, fitted.low) == (2, fitted.value)


def test_a_perfect_world_is_predicted_without_error() -> None:
    logs = [
        log("Qwen/Qwen3-8B", 1),
        log("meta-llama/Llama-3.1-8B", 1),
        log("Qwen/Qwen3-32B", 4, version="0.16.0"),
        log("Qwen/Qwen3-14B", 2, version="0.16.0"),
    ]
    errors = leave_one_model_out(logs)
    assert max(map(abs, errors.kv_bytes)) < 1e-4
    assert leave_group_out(logs, lambda log: log.card.parallelism.tp > 1).weights == errors.weights
    assert max(map(abs, errors.weights)) == 0


COLUMNS = {
    "run_id": "a",
    "engine_version": "0.19.0",
    "model": "meta-llama/Llama-3.3-70B-Instruct",
    "kv_dtype": "",
    "gpu": "H200",
    "gpu_memory_gib": "139.8",
    "tp": "4",
    "pp": "1",
    "gpu_memory_utilization": "0.92",
    "max_model_len": "8192.0",
    "max_num_batched_tokens": "",
    "max_num_seqs": "",
    "enforce_eager": "False",
    "weights_gib_per_gpu": "32.89",
    "cudagraph_gib": "0.96",
    "kv_cache_gib_per_gpu": "91.57",
    "kv_cache_tokens": "1200192.0",
    "notes": "runtime_args: gpu-memory-utilization: 0.92; x",
}


def write(path: Path, *changes: dict[str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(COLUMNS))
        writer.writeheader()
        writer.writerows(COLUMNS | change for change in changes)
    return path


def test_rows_are_read_with_server_defaults(tmp_path: Path) -> None:
    (only,) = read_startup_logs(write(tmp_path / "logs.csv", {}))
    assert (only.engine.max_num_seqs, only.engine.max_num_batched_tokens) == (1024, 8192)
    assert only.card.gpu.memory_bytes == round(139.8 * GIB)


def test_the_flag_noted_counts_where_the_column_differs(tmp_path: Path) -> None:
    silent = {"gpu_memory_utilization": "0.90", "notes": "nothing noted"}
    table = write(tmp_path / "logs.csv", {}, {"gpu_memory_utilization": "0.90"}, silent)
    assert [log.engine.gpu_memory_utilization for log in read_startup_logs(table)] == [0.92, 0.92, 0.9]


def test_blocks_are_those_of_the_attention_backend(tmp_path: Path) -> None:
    change = {"model": "deepseek-ai/DeepSeek-R1-0528", "tp": "8", "gpu": "B200", "engine_version": "0.14.1"}
    (only,) = read_startup_logs(write(tmp_path / "logs.csv", change))
    assert only.card.block_size == only.kv.block_size == 128


def test_the_fit_says_what_was_measured() -> None:
    logs = [log("Qwen/Qwen3-8B", 1), log("Qwen/Qwen3-32B", 4, version="0.16.0")]
    measured = fit_memory(logs, "test").measured
    assert (measured.gpus, measured.capabilities) == (("H200-SXM-141GB",), ("9.0",))
    assert (measured.tensor_parallel, measured.releases) == ((1, 4), ((0, 16), (0, 22)))
    assert (measured.max_num_seqs, measured.max_num_batched_tokens) == ((1024,), (8192,))


def test_the_command_writes_what_the_reader_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = (
        {},
        {
            "run_id": "b",
            "model": "Qwen/Qwen3-VL-30B-A3B-Instruct",
            "tp": "1",
            "weights_gib_per_gpu": "58.23",
            "kv_cache_gib_per_gpu": "67.03",
        },
    )
    table = write(tmp_path / "logs.csv", *others)
    assert main(["fit", "memory", str(table), "--calibration-dir", str(tmp_path)]) == 0
    coefficients = read_memory_coefficients(tmp_path)
    assert coefficients.non_torch_bytes.n == 1
    errors = (
        coefficients.overhead_relative_error,
        coefficients.sibling_relative_error,
        coefficients.untested_relative_error,
    )
    assert 0 < errors[0] <= errors[1] <= errors[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs.csv", "memory.json"]
    assert "kv_tokens" in capsys.readouterr().out


def test_nothing_fitted_says_nothing() -> None:
    assert NOTHING_FITTED.non_torch_bytes.n == NOTHING_FITTED.collective_bytes.n == 0


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"tp": "two"}, ":2:"),
        ({"kv_cache_gib_per_gpu": ""}, ":2:"),
        ({"gpu": "H999"}, "H999"),
        ({}, "two models"),
    ],
)
def test_a_table_that_is_no_log_says_where(tmp_path: Path, change: dict[str, str], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        fit_and_test(write(tmp_path / "logs.csv", change))
