"""What is measured next, on covariances worked by hand, and what may be asked of an engine at all."""

import numpy as np
import pytest

from planner.calibrate.measure.design import EngineLimits, Forecast, Plan, candidate_shapes, next_shapes
from planner.domain.calibration import StepKind, StepShape

A, B, C = (StepShape(decodes=count, context_tokens=16) for count in (1, 2, 4))
COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
"""A and B tell of each other, C of nothing else."""
ONCE = Plan(repetitions=1, warmups=0, overhead_s=0.0)


def chosen(times_s: tuple[float, float, float], *, count: int = 3, most_s: float = 100.0) -> list[StepShape]:
    expected = Forecast(np.array(times_s), COVARIANCE)
    return next_shapes((A, B, C), expected, ONCE, count=count, most_s=most_s)


def test_what_tells_of_others_comes_first_and_what_is_known_by_then_last() -> None:
    # A narrows 1 + 0.81, C 1; after A, B's variance is 1 - 0.81 = 0.19 and C's still 1.
    assert chosen((1.0, 1.0, 1.0)) == [A, C, B]
    assert chosen((1.0, 1.0, 1.0), count=1) == [A]


def test_time_is_weighed() -> None:
    # B tells what A does and takes a tenth of the time.
    assert chosen((1.0, 0.1, 1.0))[0] == B
    # 1.81 / 2 is less than C's 1, and 1.81 / 1.5 is more.
    assert chosen((2.0, 2.0, 1.0))[0] == C
    assert chosen((1.5, 1.5, 1.0))[0] == A


def test_no_more_than_the_time_that_is_left() -> None:
    assert chosen((1.0, 1.0, 1.0), most_s=2.5) == [A, C]
    assert chosen((3.0, 2.0, 2.0), most_s=2.5) == [B]
    assert chosen((3.0, 3.0, 3.0), most_s=2.5) == []


@pytest.mark.parametrize("model_len", [64, 1000, 16_384])
def test_every_candidate_is_allowed_and_asked_once(model_len: int) -> None:
    limits = EngineLimits(
        max_model_len=model_len,
        max_num_seqs=32,
        max_num_batched_tokens=1024,
        kv_cache_tokens=20_000,
        block_size=16,
    )
    shapes = candidate_shapes(limits)
    assert all(map(limits.allows, shapes))
    assert len(set(shapes)) == len(shapes)
    assert {shape.kind for shape in shapes} == set(StepKind)


def test_limits_are_of_tokens_sequences_length_and_cache() -> None:
    limits = EngineLimits(
        max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=512, kv_cache_tokens=4096, block_size=16
    )
    assert limits.allows(StepShape(prompts=1, prompt_tokens=512))
    assert not limits.allows(StepShape(prompts=1, prompt_tokens=513))
    assert not limits.allows(StepShape(decodes=9, context_tokens=16))
    # A block of room is left for the tokens that decoding adds.
    assert limits.allows(StepShape(decodes=1, context_tokens=1007))
    assert not limits.allows(StepShape(decodes=1, context_tokens=1008))
    # 7 x (501 + 32) are 3,731 tokens of cache, 8 x 533 are 4,264.
    assert limits.allows(StepShape(decodes=7, context_tokens=500))
    assert not limits.allows(StepShape(decodes=8, context_tokens=500))
