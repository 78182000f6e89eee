"""Figures of a simulated run: how latencies are spread over requests, and how the run went."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planner.domain.units import seconds_to_ms
from planner.domain.workload import Slo
from planner.export.figures import COLOURS, DASHES, FAINT, INK, html_page
from planner.export.format import promised
from planner.formulas.arrays import FloatArray
from planner.serving.measures import Requests, TimeSeries

CURVE_POINTS = 401
"""Quantiles a curve is drawn through."""
SMALLEST_MS = 0.1
"""Shorter times, such as no wait at all, stand at the left edge of a logarithmic axis."""
CURVES = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "e2e_s": "whole answer",
    "queue_s": "before admission",
}
PLAIN = "plotly_white"


def simulation_page(title: str, requests: Requests, series: TimeSeries, slo: Slo) -> str:
    """Both figures as one HTML page."""
    return html_page(
        title,
        {
            "Latency: share of requests that were at most so slow": latency_curves(requests, slo),
            "The run over time": timeline(series),
        },
    )


def latency_curves(requests: Requests, slo: Slo) -> go.Figure:
    """Share of requests [%] over latency [ms]: TTFT, TPOT, whole answer and queue, with what is promised as lines."""
    figure = go.Figure()
    shares = np.linspace(0.0, 1.0, CURVE_POINTS)
    for index, (name, title) in enumerate(CURVES.items()):
        values_s: FloatArray = getattr(requests, name)
        values_s = values_s[np.isfinite(values_s)]
        if not values_s.size or values_s.max() <= 0:
            continue
        figure.add_scatter(
            x=np.maximum(seconds_to_ms(1.0) * np.quantile(values_s, shares), SMALLEST_MS).tolist(),
            y=(100.0 * shares).tolist(),
            mode="lines",
            name=title,
            line={"color": COLOURS[index], "dash": DASHES[index], "width": 2},
            hovertemplate=f"%{{y:.1f}} % of requests: {title} up to %{{x:,.4g}} ms<extra></extra>",
        )
    limits = {"TTFT": slo.ttft_p95_s, "TPOT": slo.tpot_p95_s}
    for index, (name, limit_s) in enumerate(limits.items()):
        if limit_s is not None:
            limit_ms = seconds_to_ms(limit_s)
            figure.add_vline(x=limit_ms, line={"color": COLOURS[index], "dash": "dot", "width": 1})
            figure.add_annotation(
                x=np.log10(limit_ms),
                y=1.0,
                yref="paper",
                yanchor="bottom",
                yshift=16 * index,
                text=f"{name} promised {promised(limit_ms)}",
                showarrow=False,
                font={"size": 12, "color": COLOURS[index]},
            )
    figure.add_hline(y=95, line={"color": FAINT, "dash": "dash", "width": 1})
    figure.update_layout(
        template=PLAIN,
        height=380,
        font={"color": INK},
        margin={"l": 0, "r": 8, "t": 44, "b": 0},
        legend={"orientation": "h", "y": -0.22, "x": 0},
    )
    figure.update_xaxes(title="latency, ms", type="log", minor={"showgrid": False})
    figure.update_yaxes(title="requests, %", range=[0, 101])
    return figure


def timeline(series: TimeSeries) -> go.Figure:
    """Running and waiting requests, KV cache in use [%] and tokens/s over time [s], one above the other."""
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    lines = (
        (1, "running", series.running, "requests running"),
        (1, "waiting", series.waiting, "requests waiting"),
        (2, "KV cache in use", 100.0 * series.kv_used_ratio, "% of the KV cache in use"),
        (3, "tokens/s", series.tokens_per_s, "tokens/s scheduled, prompts included"),
    )
    for index, (row, name, values, unit) in enumerate(lines):
        figure.add_scatter(
            x=series.start_s.tolist(),
            y=values.tolist(),
            mode="lines",
            name=name,
            line={
                "color": COLOURS[index],
                "dash": "dash" if name == "waiting" else "solid",
                "width": 1.5,
                "shape": "hv",
            },
            hovertemplate=f"from %{{x:,.4g}} s: %{{y:,.4g}} {unit}<extra></extra>",
            row=row,
            col=1,
        )
    for row, title in ((1, "requests"), (2, "KV cache, %"), (3, "tokens/s")):
        figure.update_yaxes(title=title, rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title="time, s", row=3, col=1)
    figure.update_layout(
        template=PLAIN,
        height=520,
        font={"color": INK},
        margin={"l": 0, "r": 8, "t": 8, "b": 0},
        legend={"orientation": "h", "y": -0.14, "x": 0},
    )
    return figure
