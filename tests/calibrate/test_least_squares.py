import numpy as np
import pytest

from planner.calibrate.least_squares import HUBER, huber_weights, solve
from planner.formulas.arrays import FloatArray

RANDOM = np.random.default_rng(7)
DESIGN = RANDOM.standard_normal((80, 3))
TRUE = np.array([0.5, -1.0, 2.0])


def linear(values: FloatArray) -> FloatArray:
    return np.asarray(DESIGN @ values)


def test_of_a_linear_model_it_is_the_ridge_solution() -> None:
    # Residuals far below HUBER deviations: the closed form (X'X/s^2 + 1/p^2)^-1 X'y/s^2.
    noise, prior = np.full(80, 1.0), np.full(3, 0.4)
    observed = linear(TRUE) + 0.05 * RANDOM.standard_normal(80)
    found = solve(linear, observed, noise, prior)
    inverse = np.linalg.inv(DESIGN.T @ DESIGN + np.diag(prior**-2.0))
    assert found.values == pytest.approx(inverse @ DESIGN.T @ observed, abs=1e-4)
    assert found.covariance == pytest.approx(inverse, rel=1e-4)
    assert found.inflation == 1.0


def test_residuals_of_steps_left_out_are_those_of_a_fit_without_them() -> None:
    noise, prior = np.full(80, 0.1), np.full(3, 10.0)
    observed = linear(TRUE) + 0.1 * np.clip(RANDOM.standard_normal(80), -1.4, 1.4)
    found = solve(linear, observed, noise, prior)
    for index in (0, 17, 63):
        kept = np.arange(80) != index
        without = solve(lambda x: DESIGN[kept] @ x, observed[kept], noise[kept], prior)  # noqa: B023
        left_out = observed[index] - DESIGN[index] @ without.values
        assert found.left_out_residuals[index] == pytest.approx(left_out, rel=0.02, abs=2e-3)


def test_outliers_weigh_little() -> None:
    noise, prior = np.full(80, 0.1), np.full(3, 10.0)
    observed = linear(TRUE) + 0.1 * RANDOM.standard_normal(80)
    observed[:8] += 50.0
    found = solve(linear, observed, noise, prior)
    assert found.values == pytest.approx(TRUE, abs=0.15)
    plain = np.linalg.lstsq(DESIGN, observed, rcond=None)[0]
    assert np.abs(found.values - TRUE).max() < 0.1 * np.abs(plain - TRUE).max()
    assert (found.weights[:8] < 0.01 * found.weights[8:].min()).all()


def test_weights_fall_beyond_the_threshold_alone() -> None:
    noise = np.full(3, 2.0)
    weights = huber_weights(np.array([0.0, HUBER * 2.0, 4 * HUBER * 2.0]), noise)
    assert weights == pytest.approx([0.25, 0.25, 0.25 / 4])


def test_more_noise_than_was_said_widens_the_ranges() -> None:
    noise, prior = np.full(80, 0.01), np.full(3, 10.0)
    found = solve(linear, linear(TRUE) + 0.1 * RANDOM.standard_normal(80), noise, prior)
    assert found.inflation > 5
    assert (found.spreads > 0.01 / np.sqrt(80)).all()


def test_what_no_observation_depends_on_keeps_its_prior() -> None:
    def blind(values: FloatArray) -> FloatArray:
        return np.asarray(DESIGN[:, 0] * values[0])

    found = solve(blind, blind(TRUE), np.full(80, 0.1), np.array([1.0, 3.0]))
    assert found.values[1] == 0.0
    assert found.spreads[1] == pytest.approx(3.0)
    assert found.spreads[0] < 0.05


def test_a_strongly_bent_model_is_solved() -> None:
    at = np.linspace(0.1, 3.0, 40)

    def bent(values: FloatArray) -> FloatArray:
        return np.asarray(np.log(np.exp(values[0]) * at + np.exp(values[1])))

    true = np.array([3.0, -4.0])
    found = solve(bent, bent(true), np.full(40, 0.01), np.full(2, 5.0))
    # The priors draw to 0, within what the observations leave open.
    assert (np.abs(found.values - true) < found.spreads).all()
    assert (found.spreads < 1.0).all()
