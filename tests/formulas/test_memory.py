"""The memory budget: parts add up, monotone, hand computations, and start-up logs within a stated bound."""

from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibrate.fit_memory import (
    StartupLog,
    leave_group_out,
    leave_one_model_out,
    read_startup_logs,
)
from planner.catalog.load import find_gpu, gpus
from planner.catalog.memory_coefficients import read_memory_coefficients
from planner.catalog.models import bundled_models, load_model
from planner.domain.deployment import EngineSettings, LoraSlots, MemoryBudget, Parallelism, Speculation
from planner.domain.dtypes import KvDtype
from planner.formulas.activations import activation_shape
from planner.formulas.cuda_graphs import GraphPlan, graph_bytes, kernels_of_model
from planner.formulas.encoder import encoder_profile
from planner.formulas.kv_cache import kv_layout
from planner.formulas.kv_paging import kv_paging
from planner.formulas.memory import (
    Card,
    Resident,
    activation_peak_bytes,
    captured_sizes,
    cuda_graph_bytes,
    kv_tokens_interval,
    memory_budget,
    non_torch_bytes,
    overhead_relative_error,
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
        kv_layout(model, parallelism, paging=kv_paging(engine, find_gpu(gpu), model)),
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
    length=st.integers(512, 8192),
)
def test_more_work_a_step_never_leaves_more_cache(name: str, seqs: int, tokens: int, length: int) -> None:
    """But for a CUDA graph: a `max_num_seqs` off the grid is captured as a size of its own, in pieces and whole."""
    base = budget_of(name, "H200", 8, max_num_seqs=seqs, max_num_batched_tokens=tokens, max_model_len=length)
    kernels = kernels_of_model(load_model(name), Parallelism(tp=8))
    a_kernel = COEFFICIENTS.cuda_graph_bytes_per_kernel.value
    one_graph_bytes = 2 * graph_bytes(GraphPlan((1,), full_up_to=0), kernels, a_kernel)
    for change in ({"max_num_seqs": 2 * seqs}, {"max_num_batched_tokens": 2 * tokens}):
        values = {"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "max_model_len": length} | change
        assert budget_of(name, "H200", 8, **values).kv_cache_bytes <= base.kv_cache_bytes + one_graph_bytes
    larger = budget_of(
        name, "B200", 8, max_num_seqs=seqs, max_num_batched_tokens=tokens, max_model_len=length
    )
    assert larger.kv_cache_tokens >= base.kv_cache_tokens


class TestByHand:
    def test_sampling_sets_the_peak_of_a_small_dense_model(self) -> None:
        # Llama-3.1-8B, 1024 sequences: 8192 x 4096 x 2 of hidden states, and for each of 1024 x 128256 logits
        # 14 bytes, or 38 where they are sorted; 132 rows of fp32 where Triton filters them
        card = card_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB")
        hidden, logits = 8192 * 4096 * 2, 1024 * 128256

        def peak(version: str) -> int:
            return activation_peak_bytes(card, settings_of(max_num_seqs=1024, engine_version=version))

        assert peak("0.21.0") == hidden + logits * 14
        assert peak("0.18.0") == hidden + logits * 14 + 132 * 128256 * 4
        assert peak("0.16.0") == hidden + logits * 38

    def test_the_feed_forward_block_sets_it_where_few_sequences_run(self) -> None:
        # the residual stream, then gate, up and their activation: 8192 x (4096 + 3 x 14336) x 2
        card = card_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB")
        few = settings_of(max_num_seqs=16, engine_version="0.21.0")
        assert activation_peak_bytes(card, few) == 8192 * (4096 + 3 * 14336) * 2

    def test_the_second_runner_keeps_its_tables_and_samples_from_the_logits_as_they_are(self) -> None:
        # 0.32: the peak is the forward pass; 4.125 + 0.125 bytes for each of 1024 x 128256 stay beside it
        card = card_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB")
        peak = activation_peak_bytes(card, settings_of(max_num_seqs=1024, engine_version="0.32.0"))
        assert peak == 8192 * (4096 + 3 * 14336) * 2 + int(1024 * 128256 * 4.25)

    def test_expert_workspaces_stay_while_the_sampler_runs(self) -> None:
        # Qwen3-30B-A3B in 0.14: 8 rows a token, 2048 wide twice; in 0.13 they came and went with the layer
        card = card_of("Qwen/Qwen3-30B-A3B", "H200")
        peaks = [
            activation_peak_bytes(card, settings_of(max_num_seqs=1024, engine_version=version))
            for version in ("0.13.0", "0.14.1")
        ]
        assert peaks[1] - peaks[0] == 8192 * 8 * (2048 + 2048) * 2

    def test_an_encoder_leaves_its_outputs_beside_the_language_model(self) -> None:
        card = card_of("Qwen/Qwen3-VL-30B-A3B-Instruct", "H200")
        engine = settings_of(max_num_seqs=1024, engine_version="0.18.0")
        text = settings_of(max_num_seqs=1024, engine_version="0.18.0", multimodal=False)
        kept = encoder_profile(card.activations.model, engine).cached_bytes
        assert kept > 0
        assert activation_peak_bytes(card, engine) == activation_peak_bytes(card, text) + kept

    def test_a_large_encoder_sets_the_peak_by_itself(self) -> None:
        card = card_of("Qwen/Qwen3-VL-30B-A3B-Instruct", "H200")
        engine = settings_of(max_num_seqs=1, max_num_batched_tokens=256, engine_version="0.18.0")
        assert (
            activation_peak_bytes(card, engine) == encoder_profile(card.activations.model, engine).peak_bytes
        )

    def test_graphs_are_a_pool_and_a_little_a_kernel(self) -> None:
        # Llama-3.1-8B: 4 products, 5 kernels of attention, 2 of the feed-forward block in each of 32 layers;
        # 51 sizes up to 512 in pieces, 35 of them (up to 256 sequences) whole too; the pool is the largest step's
        card = card_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB")
        engine = settings_of(engine_version="0.30.0")
        pool = 512 * (4096 + 3 * 14336) * 2
        a_kernel = COEFFICIENTS.cuda_graph_bytes_per_kernel.value
        assert len(captured_sizes(card, engine)) == 51
        assert cuda_graph_bytes(card, engine, COEFFICIENTS) == pool + round((51 + 35) * 32 * 11 * a_kernel)
        assert cuda_graph_bytes(card, settings_of(enforce_eager=True), COEFFICIENTS) == 0

    def test_graphs_came_out_of_the_free_share_before_0_20(self) -> None:
        old = budget_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB", engine_version="0.19.1")
        new = budget_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB", engine_version="0.20.0")
        assert old.cuda_graph_bytes == 0 < new.cuda_graph_bytes
        assert old.kv_cache_bytes - new.kv_cache_bytes == new.cuda_graph_bytes

    def test_ranks_that_talk_need_buffers(self) -> None:
        def outside_torch(gpu: str, tp: int, **changes: object) -> int:
            card = card_of("Qwen/Qwen3-32B", gpu, tp)
            return non_torch_bytes(card, settings_of(**changes), COEFFICIENTS)

        alone, doubling, fused = (
            COEFFICIENTS.non_torch_bytes.value,
            COEFFICIENTS.collective_bytes.value,
            COEFFICIENTS.fused_all_reduce_bytes.value,
        )
        assert outside_torch("H200", 1) == round(alone)
        assert outside_torch("H200", 8, engine_version="0.16.0") == round(alone + 3 * doubling)
        assert outside_torch("H200", 4) == outside_torch("B200", 4) == round(alone + 2 * doubling + fused)
        assert outside_torch("H200", 4, enforce_eager=True) == round(alone + 2 * doubling)
        assert outside_torch("L40S", 2) == outside_torch("A100-SXM-80GB", 2) == round(alone + doubling)

    def test_a_cache_given_in_bytes_is_taken_as_it_is(self) -> None:
        given = budget_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB", kv_cache_memory_bytes=8 * GIB)
        usual = budget_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB")
        assert given.kv_cache_bytes == 8 * GIB
        assert given.fits
        assert given.outside_bytes == usual.outside_bytes + usual.kv_cache_bytes - 8 * GIB
        assert parts_sum(given) == given.total_bytes
        too_much = budget_of("meta-llama/Llama-3.1-8B", "H100-SXM-80GB", kv_cache_memory_bytes=70 * GIB)
        assert not too_much.fits
        assert too_much.outside_bytes < 0

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


MEASURED: dict[str, object] = {
    "max_num_seqs": 1024,
    "max_num_batched_tokens": 8192,
    "engine_version": "0.18.0",
}


class TestHowWideTheIntervalIs:
    """Narrow where start-up logs were fitted, wider beside them, widest beyond."""

    def error(
        self, gpu: str, tp: int = 1, *, layout: dict[str, object] | None = None, **changes: object
    ) -> float:
        model = load_model("Qwen/Qwen3-30B-A3B")
        parallelism = Parallelism.model_validate({"tp": tp} | (layout or {}))
        card = Card(find_gpu(gpu), parallelism, activation_shape(model, parallelism))
        return overhead_relative_error(card, settings_of(**(MEASURED | changes)), COEFFICIENTS)

    def test_the_three_widths_differ(self) -> None:
        narrow, wider, widest = (
            COEFFICIENTS.overhead_relative_error,
            COEFFICIENTS.sibling_relative_error,
            COEFFICIENTS.untested_relative_error,
        )
        assert 0 < narrow < wider < widest < 1

    @pytest.mark.parametrize(("gpu", "tp"), [("H200", 1), ("H200", 8), ("B200", 4)])
    @pytest.mark.parametrize("version", ["0.11.0", "0.20.2"])
    def test_what_was_measured(self, gpu: str, tp: int, version: str) -> None:
        assert self.error(gpu, tp, engine_version=version) == COEFFICIENTS.overhead_relative_error

    def test_a_sibling_of_what_was_measured(self) -> None:
        siblings = [
            self.error("H100-SXM-80GB"),
            self.error("GB200"),
            self.error("H200", 2),
            self.error("H200", max_num_seqs=64),
            self.error("H200", max_num_batched_tokens=2048),
        ]
        assert set(siblings) == {COEFFICIENTS.sibling_relative_error}

    def test_what_was_never_measured(self) -> None:
        model = load_model("Qwen/Qwen3-0.6B")
        beyond = [
            self.error("A100-SXM-80GB"),
            self.error("B300"),
            self.error("L40S"),
            self.error("H200", 16),
            self.error("H200", 4, layout={"pp": 2}),
            self.error("H200", 4, layout={"dp": 2}),
            self.error("H200", 4, layout={"ep": True}),
            self.error("H200", engine_version="0.10.2"),
            self.error("H200", engine_version="0.21.0"),
            self.error("H200", engine_version="0.32.0"),
            self.error("H200", enforce_eager=True),
            self.error("H200", lora=LoraSlots()),
            self.error("H200", speculation=Speculation(draft=model, num_speculative_tokens=2)),
        ]
        assert set(beyond) == {COEFFICIENTS.untested_relative_error}


def test_latent_attention_makes_room_by_the_blocks_as_they_are_paged() -> None:
    # DeepSeek-R1 on B200 in 0.11: CUTLASS pages by 128 tokens, so 1,024 sequences are 131,072 tokens of context,
    # twice the 65,536 of blocks of 16; 128 heads of 128 + 128 in bf16
    model, parallelism = load_model("deepseek-ai/DeepSeek-R1"), Parallelism()
    engine = settings_of(max_num_seqs=1024, max_num_batched_tokens=2048, engine_version="0.11.0")
    gpu = find_gpu("B200")
    block_size = kv_layout(model, parallelism, paging=kv_paging(engine, gpu, model)).block_size
    assert block_size == 128
    card = Card(gpu, parallelism, activation_shape(model, parallelism))
    small, paged = (
        activation_peak_bytes(each, engine) for each in (card, card._replace(block_size=block_size))
    )
    assert paged - small == 65536 * 128 * 256 * 2


def test_the_interval_holds_the_estimate_and_widens_with_the_overhead() -> None:
    model, parallelism, engine = load_model("Qwen/Qwen3-32B"), Parallelism(tp=2), settings_of()
    kv = kv_layout(model, parallelism)
    card = card_of("Qwen/Qwen3-32B", "H100-SXM-80GB", 2)
    budget = memory_budget(card, Resident(weights_bytes(model, parallelism)), kv, engine, COEFFICIENTS)
    low, high = kv_tokens_interval(budget, kv, engine)
    assert low < budget.kv_cache_tokens < high
    spread = COEFFICIENTS.untested_relative_error * budget.overhead_bytes
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

    def test_the_flag_typed_is_the_utilization_that_was_run(self, logs: list[StartupLog]) -> None:
        # the 0.20 rows, whose column says 0.9: at 0.92 they agree with the rest
        errors = leave_one_model_out(logs).kv_bytes
        typed = [
            error
            for log, error in zip(logs, errors, strict=True)
            if log.engine.engine_version.startswith("0.20")
        ]
        assert len(typed) == 4
        assert {log.engine.gpu_memory_utilization for log in logs} == {0.92}
        assert max(map(abs, typed)) < 0.002

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
            assert np.median(np.abs(values)) < 0.001
            assert np.quantile(np.abs(values), 0.9) < 0.005
        assert np.quantile(np.abs(errors.overhead), 0.9) < 0.03

    def test_the_intervals_hold_nine_of_ten_runs_left_out(self, logs: list[StartupLog]) -> None:
        groups: list[tuple[Callable[[StartupLog], Hashable], float]] = [
            (lambda log: log.model.name, COEFFICIENTS.overhead_relative_error),
            (lambda log: log.card.parallelism.tp, COEFFICIENTS.overhead_relative_error),
            (lambda log: log.engine.engine_version.split(".")[1], COEFFICIENTS.overhead_relative_error),
            (lambda log: log.card.gpu.name, COEFFICIENTS.sibling_relative_error),
        ]
        for group, width in groups:
            missed = np.abs(leave_group_out(logs, group).overhead) > width
            assert missed.mean() <= 0.105
