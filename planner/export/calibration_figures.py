"""Figures of the steps of one calibration: parity, residuals, roofline and coverage."""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planner.domain.calibration import StepPoint
from planner.domain.evidence import StepKind
from planner.domain.units import seconds_to_ms
from planner.export.calibration_steps import Examined, Predictions, error_band
from planner.export.figures import COLOURS, DASHES, FAINT, INK
from planner.export.format import number, relative_error
from planner.formulas.arrays import FloatArray
from planner.formulas.step_work import Ceiling

LOOKS = {
    StepKind.PREFILL: (COLOURS[0], "circle"),
    StepKind.DECODE: (COLOURS[1], "square"),
    StepKind.MIXED: (COLOURS[2], "diamond"),
}
DISTURBED, FAILED = "disturbed", "failed"
ROOM = 1.3
NONE_AT = 1.0
"""Where no tokens stand on a logarithmic axis."""
LEAST_SCALE_PERCENT, MOST_SCALE_PERCENT = 10.0, 100.0


class Panel(NamedTuple):
    """One panel of a figure."""

    figure: go.Figure
    col: int
    row: int = 1

    def add(self, trace: go.Scatter) -> None:
        """Draws a trace in the panel."""
        self.figure.add_trace(trace, row=self.row, col=self.col)

    def axes(self, x: dict[str, Any], y: dict[str, Any]) -> None:
        """Sets its axes."""
        self.figure.update_xaxes(**x, row=self.row, col=self.col)
        self.figure.update_yaxes(**y, row=self.row, col=self.col)


def parity_of_steps(examined: Examined, predictions: Predictions) -> go.Figure:
    """Predicted over measured step time [ms] on logarithmic axes: before the fit, and after it where there is one."""
    shown = {"before the fit": predictions.before_s}
    if predictions.fitted_s is not None:
        shown["fitted to this run"] = predictions.fitted_s
    figure = panels(list(shown), width=2)
    measured_ms = seconds_to_ms(1.0) * examined.measured_s
    everything = np.concatenate([measured_ms, *(seconds_to_ms(1.0) * one for one in shown.values())])
    ends = np.array([everything.min() / ROOM, everything.max() * ROOM])
    factor = error_band(examined)
    for col, (name, predicted_s) in enumerate(shown.items(), start=1):
        cell = Panel(figure, col)
        if factor is not None and name != "before the fit":
            _band(cell, ends, factor)
        cell.add(_line(ends, ends, INK))
        _by_kind(cell, examined, (measured_ms, seconds_to_ms(1.0) * predicted_s), predicted_s)
        log_range = np.log10(ends).tolist()
        cell.axes(
            {"title": "measured, ms", "type": "log", "range": log_range},
            {"title": "predicted, ms", "type": "log", "range": log_range},
        )
    return finished(figure, 480)


def _band(cell: Panel, ends: FloatArray, factor: float) -> None:
    """A strip around equality that holds 90 % of steps predicted without them."""
    cell.add(
        go.Scatter(
            x=[*ends, *ends[::-1]],
            y=[*(ends * factor), *(ends[::-1] / factor)],
            mode="lines",
            fill="toself",
            fillcolor="rgba(138, 151, 160, 0.2)",
            line={"width": 0},
            name=f"90 % of left-out steps, within x {number(factor)}",
            hoverinfo="skip",
        )
    )


def residuals(examined: Examined, predictions: Predictions) -> go.Figure:
    """Predicted / measured - 1 [%] over tokens scheduled and over cached tokens of a sequence; bars: repetitions."""
    figure = panels(["by tokens scheduled", "by context"], width=2)
    points = examined.points
    error = predictions.best_s / examined.measured_s - 1.0
    spread = 100.0 * (1.0 + error) * np.array([point.spread_ratio for point in points])
    tokens = np.array([float(point.shape.scheduled_tokens) for point in points])
    contexts = np.array([float(max(_context(point), NONE_AT)) for point in points])
    for col, (title, at) in enumerate(
        (("tokens scheduled", tokens), ("cached tokens of a sequence", contexts)), start=1
    ):
        cell = Panel(figure, col)
        _by_kind(cell, examined, (at, 100.0 * error), predictions.best_s, spread)
        figure.add_hline(y=0, line={"color": INK, "width": 1}, row=1, col=col)
        percent_axis = {
            "title": "predicted / measured - 1, %",
            "range": _shown_percent(examined, error, spread),
        }
        cell.axes(_token_axis(title, at), percent_axis)
    return finished(figure, 440)


