"""Fits find what made the numbers, hold out what they say, and tell the error that is there."""

import doctest
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from planner.calibrate import fitting
from planner.calibrate.donors import complete_all_reduce, complete_gemm, complete_mla, complete_moe
from planner.calibrate.fit_attention import fit_context_attention, fit_decode_attention
from planner.calibrate.fit_collectives import fit_all_reduce
from planner.calibrate.fit_gemm import fit_gemm, fit_surface
from planner.calibrate.fit_moe import fit_format
from planner.calibrate.fitting import (
    Bound,
    HeldOut,
    LinearForm,
    Measured,
    evidence,
    fit_linear,
    held_out_rows,
    robust_fit,
)
from planner.calibrate.operators import fit_operators, fit_report, fit_tables
from planner.calibrate.report import error_table, main
from planner.calibrate.store import operators_for, operators_path, read_coefficients
from planner.calibrate.tables import KernelTable, newest_table
from planner.catalog.load import find_gpu
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.base import InputError
from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Gpu, Interconnect
from planner.formulas.arrays import FloatArray
from planner.formulas.operators import (
    AttentionShape,
    GpuOperators,
    MoeShape,
    Origin,
    all_reduce_s,
    context_attention,
    decode_attention,
    gemm_s,
    moe_s,
)
from planner.formulas.operators.coefficients import TableSource

H100 = find_gpu("H100-SXM-80GB")
SHARED = Path(__file__).parents[2].parent / "shared" / "operators"
needs_tables = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no measured kernel tables in {SHARED}")


def truth() -> GpuOperators:
    """Coefficients to make tables from: H100's without the measured surface."""
    ops = operators_for(H100, (shipped_calibration_dir(),))
    flat = {d: fit.model_copy(update={"surface": None}) for d, fit in ops.coefficients.gemm.items()}
    return ops._replace(coefficients=ops.coefficients.model_copy(update={"gemm": flat}))


def table(latency_s: FloatArray, numbers: dict[str, FloatArray], labels: dict[str, str]) -> KernelTable:
    return KernelTable(
        source=TableSource(path="made/up.parquet", engine_version="0", rows=latency_s.size),
        numbers={**numbers, "latency": latency_s},
        labels={name: np.full(latency_s.shape, label) for name, label in labels.items()},
    )


def grid(*axes: list[float]) -> list[FloatArray]:
    return [column.ravel() for column in np.meshgrid(*(np.array(axis) for axis in axes), indexing="ij")]


def noisy(times: FloatArray, size: float = 0.02) -> FloatArray:
    return times * np.exp(np.random.default_rng(1).normal(0.0, size, times.shape))


def gemm_table(dtype: WeightDtype, label: str) -> KernelTable:
    widths = [512.0, 1024, 2048, 4096, 7168, 16384]
    m, n, k = grid([1.0, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], widths, widths)
    times = np.array(
        [gemm_s(np.array([a]), int(b), int(c), dtype, truth())[0] for a, b, c in zip(m, n, k, strict=True)]
    )
    return table(noisy(times), {"m": m, "n": n, "k": k}, {"gemm_dtype": label})


def test_doctests() -> None:
    assert doctest.testmod(fitting).failed == 0


def test_known_linear_coefficients_are_found_despite_outliers() -> None:
    terms = np.column_stack([np.linspace(1, 100, 200), np.full(200, 5.0)])
    form = LinearForm(terms, efficiencies=1)
    times = noisy(form.time_s(np.array([0.5, 3.0])), 0.01)
    times[::20] *= 3.0
    shapes = np.repeat(np.arange(20.0), 10)
    values, worth = fit_linear(form, (Bound(0.9, 0.1, 1), Bound(1, 0.1, 10)), Measured(times, shapes, "x"))
    assert values == pytest.approx([0.5, 3.0], rel=0.02)
    assert worth.rows == 200
    assert worth.held_out_rows == 60
    assert worth.median_ratio == pytest.approx(0.0067, rel=0.3)


def test_bounds_hold() -> None:
    times = np.full(10, 7.0)
    assert robust_fit(lambda x: np.full(10, x[0]), (Bound(1, 0.5, 2),), times)[0] == pytest.approx(2.0)


