"""What `calibrate` chooses to measure against an even grid in the same seconds, replayed from recorded steps."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks.engine_steps import exam_shapes, limits_of
from benchmarks.inputs import Inputs
from benchmarks.measure import Row, best_of, figure, time_at_most
from planner.calibrate.fit_steps import FEWEST_STEPS, MeasuredSteps, StepFit, fit_steps
from planner.calibrate.measure.design import (
    FIRST_ASK_S,
    REPETITIONS,
    WARMUPS,
    Plan,
    forecast,
    next_shapes,
    opening_shapes,
    target_shapes,
)
from planner.calibrate.measure.session import BATCH
from planner.calibrate.step_deployment import step_deployment
from planner.calibrate.step_unknowns import StepDeployment, step_unknowns
from planner.catalog.calibration_runs import read_run
from planner.domain.calibration import CalibrationRun, StepPoint, StepShape
from planner.formulas.arrays import FloatArray
from planner.formulas.shape_time import shape_columns

RECORDS = Path(__file__).parent / "data"
BUDGETS_S = (2.0, 5.0, 10.0, 20.0, 40.0)
SEEDS = 5
"""Replays, each without a tenth of the shapes drawn at random: the middle result counts, the worst is told."""
LEFT_OUT = 0.1
CHOOSING_S = 0.2
"""That each batch of the design but the opening is charged for its fit; the grid needs none."""
LONG_S = 20.0
"""Of measuring, from where on guesses without a model are compared; and before a fit is carried over."""


class Record:
    """One engine of which every shape was measured."""

    def __init__(self, run: CalibrationRun) -> None:
        self.run = run
        self.deployment: StepDeployment = step_deployment(run, ())
        self.name = run.target.model
        asked = set(exam_shapes(limits_of(run)))
        self.exam = tuple(point for point in run.measured if point.shape in asked)
        self.grid = {point.shape: shortened(point) for point in run.measured if point.shape not in asked}
        self.target = target_shapes(limits_of(run))

    def candidates(self, seed: int) -> dict[StepShape, StepPoint]:
        """What a replay may measure."""
        random = Random(f"left out {seed}")
        return {shape: point for shape, point in self.grid.items() if random.random() >= LEFT_OUT}

    @cached_property
    def exam_log_s(self) -> FloatArray:
        """Logarithm of the measured times of the exam [N]."""
        return np.log([point.median_s for point in self.exam])

    def errors(self, predicted_log_s: FloatArray) -> FloatArray:
        """|predicted / measured - 1| of the exam [N]."""
        return np.abs(np.expm1(predicted_log_s - self.exam_log_s))

    def fitted_errors(self, points: Sequence[StepPoint]) -> FloatArray:
        """Of a fit to these points, or of what is known without any where they are too few."""
        if len(points) < FEWEST_STEPS:
            return self.carried_errors(None)
        fit = fit_steps([MeasuredSteps(self.deployment, tuple(points))])
        columns = shape_columns(point.shape for point in self.exam)
        return self.errors(fit.unknowns.log_s(fit.solution.values, [columns]))

    def carried_errors(self, fit: StepFit | None) -> FloatArray:
        """Of what a fit to another engine says of the device, with no curve of this one; of nothing without."""
        unknowns = step_unknowns([self.deployment])
        values = np.zeros(unknowns.spreads.size)
        if fit is not None:
            shared = fit.unknowns.kernels + fit.unknowns.host
            found = dict(zip((one.name for one in shared), fit.solution.values, strict=False))
            for index, one in enumerate(unknowns.kernels + unknowns.host):
                values[index] = found.get(one.name, 0.0)
        columns = shape_columns(point.shape for point in self.exam)
        return self.errors(unknowns.log_s(values, [columns]))


def records(folder: Path = RECORDS) -> list[Record]:
    """All that are kept, by name."""
    return [Record(read_run(path)) for path in sorted(folder.glob("steps-*.json"))]


def shortened(point: StepPoint) -> StepPoint:
    """The point had it been repeated as often as `calibrate` does."""
    assert point.telemetry is not None
    took_s = point.telemetry.seconds - sum(point.times_s[REPETITIONS:])
    telemetry = point.telemetry.model_copy(update={"seconds": took_s})
    return point.model_copy(update={"times_s": point.times_s[:REPETITIONS], "telemetry": telemetry})


def seconds(point: StepPoint) -> float:
    """That measuring it took, warm-up and all."""
    assert point.telemetry is not None
    return point.telemetry.seconds


def designed(record: Record, budget_s: float, seed: int) -> list[StepPoint]:
    """Points chosen as a calibration does: an opening, then batches of the most telling, a fit before each."""
    candidates = record.candidates(seed)
    found: list[StepPoint] = []
    left_s, unknowns, batch = budget_s, None, opening_shapes(list(candidates))
    while measured := list(within((candidates[shape] for shape in batch), left_s)):
        found += measured
        left_s -= sum(map(seconds, measured)) + CHOOSING_S
        plan = Plan(REPETITIONS, WARMUPS, median(seconds(point) - sum(point.times_s) for point in found))
        done = {point.shape for point in found}
        rest = [shape for shape in candidates if shape not in done]
        if left_s <= 0 or not rest:
            break
        expected = forecast(record.deployment, found, rest, target=record.target, start=unknowns)
        unknowns = expected.unknowns
        batch = next_shapes(rest, expected, plan, count=BATCH, most_s=left_s)
    return found


def within(points: Iterator[StepPoint] | Sequence[StepPoint], budget_s: float) -> Iterator[StepPoint]:
    """Those that still fit the seconds left, in order."""
    for point in points:
        if seconds(point) <= budget_s:
            budget_s -= seconds(point)
            yield point


def random_order(record: Record, budget_s: float, seed: int) -> list[StepPoint]:
    """The whole grid in random order until the time is used up."""
    waiting = list(record.candidates(seed).values())
    Random(seed).shuffle(waiting)
    return list(within(waiting, budget_s))


def even_grid(record: Record, budget_s: float, seed: int) -> list[StepPoint]:
    """The finest factorial grid that fits: each n-th of every quantity, from a random start; then more at random."""
    random, candidates = Random(seed), record.candidates(seed)
    for stride in (1, 2, 3, 4, 6):
        kept = thinned(tuple(candidates), stride, random)
        points = [candidates[shape] for shape in sorted(kept, key=list(candidates).index)]
        if sum(map(seconds, points)) <= budget_s:
            break
    random.shuffle(points)
    rest = [point for point in random_order(record, float("inf"), seed) if point.shape not in kept]
    return list(within([*points, *rest], budget_s))


def thinned(shapes: Sequence[StepShape], stride: int, random: Random) -> set[StepShape]:
    """Shapes of which every quantity is an n-th of its values, kind by kind."""
    kept: set[StepShape] = set()
    for kind in dict.fromkeys(shape.kind for shape in shapes):
        mine = [shape for shape in shapes if shape.kind is kind]
        columns = list(zip(*(tuple(shape.model_dump().values()) for shape in mine), strict=True))
        levels = []
        for column in columns:
            values = sorted(set(column))
            levels.append(set(values[random.randrange(min(stride, len(values))) :: stride]))
        kept |= {
            shape
            for shape, row in zip(mine, zip(*columns, strict=True), strict=True)
            if all(value in level for value, level in zip(row, levels, strict=True))
        }
    return kept


def rows(inputs: Inputs) -> Iterator[Row]:
    """The choice against both grids by budget, guesses without a model, the other engine, and the time of a fit."""
    found = records()
    for record in found:
        for budget_s in BUDGETS_S:
            ours = replays(record, budget_s, designed)
            yield from against_grids(record, budget_s, ours)
            if budget_s >= LONG_S:
                yield from against_guesses(record, budget_s, ours)
    for record, other in product(found, found):
        if record is not other:
            yield carried(record, other)
    yield from fit_times(found, inputs.repeats)


class Replays(NamedTuple):
    """One way to choose points, SEEDS times."""

    points: tuple[list[StepPoint], ...]
    errors: FloatArray
    """Of the exam [SEEDS, N]."""

    def quantile(self, share: float) -> tuple[float, float]:
        """Of that quantile of the exam's errors the middle replay and the worst."""
        by_replay = np.quantile(self.errors, share, axis=1)
        return float(np.median(by_replay)), float(by_replay.max())


