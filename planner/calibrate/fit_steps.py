"""Fits a device's factors and host time to measured steps, drawn to what kernel tables say."""

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

from planner.calibrate.least_squares import Solution, solve
from planner.calibrate.step_unknowns import StepDeployment, StepUnknowns, model_error, step_unknowns
from planner.domain.base import InputError
from planner.domain.calibration import StepPoint
from planner.domain.evidence import Estimate, StepKind
from planner.formulas.arrays import FloatArray
from planner.formulas.gpu_fit import FittedParameter, RegionError
from planner.formulas.host_time import MeasuredHost
from planner.formulas.operators.scales import KernelScales
from planner.formulas.shape_time import ShapeColumns, shape_columns

FEWEST_STEPS = 6
IDENTIFIED_RATIO = 0.7
"""A parameter whose spread stays above this share of its prior's is not told by the runs."""
Z90 = 1.645
MOVED_RATIO = 0.5
"""A parameter that moved more than this share of its prior's spread stays where it is, told or not."""
LEAST_NOISE = 0.003
DISTURBED_NOISE, DISTURBED_FACTOR = 0.05, 3.0
"""A point that something disturbed has at least this noise, and so many times as much."""
SIGNIFICANT_DIGITS = 4
REGION_TOKENS = (64, 512, 4096)
"""Steps are reported apart by tokens scheduled, up to and including each."""


class MeasuredSteps(NamedTuple):
    """Steps of one deployment with their times."""

    deployment: StepDeployment
    points: tuple[StepPoint, ...]

    @property
    def shapes(self) -> ShapeColumns:
        """Of the points, in their order."""
        return shape_columns(point.shape for point in self.points)

    @property
    def log_s(self) -> FloatArray:
        """Logarithm of their median times [N]."""
        return np.asarray(np.log([point.median_s for point in self.points]), dtype=np.float64)

    @property
    def noise(self) -> FloatArray:
        """Standard deviation of those logarithms: of the median and of the model [N]."""
        of_median = np.array([noise_of(point) for point in self.points])
        return np.asarray(np.hypot(of_median, model_error(self.deployment)), dtype=np.float64)


class StepFit(NamedTuple):
    """What was found."""

    scales: KernelScales
    host: MeasuredHost
    curves: tuple[FloatArray, ...]
    """Log ratios of each deployment at its knots."""
    parameters: tuple[FittedParameter, ...]
    solution: Solution
    unknowns: StepUnknowns
    before: FloatArray
    """Residuals before the fit [N]."""


def noise_of(point: StepPoint) -> float:
    """Standard deviation of the logarithm of a median: 1.48 x 1.25 x the absolute deviation / sqrt(n)."""
    of_median = max(1.85 * point.spread_ratio / sqrt(len(point.times_s)), LEAST_NOISE)
    return DISTURBED_FACTOR * max(of_median, DISTURBED_NOISE) if point.disturbed else of_median


def fit_steps(measured: Sequence[MeasuredSteps]) -> StepFit:
    """Factors, host time and curves from the steps of deployments on one device.

    Raises:
        InputError: there are too few steps for a fit, or the device's datasheet gives no time for them.
    """
    count = sum(len(one.points) for one in measured)
    if count < FEWEST_STEPS:
        raise InputError(f"{count} measured steps; a fit needs {FEWEST_STEPS}")
    unknowns = step_unknowns([one.deployment for one in measured])
    observed = np.concatenate([one.log_s for one in measured])
    before = observed - unknowns.log_s(np.zeros(unknowns.spreads.size), [one.shapes for one in measured])
    if not np.isfinite(before).all():
        names = ", ".join(one.deployment.name for one in measured)
        raise InputError(f"steps of {names} cannot be predicted: the datasheet in the run cannot be right")
    kept, solution = unknowns, _solved(measured, unknowns)
    while (fewer := _without(kept, _identified(solution, kept))) is not kept:
        kept, solution = fewer, _solved(measured, fewer)
    applied = kept.applied(solution.values)
    return StepFit(
        scales=_rounded(applied.scales),
        host=MeasuredHost(
            sync_step_s=rounded(applied.host.sync_step_s),
            sync_per_sequence_s=rounded(applied.host.sync_per_sequence_s),
        ),
        curves=applied.curves,
        parameters=tuple(_parameters(kept, unknowns, solution, count)),
        solution=solution,
        unknowns=kept,
        before=before,
    )


def _solved(measured: Sequence[MeasuredSteps], unknowns: StepUnknowns) -> Solution:
    shapes = [one.shapes for one in measured]
    return solve(
        lambda values: unknowns.log_s(values, shapes),
        np.concatenate([one.log_s for one in measured]),
        np.concatenate([one.noise for one in measured]),
        unknowns.spreads,
    )