def _shown_percent(examined: Examined, error: FloatArray, spread: FloatArray) -> list[float] | None:
    """The range that holds undisturbed points with their bars; None, which is all points, where there are none."""
    clean = examined.undisturbed
    if not clean.any():
        return None
    widest = max(float((100.0 * np.abs(error) + spread)[clean].max()), LEAST_SCALE_PERCENT)
    return [-ROOM * widest, ROOM * widest]


def _context(point: StepPoint) -> int:
    return max(point.shape.past_tokens, point.shape.context_tokens)


def _token_axis(title: str, values: Sequence[float] | FloatArray) -> dict[str, Any]:
    """A logarithmic axis with powers of two named, at most nine; of cached tokens none stands at 1."""
    low = int(np.floor(np.log2(max(np.min(values), 1.0))))
    top = max(int(np.ceil(np.log2(np.max(values)))), low + 1)
    steps = range(low, top + 1, 1 + (top - low) // 8)
    has_none = title.startswith("cached") and low == 0
    margin = 0.05 * (top - low)
    return {
        "title": title,
        "type": "log",
        "range": [float(np.log10(2.0) * end) for end in (low - margin, top + margin)],
        "tickvals": [2.0**step for step in steps],
        "ticktext": ["0" if has_none and not step else f"{2**step:,}" for step in steps],
    }


def roofline(examined: Examined, predictions: Predictions) -> go.Figure:
    """Achieved FLOP/s of one GPU over FLOP per byte, under its ceilings."""
    figure = panels([""], width=1)
    cell, work = Panel(figure, 1), predictions.work
    reached = work.flop / examined.measured_s
    _by_kind(cell, examined, (work.intensity, reached), predictions.best_s)
    ridges = [ceiling.ridge for ceiling in predictions.ceilings.values()]
    ends = np.array([min([*work.intensity, *ridges]) / 2.0, max([*work.intensity, *ridges]) * 2.0])
    for dash, (name, ceiling) in zip(DASHES, predictions.ceilings.items(), strict=False):
        cell.add(_roof(name, ceiling, ends, dash))
    cell.axes(
        {"title": "arithmetic intensity, FLOP per byte moved", "type": "log", "exponentformat": "none"},
        {"title": "achieved, FLOP/s of one device", "type": "log", "exponentformat": "SI"},
    )
    return finished(figure, 480)


def _roof(name: str, ceiling: Ceiling, ends: FloatArray, dash: str) -> go.Scatter:
    at = np.array([ends[0], ceiling.ridge, ends[1]])
    return go.Scatter(
        x=at,
        y=np.minimum(at * ceiling.bytes_per_s, ceiling.flop_per_s),
        mode="lines",
        line={"color": INK, "dash": dash, "width": 1.5},
        name=f"{name}: {number(ceiling.flop_per_s / 1e12)} TFLOP/s, {number(ceiling.bytes_per_s / 1e9)} GB/s",
        hoverinfo="skip",
    )


COVERED = {
    StepKind.PREFILL: ("tokens scheduled", "cached tokens before"),
    StepKind.DECODE: ("sequences", "cached tokens of each"),
    StepKind.MIXED: ("tokens scheduled", "cached tokens of the longest"),
}
"""What the axes of each panel of the coverage show."""


def coverage(examined: Examined) -> go.Figure | None:
    """Which shapes were measured, coloured by the error of their prediction; None where none was tried."""
    tried = [*examined.points, *examined.unmeasured]
    kinds = [kind for kind in StepKind if any(point.shape.kind is kind for point in tried)]
    if not kinds:
        return None
    figure = panels([kind.value for kind in kinds], width=len(kinds))
    predictions = examined.predictions
    errors = None
    if predictions is not None:
        errors = 100.0 * (predictions.best_s / examined.measured_s - 1.0)
        sizes = np.abs(errors[examined.undisturbed] if examined.undisturbed.any() else errors)
        widest = float(np.clip(sizes.max(), LEAST_SCALE_PERCENT, MOST_SCALE_PERCENT))
        bar = {"title": {"text": "error, %"}, "thickness": 12}
        figure.update_layout(
            coloraxis={"colorscale": "RdBu", "cmin": -widest, "cmax": widest, "colorbar": bar}
        )
    for col, kind in enumerate(kinds, start=1):
        rows = [row for row, point in enumerate(examined.points) if point.shape.kind is kind]
        failed = [point for point in examined.unmeasured if point.shape.kind is kind]
        drawn = [examined.points[row] for row in rows]
        cell = Panel(figure, col)
        marker = {
            "size": 10,
            "symbol": ["square" if point.disturbed else "circle" for point in drawn],
            "line": {"width": 1, "color": INK},
            **(
                {"color": COLOURS[0]} if errors is None else {"color": errors[rows], "coloraxis": "coloraxis"}
            ),
        }
        cell.add(_marks(drawn, marker, _said(examined, rows)))
        told = [f"{escape(point.shape.label)}<br>{escape(_problem(point))}" for point in failed]
        cell.add(_marks(failed, {"size": 11, "symbol": "x", "color": COLOURS[1]}, told))
        x, y = zip(*(_place(point) for point in (*drawn, *failed)), strict=True)
        cell.axes(_token_axis(COVERED[kind][0], x), _token_axis(COVERED[kind][1], y))
    for symbol, name in (("square", DISTURBED), ("x", "failed, or out of memory")):
        marker = {"symbol": symbol, "size": 10, "color": COLOURS[1] if symbol == "x" else FAINT}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=name)
    return finished(figure, 420)


