"""Waiting times, spreads and counts against theory and against draws."""

import math

import numpy as np
import pytest
from scipy.stats import gamma

from planner.serving.waiting import Spread, Wait, few_quantile, gamma_share_below, queue_wait


@pytest.mark.parametrize(("servers", "rho"), [(1, 0.5), (1, 0.9), (4, 0.8), (20, 0.9)])
def test_waiting_agrees_with_erlang_c(servers: int, rho: float) -> None:
    """M/M/c mean waiting time within 8 % of Erlang C (exact for c = 1)."""
    offered = servers * rho
    head = sum(offered**k / math.factorial(k) for k in range(servers))
    tail = offered**servers / math.factorial(servers) / (1 - rho)
    exact = tail / (head + tail) / (servers * (1 - rho))
    wait = queue_wait(np.array([rho]), np.array([float(servers)]), np.array([1.0]), np.array([1.0]))
    assert wait.mean_s[0] == pytest.approx(exact, rel=1e-9 if servers == 1 else 0.08)


def test_constant_arrivals_of_equal_jobs_never_wait() -> None:
    wait = queue_wait(np.array([0.9]), np.array([1.0]), np.array([1.0]), np.array([0.0]))
    assert wait.mean_s[0] == 0.0
    assert wait.quantile_s(0.99)[0] == 0.0


def test_waiting_tail_is_exponential_above_an_atom() -> None:
    wait = queue_wait(np.array([0.8]), np.array([1.0]), np.array([1.0]), np.array([1.0]))
    # M/M/1: P(W > t) = rho exp(-(1 - rho) t), so the 95 % quantile is ln(0.8 / 0.05) / 0.2.
    assert wait.quantile_s(0.95)[0] == pytest.approx(math.log(0.8 / 0.05) / 0.2, rel=1e-6)
    assert wait.quantile_s(0.1)[0] == 0.0


@pytest.mark.parametrize("mean", [0.02, 0.3, 1.5])
def test_few_prompts_are_counted(mean: float) -> None:
    """Without feedback Poisson; with it, as many as the branching process has that it comes from."""
    random = np.random.default_rng(2)
    plain = np.quantile(random.poisson(mean, 400_000), 0.95)
    assert few_quantile(np.array([mean]), np.array([0.0]), 0.95)[0] == plain
    generation = random.poisson(mean * 0.6, 400_000)
    total = generation.copy()
    while generation.any():
        generation = random.poisson(0.4 * generation)
        total += generation
    assert few_quantile(np.array([mean]), np.array([0.4]), 0.95)[0] == np.quantile(total, 0.95)


@pytest.mark.parametrize("cv", [1.0, 1.3, 2.0, 4.0])
@pytest.mark.parametrize("times", [0.001, 0.1, 0.5, 1.0])
def test_shares_of_gamma_gaps(cv: float, times: float) -> None:
    share = gamma_share_below(np.array([times]), np.array([cv]))[0]
    assert share == pytest.approx(gamma.cdf(times / cv**2, 1 / cv**2), rel=2e-4)


@pytest.mark.parametrize("shape", [0.5, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99])
def test_a_spread_is_read_as_a_gamma_distribution(shape: float, quantile: float) -> None:
    spread = Spread(np.array([shape]), np.array([shape]), np.array([2.0 * shape]))
    share = spread.share_below(np.array([gamma.ppf(quantile, shape)]))[0]
    assert share == pytest.approx(quantile, abs=0.01)


def test_a_part_taken_out_of_a_mixture_leaves_the_other() -> None:
    """A third of the times are uniform in [0, 1], the others exponential of mean 2."""
    uniform = Spread(np.array([0.5]), np.array([1 / 12]), np.array([0.0]))
    exponential = Spread(np.array([2.0]), np.array([4.0]), np.array([16.0]))
    moments = [(a + 2 * b) / 3 for a, b in zip(uniform.moments, exponential.moments, strict=True)]
    first, second, cubed = moments
    mixture = Spread(first, second - first**2, cubed - 3 * first * second + 2 * first**3)
    left = mixture.without(np.array([1 / 3]), uniform)
    assert [value[0] for value in left] == pytest.approx([2.0, 4.0, 16.0])


def test_a_time_that_few_have_is_longer_among_them() -> None:
    """One in four waits for exactly 8 s: mean 2, variance 12, third cumulant 48; among them there is no spread."""
    seldom = Spread(np.array([2.0]), np.array([12.0]), np.array([48.0]))
    assert [value[0] for value in seldom.among(np.array([0.25]))] == pytest.approx([8.0, 0.0, 0.0])


def test_a_wait_that_hardly_ever_comes_leaves_the_variance_positive() -> None:
    """The probability is floored, which must not turn a tiny wait into a negative variance."""
    none = np.zeros(1)
    waited = Spread(np.array([0.02]), none, none).plus(Wait(np.array([1e-20]), np.array([1e-28])))
    assert waited.variance[0] >= 0.0
