"""Inverse memory questions: each answer works, and the next larger one does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.catalog.load import gpus
from planner.catalog.models import bundled_models
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.planning.memory_questions import (
    changes,
    gpu_options,
    largest_max_model_len,
    largest_max_num_seqs,
    longest_context,
    sequences_held,
    smallest_gpu,
    smallest_tp,
    tensor_parallel_options,
)
from planner.planning.predict import Case, Sized, size
from planner.planning.sizing import Sizer

FACTS = facts_for(calibration_dir=None)
MODELS = [model.name for model in bundled_models()]
CARDS = ["A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB", "B200", "L40S", "L4"]


def case_of(model: str, gpu: str = "H100-SXM-80GB", tp: int = 1, max_model_len: int | None = None) -> Case:
    engine = Engine(max_model_len=max_model_len)
    return deployment(model, gpu_named(gpu), parallelism_of(tp), Formats(), engine)


def with_engine(case: Case, **changed: int) -> Case:
    return case._replace(engine=case.engine.model_copy(update=changed))


def starts(case: Case) -> bool:
    return size(case, Sizer(FACTS)).refusal is None


class TestByHand:
    def test_llama_8b_holds_what_its_cache_divides_into(self) -> None:
        # 131,072 bytes a token: a sequence of 8,192 tokens is 512 blocks of 2 MiB, 1 GiB in all
        case = case_of("meta-llama/Llama-3.1-8B", max_model_len=8192)
        sized = size(case, Sizer(FACTS))
        assert sized.budget is not None
        whole_gib = (sized.budget.kv_blocks - 1) * 2 / 1024
        assert sequences_held(sized, 8192) == int(whole_gib)
        assert longest_context(case, sized, 2 * int(whole_gib)) >= 4096

    def test_the_shortfall_is_one_request_and_what_is_negative(self) -> None:
        # 70B in bf16 does not fit one H100: the cache is negative, and a request of 1,024 tokens takes 320 MiB
        # more, and since 0.29 the null block must be free as well
        case = case_of("meta-llama/Llama-3.1-70B", max_model_len=1024)
        sized = size(case, Sizer(FACTS))
        assert sized.budget is not None
        null_block = 16 * 327_680
        assert sized.budget.shortfall_bytes == 1024 * 327_680 + null_block - sized.budget.kv_cache_bytes

    def test_llama_70b_in_bf16_needs_four_h100(self) -> None:
        # 131.4 GiB of weights: 65.7 a card at TP 2 leave 72.9 - 65.7 - 4 = 3 GiB, and 32,768 tokens take 5
        assert smallest_tp(case_of("meta-llama/Llama-3.1-70B", max_model_len=32_768), Sizer(FACTS)) == 4


@settings(max_examples=30, deadline=None)
@given(
    model=st.sampled_from(MODELS),
    gpu=st.sampled_from(CARDS),
    tp=st.sampled_from([1, 2, 4, 8]),
    sequences=st.integers(1, 300),
)
def test_the_next_larger_answer_fails(model: str, gpu: str, tp: int, sequences: int) -> None:
    case, sizer = case_of(model, gpu, tp), Sizer(FACTS)
    sized = size(case, sizer)
    if sized.placed is None:
        return
    length = largest_max_model_len(case, sizer, sequences)
    assert 0 <= length <= case.model.max_position
    for tokens, wanted in ((length, True), (length + 1, False)):
        if 0 < tokens <= case.model.max_position:
            longer = with_engine(case, max_model_len=tokens)
            found = size(longer, sizer)
            assert (found.refusal is None and sequences_held(found, tokens) >= sequences) is wanted
    context = longest_context(case, sized, sequences)
    if context > 0:
        assert sequences_held(sized, context) >= sequences
    if context < case.model.max_position:
        assert sequences_held(sized, context + 1) < sequences


@settings(max_examples=30, deadline=None)
@given(model=st.sampled_from(MODELS), gpu=st.sampled_from(CARDS), tokens=st.integers(16, 4096))
def test_max_num_seqs_is_the_largest_that_is_held(model: str, gpu: str, tokens: int) -> None:
    case, sizer = case_of(model, gpu, 8, max_model_len=tokens), Sizer(FACTS)
    most = largest_max_num_seqs(case, sizer)
    if most:
        assert sequences_held(size(with_engine(case, max_num_seqs=most), sizer), tokens) >= most
    if 0 < most < case.engine.max_num_batched_tokens:
        over = size(with_engine(case, max_num_seqs=most + 1), sizer)
        assert over.refusal is not None or sequences_held(over, tokens) <= most


@settings(max_examples=40, deadline=None)
@given(model=st.sampled_from(MODELS), gpu=st.sampled_from(CARDS), tp=st.sampled_from([1, 2, 4, 8]))
def test_changes_give_room_and_the_least_tp_is_the_least(model: str, gpu: str, tp: int) -> None:
    case, sizer = case_of(model, gpu, tp), Sizer(FACTS)
    sized = size(case, sizer)
    least = smallest_tp(case, sizer)
    for one, found in tensor_parallel_options(case, sizer):
        if least is None or one.parallelism.tp < least:
            assert found.refusal is not None
    if sized.placed is None or sized.budget is None:
        return
    for change in changes(case, sizer):
        if change.sized.budget is not None:
            assert change.sized.budget.shortfall_bytes <= sized.budget.shortfall_bytes
    if sized.refusal is not None:
        assert not sized.budget.fits


def test_a_change_is_named_by_what_it_changes() -> None:
    case = case_of("meta-llama/Llama-3.1-70B", max_model_len=32_768)
    found = {change.what: change for change in changes(case, Sizer(FACTS))}
    assert found["an fp8 KV cache"].case.kv_dtype is KvDtype.FP8
    assert found["fp8 weights"].case.model.weight_dtype is WeightDtype.FP8
    assert found["int4 weights"].case.model.weight_dtype is WeightDtype.INT4
    assert found["more GPUs"].case.parallelism.tp == 4
    assert starts(found["more GPUs"].case)


def test_what_no_single_change_mends_is_mended_together() -> None:
    # 756 GiB of weights are 11.8 a card at TP 64; in int4 they are 3.3
    case = deployment(
        "meta-llama/Llama-3.1-405B",
        gpu_named("L40S", 12),
        parallelism_of(1),
        Formats(),
        Engine(max_model_len=4096),
    )
    last = changes(case, Sizer(FACTS))[-1]
    assert last.what == "all of it together"
    assert starts(last.case)
    assert last.case.kv_dtype is KvDtype.FP8


def test_a_quantised_checkpoint_is_not_made_larger() -> None:
    case = case_of("openai/gpt-oss-120b", max_model_len=8192)
    assert not [change for change in changes(case, Sizer(FACTS)) if "weights" in change.what]


def test_a_gpu_without_fp8_is_not_offered_an_fp8_cache() -> None:
    offered = [change.what for change in changes(case_of("Qwen/Qwen3-32B", "V100-16GB"), Sizer(FACTS))]
    assert "an fp8 KV cache" not in offered


def test_gpus_come_smallest_first() -> None:
    engine = Engine(max_model_len=8192)
    cards = [gpu for gpu in gpus() if gpu.vllm_backend]
    cases = [deployment("Qwen/Qwen3-32B", gpu, parallelism_of(1), Formats(), engine) for gpu in cards]
    options = gpu_options(cases, Sizer(FACTS))
    sizes = [case.gpu.memory_bytes for case, _ in options]
    assert sizes == sorted(sizes)
    smallest = smallest_gpu(options)
    assert smallest is not None
    # 61 GiB of weights: no card below that, and an 80 GiB one holds it
    assert 61 * 2**30 < smallest.memory_bytes <= 80 * 2**30


def test_nothing_is_held_where_nothing_is_placed() -> None:
    assert sequences_held(Sized(), 1000) == 0
    case = case_of("meta-llama/Llama-3.1-8B")
    assert longest_context(case, Sized(), 1) == 0


@pytest.mark.parametrize(
    "model", ["openai/gpt-oss-120b", "google/gemma-3-27b-it", "Qwen/Qwen3-Next-80B-A3B-Instruct"]
)
def test_windows_and_states_hold_more_long_sequences_than_full_attention(model: str) -> None:
    case = case_of(model, tp=8, max_model_len=32_768)
    sized = size(case, Sizer(FACTS))
    held = np.array([sequences_held(sized, tokens) for tokens in (1024, 4096, 16_384, 32_768)])
    assert (np.diff(held) < 0).all()
    assert held[0] / held[-1] < 32
