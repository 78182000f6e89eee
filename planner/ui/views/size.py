"""Size: the cheapest deployments that keep the promise, what they cost, and why not the others."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from planner.domain.evidence import Range
from planner.domain.plan import Bottleneck, Plan
from planner.domain.units import MONTHS_PER_YEAR, seconds_to_ms
from planner.export.evidence import band_of, how_tested, spanned
from planner.export.format import promised
from planner.export.recommendation import (
    REJECTION_COLUMNS,
    engine_command,
    plan_warnings,
    recommendation_csv,
    rejection_row,
)
from planner.export.table import csv_text
from planner.planning.recommend import shortlist
from planner.ui import answers, charts, tables
from planner.ui.columns import PLAN_COLUMN_CONFIG
from planner.ui.explain import explain
from planner.ui.format import count, latency, number, percent, usd

TOP = 5
TILE_PX = 143


def headline(plan: Plan) -> None:
    """What to buy, in one line, and what the prediction rests on."""
    candidate, fleet = plan.candidate, plan.fleet
    band = band_of(plan, answer.facts.accuracy)
    place = f"{candidate.instance.provider} {candidate.price.region}"
    st.subheader(f"{fleet.instances} × {candidate.instance.instance_type}", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(
            f"{count(fleet.replicas, 'replica')} of {candidate.instance.gpu} at {tables.layout_title(plan)} · "
            f"{place}, {tables.PURCHASE_TITLES[candidate.price.purchase].lower()}",
            width="content",
        )
        st.badge(
            plan.basis.value,
            icon=":material/science:",
            color="blue",
            help=f"Rests on {plan.basis_detail}; {how_tested(band)}."
            + (f" Runs: {band.note}." if band else ""),
        )
        for warning in plan_warnings(plan, answer.checkpoint):
            st.badge(warning, icon=":material/warning:", color="orange")


def tiles(plan: Plan) -> None:
    """The figures a decision is made on."""
    slo, cost = answer.question.slo, plan.cost
    binding = tables.BOTTLENECK_TITLES[plan.binding_constraint]
    per_input, per_output = (
        number(value, 2) for value in (cost.usd_per_million_input_tokens, cost.usd_per_million_output_tokens)
    )
    with st.container(horizontal=True, gap="xsmall"):
        with pair():
            st.metric(
                "Cost a month",
                f"≈ {usd(cost.usd_per_month)}",
                delta=tables.cost_change(cost.usd_per_month, answers.before_usd_per_month()),
                delta_color="inverse",
                border=True,
                width=TILE_PX,
                height="stretch",
                help=f"{plan.fleet.instances} × ${plan.candidate.price.usd_per_hour:.4g} × 730 h, price of "
                f"{plan.candidate.price.as_of or 'unknown date'}. Below: the change since your last answer.",
            )
            st.metric(
                "$ per M tokens",
                f"≈ {usd(cost.usd_per_million_tokens)}",
                delta=f"{per_input} in, {per_output} out",
                delta_color="off",
                delta_arrow="off",
                border=True,
                width=TILE_PX,
                height="stretch",
                help="Per million tokens at the mean load. Input and output split the cost by the GPU time each takes.",
            )
        with pair():
            ranges = plan.ranges
            promise_tile("TTFT p95", plan.latency.ttft_p95_s, ranges and ranges.ttft, slo.ttft_p95_s)
            promise_tile("TPOT p95", plan.latency.tpot_p95_s, ranges and ranges.tpot, slo.tpot_p95_s)
        with pair():
            st.metric(
                "Capacity, req/s",
                f"≈ {number(plan.capacity_requests_per_s)}",
                delta=f"{percent(plan.utilization_ratio)} busy",
                delta_color="off",
                delta_arrow="off",
                border=True,
                width=TILE_PX,
                height="stretch",
                help="What the fleet carries within the promise, and how busy that leaves it at the peak; "
                f"a replica carries {number(plan.replica_requests_per_s)}.",
            )
            st.metric(
                "Binds",
                binding,
                delta=f"{number(plan.running_requests)} running",
                delta_color="off",
                delta_arrow="off",
                border=True,
                width=TILE_PX,
                height="stretch",
                help="What stops a replica from carrying more (throughput: it is busy, latency would still allow "
                "more), and the requests it runs at once at the peak.",
            )


def pair() -> DeltaGenerator:
    """Room for two tiles that stay side by side, so that none stands alone on a row."""
    return st.container(horizontal=True, gap="xsmall", width="content", wrap=False)


def promise_tile(name: str, value_s: float, found: Range | None, promised_s: float | None) -> None:
    """A latency beside what was promised."""
    about = "Predicted at the peak, beside what you promise."
    if found is not None:
        about += f" {spanned(found)} with 90 %, as measured means were around predicted ones."
    st.metric(
        name,
        f"≈ {latency(value_s)}",
        delta=f"of {promised(seconds_to_ms(promised_s))}" if promised_s else "no promise",
        delta_color="off",
        delta_arrow="off",
        border=True,
        width=TILE_PX,
        height="stretch",
        help=about,
    )


def best_table(best: tuple[Plan, ...]) -> int:
    """The best plans; returns the index of the one to show."""
    key = f"best-{hash(answer.ask)}"
    state = st.session_state.get(key)
    rows = tables.chosen_rows(state["selection"]["rows"], len(best)) if state else []
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
        st.markdown(
            f"**The {f'{len(best)} ' if len(best) > 1 else ''}cheapest**",
            width="content",
            help="Each instance type and layout in its cheapest region. Select a row to see it in detail.",
        )
        st.download_button(
            "CSV",
            data=lambda: recommendation_csv(best, answer.checkpoint),
            file_name="recommendation.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            key="best_csv",
            help="These plans with every column, for a spreadsheet or another program.",
        )
    st.dataframe(
        tables.plan_table(best),
        key=key,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        column_config=PLAN_COLUMN_CONFIG,
    )
    return rows[0] if rows else 0


def savings(plan: Plan) -> None:
    """What is saved against the previous choice, and how much more the dearest plan would cost."""
    saved = plan.saving_vs_previous_usd_per_month
    if saved is not None:
        verb, joint = ("Saves", "against") if saved >= 0 else ("Costs", "more than")
        month, year = usd(abs(saved)), usd(abs(saved) * MONTHS_PER_YEAR)
        st.markdown(f"{verb} **≈ \\{month}** a month, ≈ \\{year} a year {joint} what you pay today.")
    if plan.saving_usd_per_month > 0:
        st.caption(f"The dearest plan that works costs ≈ \\{usd(plan.saving_usd_per_month)} a month more.")


def detail(plan: Plan) -> None:
    """Memory, cost by purchase, the engine's command line and the formulas."""
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**Memory of each GPU**")
        st.plotly_chart(charts.memory_bar(plan.memory), key="memory", config={"displayModeBar": False})
    with right:
        st.markdown("**Cost a month of this fleet by purchase**")
        st.plotly_chart(
            charts.purchase_bars({"this fleet": plan.cost.usd_per_month_by_purchase}),
            key="purchases",
            config={"displayModeBar": False},
        )
        savings(plan)
    st.markdown("**Start each replica with**")
    st.code(engine_command(plan, answer.checkpoint), language="bash", wrap_lines=True)
    with st.expander("The formulas with your numbers", icon=":material/function:"):
        for line in explain(plan, answer.question, answer.facts):
            st.markdown(f"**{line.title}: {line.result}**".replace("$", "\\$"))
            st.code(f"  {line.formula}\n= {line.numbers}", language=None, wrap_lines=True)


