import pytest

from planner.domain.hardware import Purchase
from planner.domain.plan import Plan
from planner.domain.units import GIB_BYTES, bytes_to_gib
from planner.export.memory import memory_parts
from planner.planning.recommend import shortlist
from planner.ui import charts
from planner.ui.answers import Answer


@pytest.fixture(scope="module")
def plans(llama: Answer) -> tuple[Plan, ...]:
    return shortlist(llama.recommendation.plans, len(llama.recommendation.plans))


def test_memory_parts_add_up_to_the_card(plans: tuple[Plan, ...]) -> None:
    memory = plans[0].memory
    figure = charts.memory_bar(memory)
    assert [trace.name.rsplit(" ", 2)[0] for trace in figure.data] == [
        part.name for part in memory_parts(memory)
    ]
    assert sum(trace.x[0] for trace in figure.data) == pytest.approx(
        bytes_to_gib(memory.total_bytes), rel=1e-6
    )
    lines = sorted(shape.x0 for shape in figure.layout.shapes)
    assert lines == pytest.approx([bytes_to_gib(memory.requested_bytes), bytes_to_gib(memory.total_bytes)])


def test_pareto_draws_every_plan_once_and_the_front_as_a_line(llama: Answer, plans: tuple[Plan, ...]) -> None:
    figure = charts.pareto(plans, llama.question, pinned=[0])
    line, *gpus = figure.data
    assert line.mode == "lines"
    assert list(line.x) == [plan.cost.usd_per_month for plan in plans if plan.pareto]
    assert all(later < earlier for earlier, later in zip(line.y, line.y[1:], strict=False))
    indices = [index for trace in gpus for index in trace.customdata]
    assert sorted(indices) == list(range(len(plans)))
    assert {trace.name for trace in gpus} == {plan.candidate.instance.gpu for plan in plans}
    for trace in gpus:
        for x, index in zip(trace.x, trace.customdata, strict=True):
            assert x == plans[index].cost.usd_per_month
    assert [width for trace in gpus for width in trace.marker.line.width if width] == [2.5]


def test_pareto_shades_the_promise(llama: Answer, plans: tuple[Plan, ...]) -> None:
    figure = charts.pareto(plans, llama.question)
    region = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (region.y0, region.y1) == (0, 60)
    assert max(y for trace in figure.data for y in trace.y) <= 60


def test_cost_axis_is_logarithmic_only_where_costs_span_much(llama: Answer, plans: tuple[Plan, ...]) -> None:
    assert charts.pareto(plans[:2], llama.question).layout.xaxis.type == "linear"
    spread = charts.WIDE_RATIO * 1.1 * plans[0].cost.usd_per_month
    dear = plans[-1].model_copy(update={"cost": plans[-1].cost.model_copy(update={"usd_per_month": spread})})
    figure = charts.pareto([plans[0], dear], llama.question)
    assert figure.layout.xaxis.type == "log"
    assert any(plans[0].cost.usd_per_month <= tick <= spread for tick in figure.layout.xaxis.tickvals)


def test_purchase_bars_leave_out_what_nobody_sells() -> None:
    figure = charts.purchase_bars(
        {"A": {Purchase.ON_DEMAND: 100.0, Purchase.SPOT: 40.0}, "B": {Purchase.ON_DEMAND: 200.0}}
    )
    by_name = {trace.name: trace for trace in figure.data}
    assert tuple(by_name["A"].y) == ("On demand", "Spot")
    assert tuple(by_name["A"].x) == (100.0, 40.0)
    assert tuple(by_name["B"].x) == (200.0, None)


def test_a_touched_point_says_what_it_is(plans: tuple[Plan, ...]) -> None:
    text = charts.hover(plans[0])
    assert plans[0].candidate.instance.instance_type in text
    assert plans[0].candidate.price.region in text


def test_what_is_missing_is_drawn_beyond_the_engine_s_limit(plans: tuple[Plan, ...]) -> None:
    memory = plans[0].memory
    wanted = memory.model_copy(update={"request_bytes": memory.kv_cache_bytes + 7 * GIB_BYTES})
    figure = charts.memory_bar(wanted)
    drawn_gib = sum(trace.x[0] for trace in figure.data)
    need_gib = bytes_to_gib(wanted.requested_bytes) + 7
    assert drawn_gib == pytest.approx(need_gib)
    shaded = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (shaded.x0, shaded.x1) == pytest.approx((bytes_to_gib(wanted.requested_bytes), need_gib))
    assert any(note.text == "missing 7.00 GiB" for note in figure.layout.annotations)
    assert figure.layout.xaxis.range[1] >= max(need_gib, bytes_to_gib(wanted.total_bytes))
