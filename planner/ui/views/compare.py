"""Compare: cost against speed for everything that works, and the plans you pin side by side."""

import streamlit as st

from planner.planning.recommend import shortlist
from planner.ui import answers, charts, tables
from planner.ui.columns import PLAN_COLUMN_CONFIG
from planner.ui.format import count

COMPARED = 4
PLAN_PX, DELTA_PX = 190, 70

answer = answers.current()
plans = shortlist(answer.recommendation.plans, len(answer.recommendation.plans))
if not plans:
    st.info(
        "Nothing on offer keeps this promise; the Size page says what comes nearest.", icon=":material/block:"
    )
    st.stop()

front = [index for index, plan in enumerate(plans) if plan.pareto]
asked = hash(answer.ask)
chart_state, table_state = st.session_state.get(f"chart-{asked}"), st.session_state.get(f"front-{asked}")
touched = tables.chosen_points(chart_state["selection"]["points"] if chart_state else (), len(plans))
ticked = [
    front[row]
    for row in tables.chosen_rows(table_state["selection"]["rows"] if table_state else (), len(front))
]
pinned = tables.compared([*touched, *ticked], front, COMPARED)

st.markdown(
    f"**Cost against speed** — {count(len(plans), 'plan')} that work, {len(front)} on the front. "
    "Click points to pin them."
)
st.plotly_chart(
    charts.pareto(plans, answer.question, pinned),
    key=f"chart-{asked}",
    on_select="rerun",
    selection_mode="points",
    config={"displayModeBar": False, "scrollZoom": False},
)

st.markdown("**The front** — no cheaper plan is faster than these. Select rows to pin them.")
st.dataframe(
    tables.plan_table(plans[index] for index in front),
    key=f"front-{asked}",
    hide_index=True,
    on_select="rerun",
    selection_mode="multi-row",
    column_config=PLAN_COLUMN_CONFIG,
)

st.markdown("**Side by side** — differences are to the cheapest of them, A.")
side = [plans[index] for index in pinned]
compared = tables.comparison_table(side)
st.dataframe(
    compared,
    key="side_by_side",
    height="content",
    column_config={
        name: st.column_config.TextColumn(width=DELTA_PX if "−" in name else PLAN_PX)
        for name in compared.columns
    },
)

st.markdown("**Cost a month of the same fleets by purchase**")
st.plotly_chart(
    charts.purchase_bars(
        {
            f"{tables.letter_of(index)}: {tables.short_title(plan)}": plan.cost.usd_per_month_by_purchase
            for index, plan in enumerate(side)
        }
    ),
    key="purchases",
    config={"displayModeBar": False},
)
