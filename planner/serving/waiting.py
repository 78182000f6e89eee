"""Waiting times and their percentiles, on arrays of any common shape."""

from collections.abc import Mapping
from math import lgamma
from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import FloatArray

QUANTILES = (0.5, 0.95, 0.99)
Z_SCORES = {0.5: 0.0, 0.95: 1.6449, 0.99: 2.3263}
MAX_UTILIZATION = 0.995
MOST_SKEWED = 2.5
SERIES_TERMS = 10
FEW, MOST_COUNTED = 2.0, 16
"""A number is counted where its mean is below the first, up to the second."""


class Latencies(NamedTuple):
    """A figure's mean and percentiles [s], arrays of the load's shape."""

    mean_s: FloatArray
    p50_s: FloatArray
    p95_s: FloatArray
    p99_s: FloatArray


def latencies(mean_s: FloatArray, quantiles_s: Mapping[float, FloatArray]) -> Latencies:
    """With percentiles that never fall, NaN for those not given; the mean may lie above one where a few wait long."""
    unknown_s = np.full_like(mean_s, np.nan)
    p50_s, p95_s, p99_s = (quantiles_s.get(quantile, unknown_s) for quantile in QUANTILES)
    p95_s = np.fmax(p50_s, p95_s) if 0.95 in quantiles_s else p95_s
    return Latencies(mean_s, p50_s, p95_s, np.fmax(p95_s, p99_s) if 0.99 in quantiles_s else p99_s)


class Wait(NamedTuple):
    """A waiting time with an atom at zero and an exponential tail."""

    probability: FloatArray
    mean_s: FloatArray

    def thinned(self, ratio: FloatArray) -> "Wait":
        """The same wait, met so many times as often."""
        return Wait(self.probability * ratio, self.mean_s * ratio)

    def quantile_s(self, quantile: float) -> FloatArray:
        """The waiting time not exceeded with probability `quantile`."""
        scale = self.mean_s / np.maximum(self.probability, 1e-12)
        return np.asarray(
            scale * np.log(np.maximum(self.probability / (1.0 - quantile), 1.0)), dtype=np.float64
        )


def queue_wait(
    utilization: FloatArray, servers: FloatArray, service_s: FloatArray, variability: FloatArray
) -> Wait:
    """GI/G/c waiting time; `variability` is (ca^2 + cs^2) / 2.

    Source: Allen-Cunneen, W = P_w variability S / (c (1 - rho)), with Sakasegawa's waiting probability
    P_w = rho^(sqrt(2 (c+1)) - 1) (1977, Ann. Inst. Stat. Math. 29).
    """
    rho = np.clip(utilization, 0.0, MAX_UTILIZATION)
    probability = rho ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0)
    return Wait(probability, probability * variability * service_s / (servers * (1.0 - rho)))


