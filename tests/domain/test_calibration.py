"""What a calibration may say of steps and requests, and which measurement of several counts."""

import pytest
from pydantic import ValidationError

from planner.domain.calibration import (
    ServedRequest,
    ServingLoad,
    ServingPoint,
    StepPoint,
    StepShape,
    TelemetrySeries,
)
from planner.domain.evidence import StepKind
from tests.export.made_run import WHEN, made_run

DECODE = StepShape(decodes=4, context_tokens=100)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompts": 1},
        {"prompt_tokens": 8},
        {"prompts": 1, "decodes": 1},
        {"decodes": 1, "past_tokens": 8},
        {"prompts": 1, "prompt_tokens": 8, "context_tokens": 8},
        {"decodes": -1},
        {"decodes": 10**9 + 1},
    ],
)
def test_a_shape_that_no_step_has_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        StepShape(**fields)


@pytest.mark.parametrize(
    ("shape", "kind", "scheduled", "cached"),
    [
        # 2 x (300 + 50) tokens are cached once the chunks are computed.
        (StepShape(prompts=2, prompt_tokens=50, past_tokens=300), StepKind.PREFILL, 100, 700),
        # 4 x (100 + 1): the new token is cached too.
        (DECODE, StepKind.DECODE, 4, 404),
        (StepShape(prompts=1, prompt_tokens=8, decodes=2, context_tokens=10), StepKind.MIXED, 10, 30),
    ],
)
def test_what_a_step_computes_and_needs(
    shape: StepShape, kind: StepKind, scheduled: int, cached: int
) -> None:
    assert (shape.kind, shape.scheduled_tokens, shape.cached_tokens) == (kind, scheduled, cached)


def _point(*times_s: float, disturbed: int = 0, failed: str = "") -> StepPoint:
    return StepPoint(
        shape=DECODE,
        times_s=times_s,
        measured_at=WHEN,
        disturbed=("others were at work", "hot")[:disturbed],
        failed=failed,
    )


@pytest.mark.parametrize(
    ("points", "expected_s"),
    [
        ((_point(1.0), _point(2.0)), 2.0),
        ((_point(1.0), _point(2.0, disturbed=1)), 1.0),
        ((_point(1.0, disturbed=1), _point(2.0)), 2.0),
        ((_point(1.0, disturbed=2), _point(2.0, disturbed=1), _point(3.0, disturbed=2)), 2.0),
        ((_point(1.0, disturbed=1), _point(2.0, disturbed=1)), 2.0),
        ((_point(1.0), _point(failed="out of memory")), 1.0),
    ],
)
def test_the_last_of_the_least_disturbed_measurements_counts(
    points: tuple[StepPoint, ...], expected_s: float
) -> None:
    (best,) = made_run(points=points).measured
    assert best.median_s == expected_s


def test_a_shape_that_only_failed_was_not_measured() -> None:
    assert made_run(points=(_point(failed="out of memory"),)).measured == ()


def test_median_and_spread_by_hand() -> None:
    # Deviations from the median of 4 are 3, 0 and 6: their median is 3.
    assert _point(1.0, 4.0, 10.0).median_s == 4.0
    assert _point(1.0, 4.0, 10.0).spread_ratio == 0.75


def test_time_per_output_token_leaves_the_first_out() -> None:
    several = ServedRequest(input_tokens=5, output_tokens=11, sent_s=0, ttft_s=0.5, e2e_s=2.5)
    single = ServedRequest(input_tokens=5, output_tokens=1, sent_s=0, ttft_s=1.5, e2e_s=1.5)
    assert several.tpot_s == 0.2
    assert single.tpot_s is None
    point = ServingPoint(
        load=ServingLoad(concurrency=1, input_tokens=5, output_tokens=11, num_requests=2),
        async_scheduling=False,
        submit_s=0.0,
        requests=(several, single),
        measured_at=WHEN,
    )
    assert (point.ttft_s_mean, point.tpot_s_mean) == (1.0, 0.2)
    assert point.model_copy(update={"requests": (single,)}).tpot_s_mean is None


def test_no_request_ends_before_its_first_token() -> None:
    with pytest.raises(ValidationError, match="cannot end before its first token"):
        ServedRequest(input_tokens=5, output_tokens=2, sent_s=0, ttft_s=1.0, e2e_s=0.9)


def test_columns_of_a_series_are_of_one_length() -> None:
    with pytest.raises(ValidationError, match="of one length"):
        TelemetrySeries(seconds=(0.0,))