def test_held_out_shapes_are_thirty_percent_and_always_the_same() -> None:
    shapes = np.repeat(np.arange(50.0), 4)
    held = held_out_rows(shapes)
    assert held.sum() == 60
    assert (held == held_out_rows(shapes)).all()
    assert all(held[shapes == shape].all() or not held[shapes == shape].any() for shape in range(50))
    assert not held_out_rows(np.array([1.0, 1.0, 2.0])).any()


def test_evidence_tells_the_error_that_is_there() -> None:
    measured = np.ones(100)
    predicted = np.concatenate([np.full(50, 1.1), np.full(50, 0.8)])
    held = np.arange(100) >= 90
    found = evidence(measured, HeldOut(predicted, predicted * 2, held), np.ones(100, dtype=np.bool_))
    assert found.median_ratio == pytest.approx(0.15)
    assert found.p90_ratio == pytest.approx(0.2)
    assert found.bias_ratio == pytest.approx(-0.05)
    assert found.held_out_median_ratio == pytest.approx(0.6)
    assert found.held_out_rows == 10


@pytest.mark.parametrize(("dtype", "label"), [(WeightDtype.BF16, "bfloat16"), (WeightDtype.FP8, "fp8")])
def test_gemm_fit_recovers_the_times_that_made_the_table(dtype: WeightDtype, label: str) -> None:
    fit = fit_gemm(gemm_table(dtype, label), H100)[dtype]
    known = truth().coefficients.gemm[dtype]
    assert fit.large.flop_efficiency == pytest.approx(known.large.flop_efficiency, rel=0.05)
    assert fit.small.byte_efficiency == pytest.approx(known.small.byte_efficiency, rel=0.05)
    for worth in (fit.small_evidence, fit.large_evidence):
        assert worth.origin is Origin.TABLE
        assert worth.held_out_median_ratio is not None
        assert worth.held_out_median_ratio < 0.03
    ops = truth()
    fitted = ops._replace(
        coefficients=ops.coefficients.model_copy(update={"gemm": {**ops.coefficients.gemm, dtype: fit}})
    )
    tokens = np.array([1.0, 16, 96, 300, 1000, 6000])
    expected = gemm_s(tokens, 3584, 5120, dtype, ops)
    assert gemm_s(tokens, 3584, 5120, dtype, fitted) == pytest.approx(expected, rel=0.05)


def test_weights_read_from_the_cache_are_not_believed() -> None:
    """Small shapes timed ten times faster than memory allows must not raise the byte efficiency."""
    honest = gemm_table(WeightDtype.BF16, "bfloat16")
    cached = (honest.numbers["n"] * honest.numbers["k"] < 8e6) & (honest.numbers["m"] <= 64)
    spoiled = {**honest.numbers, "latency": np.where(cached, honest.latency_s / 10, honest.latency_s)}
    fit = fit_gemm(honest._replace(numbers=spoiled), H100)[WeightDtype.BF16]
    known = truth().coefficients.gemm[WeightDtype.BF16]
    assert fit.small.byte_efficiency == pytest.approx(known.small.byte_efficiency, rel=0.05)
    assert fit.small_evidence.rows < (honest.numbers["m"] <= 256).sum()


def test_host_time_in_block_scaled_rows_is_not_believed() -> None:
    plain = gemm_table(WeightDtype.FP8, "fp8")
    floor_s = 1e-4
    block = {**plain.numbers, "latency": np.maximum(plain.latency_s * 1.25, floor_s)}
    both = KernelTable(
        source=plain.source,
        numbers={name: np.concatenate([plain.numbers[name], block[name]]) for name in plain.numbers},
        labels={"gemm_dtype": np.repeat(["fp8", "fp8_block"], plain.latency_s.size)},
    )
    fits = fit_gemm(both, H100)
    fp8, blocked = fits[WeightDtype.FP8], fits[WeightDtype.FP8_BLOCK]
    assert blocked.small == fp8.small
    assert blocked.small_evidence.origin is Origin.DONOR
    assert "host time of 100 us" in blocked.small_evidence.note
    assert 0.6 < blocked.large.flop_efficiency / fp8.large.flop_efficiency < 0.85


