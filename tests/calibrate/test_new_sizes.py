"""Extra time of sizes met for the first time, found again in runs made with a known constant and slope."""

import pytest

from planner.calibrate.new_sizes import FEWEST_SIZES, first_meetings, new_sizes
from planner.domain.calibration import StepPoint, StepShape
from planner.formulas.gpu_fit import NewSizes
from tests.export.made_run import WHEN, made_run

STEP_S, PER_TOKEN_S = 8e-3, 4e-5
SIZES = (16, 64, 128, 256, 512, 1024, 2048)


def _met(tokens: int) -> StepPoint:
    """A step of 10 ms whose first warm-up takes the constant and the slope more, its second nothing."""
    return StepPoint(
        shape=StepShape(prompts=1, prompt_tokens=tokens),
        times_s=(9e-3, 1e-2, 1.1e-2),
        warmup_s=(1e-2 + STEP_S + PER_TOKEN_S * tokens, 1e-2),
        measured_at=WHEN,
    )


def test_constant_and_slope_are_found_again() -> None:
    found = new_sizes([made_run(points=tuple(map(_met, SIZES)))])
    assert found.step_s == pytest.approx(STEP_S, rel=0.1)
    assert found.per_token_s == pytest.approx(PER_TOKEN_S, rel=0.1)


def test_runs_are_taken_together() -> None:
    halves = [made_run(points=tuple(map(_met, SIZES[at::2]))) for at in range(2)]
    whole = made_run(points=tuple(map(_met, (*SIZES[::2], *SIZES[1::2]))))
    assert new_sizes(halves) == new_sizes([whole])


def test_too_few_sizes_say_nothing() -> None:
    assert new_sizes([made_run(points=tuple(map(_met, SIZES[: FEWEST_SIZES - 1])))]) == NewSizes()
    assert new_sizes([made_run(points=tuple(map(_met, SIZES[:FEWEST_SIZES])))]) != NewSizes()
    assert new_sizes([]) == NewSizes()


def test_a_size_is_new_once() -> None:
    run = made_run(points=(_met(64), _met(64), _met(16)))
    assert [one.tokens for one in first_meetings(run)] == [64, 16]
    assert [one.extra_s for one in first_meetings(run)] == pytest.approx(
        [STEP_S + PER_TOKEN_S * 64, STEP_S + PER_TOKEN_S * 16]
    )


def test_what_met_a_size_before_counts_whatever_it_was() -> None:
    decoding = StepPoint(shape=StepShape(decodes=64), times_s=(1e-2,), warmup_s=(5e-2,), measured_at=WHEN)
    failed = StepPoint(
        shape=StepShape(prompts=1, prompt_tokens=128), measured_at=WHEN, failed="out of memory"
    )
    assert not list(first_meetings(made_run(points=(decoding, _met(64), failed, _met(128)))))


def test_a_warm_up_that_is_faster_takes_nothing_more() -> None:
    fast = _met(64).model_copy(update={"warmup_s": (5e-3,)})
    assert [one.extra_s for one in first_meetings(made_run(points=(fast,)))] == [0.0]