@st.fragment
def why_not() -> None:
    """Every rejected candidate, nearest to working first."""
    rejections = answer.recommendation.rejections
    distinct = tables.distinct_rejections(rejections)
    reasons = [b for b in Bottleneck if any(rejection.bottleneck is b for rejection in distinct)]
    chosen = st.pills(
        "Stopped by",
        reasons,
        selection_mode="multi",
        format_func=lambda b: tables.BOTTLENECK_TITLES[b],
        key="why_not_reasons",
        help="Show only what was stopped by these. None chosen: all.",
    )
    shown = [rejection for rejection in distinct if not chosen or rejection.bottleneck in chosen]
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
        st.caption(
            f"{len(shown):,} layouts, nearest to working first. With every region and purchase: {len(rejections):,}.",
            width="content",
        )
        st.download_button(
            "CSV",
            data=lambda: csv_text(REJECTION_COLUMNS, map(rejection_row, rejections)),
            file_name="rejections.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            key="rejections_csv",
            help="Every rejected candidate with its numbers.",
        )
    st.dataframe(tables.rejection_table(shown), hide_index=True, key="why_not", placeholder="")


def nothing_fits() -> None:
    """For each thing that stops candidates, the nearest of them and what to relax."""
    st.warning(
        "Nothing on offer keeps this promise. What would have to give, by what stops the nearest candidate:",
        icon=":material/block:",
    )
    for miss in tables.nearest_by_bottleneck(answer.recommendation.rejections):
        candidate = miss.candidate
        with st.container(border=True):
            st.markdown(
                f"**{tables.relaxation(miss)}**".replace("$", "\\$")
                + f"  \n{candidate.instance.instance_type} ({candidate.instance.provider}, {candidate.instance.gpu}, "
                f"TP {candidate.parallelism.tp}) comes nearest: {miss.reason}."
            )


answer = answers.current()
best = shortlist(answer.recommendation.plans, TOP)
if best:
    head = st.container()
    plan = best[best_table(best)]
    with head:
        headline(plan)
        tiles(plan)
    detail(plan)
else:
    nothing_fits()
if answer.recommendation.rejections:
    st.markdown("**Why not …?**")
    why_not()
