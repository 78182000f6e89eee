"""Waiting times and their percentiles, on arrays of any common shape."""

from math import lgamma
from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import FloatArray

MAX_UTILIZATION = 0.995
MOST_SKEWED = 2.5
FEW, MOST_COUNTED = 2.0, 16
"""A number is counted where its mean is below the first, up to the second."""


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
    """GI/G/c waiting time; `variability` is (ca^2 + cs^2) / 2. Source: module docstring."""
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
            self.variance + two - mean_s**2,
            self.third + three - 3.0 * mean_s * two + 2.0 * mean_s**3,
        )

    def __add__(self, other: "Spread") -> "Spread":  # type: ignore[override]
        """The sum of two independent times."""
        return Spread(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def quantile_s(self, z: FloatArray | float) -> FloatArray:
        """The time not exceeded where a normal deviate does not exceed `z` (Cornish and Fisher 1938)."""
        deviation = np.sqrt(np.maximum(self.variance, 1e-30))
        skew = np.clip(self.third / deviation**3, 0.0, MOST_SKEWED)
        bent = z + (z**2 - 1.0) / 6.0 * skew - (2.0 * z**3 - 5.0 * z) / 36.0 * skew**2
        return np.asarray(self.mean_s + bent * deviation, dtype=np.float64)


def normal_quantile(probability: FloatArray) -> FloatArray:
    """The normal deviate not exceeded with a probability, within 5e-4 (Hastings; Abramowitz and Stegun 26.2.23)."""
    tail = np.clip(np.minimum(probability, 1.0 - probability), 1e-9, 0.5)
    t = np.sqrt(-2.0 * np.log(tail))
    top = 2.515517 + t * (0.802853 + t * 0.010328)
    bottom = 1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308))
    return np.asarray(np.where(probability < 0.5, -1.0, 1.0) * (t - top / bottom), dtype=np.float64)


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
