"""The steps of one calibration beside what is predicted of them, before and after a fit to the run alone."""

from typing import NamedTuple

import numpy as np

from planner.calibrate.fit_steps import MeasuredSteps, StepFit, fit_steps
from planner.calibrate.step_deployment import deployment_of
from planner.calibrate.step_unknowns import StepDeployment, step_unknowns
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, StepPoint
from planner.formulas.arrays import BoolArray, FloatArray
from planner.formulas.operators import GpuOperators
from planner.formulas.operators.scales import scaled
from planner.formulas.step_parts import Layout
from planner.formulas.step_work import (
    Ceiling,
    StepWork,
    attained_ceiling,
    datasheet_ceiling,
    step_work,
)

BAND_RATIO = 0.9
"""Share of steps that the band of a parity plot holds."""


class Predictions(NamedTuple):
    """Of every measured step [N]."""

    before_s: FloatArray
    fitted_s: FloatArray | None
    """None where there was no fit."""
    left_out_s: FloatArray | None
    """By the fit without the step, to first order."""
    work: StepWork
    ceilings: dict[str, Ceiling]
    """Rooflines by what they rest on."""

    @property
    def best_s(self) -> FloatArray:
        """Fitted, or as known before."""
        return self.before_s if self.fitted_s is None else self.fitted_s


class Examined(NamedTuple):
    """A run with what can be said of it."""

    run: CalibrationRun
    points: tuple[StepPoint, ...]
    """One for each measured shape."""
    predictions: Predictions | None
    fit: StepFit | None
    steps: MeasuredSteps | None
    missing: tuple[str, ...]
    """Why there are no predictions or no fit."""

    @property
    def measured_s(self) -> FloatArray:
        """Medians of the repetitions [N]."""
        return np.array([point.median_s for point in self.points])

    @property
    def undisturbed(self) -> BoolArray:
        """Which of them were measured without disturbance [N]."""
        return np.array([not point.disturbed for point in self.points], dtype=np.bool_)

    @property
    def unmeasured(self) -> tuple[StepPoint, ...]:
        """The last attempt at each shape that was never measured."""
        known = {point.shape for point in self.points}
        return tuple({one.shape: one for one in self.run.points if one.shape not in known}.values())


def examined(run: CalibrationRun, operators: GpuOperators | None) -> Examined:
    """Predicts and fits the run's steps; `operators`: as known before any run, None where nothing is."""
    points = tuple(point for point in run.measured if point.median_s > 0)
    nothing = Examined(run, points, None, None, None, ())
    if not points:
        return nothing._replace(missing=("No step was measured.",))
    if run.engine is None or operators is None:
        why = (
            "engine is not recorded" if run.engine is None else "device is in no catalog and has no datasheet"
        )
        return nothing._replace(missing=(f"Steps cannot be predicted: the {why}.",))
    try:
        deployment = deployment_of(run.target, run.engine, operators)
    except InputError as error:
        return nothing._replace(missing=(f"Steps cannot be predicted: {error}.",))
    steps = MeasuredSteps(deployment, points)
    missing: tuple[str, ...] = ()
    fit = None
    try:
        fit = fit_steps([steps])
    except InputError as error:
        missing = (f"Nothing was fitted: {error}.",)
    return nothing._replace(predictions=_predictions(steps, fit), fit=fit, steps=steps, missing=missing)


def _predictions(steps: MeasuredSteps, fit: StepFit | None) -> Predictions:
    deployment, shapes = steps.deployment, steps.shapes
    before = step_unknowns([deployment])
    log_s = before.log_s(np.zeros(before.spreads.size), [shapes])
    fitted_s = left_out_s = None
    if fit is not None:
        fitted_s = np.exp(steps.log_s - fit.solution.residuals)
        left_out_s = np.exp(steps.log_s - fit.solution.left_out_residuals)
    return Predictions(
        before_s=np.exp(log_s),
        fitted_s=fitted_s,
        left_out_s=left_out_s,
        work=step_work(_layout(deployment), shapes),
        ceilings=_ceilings(deployment, fit),
    )


def _layout(one: StepDeployment) -> Layout:
    return Layout(one.model, one.parallelism, one.kv_dtype, one.operators, one.cluster, one.engine_version)


def _ceilings(one: StepDeployment, fit: StepFit | None) -> dict[str, Ceiling]:
    """The datasheet's, or what was guessed of a device that has none, and what the fit makes of it."""
    ops, dtype = one.operators, one.model.weight_dtype
    found = {"guessed before the run" if one.is_plain else "datasheet": datasheet_ceiling(ops, dtype)}
    if fit is not None:
        tuned = ops._replace(coefficients=scaled(ops.coefficients, fit.scales))
        found["fitted, dense matrix products"] = attained_ceiling(tuned, dtype)
    return found


def error_band(examined: Examined) -> float | None:
    """The factor either way that holds 90 % of undisturbed steps, each predicted without it; None without a fit."""
    predictions = examined.predictions
    clean = examined.undisturbed
    if predictions is None or predictions.left_out_s is None or not clean.any():
        return None
    off = np.abs(np.log(predictions.left_out_s / examined.measured_s))[clean]
    return float(np.exp(np.quantile(off, BAND_RATIO)))