def test_surface_follows_a_smooth_error_and_damps_outliers() -> None:
    m, n, k = grid([1.0, 16, 64, 256, 1024, 4096], [512.0, 2048, 8192], [512.0, 2048, 8192])
    error = 0.05 * np.log2(m / 64)
    m, n, k, error = (np.tile(column, 20) for column in (m, n, k, error))
    spoiled = error.copy()
    spoiled[::50] += 2.0
    surface = fit_surface((m, n, k), spoiled)
    at = surface.grid[3, 2, 2]
    assert at == pytest.approx(0.05 * (surface.log2_tokens[3] - 6), abs=0.02)
    assert surface.grid.shape == (len(surface.log2_tokens), *2 * (len(surface.log2_width),))


def test_moe_fit_recovers_the_times_that_made_the_table() -> None:
    ops = truth()
    shapes = [(2048, 768, 8, 128), (4096, 1536, 8, 128), (7168, 2048, 8, 256), (4096, 14336, 2, 8), (6144, 2560, 8, 160)]
    rows = [
        (m, h, i, k, e, tp, ep)
        for h, i, k, e in shapes
        for m in (1, 4, 16, 64, 256, 1024, 4096, 16384)
        for tp, ep in ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (1, 8))
        if e // ep >= 2
    ]
    times = [
        moe_s(np.array([float(m)]), MoeShape(e, e // ep, k, h, i // tp, True, WeightDtype.BF16, ep > 1), ops)[0]
        for m, h, i, k, e, tp, ep in rows
    ]
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    numbers = dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True))
    labels = {"distribution": "power_law_1.2", "moe_dtype": "bfloat16", "kernel_source": "made_up"}
    made = table(noisy(np.array(times)), numbers, labels)
    fit = fit_format(made, WeightDtype.BF16, H100)
    assert fit is not None
    for worth in (fit.tensor_parallel_evidence, fit.expert_parallel_evidence):
        assert worth.median_ratio is not None
        assert worth.median_ratio < 0.03
        assert worth.held_out_median_ratio is not None
        assert worth.held_out_median_ratio < 0.06
    known = ops.coefficients.moe[WeightDtype.BF16].tensor_parallel
    assert fit.tensor_parallel.byte_efficiency == pytest.approx(known.byte_efficiency, rel=0.1)
    assert fit_format(made, WeightDtype.FP8, H100) is None


def test_attention_fits_recover_the_times_that_made_the_table() -> None:
    ops = truth()
    batch, context, heads, kv_heads = grid(
        [1.0, 4, 16, 64, 256], [127.0, 1023, 8191, 32767], [8.0, 16, 32, 64], [1.0, 4, 8]
    )
    shapes = [AttentionShape(int(h), int(g), 128, 128, 2) for h, g in zip(heads, kv_heads, strict=True)]
    decode = [
        decode_attention(shape, ops).time_s(np.array([b]), np.array([c + 1]))[0]
        for shape, b, c in zip(shapes, batch, context, strict=True)
    ]
    numbers = {
        "batch_size": batch,
        "step": context,
        "num_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": np.full_like(batch, 128.0),
    }
    labels = {"kv_cache_dtype": "bfloat16", "kernel_source": "vllm_made_up"}
    (fit,) = fit_decode_attention(table(noisy(np.array(decode)), numbers, labels), H100)[2]
    known = next(
        f for f in ops.coefficients.decode_attention[2] if f.head_dim == 128 and not f.windowed
    )
    assert fit.byte_efficiency == pytest.approx(known.byte_efficiency, rel=0.03)
    assert fit.constant_s == pytest.approx(known.constant_s, rel=0.03)
    assert fit.evidence.note == "made_up"

    prompt = [
        context_attention(shape, ops).time_s(np.array([c + 1]), np.zeros(1))[0]
        for shape, c in zip(shapes, context, strict=True)
    ]
    numbers = {**numbers, "isl": context + 1, "batch_size": np.ones_like(batch)}
    (prompt_fit,) = fit_context_attention(table(noisy(np.array(prompt)), numbers, labels), H100)[2]
    wanted = next(
        f for f in ops.coefficients.context_attention[2] if f.head_dim == 128 and not f.windowed
    )
    assert prompt_fit.flop_efficiency == pytest.approx(wanted.flop_efficiency, rel=0.05)
    assert prompt_fit.constant_s == pytest.approx(wanted.constant_s, rel=0.1)


