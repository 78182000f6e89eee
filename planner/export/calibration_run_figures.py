"""Figures of one calibration beside its steps: sensors over time, serving runs, fitted parameters."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planner.domain.calibration import ServingPoint, TelemetrySeries
from planner.domain.units import bytes_to_gib, seconds_to_ms
from planner.export.calibration_figures import DISTURBED, Panel, finished, panels
from planner.export.figures import COLOURS, FAINT, INK
from planner.formulas.gpu_fit import FittedParameter

SENSORS = {
    "sm_clock_mhz": "SM clock, MHz",
    "power_w": "power, W",
    "temperature_c": "temperature, °C",
    "utilization_ratio": "utilisation, %",
    "memory_used_bytes": "memory used, GiB",
}
IN_READER_UNITS = {"utilization_ratio": lambda ratio: 100.0 * ratio, "memory_used_bytes": bytes_to_gib}


def sensors(series: TelemetrySeries) -> go.Figure | None:
    """Every sensor that ever read anything, over the time since the calibration began; None where none did."""
    found = {name: _readings(series, name) for name in SENSORS}
    found = {name: values for name, values in found.items() if any(value is not None for value in values)}
    if not found:
        return None
    figure = make_subplots(rows=len(found), cols=1, shared_xaxes=True, vertical_spacing=0.16 / len(found))
    for row, (name, values) in enumerate(found.items(), start=1):
        title = SENSORS[name]
        line = {"color": COLOURS[(row - 1) % len(COLOURS)], "width": 1.2}
        cell = Panel(figure, 1, row)
        cell.add(
            go.Scatter(x=series.seconds, y=values, mode="lines", line=line, name=title, showlegend=False)
        )
        cell.axes({}, {"title": title.replace(", ", ",<br>"), "rangemode": "tozero"})
    figure.update_xaxes(title="since the calibration began, s", row=len(found), col=1)
    return finished(figure, 60 + 140 * len(found))


def _readings(series: TelemetrySeries, name: str) -> list[float | None]:
    """One sensor over time in the units that it is shown in."""
    shown = IN_READER_UNITS.get(name, float)
    return [None if value is None else shown(value) for value in getattr(series, name)]


def served(points: Sequence[ServingPoint]) -> go.Figure:
    """TTFT and TPOT of every request [ms] over when it was sent [s]."""
    figure = panels(["TTFT", "TPOT"], width=2)
    for index, point in enumerate(points):
        load = point.load
        name = f"{load.concurrency:,} users, {load.input_tokens:,} + {load.output_tokens:,} tokens"
        if point.disturbed:
            name += f", {DISTURBED}"
        for col, key in enumerate(("ttft_s", "tpot_s"), start=1):
            shown = [
                (one.sent_s, value, one) for one in point.requests if (value := getattr(one, key)) is not None
            ]
            Panel(figure, col).add(
                go.Scatter(
                    x=[sent_s for sent_s, _, _ in shown],
                    y=[seconds_to_ms(value) for _, value, _ in shown],
                    mode="markers",
                    name=name,
                    legendgroup=f"{index}",
                    showlegend=col == 1,
                    marker={"color": COLOURS[index % len(COLOURS)], "size": 7, "opacity": 0.8},
                    text=[f"{one.input_tokens:,} + {one.output_tokens:,} tokens" for _, _, one in shown],
                    hovertemplate="%{text}<br>sent at %{x:.4g} s: %{y:.4g} ms<extra></extra>",
                )
            )
    for col, title in ((1, "TTFT, ms"), (2, "TPOT, ms")):
        Panel(figure, col).axes({"title": "sent, s"}, {"title": title, "rangemode": "tozero"})
    return finished(figure, 400)


def parameters(found: Sequence[FittedParameter]) -> go.Figure:
    """Each parameter over its prior's value, with 90 % ranges of both; grey: the run does not tell it."""
    figure = panels([""], width=1)
    cell = Panel(figure, 1)
    named = [f"{one.name}" for one in found]
    for name, low, high, colour, width in (
        *(
            (one.name, one.prior.low / one.prior.value, one.prior.high / one.prior.value, "#dde3e7", 14)
            for one in found
        ),
        *(
            (one.name, one.estimate.low / one.prior.value, one.estimate.high / one.prior.value, colour, 4)
            for one in found
            if (colour := COLOURS[0] if one.identified else FAINT)
        ),
    ):
        line = {"color": colour, "width": width}
        cell.add(
            go.Scatter(
                x=[low, high], y=[name, name], mode="lines", line=line, showlegend=False, hoverinfo="skip"
            )
        )
    for known, title in (
        (True, "found, with its 90 % range"),
        (False, "not told by this run: as known before"),
    ):
        mine = [one for one in found if one.identified is known]
        cell.add(
            go.Scatter(
                x=[one.estimate.value / one.prior.value for one in mine],
                y=[one.name for one in mine],
                mode="markers",
                name=title,
                marker={"color": COLOURS[0] if known else FAINT, "size": 10},
                hovertemplate="%{y}: x %{x:.3g}<extra></extra>",
            )
        )
    figure.add_vline(x=1, line={"color": INK, "width": 1})
    cell.axes(
        {"title": "over the value known before; wide bars: 90 % before the run", "type": "log"},
        {"categoryorder": "array", "categoryarray": named[::-1], "automargin": True},
    )
    return finished(figure, 120 + 30 * len(found))
