"""A draft model's weights beside its target: by hand, against its own weights, and what vLLM refuses."""

import pytest

from planner.catalog.load import find_gpu
from planner.catalog.models import load_model
from planner.domain.deployment import Parallelism, Speculation
from planner.formulas.draft import draft_bytes, draft_parallelism, draft_problem
from planner.formulas.engine_defaults import parse_version
from planner.formulas.load_target import LoadTarget, load_target
from planner.formulas.weights import parameter_bytes, weights_bytes

TARGET = "meta-llama/Llama-3.1-70B"
DRAFT = "meta-llama/Llama-3.2-1B"
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"


def target(version: str = "0.32.0") -> LoadTarget:
    return load_target(find_gpu("H100-SXM"), version)


def speculation(draft: str = DRAFT) -> Speculation:
    return Speculation(draft=load_model(draft), num_speculative_tokens=4)


def test_own_embedding_by_hand() -> None:
    # Llama 3.2 1B at TP 4: 32 heads of 64, 8 key-value heads, width 8192; the head is the embedding, kept once.
    layer = 2048 * 64 * (8 + 2 * 2) + 8 * 64 * 2048 + 3 * 2048 * 2048 + 2 * 2048
    parameters = 2 * (128256 // 4 * 2048 + 16 * layer + 2048)
    # Beside them loading leaves what the target's kernels and the positions need.
    split = draft_parallelism(load_model(DRAFT), Parallelism(tp=4, pp=2), parse_version("0.32.0"))
    assert parameter_bytes(load_model(DRAFT), split) == parameters
    assert draft_bytes(speculation(), Parallelism(tp=4, pp=2), target()) >= parameters


def test_the_draft_follows_the_tensor_parallel_ranks_alone() -> None:
    draft = load_model(DRAFT)
    for parallelism in (Parallelism(tp=2, pp=4), Parallelism(tp=2, dp=4)):
        assert draft_bytes(speculation(), parallelism, target()) == weights_bytes(
            draft, Parallelism(tp=2), target()
        )


def test_experts_of_a_draft_are_split_whole_since_0_32() -> None:
    draft = load_model(MIXTRAL)
    wide = Parallelism(tp=2, ep=True)
    assert draft_parallelism(draft, wide, parse_version("0.32.0")).ep
    assert not draft_parallelism(draft, wide, parse_version("0.26.0")).ep
    assert not draft_parallelism(load_model(DRAFT), wide, parse_version("0.32.0")).ep


@pytest.mark.parametrize(
    ("draft", "parallelism", "version", "words"),
    [
        (DRAFT, Parallelism(tp=4), "0.14.1", "takes no draft models"),
        (
            "Qwen/Qwen3-0.6B",
            Parallelism(tp=4),
            "0.32.0",
            "has 151936 tokens, meta-llama/Llama-3.1-70B 128256",
        ),
        (DRAFT, Parallelism(tp=64), "0.32.0", "does not split so"),
    ],
)
def test_drafts_that_vllm_refuses(draft: str, parallelism: Parallelism, version: str, words: str) -> None:
    problem = draft_problem(load_model(TARGET), speculation(draft), parallelism, engine_version=version)
    assert problem is not None
    assert words in problem


def test_a_draft_that_works() -> None:
    assert draft_problem(load_model(TARGET), speculation(), Parallelism(tp=8)) is None