def test_all_reduce_fit_recovers_the_times_that_made_the_table() -> None:
    ops = truth()
    elements = 2.0 ** np.arange(8, 29)
    small = elements[elements * 2 < 8 * 2**20]
    custom = table(
        all_reduce_s(small * 2, 4, Interconnect.NVSWITCH, ops),
        {"message_size": small, "num_gpus": np.full_like(small, 4.0)},
        {"kernel_source": "vLLM_custom_graph"},
    )
    curve = ops.coefficients.nvlink_all_reduce.nccl[1]
    forced = ops.coefficients.nvlink_all_reduce.model_copy(update={"custom": ()})
    nccl_only = ops._replace(coefficients=ops.coefficients.model_copy(update={"nvlink_all_reduce": forced}))
    nccl = table(
        all_reduce_s(elements * 2, 4, Interconnect.NVSWITCH, nccl_only),
        {"message_size": elements, "num_gpus": np.full_like(elements, 4.0)},
        {"op_name": "all_reduce", "nccl_dtype": "half"},
    )
    fit = fit_all_reduce(custom, nccl, H100.nvlink_bytes_per_s, 8)
    assert fit.nccl[0].constant_s == pytest.approx(curve.constant_s, rel=0.02)
    assert fit.nccl[0].link_efficiency == pytest.approx(curve.link_efficiency, rel=0.02)
    assert fit.custom[0].evidence.median_ratio == pytest.approx(0.0, abs=1e-3)


def write_tables(root: Path, folder: str, gpu: Gpu) -> None:
    """The least a GPU needs: bf16 linear layers and 16-bit attention, at the roofline plus 10 us."""
    widths = [512.0, 1024, 2048, 4096, 8192]
    m, n, k = grid([1.0, 8, 64, 256, 512, 2048, 8192], widths, widths)
    peak, bytes_per_s = 312e12, gpu.memory_bandwidth_bytes_per_s
    gemm = pd.DataFrame({"m": m, "n": n, "k": k, "gemm_dtype": "bfloat16"})
    gemm["latency"] = 1e3 * (np.maximum(2 * m * n * k / peak, 2 * n * k / bytes_per_s) * 1.25 + 1e-5)
    save(gemm, root / folder / "gemm" / "vllm" / "0.1.0" / "gemm_perf.parquet")
    batch, tokens, heads, kv_heads = grid([1.0, 8, 64], [127.0, 1023, 8191], [8.0, 16, 32], [1.0, 4, 8])
    attention = pd.DataFrame(
        {
            **{"batch_size": batch, "step": tokens, "isl": tokens, "num_heads": heads},
            **{"num_key_value_heads": kv_heads, "head_dim": 128.0},
            **{"kv_cache_dtype": "bfloat16", "kernel_source": "vllm_made_up"},
        }
    )
    for name in ("generation_attention", "context_attention"):
        attention["latency"] = 1e3 * (batch * tokens * kv_heads * 512 / bytes_per_s * 2 + 2e-5)
        save(attention, root / folder / "attention" / "vllm" / "0.1.0" / f"{name}_perf.parquet")


def save(frame: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True)  if not path.parent.is_dir() else None
    frame.to_parquet(path)


