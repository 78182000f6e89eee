"""The measuring loop: asks the engine for one shape after the other, watches the device, and keeps every point."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from random import Random
from typing import NamedTuple, Protocol

from planner.calibrate.measure.design import (
    FIRST_ASK_S,
    EngineLimits,
    Forecast,
    Plan,
    candidate_shapes,
    forecast,
    next_shapes,
    opening_shapes,
    target_shapes,
)
from planner.calibrate.measure.engine_process import EngineDied
from planner.calibrate.measure.engine_protocol import Answer, Failed, FailureKind, Measure, Measured, Serve
from planner.calibrate.measure.probe import Probe
from planner.calibrate.measure.telemetry import disturbances
from planner.calibrate.step_unknowns import StepDeployment
from planner.domain.calibration import CalibrationRun, StepPoint, StepShape
from planner.formulas.arrays import FloatArray

BATCH = 6
"""Shapes chosen at a time, between two fits."""
MOST_ATTEMPTS = 2
MOST_COUNTED = 100
"""Attempts; a shape that is measured more often than that, for drift, stays at it."""
DRIFT_EVERY = 3
"""Batches, after which the first shape is measured again: what changed meanwhile is the machine."""
MOST_POINT_SHARE = 0.25
"""Of what is left of the budget that one shape may take."""
WIDE_SPREAD_RATIO = 0.25
"""Repetitions that differ more than this are called disturbed, whatever the sensors say."""


class Asked(Protocol):
    """An engine process that is running."""

    def ask(self, question: Measure | Serve, *, timeout_s: float) -> Answer:
        """What it answers; raises EngineDied."""
        ...


class Progress(NamedTuple):
    """Where the measuring stands."""

    done_s: float
    budget_s: float
    doing: str


class Tools(NamedTuple):
    """What the measuring works with."""

    probe: Probe
    save: Callable[[CalibrationRun], None]
    """Keeps the run as it stands; may raise, and then the measuring ends."""
    show: Callable[[Progress], None]


class Budget(NamedTuple):
    """Seconds of the wall clock."""

    began_s: float
    total_s: float

    @property
    def left_s(self) -> float:
        """Until it is used up; below 0 after that."""
        return self.total_s - self.spent_s

    @property
    def spent_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began_s


def now() -> str:
    """Date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class StepSession:
    """Measures steps of one started engine until the budget is used up."""

    def __init__(self, run: CalibrationRun, deployment: StepDeployment, tools: Tools, plan: Plan) -> None:
        self.run = run
        self._deployment = deployment
        self._tools = tools
        self._plan = plan
        self._random = Random(f"{run.run_id} {len(run.points)}")
        self._ask_s: list[float] = []
        self._unknowns: FloatArray | None = None
        """Of the last forecast."""

    def measure(self, engine: Asked, limits: EngineLimits, budget: Budget) -> None:
        """An opening, then batches of the most telling shapes, until none fits what is left.

        Raises:
            EngineDied: with the point in flight recorded as failed.
        """
        for number, batch in enumerate(self._batches(limits, budget)):
            waiting = [*batch, *(self._again() if number % DRIFT_EVERY == DRIFT_EVERY - 1 else ())]
            for _ in range(MOST_ATTEMPTS):
                self._random.shuffle(waiting)
                disturbed: list[StepShape] = []
                for shape in waiting:
                    if budget.left_s <= 0:
                        return
                    if self._point(engine, shape, budget).disturbed:
                        disturbed.append(shape)
                waiting = disturbed

    def _again(self) -> tuple[StepShape, ...]:
        """The first shape that was measured and never failed."""
        failed = {point.shape for point in self.run.points if point.failed}
        return next(((point.shape,) for point in self.run.points if point.shape not in failed), ())

    def expected(self, shapes: Sequence[StepShape]) -> Forecast:
        """What steps will take, by what was measured so far."""
        return self._forecast(shapes, ())

    def _forecast(self, shapes: Sequence[StepShape], target: Sequence[StepShape]) -> Forecast:
        found = forecast(self._deployment, self.run.measured, shapes, target=target, start=self._unknowns)
        self._unknowns = found.unknowns
        return found

    def _batches(self, limits: EngineLimits, budget: Budget) -> Iterator[list[StepShape]]:
        candidates, target = candidate_shapes(limits), target_shapes(limits)
        if not self.run.points:
            yield opening_shapes(candidates)
        while budget.left_s > 0:
            open_shapes = self._open(candidates)
            if not open_shapes:
                return
            overhead_s = sorted(self._ask_s)[len(self._ask_s) // 2] if self._ask_s else FIRST_ASK_S
            plan = self._plan._replace(overhead_s=overhead_s)
            expected = self._forecast(open_shapes, target)
            batch = next_shapes(open_shapes, expected, plan, count=BATCH, most_s=budget.left_s)
            if not batch:
                return
            yield batch

    def _open(self, candidates: Sequence[StepShape]) -> list[StepShape]:
        """Shapes not yet measured or given up, and no larger than one that ran out of memory."""
        tried = {point.shape for point in self.run.points if point.times_s or point.failed}
        too_large = [
            point.shape
            for point in self.run.points
            if point.failed.startswith(FailureKind.OUT_OF_MEMORY.value)
        ]
        return [
            shape
            for shape in candidates
            if shape not in tried and not any(_at_least(shape, other) for other in too_large)
        ]

    def _point(self, engine: Asked, shape: StepShape, budget: Budget) -> StepPoint:
        """One shape measured, or its failure; recorded either way."""
        self._tools.show(Progress(budget.spent_s, budget.total_s, shape.label))
        attempt = min(1 + sum(point.shape == shape for point in self.run.points), MOST_COUNTED)
        most_s = max(MOST_POINT_SHARE * budget.left_s, 1.0)
        question = Measure(
            shape=shape,
            repetitions=self._plan.repetitions,
            warmups=self._plan.warmups,
            most_seconds=most_s,
        )
        mark, began_s = self._tools.probe.mark(), time.monotonic()
        try:
            answer = engine.ask(question, timeout_s=10.0 * most_s + 60.0)
        except EngineDied as death:
            kind = FailureKind.OUT_OF_MEMORY if death.out_of_memory else FailureKind.ENGINE
            failed = f"{kind.value}: {death}"
            self._keep(StepPoint(shape=shape, measured_at=now(), attempt=attempt, failed=failed))
            raise
        telemetry = self._tools.probe.since(mark)
        if not isinstance(answer, Measured):
            failed = (
                f"{answer.kind.value}: {answer.message}" if isinstance(answer, Failed) else "no times came"
            )
            point = self._keep(
                StepPoint(shape=shape, measured_at=now(), attempt=attempt, failed=failed, telemetry=telemetry)
            )
            check_lives(answer)
            return point
        timed_s = sum(answer.times_s) + sum(answer.warmup_s)
        self._ask_s.append(max(time.monotonic() - began_s - timed_s, 0.0))
        baseline = [
            one.telemetry
            for one in self.run.measured
            if one.telemetry is not None and one.shape.kind is shape.kind
        ]
        point = StepPoint(
            shape=shape,
            times_s=answer.times_s,
            warmup_s=answer.warmup_s,
            measured_at=now(),
            attempt=attempt,
            disturbed=disturbances(telemetry, baseline),
            telemetry=telemetry,
        )
        if point.spread_ratio > WIDE_SPREAD_RATIO:
            wide = f"repetitions differ by {point.spread_ratio:.0%}"
            point = point.model_copy(update={"disturbed": (*point.disturbed, wide)})
        return self._keep(point)

    def _keep(self, point: StepPoint) -> StepPoint:
        self.run = self.run.model_copy(update={"points": (*self.run.points, point)})
        self._tools.save(self.run)
        return point


def check_lives(answer: Answer) -> None:
    """Raises EngineDied where the answer is a failure that the engine did not outlive."""
    if isinstance(answer, Failed) and answer.engine_lost:
        raise EngineDied(answer.message, out_of_memory=answer.kind is FailureKind.OUT_OF_MEMORY)


def _at_least(shape: StepShape, other: StepShape) -> bool:
    """Whether a step needs as much memory as another, for activations and cache alike."""
    return shape.scheduled_tokens >= other.scheduled_tokens and shape.cached_tokens >= other.cached_tokens
