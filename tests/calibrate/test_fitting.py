"""The search finds what made the numbers, holds out what it says, and tells the error that is there."""

import numpy as np
import pytest

from planner.calibrate.fitting import (
    Bound,
    HeldOut,
    LinearForm,
    Measured,
    evidence,
    fit_linear,
    held_out_rows,
    robust_fit,
)
from tests.calibrate.made_tables import noisy


def test_known_linear_coefficients_are_found_despite_outliers() -> None:
    terms = np.column_stack([np.linspace(1, 100, 200), np.full(200, 5.0)])
    form = LinearForm(terms, efficiencies=1)
    times = noisy(form.time_s(np.array([0.5, 3.0])), 0.01)
    times[::20] *= 3.0
    shapes = np.repeat(np.arange(20.0), 10)
    values, worth = fit_linear(form, (Bound(0.9, 0.1, 1), Bound(1, 0.1, 10)), Measured(times, shapes, "x"))
    assert values == pytest.approx([0.5, 3.0], rel=0.02)
    assert worth.rows == 200
    assert worth.held_out_rows == 60
    assert worth.median_ratio == pytest.approx(0.0067, rel=0.3)


def test_bounds_hold() -> None:
    times = np.full(10, 7.0)
    assert robust_fit(lambda x: np.full(10, x[0]), (Bound(1, 0.5, 2),), times)[0] == pytest.approx(2.0)


def test_held_out_shapes_are_thirty_percent_and_always_the_same() -> None:
    shapes = np.repeat(np.arange(50.0), 4)
    held = held_out_rows(shapes)
    assert held.sum() == 60
    assert (held == held_out_rows(shapes)).all()
    assert all(held[shapes == shape].all() or not held[shapes == shape].any() for shape in range(50))
    assert not held_out_rows(np.array([1.0, 1.0, 2.0])).any()


def test_evidence_tells_the_error_that_is_there() -> None:
    measured = np.ones(100)
    predicted = np.concatenate([np.full(50, 1.1), np.full(50, 0.8)])
    held = np.arange(100) >= 90
    found = evidence(measured, HeldOut(predicted, predicted * 2, held), np.ones(100, dtype=np.bool_))
    assert found.median_ratio == pytest.approx(0.15)
    assert found.p90_ratio == pytest.approx(0.2)
    assert found.bias_ratio == pytest.approx(-0.05)
    assert found.held_out_median_ratio == pytest.approx(0.6)
    assert found.held_out_rows == 10
