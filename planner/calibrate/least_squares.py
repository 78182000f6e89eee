"""Robust least squares with normal priors: Gauss-Newton on iteratively reweighted residuals (Huber 1964)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import FloatArray

HUBER = 1.5
"""Residuals beyond so many standard deviations count linearly and not squared."""
MAX_ITERATIONS = 60
SMALLEST_STEP = 1e-4
"""In units of the prior's spread: a search that moves less has ended."""
DIFFERENCE = 1e-4
"""Of difference quotients, in units of the prior's spread."""
LEAST_DAMPING, MOST_DAMPING = 1e-6, 1e8

Predict = Callable[[FloatArray], FloatArray]


class Solution(NamedTuple):
    """What was found; P unknowns, N observations."""

    values: FloatArray
    """[P]"""
    covariance: FloatArray
    """[P, P] of the unknowns, given the residuals' own spread where it is larger than the noise assumed."""
    jacobian: FloatArray
    """[N, P] of the predictions."""
    residuals: FloatArray
    """[N] observed minus predicted."""
    weights: FloatArray
    """[N] inverse variances, as reweighted."""

    @property
    def spreads(self) -> FloatArray:
        """Standard deviation of each unknown [P]."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def left_out_residuals(self) -> FloatArray:
        """What each residual would be had its observation been left out, to first order: r / (1 - leverage) [N]."""
        spread = self.jacobian @ (self.covariance / self.inflation)
        leverage = np.einsum("np,np->n", spread, self.jacobian) * self.weights
        return np.asarray(self.residuals / np.maximum(1.0 - leverage, 1e-3))

    @property
    def inflation(self) -> float:
        """Factor by which residuals' variance exceeds the assumed noise; 1 where it does not."""
        freedom = max(self.residuals.size - self.values.size / 2.0, 1.0)
        return max(float((self.weights * self.residuals**2).sum()) / freedom, 1.0)


class Problem(NamedTuple):
    """Observations [N] to explain, with normal priors N(0, prior_spread^2) of the unknowns [P]."""

    predict: Predict
    observed: FloatArray
    noise: FloatArray
    """Standard deviations [N]."""
    prior_spread: FloatArray
    difference: float = DIFFERENCE
    """Of difference quotients, in units of the prior's spread; large for predictions that jump."""

    @property
    def precision(self) -> FloatArray:
        """Of the priors [P, P]."""
        return np.diag(self.prior_spread**-2.0)

    def jacobian(self, values: FloatArray, predicted: FloatArray) -> FloatArray:
        """Of the predictions [N, P]."""
        return jacobian_of(self.predict, values, self.difference * self.prior_spread, predicted)

    def loss(self, values: FloatArray, predicted: FloatArray) -> float:
        """What the search makes small."""
        return _loss(self.observed - predicted, self.noise) + float(values @ self.precision @ values)


def solve(
    predict: Predict,
    observed: FloatArray,
    noise: FloatArray,
    prior_spread: FloatArray,
    difference: float = DIFFERENCE,
) -> Solution:
    """Unknowns with prior N(0, prior_spread^2) [P] that explain `observed` [N] with standard deviations `noise` [N].

    `difference`: of difference quotients, in units of the prior's spread; large for predictions that jump.
    """
    problem = Problem(predict, observed, noise, prior_spread, difference)
    return solution_at(problem, minimum(problem, np.zeros(prior_spread.size)))


def minimum(problem: Problem, start: FloatArray, smallest_step: float = SMALLEST_STEP) -> FloatArray:
    """The unknowns [P] that a search from `start` ends at, once a step is below `smallest_step` prior spreads.

    Levenberg's damping keeps each step downhill.
    """
    values, predicted, damping = start, problem.predict(start), 1e-3
    for _ in range(MAX_ITERATIONS):
        residuals = problem.observed - predicted
        weights = huber_weights(residuals, problem.noise)
        jacobian = problem.jacobian(values, predicted)
        normal = jacobian.T @ (weights[:, None] * jacobian) + problem.precision
        gradient = jacobian.T @ (weights * residuals) - problem.precision @ values
        here = _At(values, predicted, problem.loss(values, predicted), damping)
        step, predicted, damping = _downhill(problem, here, normal, gradient)
        values = values + step
        if float(np.abs(step / problem.prior_spread).max()) < smallest_step:
            break
    return values


class _At(NamedTuple):
    values: FloatArray
    predicted: FloatArray
    loss: float
    damping: float


def _downhill(
    problem: Problem, at: _At, normal: FloatArray, gradient: FloatArray
) -> tuple[FloatArray, FloatArray, float]:
    """A step that lowers the loss, what is predicted after it, and the next damping; no step where none does."""
    damping = at.damping
    while damping < MOST_DAMPING:
        step = np.asarray(np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient), np.float64)
        tried = at.values + step
        predicted = problem.predict(tried)
        loss = problem.loss(tried, predicted)
        if np.isfinite(loss) and loss <= at.loss:
            return step, predicted, max(damping / 10.0, LEAST_DAMPING)
        damping *= 10.0
    return np.zeros_like(at.values), at.predicted, damping


def solution_at(problem: Problem, values: FloatArray) -> Solution:
    """Spreads and residuals at given unknowns."""
    predicted = problem.predict(values)
    residuals = problem.observed - predicted
    weights = huber_weights(residuals, problem.noise)
    jacobian = problem.jacobian(values, predicted)
    normal = jacobian.T @ (weights[:, None] * jacobian) + problem.precision
    inverse = np.asarray(np.linalg.inv(normal), np.float64)
    found = Solution(values, inverse, jacobian, residuals, weights)
    return found._replace(covariance=found.covariance * found.inflation)


def jacobian_of(predict: Predict, values: FloatArray, steps: FloatArray, predicted: FloatArray) -> FloatArray:
    """Forward differences with a step for each unknown [N, P]."""
    columns = []
    for index, step in enumerate(steps):
        moved = values.copy()
        moved[index] += step
        columns.append((predict(moved) - predicted) / step)
    return np.array(columns).T if columns else np.zeros((predicted.size, 0))


def huber_weights(residuals: FloatArray, noise: FloatArray) -> FloatArray:
    """Inverse variances, smaller where a residual is far out [N]."""
    scaled = np.abs(residuals) / noise
    return np.asarray(np.minimum(1.0, HUBER / np.maximum(scaled, 1e-12)) / noise**2)


def _loss(residuals: FloatArray, noise: FloatArray) -> float:
    scaled = np.abs(residuals) / noise
    return float(np.where(scaled <= HUBER, scaled**2, 2 * HUBER * scaled - HUBER**2).sum())