def test_gaps_are_filled_from_siblings_or_marked_assumed(tmp_path: Path) -> None:
    a100 = find_gpu("A100-SXM-80GB")
    write_tables(tmp_path, "a100_sxm", a100)
    own = fit_tables(tmp_path / "a100_sxm", a100)
    assert not own.moe
    gemm = complete_gemm(own, [own])
    assert set(gemm) >= set(WeightDtype) - {WeightDtype.FP16, WeightDtype.AWQ, WeightDtype.GPTQ}
    assert gemm[WeightDtype.INT4].small_evidence.origin is Origin.DONOR
    assert "assumed" in gemm[WeightDtype.INT4].small_evidence.note
    assert gemm[WeightDtype.INT8].small_evidence.origin is Origin.ASSUMED
    assert complete_mla(own, [own]).decode_evidence.origin is Origin.ASSUMED
    assert complete_all_reduce(own, [own], nvlink=True).nccl[0].evidence.origin is Origin.ASSUMED
    moe = complete_moe(own, [own])
    assert moe[WeightDtype.BF16].tensor_parallel_evidence.origin is Origin.ASSUMED


def test_fit_operators_reports_progress_and_names_what_is_missing(tmp_path: Path) -> None:
    a100 = find_gpu("A100-SXM-80GB")
    write_tables(tmp_path, "a100_sxm", a100)
    seen: list[tuple[str, float]] = []
    (found,) = fit_operators(tmp_path, progress=lambda what, share: seen.append((what, share)))
    assert seen == [("A100-SXM-80GB", 0.0), ("done", 1.0)]
    assert [source.engine_version for source in found.tables] == ["0.1.0"] * 3
    rows = fit_report([found])
    assert {row.operator for row in rows} >= {"linear layer", "experts", "decode attention", "all-reduce"}
    with pytest.raises(InputError, match="no datasheet of A100-SXM-80GB"):
        fit_operators(tmp_path, gpus={})
    (tmp_path / "a100_sxm" / "gemm" / "vllm" / "0.1.0" / "gemm_perf.parquet").unlink()
    with pytest.raises(InputError, match=r"needs a table gemm/vllm/VERSION/gemm_perf\.parquet"):
        fit_operators(tmp_path)


def test_the_documented_error_table_is_the_committed_one(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m planner.calibrate.report` makes the table in docs/operators.md."""
    assert main([]) == 0
    printed = capsys.readouterr().out.strip()
    paths = sorted((shipped_calibration_dir() / "operators").glob("*.json"))
    assert printed == error_table(fit_report([read_coefficients(path) for path in paths]))
    documented = (shipped_calibration_dir().parent / "docs" / "operators.md").read_text()
    assert printed in documented


def test_a_report_on_nothing_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no coefficients" in capsys.readouterr().err


@pytest.mark.shared
@needs_tables
def test_committed_errors_are_those_of_a_refit() -> None:
    committed = read_coefficients(operators_path(shipped_calibration_dir(), "A100-SXM-80GB"))
    measured = newest_table(SHARED / "a100_sxm", "gemm", "vllm", "gemm")
    assert measured is not None
    refit = fit_gemm(measured, find_gpu("A100-SXM-80GB"))[WeightDtype.BF16]
    stored = committed.gemm[WeightDtype.BF16]
    for name in ("small_evidence", "large_evidence"):
        now, then = getattr(refit, name), getattr(stored, name)
        assert now.rows == then.rows
        assert now.median_ratio == pytest.approx(then.median_ratio, abs=0.003)
        assert now.held_out_median_ratio == pytest.approx(then.held_out_median_ratio, abs=0.003)


@pytest.mark.shared
@needs_tables
def test_committed_coefficients_predict_the_table_as_well_as_they_say() -> None:
    """Evaluates the public function on measured rows, so that fit and prediction cannot part ways."""
    ops = operators_for(H100, (shipped_calibration_dir(),))
    measured = newest_table(SHARED / "h100_sxm", "gemm", "vllm", "gemm")
    assert measured is not None
    column = measured.numbers
    errors = []
    for n, k in ((4096, 4096), (10240, 8192), (7168, 2048), (1536, 7168)):
        rows = (column["n"] == n) & (column["k"] == k) & (measured.labels["gemm_dtype"] == "bfloat16")
        predicted_s = gemm_s(column["m"][rows], n, k, WeightDtype.BF16, ops)
        errors.append(np.abs(predicted_s / measured.latency_s[rows] - 1.0))
    assert np.median(np.concatenate(errors)) < 0.07
