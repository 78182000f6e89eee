"""Full-size models built by live vLLM, held against the planner to the byte; `make engine-test` runs them."""

from collections import Counter
from math import prod

import pytest

from planner.formulas.weights import weight_tensors
from tests.engine.compare import differences
from tests.engine.live import ENGINE_PYTHON, Case, ask, text_model
from tests.engine.record import recorded

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not ENGINE_PYTHON, reason="SKIPPED LOUDLY: live vLLM is asked by make engine-test"),
]

LAYOUTS = ({"tp": 1}, {"tp": 2}, {"tp": 8}, {"tp": 2, "pp": 2, "pp_rank": 1})
QUICK = [
    Case(name, "", **layout)
    for name in (
        "Qwen/Qwen3-30B-A3B",
        "deepseek-ai/DeepSeek-V2-Lite",
        "meta-llama/Llama-3.1-8B",
        "google/gemma-3-27b-it",
    )
    for layout in LAYOUTS
]
ONE_BY_ONE = (
    "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-30B-A3B",
    "deepseek-ai/DeepSeek-V2-Lite",
    "google/gemma-3-27b-it",
)


def test_parameters_and_pages_are_equal_to_the_byte() -> None:
    found = [
        line for case, answer in zip(QUICK, ask(QUICK), strict=True) for line in differences(case, answer)
    ]
    assert found == []


def test_matrices_are_equal_one_by_one() -> None:
    """Every tensor of two dimensions or more has its shape and its count; what has one dimension, its sum."""
    cases = [Case(name, tp=2) for name in ONE_BY_ONE]
    for case, answer in zip(cases, ask(cases, names=True), strict=True):
        theirs = Counter(tuple(shape) for _, shape, _ in answer["names"] if len(shape) > 1)
        tensors = weight_tensors(text_model(case), case.parallelism)
        matrices = [t for t in tensors if t.group not in {"norm", "post_load"} and len(t.shape) > 1]
        ours: Counter[tuple[int, ...]] = Counter()
        for tensor in matrices:
            ours[tensor.shape] += tensor.copies
        assert ours == theirs, case
        vectors = sum(prod(shape) for _, shape, _ in answer["names"] if len(shape) == 1)
        rest = [tensor for tensor in tensors if tensor not in matrices]
        assert sum(prod(t.shape) * t.copies for t in rest) == vectors, case


@pytest.mark.engine_full
def test_every_recorded_case_again() -> None:
    rows = list(recorded())
    again = ask([case for case, _ in rows])
    changed = [
        case for (case, old), new in zip(rows, again, strict=True) if any(old[k] != new.get(k) for k in old)
    ]
    assert changed == []
