"""What is measured next, on covariances worked by hand, and what may be asked of an engine at all."""

import numpy as np
import pytest

from planner.calibrate.measure.design import (
    EngineLimits,
    Forecast,
    Plan,
    candidate_shapes,
    forecast,
    next_shapes,
    opening_shapes,
    target_shapes,
)
from planner.calibrate.step_unknowns import PLAIN_MODEL_ERROR
from planner.domain.calibration import StepShape
from planner.domain.evidence import StepKind
from planner.formulas.arrays import FloatArray
from tests.calibrate.made_steps import deployment, points, true_s

A, B, C = (StepShape(decodes=count, context_tokens=16) for count in (1, 2, 4))
COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
"""A and B tell of each other, C of nothing else."""
ONCE = Plan(repetitions=1, warmups=0, overhead_s=0.0)
LIMITS = EngineLimits(4096, 64, 2048, 200_000, 16)
SHAPES = candidate_shapes(LIMITS)


def chosen(
    times_s: tuple[float, float, float],
    *,
    target: FloatArray = COVARIANCE,
    count: int = 3,
    most_s: float = 100.0,
) -> list[StepShape]:
    """Of A, B and C, which are the target too if no other covariances with it are given."""
    expected = Forecast(np.array(times_s), COVARIANCE, target, 4e-4, np.zeros(0))
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


def test_what_the_target_has_nothing_of_is_not_measured() -> None:
    # Two shapes of the target are like C alone; then two like B, and A only through B.
    assert chosen((1.0, 1.0, 1.0), target=COVARIANCE[:, [2, 2]]) == [C]
    assert chosen((1.0, 1.0, 1.0), target=COVARIANCE[:, [1, 1]]) == [B, A]
    # C's part of the target is three times B's: 3 x 1 to 1.
    assert chosen((1.0, 1.0, 1.0), target=COVARIANCE[:, [1, 2, 2, 2]], count=2) == [C, B]


def test_measuring_narrows_what_is_measured_and_what_is_like_it() -> None:
    one = deployment()
    before = np.diag(forecast(one, (), SHAPES).covariance)
    known = SHAPES[10]
    after = np.diag(forecast(one, points(one, [known]), SHAPES).covariance)
    assert before[10] > 1.0, "nothing is known of this device"
    # What it has of its own remains unknown to others; that is half of the model's error.
    assert after[10] < PLAIN_MODEL_ERROR**2
    # To first order, at a point that has moved: others get no wider by more than that moves them.
    assert np.median(after / before) < 0.7


def test_variances_are_the_errors_made() -> None:
    one = deployment()
    known = list(SHAPES[::4])
    rest = [shape for shape in SHAPES if shape not in known]
    expected = forecast(one, points(one, known), rest)
    errors = np.log(expected.step_s / true_s(one, rest))
    spreads = np.sqrt(np.diag(expected.covariance))
    # The made device has no error of the model, so that they are wide rather than narrow.
    assert np.mean(np.abs(errors) < 2.0 * spreads) > 0.95
    assert np.median(spreads) < 0.1


def test_a_forecast_goes_on_from_another() -> None:
    one = deployment()
    taken = points(one, SHAPES[::5])
    cold = forecast(one, taken, SHAPES)
    warm = forecast(one, taken, SHAPES, start=forecast(one, taken[:-6], SHAPES).unknowns)
    assert warm.step_s == pytest.approx(cold.step_s, rel=0.02)
    assert np.diag(warm.covariance) == pytest.approx(np.diag(cold.covariance), rel=0.2)


def test_without_a_target_the_shapes_are_their_own() -> None:
    own = forecast(deployment(), (), SHAPES[:20])
    assert (own.covariance == own.target_covariance).all()
    other = forecast(deployment(), (), SHAPES[:20], target=SHAPES[20:23])
    assert other.target_covariance.shape == (20, 3)


def test_an_opening_spans_what_costs_little() -> None:
    opening = opening_shapes(SHAPES)
    assert [shape.label for shape in opening] == [
        "1 decoding at 16",
        "58 decoding at 16",
        "1 decoding at 3,906",
        "1 x 16 prompt tokens",
        "1 x 16 prompt tokens after 4,048",
        "1 x 256 prompt tokens",
    ]
    decodes = [shape for shape in SHAPES if not shape.prompts]
    assert opening_shapes(decodes) == [shape for shape in opening if not shape.prompts]
    assert opening_shapes(SHAPES[:1]) == [SHAPES[0]]
    assert opening_shapes(()) == []


def test_a_target_is_of_every_kind_and_covers_the_limits() -> None:
    target = target_shapes(LIMITS)
    assert target == target_shapes(LIMITS)
    assert all(map(LIMITS.allows, target))
    counts = {kind: sum(shape.kind is kind for shape in target) for kind in StepKind}
    assert len(set(counts.values())) == 1
    decodes = [shape.decodes for shape in target if not shape.prompts]
    assert min(decodes) < 4
    assert max(decodes) > 32
    # Hardly anything fits: what does is the target.
    assert all(map(EngineLimits(64, 2, 32, 256, 16).allows, target_shapes(EngineLimits(64, 2, 32, 256, 16))))


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
