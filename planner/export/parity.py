"""Predictions against measurements, point by point: a panel for each measure, a trace for each model and TP."""

import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from statistics import median
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planner.export.comparison import TITLES, ComparedRun, Figure
from planner.export.figures import COLOURS, FAINT, INK, html_page
from planner.export.format import number, per_cent, percent
from planner.export.predictions import MEASURES

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
BANDS = ((0.0, "solid"), (0.1, "dash"), (-0.1, "dash"), (0.2, "dot"), (-0.2, "dot"))
"""Errors drawn as lines."""
MARGIN_RATIO = 1.3
"""Room on either side of the outermost point."""
MOST_RUNS = 20_000
"""More are thinned evenly: a page of millions of points opens in no browser."""
PANEL_PX = 520


class Point(NamedTuple):
    """A run in one panel."""

    run: ComparedRun
    figure: Figure


def parity_page(runs: Sequence[ComparedRun], source: str) -> str:
    """The figure as one HTML page; `source` names the measured table."""
    shown = thinned(runs)
    heading = f"{len(runs):,} runs of {source}"
    if len(shown) < len(runs):
        heading += f", {len(shown):,} of them drawn"
    lines = "solid: predicted = measured; dashed: 10 % off; dotted: 20 % off"
    return html_page("Predicted against measured", {f"{heading} ({lines})": parity(shown)})


def thinned(runs: Sequence[ComparedRun]) -> Sequence[ComparedRun]:
    """The runs, or every so-manieth where they are too many to draw."""
    return runs[:: math.ceil(len(runs) / MOST_RUNS)] if len(runs) > MOST_RUNS else runs


def parity(runs: Sequence[ComparedRun]) -> go.Figure:
    """Predicted over measured on logarithmic axes, two panels a row, for every measure that some run has.

    A prediction of 0 or less has no place on such an axis; the panel's title counts them.
    """
    panels = {
        measure: [Point(run, run.figures[measure]) for run in runs if measure in run.figures]
        for measure in MEASURES
    }
    panels = {measure: points for measure, points in panels.items() if points}
    rows = math.ceil(len(panels) / 2)
    figure = make_subplots(
        rows=max(rows, 1),
        cols=2,
        subplot_titles=[_title(measure, points) for measure, points in panels.items()],
        horizontal_spacing=0.08,
        vertical_spacing=0.22 / max(rows, 1),
    )
    looks = _looks(runs)
    named: set[tuple[str, str]] = set()
    for index, (measure, points) in enumerate(panels.items()):
        _panel(figure, index, TITLES[measure][1], [point for point in points if _is_drawn(point.figure)])
        for look, mine in _by_trace(points).items():
            trace = _trace(measure, look, mine, looks[look], in_legend=look not in named)
            figure.add_trace(trace, row=index // 2 + 1, col=index % 2 + 1)
            named.add(look)
    figure.update_layout(
        template="plotly_white",
        height=PANEL_PX * max(rows, 1),
        font={"color": INK},
        margin={"l": 0, "r": 8, "t": 40, "b": 0},
        legend={"orientation": "h", "y": -0.12 / max(rows, 1), "x": 0},
        hoverlabel={"align": "left"},
    )
    return figure


def _is_drawn(figure: Figure) -> bool:
    return math.isfinite(figure.predicted) and figure.predicted > 0


def _title(measure: str, points: Sequence[Point]) -> str:
    """What is measured, in how many runs, how far off the middle one is."""
    off = per_cent(median(abs(point.figure.error_ratio) for point in points))
    hidden = sum(not _is_drawn(point.figure) for point in points)
    missing = f", {hidden:,} predicted as none" if hidden else ""
    return f"{TITLES[measure][0]}: {len(points):,} runs, median error {off} %{missing}"


def _by_trace(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """Points that can be drawn, by model and TP, in the order of both."""
    found = defaultdict(list)
    for point in points:
        if _is_drawn(point.figure):
            found[_look(point.run)].append(point)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _look(run: ComparedRun) -> tuple[str, str]:
    return run.groups["model"], run.groups["TP"]


def _order(look: tuple[str, str]) -> tuple[str, int, str]:
    model, tp = look
    return model, len(tp), tp


def _looks(runs: Sequence[ComparedRun]) -> dict[tuple[str, str], dict[str, object]]:
    """A colour for every model and a symbol for every TP; models beyond the colours have hollow symbols."""
    models = sorted({run.groups["model"] for run in runs})
    degrees = sorted({run.groups["TP"] for run in runs}, key=lambda tp: (len(tp), tp))
    found: dict[tuple[str, str], dict[str, object]] = {}
    for model, tp in {_look(run) for run in runs}:
        place = models.index(model)
        symbol = SYMBOLS[degrees.index(tp) % len(SYMBOLS)]
        found[model, tp] = {
            "color": COLOURS[place % len(COLOURS)],
            "symbol": symbol if place // len(COLOURS) % 2 == 0 else f"{symbol}-open",
            "size": 8,
            "opacity": 0.8,
        }
    return found


def _trace(
    measure: str,
    look: tuple[str, str],
    points: Sequence[Point],
    marker: dict[str, object],
    *,
    in_legend: bool,
) -> go.Scatter:
    model, tp = look
    name = escape(f"{model}, TP {tp}")
    return go.Scatter(
        x=[point.figure.measured for point in points],
        y=[point.figure.predicted for point in points],
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=in_legend,
        marker=marker,
        text=[_said(point, TITLES[measure][1]) for point in points],
        hovertemplate="%{text}<extra></extra>",
    )


def _said(point: Point, unit: str) -> str:
    """What a point says when touched."""
    groups, figure = point.run.groups, point.figure
    sign = "+" if figure.error_ratio >= 0 else ""
    return "<br>".join(
        (
            f"<b>{escape(point.run.run)}</b>",
            escape(f"{groups['model']}, {groups['GPU']}, TP {groups['TP']}, {groups['load']}"),
            f"measured {number(figure.measured)} {unit}, predicted {number(figure.predicted)} {unit}",
            f"error {sign}{percent(figure.error_ratio)}",
            *_interval(figure, unit),
        )
    )


def _interval(figure: Figure, unit: str) -> tuple[str, ...]:
    if figure.interval is None:
        return ()
    low, high = map(number, figure.interval)
    return (f"90 %: {low} to {high} {unit}, {'in' if figure.is_inside else 'out of'} it",)


def _panel(figure: go.Figure, index: int, unit: str, points: Sequence[Point]) -> None:
    """Axes of one panel, alike in both directions, and its lines of equal error."""
    row, col = index // 2 + 1, index % 2 + 1
    values = [value for point in points for value in point.figure[:2]] or [1.0]
    low, high = min(values) / MARGIN_RATIO, max(values) * MARGIN_RATIO
    for error, dash in BANDS:
        figure.add_scatter(
            x=[low, high],
            y=[low * (1.0 + error), high * (1.0 + error)],
            mode="lines",
            line={"color": INK if error == 0 else FAINT, "dash": dash, "width": 1},
            showlegend=False,
            hoverinfo="skip",
            row=row,
            col=col,
        )
    shown = [math.log10(low), math.log10(high)]
    common = {"type": "log", "range": shown, "row": row, "col": col}
    if shown[1] - shown[0] > 1.0:
        common["dtick"] = "D2"
    figure.update_xaxes(title=f"measured, {unit}", constrain="domain", **common)
    anchor = "x" if index == 0 else f"x{index + 1}"
    figure.update_yaxes(
        title=f"predicted, {unit}", scaleanchor=anchor, scaleratio=1, constrain="domain", **common
    )