def replays(record: Record, budget_s: float, way: Callable[[Record, float, int], list[StepPoint]]) -> Replays:
    """Of a way to choose points in so many seconds."""
    points = tuple(way(record, budget_s, seed) for seed in range(SEEDS))
    return Replays(points, np.array([record.fitted_errors(one) for one in points]))


def against_grids(record: Record, budget_s: float, ours: Replays) -> Iterator[Row]:
    """Median and 90th percentile of the exam's errors over those of the better grid, in the middle replay of each."""
    ways = (ours, *(replays(record, budget_s, way) for way in (even_grid, random_order)))
    for name, share in (("median", 0.5), ("p90", 0.9)):
        found = [way.quantile(share) for way in ways]
        chosen, even, shuffled = (
            f"{figure(100 * middle)} % (worst {figure(100 * worst)} %)" for middle, worst in found
        )
        (error, _), *grids = found
        best = min(middle for middle, _ in grids)
        yield Row(
            f"{record.name}, {budget_s:g} s of measuring: error of {len(record.exam)} other steps, {name}",
            f"{chosen} from {median(map(len, ours.points)):g} shapes chosen",
            f"{even} from an even grid, {shuffled} from a random order",
            error / best,
            error <= best,
        )


def guesses(record: Record, points: Sequence[StepPoint]) -> dict[str, FloatArray]:
    """Errors of the exam without a model [N]."""
    log_s = np.log([point.median_s for point in points])
    chosen, exam = (
        np.log1p(np.array(shape_columns(point.shape for point in some)).T) for some in (points, record.exam)
    )
    nearest = ((exam[:, None, :] - chosen[None, :, :]) ** 2).sum(axis=2).argmin(axis=1)
    return {
        "the mean of the points": record.errors(np.full(len(exam), np.log(np.exp(log_s).mean()))),
        "the nearest point": record.errors(log_s[nearest]),
    }


def against_guesses(record: Record, budget_s: float, ours: Replays) -> Iterator[Row]:
    """The fit's median error over those of the mean and of the nearest point measured; a third was promised."""
    error, _ = ours.quantile(0.5)
    others = [guesses(record, points) for points in ours.points]
    for name in others[0]:
        other = median(float(np.median(one[name])) for one in others)
        yield Row(
            f"{record.name}, {budget_s:g} s of measuring: median error against {name}",
            f"{figure(100 * error)} %",
            f"{figure(100 * other)} %, at most a third of it",
            error / other,
            error <= other / 3.0,
        )


def carried(record: Record, other: Record) -> Row:
    """A fit to one engine on the other, of which nothing was measured."""
    fit = fit_steps([MeasuredSteps(record.deployment, tuple(designed(record, LONG_S, 0)))])
    error, before = (float(np.median(other.carried_errors(one))) for one in (fit, None))
    return Row(
        f"{other.name} from {LONG_S:g} s on {record.name}: error of {len(other.exam)} steps, median",
        f"{figure(100 * error)} %",
        f"{figure(100 * before)} % without any run",
        error / before,
        error <= before,
    )


def fit_times(found: Sequence[Record], repeats: int) -> Iterator[Row]:
    """What a fit to everything takes, and what choosing a batch takes, which is charged above."""
    for record in found:
        points = tuple(record.grid.values())
        timing = best_of(repeats, lambda of=record, to=points: fit_steps([MeasuredSteps(of.deployment, to)]))
        yield time_at_most(f"{record.name}: fit to {len(points)} steps", timing, 10.0)
        before = forecast(record.deployment, points[: -2 * BATCH], [points[0].shape]).unknowns
        timing = best_of(repeats, lambda of=record, at=before: one_batch(of, at))
        yield time_at_most(
            f"{record.name}: choice of a batch after {len(points) - BATCH} steps", timing, CHOOSING_S
        )


def one_batch(record: Record, unknowns: FloatArray) -> list[StepShape]:
    """One choice as a run makes it: of the last batch, from the unknowns before the one before it."""
    points = tuple(record.grid.values())
    rest = [point.shape for point in points[-BATCH:]]
    expected = forecast(record.deployment, points[:-BATCH], rest, target=record.target, start=unknowns)
    return next_shapes(rest, expected, Plan(REPETITIONS, WARMUPS, FIRST_ASK_S), count=BATCH, most_s=1e3)
