"""Figure of one step: its time stacked by operator, a bar for each type of layer, the roofline marked."""

import plotly.graph_objects as go

from planner.domain.units import seconds_to_ms
from planner.export.breakdown import OPERATOR_TITLES, layers_title, type_times
from planner.formulas.breakdown import Breakdown, PartTime
from planner.formulas.step_parts import Operator
from planner.ui.charts import INK, PALETTE
from planner.ui.format import latency, percent

OPERATOR_COLOURS = dict(zip(Operator, PALETTE, strict=False))
BAR_PX, LEGEND_PX = 64, 170
MARK_PX = 34


def step_bars(found: Breakdown) -> go.Figure:
    """Time of each operator stacked by type of layer [ms]; a mark where the type's roofline is."""
    figure = go.Figure()
    for operator in Operator:
        parts = [part for part in found.parts if part.operator is operator]
        if not parts:
            continue
        figure.add_bar(
            x=[seconds_to_ms(part.time_s) for part in parts],
            y=[layers_title(part) for part in parts],
            name=OPERATOR_TITLES[operator],
            orientation="h",
            marker_color=OPERATOR_COLOURS[operator],
            text=[_hover(part, found) for part in parts],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    types = type_times(found)
    figure.add_scatter(
        x=[seconds_to_ms(one.roofline_s) for one in types],
        y=[one.title for one in types],
        mode="markers",
        name="roofline",
        marker={"symbol": "line-ns", "size": MARK_PX, "line": {"color": INK, "width": 3}},
        text=[
            f"roofline {latency(one.roofline_s)}, {percent(one.roofline_s / one.time_s)} of the time"
            for one in types
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    figure.update_layout(
        barmode="stack",
        height=BAR_PX * len(types) + LEGEND_PX,
        margin={"l": 0, "r": 8, "t": 8, "b": 0},
        legend={"orientation": "h", "y": -0.25, "x": 0, "traceorder": "normal"},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(title="ms", rangemode="tozero", title_standoff=4)
    figure.update_yaxes(
        autorange="reversed",
        automargin=True,
        categoryorder="array",
        categoryarray=[one.title for one in types],
    )
    return figure


def _hover(part: PartTime, found: Breakdown) -> str:
    """What a part says when touched."""
    lines = [
        f"<b>{OPERATOR_TITLES[part.operator]}</b>",
        layers_title(part),
        f"{latency(part.time_s)}, {percent(part.time_s / found.step_s)} of the step",
    ]
    if part.roofline_s is not None and part.efficiency_ratio is not None:
        lines.append(f"roofline {latency(part.roofline_s)}, {percent(part.efficiency_ratio)} of the time")
    return "<br>".join([*lines, f"{part.binds.value} binds"])
