"""The replay of recorded steps: seconds are counted, shapes of the exam are never measured."""

from itertools import product
from random import Random

import numpy as np
import pytest

from benchmarks import calibration
from benchmarks.engine_steps import EXAM_SHAPES, exam_shapes, least_disturbed, limits_of
from planner.calibrate.measure.design import candidate_shapes
from planner.domain.calibration import StepPoint, StepShape, Telemetry


@pytest.fixture(scope="module")
def records() -> list[calibration.Record]:
    return calibration.records()


def point(decodes: int, seconds: float, **changes: object) -> StepPoint:
    fields = {
        "shape": StepShape(decodes=decodes, context_tokens=16),
        "times_s": (0.01,),
        "measured_at": "",
        "telemetry": Telemetry(seconds=seconds, samples=1, other_use_ratio=0.3),
    }
    return StepPoint.model_validate(fields | changes)


def test_records_have_every_candidate_and_an_exam_of_other_shapes(records: list[calibration.Record]) -> None:
    assert len({record.name for record in records}) == len(records) == 2
    for record in records:
        limits = limits_of(record.run)
        assert set(record.grid) == set(candidate_shapes(limits))
        assert {one.shape for one in record.exam} == set(exam_shapes(limits))
        assert len(record.exam) == EXAM_SHAPES
        assert all(limits.allows(one.shape) for one in record.exam)
        assert not set(record.grid) & {one.shape for one in record.exam}
    assert sum(path.stat().st_size for path in calibration.RECORDS.glob("steps-*.json")) < 300_000


def test_what_no_longer_fits_is_left_out() -> None:
    # 5 s hold 2 + 2; the next 2 do not fit any more, the 1 after it does.
    points = [point(1, 2.0), point(2, 2.0), point(3, 2.0), point(4, 1.0)]
    assert [one.shape.decodes for one in calibration.within(points, 5.0)] == [1, 2, 4]


def test_a_thinned_grid_is_factorial() -> None:
    shapes = [
        StepShape(decodes=batch, context_tokens=context)
        for batch, context in product((1, 2, 4, 8), (16, 32, 64))
    ]
    assert calibration.thinned(shapes, 1, Random(0)) == set(shapes)
    # Every second of 4 batches and of 3 contexts: 2 x 2, or 2 x 1 from the second context on.
    sizes = {len(calibration.thinned(shapes, 2, Random(seed))) for seed in range(20)}
    assert sizes == {2, 4}


@pytest.mark.parametrize("budget_s", [3.0, 6.0])
def test_all_ways_keep_within_the_same_seconds(records: list[calibration.Record], budget_s: float) -> None:
    record = records[0]
    chosen = calibration.designed(record, budget_s, 1)
    batches = -(-len(chosen) // calibration.BATCH)
    assert sum(map(calibration.seconds, chosen)) + (batches - 1) * calibration.CHOOSING_S <= budget_s
    assert set(chosen) <= set(record.candidates(1).values())
    for way in (calibration.even_grid, calibration.random_order):
        points = way(record, budget_s, 1)
        assert 0.8 * budget_s < sum(map(calibration.seconds, points)) <= budget_s
        assert len({one.shape for one in points}) == len(points)
        assert points == way(record, budget_s, 1) != way(record, budget_s, 2)


def test_a_replay_lacks_a_tenth_of_the_shapes(records: list[calibration.Record]) -> None:
    record = records[0]
    first, second = record.candidates(0), record.candidates(1)
    assert first == record.candidates(0)
    assert first.keys() != second.keys()
    assert 0.8 * len(record.grid) < len(first) < 0.97 * len(record.grid)


def test_a_point_costs_what_its_repetitions_take() -> None:
    whole = point(1, 1.0, times_s=(0.1, 0.2, 0.3, 0.4, 0.1))
    short = calibration.shortened(whole)
    assert short.times_s == (0.1, 0.2, 0.3)
    # 1 s less the 0.4 and 0.1 that were not repeated.
    assert calibration.seconds(short) == pytest.approx(0.5)


@pytest.mark.parametrize("budget_s", [20.0, 40.0])
@pytest.mark.parametrize("index", [0, 1])
def test_a_fit_is_at_a_third_of_what_needs_no_model(
    records: list[calibration.Record], index: int, budget_s: float
) -> None:
    record = records[index]
    points = calibration.designed(record, budget_s, 0)
    error = np.median(record.fitted_errors(points))
    assert error <= 0.15
    for name, other in calibration.guesses(record, points).items():
        assert error <= np.median(other) / 3.0, name


@pytest.mark.parametrize("index", [0, 1])
def test_a_short_choice_never_goes_as_wrong_as_an_even_grid(
    records: list[calibration.Record], index: int
) -> None:
    """The middle replays are nearer one another; the benchmark tells both."""
    record = records[index]
    for budget_s in (2.0, 5.0):
        ours, even = (
            calibration.replays(record, budget_s, way)
            for way in (calibration.designed, calibration.even_grid)
        )
        for share in (0.5, 0.9):
            (_, worst), (_, worst_even) = ours.quantile(share), even.quantile(share)
            assert worst <= 0.8 * worst_even, (budget_s, share)


def test_errors_are_of_the_exam_as_measured(records: list[calibration.Record]) -> None:
    record = records[0]
    # Predictions twice as long are 100 % off, half as long 50 %.
    assert record.errors(record.exam_log_s + np.log(2.0)) == pytest.approx(np.ones(len(record.exam)))
    assert record.errors(record.exam_log_s - np.log(2.0)) == pytest.approx(np.full(len(record.exam), 0.5))
    nothing = record.fitted_errors([])
    assert (nothing == record.carried_errors(None)).all()
    everything = record.fitted_errors(tuple(record.grid.values()))
    assert np.median(everything) < np.median(nothing) / 3.0


def test_a_fit_carries_over_what_is_shared(records: list[calibration.Record]) -> None:
    one, other = records
    row = calibration.carried(one, other)
    assert row.ratio is not None
    assert 0.0 < row.ratio < 1.0


def test_the_least_disturbed_measurement_is_kept() -> None:
    calm = Telemetry(seconds=1.0, samples=1, other_use_ratio=0.1)
    busy = point(1, 1.0, disturbed=("others used 30% of the cores",))
    calmer = point(1, 1.0, disturbed=("others used 10% of the cores",), telemetry=calm, times_s=(0.02,))
    undisturbed = point(1, 1.0, times_s=(0.03,))
    failed = point(2, 1.0, times_s=(), failed="no")
    assert least_disturbed([busy, calmer, failed]) == [calmer]
    assert least_disturbed([calmer, busy]) == [calmer]
    assert least_disturbed([undisturbed, calmer]) == [undisturbed]
