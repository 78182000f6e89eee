"""Robust fits on log error, with a share of the shapes held out to tell what a fit is worth on shapes it never saw."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from planner.formulas.arrays import BoolArray, FloatArray, IntArray
from planner.formulas.operators.coefficients import Evidence, Origin

HELD_OUT_SHARE = 0.3
MAX_ROWS_PER_FIT = 3000
ROBUST_SCALE = 0.1
"""Log errors well above this count linearly and not squared."""
SIGNIFICANT_DIGITS = 4

FitT = TypeVar("FitT")


class Bound(NamedTuple):
    """Where the search for one positive coefficient starts and must stay."""

    start: float
    low: float
    high: float


class HeldOut(NamedTuple):
    """A fit to all rows, what it predicts, and what a fit without the held-out shapes predicts."""

    predicted_s: FloatArray
    unseen_predicted_s: FloatArray
    held_out: BoolArray
    """Rows whose shape the second fit did not see; none where there are too few shapes."""


def rounded(value: float) -> float:
    """Four significant digits: beyond them lies noise, and files stay readable.

    >>> rounded(0.123456)
    0.1235
    """
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def robust_fit(
    predict_s: Callable[[FloatArray], FloatArray], bounds: Sequence[Bound], measured_s: FloatArray
) -> FloatArray:
    """Positive coefficients that minimise the soft-L1 loss of log(predicted / measured) within their bounds."""
    from scipy.optimize import least_squares

    start, low, high = (np.log(column) for column in np.array(bounds, dtype=np.float64).T)
    log_measured = np.log(measured_s)

    def residual(log_values: FloatArray) -> FloatArray:
        return np.asarray(np.log(predict_s(np.exp(log_values))) - log_measured, dtype=np.float64)

    found = least_squares(
        residual, start, bounds=(low, high), loss="soft_l1", f_scale=ROBUST_SCALE, max_nfev=200
    )
    return np.array([rounded(value) for value in np.exp(found.x)])


def sample_rows(rows: BoolArray) -> IntArray:
    """Indices of the marked rows, thinned at random (always the same way) to what a fit needs."""
    index = np.flatnonzero(rows)
    if index.size > MAX_ROWS_PER_FIT:
        index = np.sort(np.random.default_rng(0).choice(index, MAX_ROWS_PER_FIT, replace=False))
    return index


def held_out_rows(shapes: FloatArray) -> BoolArray:
    """Marks the rows of 30 % of the distinct `shapes` (one number a shape), always the same ones.

    None where there are fewer than three shapes: a fit to what is left would say nothing.
    """
    distinct = np.unique(shapes)
    if distinct.size < 3:
        return np.zeros(shapes.shape, dtype=np.bool_)
    count = max(1, round(HELD_OUT_SHARE * distinct.size))
    chosen = np.random.default_rng(0).permutation(distinct)[:count]
    return np.isin(shapes, chosen)


def fit_and_hold_out(
    fit: Callable[[BoolArray], FitT], predict_s: Callable[[FitT], FloatArray], shapes: FloatArray
) -> tuple[FitT, HeldOut]:
    """Fits all rows, and again without the held-out shapes; `fit` is given the rows to use."""
    held = held_out_rows(shapes)
    result = fit(np.ones(shapes.shape, dtype=np.bool_))
    predicted_s = predict_s(result)
    unseen_s = predict_s(fit(~held)) if held.any() else predicted_s
    return result, HeldOut(predicted_s=predicted_s, unseen_predicted_s=unseen_s, held_out=held)


def evidence(measured_s: FloatArray, outcome: HeldOut, where: BoolArray, note: str = "") -> Evidence:
    """Error of a fit on the rows `where`, in sample and held out."""
    error = outcome.predicted_s[where] / measured_s[where] - 1.0
    unseen = where & outcome.held_out
    unseen_error = np.abs(outcome.unseen_predicted_s[unseen] / measured_s[unseen] - 1.0)
    return Evidence(
        origin=Origin.TABLE,
        note=note,
        rows=int(where.sum()),
        median_ratio=rounded(float(np.median(np.abs(error)))),
        p90_ratio=rounded(float(np.quantile(np.abs(error), 0.9))),
        bias_ratio=rounded(float(np.median(error))),
        held_out_rows=int(unseen.sum()),
        held_out_median_ratio=rounded(float(np.median(unseen_error))) if unseen.any() else None,
        held_out_p90_ratio=rounded(float(np.quantile(unseen_error, 0.9))) if unseen.any() else None,
    )


class LinearForm(NamedTuple):
    """A time that is a sum of terms: seconds per unit of each coefficient [rows, terms].

    The first `efficiencies` terms are divided by their coefficient, the others multiplied with it.
    """

    terms: FloatArray
    efficiencies: int

    def rows(self, keep: BoolArray | IntArray) -> "LinearForm":
        """The form of some rows."""
        return LinearForm(self.terms[keep], self.efficiencies)

    def time_s(self, values: FloatArray) -> FloatArray:
        """Seconds of every row."""
        factors = np.concatenate([1.0 / values[: self.efficiencies], values[self.efficiencies :]])
        return np.asarray(self.terms @ factors, dtype=np.float64)


class Measured(NamedTuple):
    """Times to fit, with one number for the shape each row belongs to."""

    latency_s: FloatArray
    shapes: FloatArray
    note: str


def fit_linear(form: LinearForm, bounds: Sequence[Bound], measured: Measured) -> tuple[list[float], Evidence]:
    """The coefficients of a linear form and what they are worth."""

    def fit(use: BoolArray) -> FloatArray:
        index = sample_rows(use)
        return robust_fit(form.rows(index).time_s, bounds, measured.latency_s[index])

    values, outcome = fit_and_hold_out(fit, form.time_s, measured.shapes)
    everything = np.ones(measured.latency_s.shape, dtype=np.bool_)
    return [float(value) for value in values], evidence(
        measured.latency_s, outcome, everything, measured.note
    )
