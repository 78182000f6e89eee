"""Bounds hold as many new scores as they say, and groups that share their error widen them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from planner.calibrate.conformal import (
    LEAST_COVERAGE,
    MOST_COVERAGE,
    MOST_WIDENED,
    LeftOut,
    conformal_quantile,
    half_width,
    held_without_group,
)
from planner.domain.evidence import COVERAGE_RATIO


@pytest.mark.parametrize("count", [10, 19, 92])
def test_exchangeable_scores_are_covered_exactly_as_often_as_split_conformal_says(count: int) -> None:
    # The k-th of n scores holds a new one with probability k / (n + 1), k = ceil(0.9 (n + 1)).
    random = np.random.default_rng(0)
    draws = random.exponential(size=(20_000, count + 1))
    held = np.mean([row[-1] <= conformal_quantile(row[:-1]) for row in draws])
    exact = np.ceil(COVERAGE_RATIO * (count + 1)) / (count + 1)
    assert held == pytest.approx(exact, abs=0.007)
    assert exact >= COVERAGE_RATIO


def by_group(groups: np.ndarray) -> dict[str, LeftOut]:
    """One kind of groups, every score of a prediction without its own."""
    return {"group": LeftOut(groups, np.ones(groups.size, dtype=np.bool_))}


scores_of_groups = arrays.arrays(np.float64, st.integers(10, 60), elements=st.floats(0, 10)).flatmap(
    lambda scores: st.tuples(
        st.just(scores),
        st.lists(st.sampled_from("abc"), min_size=scores.size, max_size=scores.size).map(np.array),
    )
)


@given(scores_of_groups)
def test_a_bound_is_a_quantile_widened_no_more_than_is_needed(
    given_scores: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, groups = given_scores
    found, plain = half_width(scores, by_group(groups)), conformal_quantile(scores)
    assert plain <= found.value <= MOST_WIDENED * plain
    assert np.mean(scores <= found.value) >= COVERAGE_RATIO
    if np.unique(groups).size == 1:
        assert found.value == plain
        assert found.coverage_ratio == {}
    elif held_without_group(scores, groups).mean() >= LEAST_COVERAGE:
        assert found.value == plain
    elif found.value > plain:
        assert np.mean(scores <= found.value) <= MOST_COVERAGE


def test_runs_of_a_group_do_not_vouch_for_each_other() -> None:
    # Group c is off by 3, a and b by up to 2: bounds made without c, 2, hold none of it.
    scores = np.concatenate([np.linspace(0, 2, 100), np.full(20, 3.0)])
    groups = np.repeat(["a", "b", "c"], [50, 50, 20])
    without = held_without_group(scores, groups)
    assert not without[groups == "c"].any()
    assert without[groups != "c"].all()


def test_few_groups_that_share_their_errors_are_covered_where_a_plain_quantile_is_over_confident() -> None:
    """A group's runs share an error and differ by less, and the new runs are of a new group: three groups, as here,
    are too few to cover it as often as stated, and widening mends a part.
    """
    random = np.random.default_rng(1)
    plain, widened = [], []
    for _ in range(400):
        shared = random.normal(size=3).repeat(20)
        scores = np.abs(shared + 0.3 * random.normal(size=60))
        new = np.abs(random.normal() + 0.3 * random.normal(size=20))
        groups = np.arange(3).repeat(20).astype(str)
        found = half_width(scores, by_group(groups))
        plain.append(np.mean(new <= conformal_quantile(scores)))
        widened.append(np.mean(new <= found.value))
    assert np.mean(plain) < COVERAGE_RATIO - 0.05
    assert np.mean(plain) + 0.01 < np.mean(widened) < COVERAGE_RATIO


def test_a_kind_with_one_group_tells_nothing() -> None:
    scores = np.arange(20.0)
    assert half_width(scores, by_group(np.full(20, "a"))).coverage_ratio == {}


def test_runs_whose_prediction_saw_their_group_are_not_counted() -> None:
    # 20 scores each of a and b are of predictions that saw their group; of the other 20, b's ten are far off.
    near, far = np.linspace(0.0, 1.0, 50), np.full(10, 1.5)
    scores = np.concatenate([near, far])
    groups = np.repeat(["a", "b", "a", "b"], [20, 20, 10, 10])
    unseen = np.arange(60) >= 40
    counted = half_width(scores, {"model": LeftOut(groups, unseen)})
    # Bounds made of a alone hold none of b's ten: half of what is counted, a sixth of all.
    assert counted.coverage_ratio["model"] < LEAST_COVERAGE
    assert half_width(scores, by_group(groups)).coverage_ratio["group"] > counted.coverage_ratio["model"]