def _marks(points: Sequence[StepPoint], marker: dict[str, Any], told: Sequence[str]) -> go.Scatter:
    places = [_place(point) for point in points]
    return go.Scatter(
        x=[place[0] for place in places],
        y=[place[1] for place in places],
        mode="markers",
        marker=marker,
        text=list(told),
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )


def _place(point: StepPoint) -> tuple[float, float]:
    """Tokens or sequences, and cached tokens, of which none stands at 1."""
    return float(point.shape.scheduled_tokens), max(float(_context(point)), NONE_AT)


def _problem(point: StepPoint) -> str:
    return point.failed or "its repetitions took no time"


def _by_kind(
    cell: Panel,
    examined: Examined,
    at: tuple[FloatArray, FloatArray],
    predicted_s: FloatArray,
    spread: FloatArray | None = None,
) -> None:
    """Points by kind of step, disturbed ones hollow; one legend entry each for the whole figure."""
    known = {trace.name for trace in cell.figure.data}
    for kind, (colour, symbol) in LOOKS.items():
        for disturbed in (False, True):
            rows = [
                row
                for row, point in enumerate(examined.points)
                if point.shape.kind is kind and bool(point.disturbed) is disturbed
            ]
            if not rows:
                continue
            name = f"{kind.value}, {DISTURBED}" if disturbed else kind.value
            bars = None
            if spread is not None:
                bars = {"type": "data", "array": spread[rows], "thickness": 1, "width": 2, "color": FAINT}
            cell.add(
                go.Scatter(
                    x=at[0][rows],
                    y=at[1][rows],
                    mode="markers",
                    name=name,
                    legendgroup=name,
                    showlegend=name not in known,
                    marker={
                        "color": colour,
                        "symbol": f"{symbol}-open" if disturbed else symbol,
                        "size": 8,
                        "opacity": 0.85,
                    },
                    error_y=bars,
                    text=_said(examined, rows, predicted_s),
                    hovertemplate="%{text}<extra></extra>",
                )
            )


def _said(examined: Examined, rows: Sequence[int], predicted_s: FloatArray | None = None) -> list[str]:
    """What points say when touched; predictions are the best there are where none are given."""
    if predicted_s is None and examined.predictions is not None:
        predicted_s = examined.predictions.best_s
    told = []
    for row in rows:
        point = examined.points[row]
        lines = [f"<b>{escape(point.shape.label)}</b>"]
        measured_ms = number(seconds_to_ms(point.median_s))
        lines.append(f"measured {measured_ms} ms, spread {100 * point.spread_ratio:.1f} %")
        if predicted_s is not None:
            off = relative_error(float(predicted_s[row] / point.median_s - 1.0))
            lines.append(f"predicted {number(seconds_to_ms(float(predicted_s[row])))} ms, error {off}")
        lines += [escape(why) for why in point.disturbed]
        told.append("<br>".join(lines))
    return told


def _line(x: FloatArray, y: FloatArray, colour: str) -> go.Scatter:
    return go.Scatter(
        x=x, y=y, mode="lines", line={"color": colour, "width": 1}, showlegend=False, hoverinfo="skip"
    )


def panels(titles: Sequence[str], width: int) -> go.Figure:
    """Panels in one row."""
    return make_subplots(rows=1, cols=width, subplot_titles=list(titles), horizontal_spacing=0.09)


def finished(figure: go.Figure, height_px: int) -> go.Figure:
    """The figure with what all of them have in common."""
    figure.update_layout(
        template="plotly_white",
        height=height_px,
        font={"color": INK},
        margin={"l": 0, "r": 8, "t": 60, "b": 0},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
    )
    return figure
