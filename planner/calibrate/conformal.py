"""Half-widths that hold most of what was left out, from scores that come in groups.

Split-conformal prediction (Vovk; Lei et al. 2018) takes a quantile of the scores of runs that were not fitted, which
covers a new run as likely as stated if it is exchangeable with them. Runs of one model share most of their error, and
models are few. So the quantile is tested with each group left out of it in turn (Dunn, Wasserman and Ramdas 2023) and
widened, by one factor, until runs of groups it did not see are covered. Only runs whose prediction did not see their
group either are counted in that test.
"""

from collections.abc import Mapping
from math import ceil
from typing import NamedTuple

import numpy as np

from planner.domain.evidence import COVERAGE_RATIO
from planner.formulas.arrays import BoolArray, FloatArray

LEAST_COVERAGE, MOST_COVERAGE = 0.85, 0.95
WIDENING_STEP = 0.025
MOST_WIDENED = 2.0


class LeftOut(NamedTuple):
    """One way of leaving scores out, a group at a time."""

    groups: np.ndarray
    """Name of the group of each score."""
    predicted_without: BoolArray
    """Whether the prediction behind each score did not see its group; the others are not counted."""


class HalfWidth(NamedTuple):
    """A bound on scores."""

    value: float
    coverage_ratio: dict[str, float]
    """Share of scores within bounds made without their group, by kind of group."""


def half_width(scores: FloatArray, left_out: Mapping[str, LeftOut]) -> HalfWidth:
    """The bound that holds 90 % of scores; `left_out`: kinds of groups that it is tested on.

    Widened until at least 85 % of the scores of unseen groups are held, or 95 % of all would be.
    """
    tests = {kind: one for kind, one in left_out.items() if np.unique(one.groups).size > 1}
    bound = conformal_quantile(scores)
    widened = 1.0
    while True:
        coverage = {
            kind: float(held_without_group(scores, one.groups, widened)[one.predicted_without].mean())
            for kind, one in tests.items()
        }
        wide_enough = all(share >= LEAST_COVERAGE for share in coverage.values())
        next_widened = widened + WIDENING_STEP
        too_wide = float((scores <= bound * next_widened).mean()) > MOST_COVERAGE
        if wide_enough or too_wide or next_widened > MOST_WIDENED:
            return HalfWidth(bound * widened, coverage)
        widened = next_widened


def held_without_group(scores: FloatArray, groups: np.ndarray, widened: float = 1.0) -> BoolArray:
    """Whether each score is within the widened bound made of the scores of all other groups."""
    held = np.zeros(scores.size, dtype=np.bool_)
    for group in np.unique(groups):
        mine = groups == group
        held[mine] = scores[mine] <= widened * conformal_quantile(scores[~mine])
    return held


def conformal_quantile(scores: FloatArray, coverage_ratio: float = COVERAGE_RATIO) -> float:
    """The score that a new, exchangeable one stays within as likely as stated; the largest where they are few.

    >>> conformal_quantile(np.arange(1.0, 20.0))  # the 18th of 19: 0.9 x (19 + 1)
    18.0
    """
    place = min(ceil(coverage_ratio * (scores.size + 1)), scores.size)
    return float(np.sort(scores)[place - 1])
