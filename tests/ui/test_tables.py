import pytest

from planner.domain.plan import Bottleneck
from planner.planning.recommend import shortlist
from planner.ui import tables
from planner.ui.answers import Answer, History


def test_plan_table_shows_every_plan_in_order(llama: Answer) -> None:
    plans = shortlist(llama.recommendation.plans, 5)
    table = tables.plan_table(plans)
    assert len(table) == 5
    assert table["$/month"].is_monotonic_increasing
    assert table["$/month"][0] == pytest.approx(plans[0].cost.usd_per_month, rel=5e-3)
    assert table["TPOT p95, ms"][0] == pytest.approx(1e3 * plans[0].latency.tpot_p95_s, rel=5e-3)


def test_comparison_states_the_difference_to_the_first(llama: Answer) -> None:
    plans = shortlist(llama.recommendation.plans, 20)
    table = tables.comparison_table([plans[0], plans[-1]])
    assert list(table.columns) == ["A", "B", "B − A"]
    ratio = plans[-1].cost.usd_per_month / plans[0].cost.usd_per_month
    expected = f"× {ratio:.2f}" if ratio >= tables.MANIFOLD else f"{100 * (ratio - 1):+.0f} %"
    assert table.loc["$ per month", "B − A"] == expected
    same = tables.comparison_table([plans[0], plans[0]])
    assert set(same["B − A"]) == {"", "="}


def test_rejections_are_nearest_first_and_stand_once(llama: Answer) -> None:
    rejections = llama.recommendation.rejections
    distinct = tables.distinct_rejections(rejections)
    misses = [rejection.miss_ratio for rejection in distinct]
    assert misses == sorted(misses)
    assert len(distinct) < len(rejections)
    assert {r.candidate.instance.instance_type for r in distinct} == {
        r.candidate.instance.instance_type for r in rejections
    }
    assert len(tables.rejection_table(distinct)) == len(distinct)


def test_nothing_fits_says_how_far_to_relax(impossible: Answer) -> None:
    misses = tables.nearest_by_bottleneck(impossible.recommendation.rejections)
    tpot = next(miss for miss in misses if miss.bottleneck is Bottleneck.TPOT)
    fastest_ms = min(
        rejection.have
        for rejection in impossible.recommendation.rejections
        if rejection.bottleneck is Bottleneck.TPOT
    )
    assert tpot.have == fastest_ms
    assert tables.relaxation(tpot).startswith(f"Promise a TPOT of more than {fastest_ms:.3g}")


def test_every_reason_has_a_title_and_every_rejection_something_to_relax() -> None:
    assert set(tables.BOTTLENECK_TITLES) == set(Bottleneck)
    assert set(tables.RELAXATIONS) == set(Bottleneck) - {Bottleneck.KV_CACHE, Bottleneck.THROUGHPUT}


@pytest.mark.parametrize(
    ("points", "chosen"),
    [
        ([], []),
        ([{"customdata": 3}, {"customdata": [1]}, {"customdata": 3}], [1, 3]),
        ([{"customdata": 9}, {"customdata": -1}, {"customdata": "2"}, {"x": 1.0}, {"customdata": []}], []),
    ],
)
def test_chosen_points_ignore_what_is_not_there(points: list[dict[str, object]], chosen: list[int]) -> None:
    assert tables.chosen_points(points, 5) == chosen


def test_chosen_rows_ignore_rows_of_an_earlier_answer() -> None:
    assert tables.chosen_rows([4, 0, 4, 17], 5) == [0, 4]


@pytest.mark.parametrize(
    ("pinned", "front", "shown"),
    [
        ([], [0, 4, 9], [0, 9]),
        ([7], [0, 4, 9], [0, 7]),
        ([0], [0, 4], [0, 4]),
        ([], [0], [0]),
        ([3, 1, 2], [0], [1, 2, 3]),
    ],
)
def test_what_is_compared(pinned: list[int], front: list[int], shown: list[int]) -> None:
    assert tables.compared(pinned, front, 4) == shown


def test_history_remembers_the_answer_before(llama: Answer, impossible: Answer) -> None:
    plans = llama.recommendation.plans
    first = History().after(llama.ask, plans)
    assert first.before_usd_per_month is None
    assert first.after(llama.ask, plans) == first
    none = first.after(impossible.ask, impossible.recommendation.plans)
    assert none.before_usd_per_month == plans[0].cost.usd_per_month
    again = none.after(llama.ask, plans)
    assert again.before_usd_per_month == plans[0].cost.usd_per_month
    assert tables.cost_change(120.0, 100.0) == "+$20.0"
    assert tables.cost_change(100.0, 100.0) is None
    assert tables.cost_change(100.0, None) is None
