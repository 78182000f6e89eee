"""Figures, made of plans alone: memory of a card, cost against speed, cost by purchase."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from planner.domain.deployment import MemoryBudget
from planner.domain.hardware import Purchase
from planner.domain.plan import Plan, Question
from planner.domain.units import bytes_to_gib, seconds_to_ms
from planner.export.format import promised
from planner.export.memory import MemoryPart, memory_parts
from planner.ui.format import gib, latency, number, usd
from planner.ui.tables import PURCHASE_TITLES, layout_title

PALETTE = (
    *("#0f6b62", "#c2571a", "#5b5ea6", "#b8860b", "#9b2335", "#2a7fbf", "#6b8e23", "#8b5fbf"),
    *("#1d2733", "#d4779c", "#4d9078", "#a0522d", "#607d8b", "#c9a227", "#37568d", "#7a7a52"),
)
MEMORY_COLOURS = {
    "weights": "#0f6b62",
    "draft model": "#4d9078",
    "LoRA slots": "#8b5fbf",
    "activations": "#c2571a",
    "CUDA graphs": "#b8860b",
    "non-torch": "#9b2335",
    "KV cache": "#5b5ea6",
    "outside the engine": "#c9d1d6",
}
INK, FAINT, PROMISE = "#1d2733", "#8a97a0", "rgba(15, 107, 98, 0.08)"
MISSED, MISSING = "#9b2335", "rgba(155, 35, 53, 0.25)"
LEGEND_LINE_PX = 26
WIDE_RATIO = 8.0
"""Costs that span more than this are drawn on a logarithmic axis."""


def memory_bar(memory: MemoryBudget) -> go.Figure:
    """One GPU's memory stacked part by part up to the card's capacity, with the engine's limit.

    Where memory is missing for one request, that request's KV cache is drawn whole, and what is missing shaded.
    """
    figure = go.Figure()
    for part in _drawn(memory):
        shown = f"{part.name} {gib(part.size_bytes)}"
        figure.add_bar(
            x=[bytes_to_gib(part.size_bytes)],
            y=[""],
            name=shown,
            orientation="h",
            marker_color=MEMORY_COLOURS[part.name],
            hovertemplate=f"{shown}<extra></extra>",
        )
    card, engine = bytes_to_gib(memory.total_bytes), bytes_to_gib(memory.requested_bytes)
    need = engine + bytes_to_gib(memory.shortfall_bytes)
    end = max(card, need)
    _line(figure, card, f"card {gib(memory.total_bytes)}", lift_px=16, left=card > end / 2)
    _line(figure, engine, f"engine {gib(memory.requested_bytes)}", dash="dot", left=engine > end / 2)
    if need > engine:
        figure.add_vrect(x0=engine, x1=need, fillcolor=MISSING, line_width=0)
        _label(figure, need, f"missing {gib(memory.shortfall_bytes)}", lift_px=32, colour=MISSED)
    figure.update_layout(
        barmode="stack",
        height=230,
        margin={"l": 0, "r": 8, "t": 56 if need > engine else 40, "b": 0},
        legend={"orientation": "h", "y": -0.5, "x": 0, "traceorder": "normal"},
    )
    figure.update_xaxes(title="GiB", range=[0, end * 1.01], title_standoff=4)
    figure.update_yaxes(visible=False)
    return figure


def _drawn(memory: MemoryBudget) -> tuple[MemoryPart, ...]:
    """The parts of the card; where memory is missing, what the engine needs instead."""
    parts = memory_parts(memory)
    if not memory.shortfall_bytes:
        return parts
    fixed = (part for part in parts if part.name not in ("KV cache", "outside the engine"))
    return (*fixed, MemoryPart("KV cache", memory.request_bytes))


def _line(
    figure: go.Figure, at: float, text: str, *, lift_px: int = 0, dash: str = "solid", left: bool = True
) -> None:
    figure.add_vline(x=at, line={"color": INK, "width": 2, "dash": dash})
    _label(figure, at, text, lift_px=lift_px, left=left)


def _label(
    figure: go.Figure, at: float, text: str, *, lift_px: int, left: bool = True, colour: str = INK
) -> None:
    """A word above the bar, to the left or right of its place."""
    figure.add_annotation(
        x=at,
        y=1.0,
        yref="paper",
        yanchor="bottom",
        yshift=lift_px,
        xanchor="right" if left else "left",
        text=text,
        showarrow=False,
        font={"size": 12, "color": colour},
    )


def pareto(plans: Sequence[Plan], question: Question, pinned: Sequence[int] = ()) -> go.Figure:
    """Monthly cost against TPOT p95, one trace a GPU, the front as a line, what was promised shaded.

    `custom_data` of a point is the plan's index in `plans`; `pinned` are indices to ring.
    """
    figure = go.Figure()
    front = [plan for plan in plans if plan.pareto]
    figure.add_scatter(
        x=[plan.cost.usd_per_month for plan in front],
        y=[seconds_to_ms(plan.latency.tpot_p95_s) for plan in front],
        mode="lines",
        line={"color": INK, "width": 1.5, "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
    )
    for gpu, colour in gpu_colours(plans).items():
        mine = [(index, plan) for index, plan in enumerate(plans) if plan.candidate.instance.gpu == gpu]
        figure.add_scatter(
            x=[plan.cost.usd_per_month for _, plan in mine],
            y=[seconds_to_ms(plan.latency.tpot_p95_s) for _, plan in mine],
            mode="markers",
            name=gpu,
            customdata=[index for index, _ in mine],
            text=[hover(plan) for _, plan in mine],
            hovertemplate="%{text}<extra></extra>",
            marker={
                "color": colour,
                "size": [11 if plan.pareto else 7 for _, plan in mine],
                "opacity": [1.0 if plan.pareto or index in pinned else 0.55 for index, plan in mine],
                "line": {
                    "color": INK,
                    "width": [2.5 if index in pinned else 0 for index, _ in mine],
                },
            },
        )
    _promise(figure, plans, question)
    figure.update_layout(
        height=460,
        margin={"l": 0, "r": 8, "t": 20, "b": 0},
        legend={"orientation": "h", "y": -0.16, "x": 0},
        hoverlabel={"align": "left"},
        dragmode="pan",
    )
    costs = [plan.cost.usd_per_month for plan in plans]
    figure.update_xaxes(title="$ per month", tickprefix="$", type=axis_type(costs), **_ticks(costs))
    figure.update_yaxes(title="TPOT p95, ms", rangemode="tozero")
    return figure


def axis_type(values: Sequence[float]) -> str:
    """`log` where the values span more than `WIDE_RATIO`, else `linear`.

    >>> axis_type([1.0, 100.0]), axis_type([1.0, 2.0]), axis_type([])
    ('log', 'linear', 'linear')
    """
    return "log" if values and max(values) > WIDE_RATIO * min(values) else "linear"


def _ticks(values: Sequence[float]) -> dict[str, object]:
    """Round figures along a logarithmic axis, which would else be labelled 2, 5, 2, 5."""
    if axis_type(values) == "linear":
        return {"tickformat": "~s"}
    ticks = [step * 10**power for power in range(2, 9) for step in (1, 2, 5)]
    shown = [tick for tick in ticks if min(values) / 2 <= tick <= max(values) * 2]
    return {"tickvals": shown, "tickformat": "~s"}


def _promise(figure: go.Figure, plans: Sequence[Plan], question: Question) -> None:
    """Shades what meets the promise; the budget, where there is one, ends it."""
    slo, budget = question.slo.tpot_p95_s, question.supply.budget_usd_per_month
    if slo is not None:
        figure.add_hrect(y0=0, y1=seconds_to_ms(slo), fillcolor=PROMISE, line_width=0, layer="below")
        figure.add_hline(
            y=seconds_to_ms(slo),
            line={"color": FAINT, "dash": "dash", "width": 1},
            annotation={
                "text": f"promised {promised(seconds_to_ms(slo))}",
                "font": {"size": 12, "color": INK},
            },
            annotation_position="top right",
        )
    if budget is not None and plans:
        figure.add_vline(x=budget, line={"color": FAINT, "dash": "dash", "width": 1})


def gpu_colours(plans: Sequence[Plan]) -> dict[str, str]:
    """A colour for every GPU among the plans, in order of the cheapest plan."""
    gpus = list(dict.fromkeys(plan.candidate.instance.gpu for plan in plans))
    return {gpu: PALETTE[index % len(PALETTE)] for index, gpu in enumerate(gpus)}


def hover(plan: Plan) -> str:
    """What a point says when touched."""
    candidate, price = plan.candidate, plan.candidate.price
    return "<br>".join(
        (
            f"<b>{plan.fleet.instances} × {candidate.instance.instance_type}</b>",
            f"{candidate.instance.provider} {price.region}, {PURCHASE_TITLES[price.purchase].lower()}",
            f"{candidate.instance.gpu}, {layout_title(plan)}",
            f"≈ {usd(plan.cost.usd_per_month)} a month",
            f"TTFT p95 ≈ {latency(plan.latency.ttft_p95_s)}, TPOT p95 ≈ {latency(plan.latency.tpot_p95_s)}",
            f"{number(100 * plan.utilization_ratio, 2)} % busy at the peak",
        )
    )


def purchase_bars(costs: Mapping[str, Mapping[Purchase, float]]) -> go.Figure:
    """Monthly cost by way of paying, one colour a named fleet; ways nobody sells are left out."""
    sold = [way for way in Purchase if any(way in by_purchase for by_purchase in costs.values())]
    figure = go.Figure()
    for index, (name, by_purchase) in enumerate(costs.items()):
        values = [by_purchase.get(way) for way in sold]
        figure.add_bar(
            y=[PURCHASE_TITLES[way] for way in sold],
            x=values,
            name=name,
            orientation="h",
            text=["" if value is None else usd(value) for value in values],
            textposition="auto",
            marker_color=PALETTE[index % len(PALETTE)],
            hovertemplate=f"{name}<br>%{{y}}: %{{text}} a month<extra></extra>",
        )
    legend_px = LEGEND_LINE_PX * len(costs) if len(costs) > 1 else 0
    figure.update_layout(
        barmode="group",
        height=60 + len(sold) * (20 + 22 * len(costs)) + legend_px,
        margin={"l": 0, "r": 8, "t": 8 + legend_px, "b": 0},
        showlegend=len(costs) > 1,
        legend={"orientation": "h", "y": 1.0, "x": 0, "yanchor": "bottom"},
    )
    figure.update_xaxes(tickprefix="$", tickformat="~s", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure
