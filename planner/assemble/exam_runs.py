"""A calibration run as an exam: its steps and serving runs predicted by what is stored, beside two simple guesses."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.assemble.fit_runs import stored_step
from planner.assemble.known import Known
from planner.assemble.run_serving import served_means, serving_step
from planner.calibrate.fit_steps import region_of
from planner.calibrate.step_deployment import step_deployment
from planner.calibrate.store import gpu_fit
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, StepPoint, StepShape
from planner.formulas.arrays import FloatArray
from planner.formulas.gpu_fit import NewSizes
from planner.formulas.shape_time import host_s, shape_columns, shapes_s


class ExaminedStep(NamedTuple):
    """One step, measured and predicted [s]."""

    shape: StepShape
    region: str
    measured_s: float
    predicted_s: float
    mean_s: float | None
    """Mean of all steps that the fit knew: what a guess without any shape says."""
    nearest_s: float | None
    """Time of the step nearest in shape among them."""
    known: bool
    """The fit knew this very shape."""


class ExaminedServing(NamedTuple):
    """One serving run, measured and predicted [s]."""

    concurrency: int
    requests: int
    ttft_measured_s: float
    ttft_predicted_s: float
    tpot_measured_s: float | None
    tpot_predicted_s: float


class Exam(NamedTuple):
    """All of a run."""

    deployment: str
    steps: tuple[ExaminedStep, ...]
    serving: tuple[ExaminedServing, ...]


def examine(run: CalibrationRun, known: Known, fitted_on: Sequence[CalibrationRun]) -> Exam:
    """The run predicted by what is stored; `fitted_on`: runs that the stored fit used, to guess by.

    Raises:
        InputError: the run measured nothing, its engine never started, or its steps cannot be predicted.
    """
    one = step_deployment(run, known.directories)
    if not run.measured and not any(point.requests for point in run.serving):
        raise InputError(f"{run.run_id}: it measured nothing")
    host, step = stored_step(one, known)
    points = run.measured
    columns = shape_columns(point.shape for point in points)
    predicted = shapes_s(step, columns, one.captured_tokens) + host_s(host, columns)
    if not np.isfinite(predicted).all():
        raise InputError(f"{run.run_id}: its steps cannot be predicted; the datasheet in it cannot be right")
    seen = [point for other in fitted_on for point in other.measured]
    guesses = _nearest_s(points, seen)
    mean_s = float(np.mean([point.median_s for point in seen])) if seen else None
    shapes = {point.shape for point in seen}
    steps = tuple(
        ExaminedStep(
            shape=point.shape,
            region=region_of(point),
            measured_s=point.median_s,
            predicted_s=float(time_s),
            mean_s=mean_s,
            nearest_s=guess,
            known=point.shape in shapes,
        )
        for point, time_s, guess in zip(points, predicted, guesses, strict=True)
    )
    stored = gpu_fit(one.operators.gpu.name, known.directories)
    sizes = NewSizes() if stored is None else stored.new_sizes
    served = []
    for point in run.serving:
        if point.requests:
            means = served_means(run, point, one, serving_step(step, sizes), host)
            served.append(
                ExaminedServing(
                    concurrency=point.load.concurrency,
                    requests=len(point.requests),
                    ttft_measured_s=point.ttft_s_mean,
                    ttft_predicted_s=means.ttft_s,
                    tpot_measured_s=point.tpot_s_mean,
                    tpot_predicted_s=means.tpot_s,
                )
            )
    return Exam(one.name, steps, tuple(served))


def _nearest_s(points: Sequence[StepPoint], seen: Sequence[StepPoint]) -> list[float | None]:
    """Of each point, the time of the step nearest to it in logarithms of shape."""
    if not seen:
        return [None] * len(points)
    theirs, times = _places(seen), [point.median_s for point in seen]
    return [times[int(np.argmin(((theirs - place) ** 2).sum(axis=1)))] for place in _places(points)]


def _places(points: Sequence[StepPoint]) -> FloatArray:
    return np.asarray(np.log1p(np.array(shape_columns(point.shape for point in points)).T))
