"""The memory budget: parts add up, monotone, hand computations, and start-up logs within a stated bound."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibrate.fit_memory import StartupLog, leave_one_model_out, read_startup_logs
from planner.catalog.load import find_gpu, gpus
from planner.catalog.memory_coefficients import read_memory_coefficients
from planner.catalog.models import bundled_models, load_model
from planner.domain.deployment import EngineSettings, MemoryBudget, Parallelism
from planner.domain.dtypes import KvDtype
from planner.formulas.activations import activation_shape
from planner.formulas.engine_defaults import engine_rules
from planner.formulas.kv_cache import kv_layout
from planner.formulas.memory import (
    Card,
    Resident,
    activation_peak_bytes,
    captured_sizes,
    cuda_graph_bytes,
    kv_tokens_interval,
    memory_budget,
    non_torch_bytes,
)
from planner.formulas.weights import weights_bytes

LOGS = Path(__file__).parents[2] / "../shared/truth/memory_train.csv"
COEFFICIENTS = read_memory_coefficients()
GIB = 2**30
ALL_MODELS = [model.name for model in bundled_models()]
ALL_GPUS = [gpu.name for gpu in gpus() if gpu.vllm_backend]


def settings_of(**changes: object) -> EngineSettings:
    values: dict[str, object] = {
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "max_model_len": 8192,
        "gpu_memory_utilization": 0.9,
        "engine_version": "0.32.0",
    }
    return EngineSettings.model_validate(values | changes)


def card_of(model_name: str, gpu: str, tp: int = 1) -> Card:
    model, parallelism = load_model(model_name), Parallelism(tp=tp)
    return Card(find_gpu(gpu), parallelism, activation_shape(model, parallelism))


def budget_of(model_name: str, gpu: str, tp: int = 1, **changes: object) -> MemoryBudget:
    model, parallelism = load_model(model_name), Parallelism(tp=tp)
    engine = settings_of(**changes)
    return memory_budget(
        card_of(model_name, gpu, tp),
        Resident(weights_bytes(model, parallelism)),
        kv_layout(model, parallelism, engine_version=engine.engine_version),
        engine,
        COEFFICIENTS,
    )


def parts_sum(budget: MemoryBudget) -> int:
    return (
        budget.outside_bytes
        + budget.weights_bytes
        + budget.activation_bytes
        + budget.cuda_graph_bytes
        + budget.non_torch_bytes
        + budget.kv_cache_bytes
    )


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(ALL_MODELS),
    gpu=st.sampled_from(ALL_GPUS),
    tp=st.sampled_from([1, 2, 4, 8]),
    utilization=st.floats(0.05, 1.0),
    version=st.sampled_from(["0.11.0", "0.16.0", "0.20.0", "0.32.0"]),
)
def test_parts_add_up_to_the_card(name: str, gpu: str, tp: int, utilization: float, version: str) -> None:
    budget = budget_of(name, gpu, tp, gpu_memory_utilization=utilization, engine_version=version)
    assert parts_sum(budget) == budget.total_bytes == find_gpu(gpu).memory_bytes
    parts = (budget.outside_bytes, budget.activation_bytes, budget.cuda_graph_bytes, budget.non_torch_bytes)
    assert min(parts) >= 0


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(ALL_MODELS),
    seqs=st.integers(1, 1024),
    tokens=st.integers(64, 16384),
    length=st.integers(16, 8192),
)
def test_more_work_a_step_never_leaves_more_cache(name: str, seqs: int, tokens: int, length: int) -> None:
    """But for one CUDA graph: a `max_num_seqs` off the grid is captured as a size of its own."""
    base = budget_of(name, "H200", 8, max_num_seqs=seqs, max_num_batched_tokens=tokens, max_model_len=length)
    one_graph_bytes = load_model(name).layers * COEFFICIENTS.cuda_graph_bytes_per_layer.value
    for change in ({"max_num_seqs": 2 * seqs}, {"max_num_batched_tokens": 2 * tokens}):
        values = {"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "max_model_len": length} | change
        assert budget_of(name, "H200", 8, **values).kv_cache_bytes <= base.kv_cache_bytes + one_graph_bytes
    larger = budget_of(
        name, "B200", 8, max_num_seqs=seqs, max_num_batched_tokens=tokens, max_model_len=length
    )
    assert larger.kv_cache_tokens >= base.kv_cache_tokens


class TestByHand:
    def test_sampling_sets_the_peak_of_a_small_dense_model(self) -> None:
        # Llama-3.1-8B, 1024 sequences: 8192 x 4096 x 2 of hidden states and 1024 x 128256 x 14 of logits,
        # above the forward pass of 8192 x (2 x 4096 + 3 x 14336 + 4096) x 2
        card = card_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB")
        engine = settings_of(max_num_seqs=1024)
        sampling = 8192 * 4096 * 2 + 1024 * 128256 * 14
        forward = 8192 * (2 * 4096 + 3 * 14336 + 4096) * 2
        assert forward < sampling == activation_peak_bytes(card, engine, engine_rules("0.32.0"))
        sorting = 8192 * 4096 * 2 + 1024 * 128256 * 24
        assert activation_peak_bytes(card, engine, engine_rules("0.16.0")) == sorting
        few = settings_of(max_num_seqs=16)
        assert activation_peak_bytes(card, few, engine_rules("0.32.0")) == forward

    def test_block_quantised_experts_on_hopper_need_padded_workspaces(self) -> None:
        # DeepSeek-R1 at TP 8: rows of 8 routed experts a token, and 127 more for each of 256 experts, each
        # with two bf16 workspaces of 7168 and one fp8 input; 2 streams and the output are bf16
        row = 2 * 7168 * 2 + 7168
        forward = 8192 * (2 * 7168 * 2 + 8 * row + 7168 * 2) + 256 * 127 * row
        card = card_of("deepseek-ai/DeepSeek-R1", "H200", 8)
        assert activation_peak_bytes(card, settings_of(), engine_rules("0.32.0")) == forward
        elsewhere = card_of("deepseek-ai/DeepSeek-R1", "B200", 8)
        assert activation_peak_bytes(elsewhere, settings_of(), engine_rules("0.32.0")) < forward / 2

    def test_graphs_are_a_pool_and_a_little_a_layer(self) -> None:
        # Llama-3.1-8B captures 51 sizes up to 512, whose forward pass is the pool
        card = card_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB")
        engine = settings_of(engine_version="0.30.0")
        pool = 512 * (2 * 4096 + 3 * 14336 + 4096) * 2
        per_layer = COEFFICIENTS.cuda_graph_bytes_per_layer.value
        assert len(captured_sizes(card, engine)) == 51
        assert cuda_graph_bytes(card, engine, COEFFICIENTS) == pool + round(51 * 32 * per_layer)
        assert cuda_graph_bytes(card, settings_of(enforce_eager=True), COEFFICIENTS) == 0

    def test_graphs_came_out_of_the_free_share_before_0_20(self) -> None:
        old = budget_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB", engine_version="0.19.1")
        new = budget_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB", engine_version="0.20.0")
        assert old.cuda_graph_bytes == 0 < new.cuda_graph_bytes
        assert old.kv_cache_bytes - new.kv_cache_bytes == new.cuda_graph_bytes

    def test_ranks_that_talk_need_buffers(self) -> None:
        alone, together = (non_torch_bytes(Parallelism(tp=tp), COEFFICIENTS) for tp in (1, 2))
        assert together - alone == round(COEFFICIENTS.collective_bytes.value)

    def test_llama_8b_on_one_h100(self) -> None:
        budget = budget_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB")
        assert budget.weights_bytes == 16_060_522_496
        assert budget.kv_bytes_per_token == 131_072
        assert budget.kv_cache_tokens == budget.kv_blocks * 16 == budget.kv_cache_bytes // (16 * 131_072) * 16
        assert budget.fits

    def test_a_shortfall_is_said_not_hidden(self) -> None:
        budget = budget_of("meta-llama/Llama-3.1-70B", "H100-SXM-80GB")
        # 131.4 GiB of weights against 71.3 GiB: it misses by 60 GiB and the overhead
        assert -66 * GIB < budget.kv_cache_bytes < -60 * GIB
        assert (budget.fits, budget.kv_cache_tokens, budget.max_concurrency) == (False, 0, 0.0)
        assert parts_sum(budget) == budget.total_bytes


def test_the_interval_holds_the_estimate_and_widens_with_the_overhead() -> None:
    model, parallelism, engine = load_model("Qwen/Qwen3-32B"), Parallelism(tp=2), settings_of()
    kv = kv_layout(model, parallelism)
    card = card_of("Qwen/Qwen3-32B", "H100-SXM-80GB", 2)
    budget = memory_budget(card, Resident(weights_bytes(model, parallelism)), kv, engine, COEFFICIENTS)
    low, high = kv_tokens_interval(budget, kv, engine)
    assert low < budget.kv_cache_tokens < high
    spread = COEFFICIENTS.overhead_relative_error * budget.overhead_bytes
    assert high - low == pytest.approx(2 * spread / kv.bytes_per_token, rel=0.01)


@pytest.mark.parametrize("kv_dtype", list(KvDtype))
def test_every_model_has_a_budget_on_every_card(kv_dtype: KvDtype) -> None:
    for name in ALL_MODELS:
        model, parallelism = load_model(name), Parallelism(tp=8)
        kv = kv_layout(model, parallelism, kv_dtype)
        card = card_of(name, "B200", 8)
        budget = memory_budget(
            card, Resident(weights_bytes(model, parallelism)), kv, settings_of(), COEFFICIENTS
        )
        assert parts_sum(budget) == budget.total_bytes, name


@pytest.fixture(scope="module")
def logs() -> list[StartupLog]:
    if not LOGS.is_file():
        pytest.skip("the measured table ../shared/truth/memory_train.csv is not here")
    return read_startup_logs(LOGS)


@pytest.mark.shared
class TestStartupLogs:
    """vLLM start-up logs on H200 and B200, each model's own runs left out of the fit."""

    def test_rows_that_contradict_themselves_are_left_out(self, logs: list[StartupLog]) -> None:
        with LOGS.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) - len(logs) == sum(float(row["gpu_memory_utilization"]) == 0.9 for row in rows)

    def test_tokens_follow_from_the_cache_as_logged(self, logs: list[StartupLog]) -> None:
        # the logs round the cache to 0.01 GiB, one part in 4000
        for log in logs:
            tokens = log.kv.tokens(
                log.kv_cache_bytes, log.engine.max_model_len, log.engine.max_num_batched_tokens
            )
            assert tokens == pytest.approx(log.kv_cache_tokens, rel=3e-4), log.run_id

    def test_cache_with_the_model_left_out(self, logs: list[StartupLog]) -> None:
        errors = leave_one_model_out(logs)
        for values in (errors.kv_bytes, errors.kv_tokens):
            assert np.median(np.abs(values)) < 0.01
            assert np.quantile(np.abs(values), 0.9) < 0.04
        assert np.quantile(np.abs(errors.overhead), 0.9) == pytest.approx(
            COEFFICIENTS.overhead_relative_error, abs=0.02
        )