def _identified(solution: Solution, unknowns: StepUnknowns) -> frozenset[str]:
    """Names of the shared unknowns that the runs tell more of than was known, or that they moved far.

    Where a kernel got so fast that it hardly shows, runs tell that it is no slower, though not how fast it is.
    """
    shared = unknowns.kernels + unknowns.host
    found = zip(shared, solution.values.tolist(), solution.spreads.tolist(), strict=False)
    return frozenset(
        one.name
        for one, value, spread in found
        if spread < IDENTIFIED_RATIO * one.spread or abs(value) > MOVED_RATIO * one.spread
    )


def _without(unknowns: StepUnknowns, told: frozenset[str]) -> StepUnknowns:
    """Kernel factors that runs do not tell stay at 1; host time stays in, or steps would lack it."""
    kernels = tuple(one for one in unknowns.kernels if one.name in told)
    return unknowns if kernels == unknowns.kernels else unknowns._replace(kernels=kernels)


def _parameters(
    kept: StepUnknowns, asked: StepUnknowns, solution: Solution, count: int
) -> Iterator[FittedParameter]:
    """Every shared unknown: as found, or as it was known."""
    found = {
        one.name: (one.value * float(np.exp(x)), spread)
        for one, x, spread in zip(
            kept.kernels + kept.host, solution.values, solution.spreads.tolist(), strict=False
        )
    }
    for one in asked.kernels + asked.host:
        prior = estimate(one.value, one.spread, 0)
        value, spread = found.get(one.name, (one.value, one.spread))
        known = one.name in found and spread < IDENTIFIED_RATIO * one.spread
        yield FittedParameter(
            name=one.name,
            estimate=estimate(value, min(spread, one.spread), count) if one.name in found else prior,
            prior=prior,
            identified=known,
        )


def estimate(value: float, spread: float, count: int) -> Estimate:
    """A log-normal number with its 90 % range."""
    factor = float(np.exp(Z90 * spread))
    value = rounded(value)
    return Estimate(value=value, low=rounded(value / factor), high=rounded(value * factor), n=count)


def rounded(value: float) -> float:
    """To the digits that are kept.

    >>> rounded(0.00123456)
    0.001235
    """
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _rounded(scales: KernelScales) -> KernelScales:
    return KernelScales(**{name: rounded(value) for name, value in scales.model_dump().items()})


def region_errors(measured: Sequence[MeasuredSteps], fit: StepFit) -> tuple[RegionError, ...]:
    """Errors by deployment, kind of step and tokens scheduled."""
    found, start = [], 0
    left_out = fit.solution.left_out_residuals
    for one in measured:
        rows = np.arange(start, start + len(one.points))
        start += len(one.points)
        regions = np.array([region_of(point) for point in one.points])
        for region in sorted(set(regions)):
            here = rows[regions == region]
            errors = np.expm1(-fit.solution.residuals[here])
            found.append(
                RegionError(
                    deployment=one.deployment.name,
                    region=str(region),
                    steps=here.size,
                    median_ratio=_capped(float(np.median(np.abs(errors)))),
                    p90_ratio=_capped(float(np.quantile(np.abs(errors), 0.9))),
                    bias_ratio=_capped(float(np.median(errors))),
                    left_out_median_ratio=median_error(left_out[here]),
                    left_out_p90_ratio=_capped(float(np.quantile(np.abs(np.expm1(-left_out[here])), 0.9))),
                    before_median_ratio=median_error(fit.before[here]),
                )
            )
    return tuple(found)


def median_error(residuals: FloatArray) -> float:
    """Median of |predicted / measured - 1| from residuals of logarithms, measured minus predicted."""
    return _capped(float(np.median(np.abs(np.expm1(-residuals)))))


def _capped(ratio: float) -> float:
    """As it is kept: a thousandfold stands for all that is worse."""
    return min(rounded(ratio), 1e3)


def region_of(point: StepPoint) -> str:
    """What a step is reported with.

    >>> from planner.domain.calibration import StepShape
    >>> region_of(StepPoint(shape=StepShape(decodes=8, context_tokens=100), measured_at=""))
    'decode, up to 64 tokens'
    """
    tokens = point.shape.scheduled_tokens
    limit = next((limit for limit in REGION_TOKENS if tokens <= limit), None)
    size = f"up to {limit:,} tokens" if limit else f"above {REGION_TOKENS[-1]:,} tokens"
    return f"{StepKind(point.shape.kind).value}, {size}"