class Spread(NamedTuple):
    """A time by its first three cumulants."""

    mean_s: FloatArray
    variance: FloatArray
    third: FloatArray

    def plus(self, wait: Wait) -> "Spread":
        """With an independent wait on top."""
        often, mean_s = wait.probability, wait.mean_s
        scale_s = mean_s / np.maximum(often, 1e-12)
        two, three = 2.0 * often * scale_s**2, 6.0 * often * scale_s**3
        return Spread(
            self.mean_s + mean_s,
            np.maximum(self.variance + two - mean_s**2, 0.0),
            self.third + three - 3.0 * mean_s * two + 2.0 * mean_s**3,
        )

    def __add__(self, other: "Spread") -> "Spread":  # type: ignore[override]
        """The sum of two independent times."""
        return Spread(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def among(self, ratio: FloatArray) -> "Spread":
        """The same time where only such a share has any of it: of these alone."""
        first, second, cubed = self.moments
        return spread_of(first / ratio, second / ratio, cubed / ratio)

    @property
    def moments(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The first three about zero."""
        first, second = self.mean_s, self.variance + self.mean_s * self.mean_s
        return first, second, self.third + first * (2.0 * self.variance + second)

    def without(self, ratio: FloatArray, part: "Spread") -> "Spread":
        """What is left of a mixture where a part that has such a share of it is taken away."""
        (first, second, cubed), (one, two, three) = self.moments, part.moments
        rest = 1.0 - ratio
        first = np.maximum((first - ratio * one) / rest, 1e-12)
        return spread_of(first, (second - ratio * two) / rest, (cubed - ratio * three) / rest)

    def share_below(self, time_s: FloatArray) -> FloatArray:
        """Share of times below, of a gamma distribution with these cumulants (Wilson and Hilferty 1931)."""
        deviation = np.sqrt(np.maximum(self.variance, 1e-30))
        skew = np.clip(self.third / deviation**3, 1e-2, 4.0)
        cube = np.cbrt(np.maximum(skew * (time_s - self.mean_s) / deviation / 2.0 + 1.0, 0.0))
        z = np.clip(6.0 / skew * (cube - 1.0) + skew / 6.0, -8.0, 8.0)
        return np.asarray(1.0 / (1.0 + np.exp(-z * (1.5976 + 0.07056 * z * z))), dtype=np.float64)

    def quantile_s(self, z: FloatArray | float) -> FloatArray:
        """The time not exceeded where a normal deviate does not exceed `z` (Cornish and Fisher 1938)."""
        deviation = np.sqrt(np.maximum(self.variance, 1e-30))
        skew = np.clip(self.third / deviation**3, 0.0, MOST_SKEWED)
        bent = z + (z**2 - 1.0) / 6.0 * skew - (2.0 * z**3 - 5.0 * z) / 36.0 * skew**2
        return np.asarray(self.mean_s + bent * deviation, dtype=np.float64)


def spread_of(first: FloatArray, second: FloatArray, cubed: FloatArray) -> Spread:
    """The spread of these moments about zero."""
    squared = first * first
    second = np.maximum(second, squared)
    return Spread(first, second - squared, cubed - first * (3.0 * second - 2.0 * squared))


def few_quantile(mean: FloatArray, utilization: FloatArray, quantile: float) -> FloatArray:
    """The number of prompts met that is not exceeded with probability `quantile`, for means below `FEW`.

    Each prompt met lengthens the stay, in which more come: generalized Poisson,
    P(k) = t (t + k u)^(k-1) e^-(t + k u) / k!, t = mean (1 - u) (Consul and Jain 1973).
    """
    mean = np.minimum(mean, FEW)
    first = np.maximum(mean * (1.0 - utilization), 1e-12)
    below = np.exp(-first)
    number = (below < quantile).astype(np.float64)
    for count in range(1, MOST_COUNTED):
        grown = first + count * utilization
        below = below + first * np.exp((count - 1) * np.log(grown) - grown - lgamma(count + 1))
        number = number + (below < quantile)
    return number


def gamma_share_below(times: FloatArray, cv: FloatArray) -> FloatArray:
    """Share of gamma distributed gaps of this variability, 1 or more, that are below so many times their mean.

    P(k, x) = x^k e^-x / Gamma(k + 1) (1 + x / (k + 1) + x^2 / ((k + 1) (k + 2)) + ...) with k = 1 / cv^2;
    Gamma(k + 1) within 5e-5 (Abramowitz and Stegun 6.1.35).
    """
    k = 1.0 / cv**2
    x = np.minimum(times * k, 4.0)
    terms, total = np.ones_like(x + k), np.ones_like(x + k)
    for count in range(1, SERIES_TERMS):
        terms = terms * x / (k + count)
        total = total + terms
    at_k = 1.0 + k * (-0.5748646 + k * (0.9512363 + k * (-0.6998588 + k * (0.4245549 - k * 0.1010678))))
    return np.asarray(np.minimum(x**k * np.exp(-x) / at_k * total, 1.0), dtype=np.float64)
