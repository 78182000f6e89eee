"""One calibration as one HTML page: what was measured, how well it is predicted, and what is missing."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, median

import plotly.graph_objects as go

from planner.calibrate.fit_steps import region_errors
from planner.catalog.atomic import write_text
from planner.domain.calibration import CalibrationRun, ServingPoint, StepPoint
from planner.domain.evidence import StepKind
from planner.domain.units import seconds_to_ms
from planner.export import calibration_figures as figures
from planner.export import calibration_run_figures as run_figures
from planner.export.calibration_record import about_memory, about_run
from planner.export.calibration_steps import Examined, error_band, examined
from planner.export.figures import figure_html, page_of
from planner.export.format import number, percent
from planner.export.markup import Row, missing, paragraph, table_of
from planner.formulas.gpu_fit import FittedParameter
from planner.formulas.operators import GpuOperators

STYLE = """
 body {max-width: 1200px} h2 {margin-top: 2.2rem; border-bottom: 1px solid #dde3e7; padding-bottom: .3rem}
 table {border-collapse: collapse; font-size: .9rem; margin: .6rem 0}
 th, td {border-bottom: 1px solid #dde3e7; padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top}
 td.figure, th.figure {text-align: right} tr.faint td {color: #8a97a0}
 .columns {display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start}
 .missing {color: #a33b00} ul {font-size: .9rem} td {overflow-wrap: anywhere}
"""
MEANINGS = {
    "compute": "dense matrix products bound by compute",
    "weights": "dense matrix products bound by reading weights",
    "expert_compute": "routed experts bound by compute",
    "expert_weights": "routed experts bound by reading weights",
    "launch": "what a kernel takes however little it does",
    "elementwise": "norms, activations, rotary positions",
    "decode_cache": "reading cached tokens while decoding",
    "decode_sequence": "attention of a decoding sequence, however short",
    "prompt_pairs": "query-key pairs of prompts",
    "prompt_tokens": "attention of a prompt token, however few it sees",
    "collective": "all-reduce between GPUs",
    "dispatch": "launching kernels from Python",
    "logit_s": "s for each logit sampled",
    "sync_step_s": "s of host work a step",
    "sync_per_sequence_s": "s of host work for each sequence of a step",
}
"""What each parameter scales, or its unit."""


def write_report(run: CalibrationRun, operators: GpuOperators | None, path: Path) -> None:
    """The page as a file, whole or not at all; see `report_page`. Raises InputError where it cannot be written."""
    write_text(path, report_page(run, operators))


def report_page(run: CalibrationRun, operators: GpuOperators | None) -> str:
    """The page; `operators`: the device's as known before any run, None where nothing is known.

    plotly.js is in it, so nothing is fetched.
    """
    found = examined(run, operators)
    library = _Library()
    sections = (
        ("The run", about_run(run)),
        ("Memory of one device, as the engine says", about_memory(run.memory)),
        ("Measured against predicted", _parity(found, library)),
        ("Residuals", _residuals(found, library)),
        ("Roofline", _roofline(found, library)),
        ("Sensors over time", _sensors(run, library)),
        ("Coverage of the grid", _coverage(found, library)),
        ("Served in the engine's process", _serving(run, library)),
        ("Fitted parameters", _parameters(found, library)),
    )
    body = "".join(f"<h2>{escape(title)}</h2>\n{''.join(parts)}\n" for title, parts in sections)
    machine = run.machine.device_name or run.machine.gpu
    return page_of(f"Calibration of {run.target.model} on {machine}", body, STYLE)


class _Library:
    """Puts plotly.js into the first figure of a page."""

    def __init__(self) -> None:
        self._is_there = False

    def drawn(self, figure: go.Figure) -> str:
        """One figure as markup."""
        text = figure_html(figure, with_library=not self._is_there)
        self._is_there = True
        return text


def _parity(found: Examined, library: _Library) -> Iterator[str]:
    yield from map(missing, found.missing)
    if found.predictions is None:
        return
    factor = error_band(found)
    if factor is not None:
        yield paragraph(
            "Line: predicted = measured. Grey: 90 % of undisturbed steps, each predicted by the fit without it, lie "
            f"within a factor of {number(factor)}. Hollow points were disturbed."
        )
    yield library.drawn(figures.parity_of_steps(found, found.predictions))
    if found.fit is None or found.steps is None:
        return
    rows = [
        [
            row.region,
            f"{row.steps:,}",
            percent(row.before_median_ratio),
            percent(row.median_ratio),
            percent(row.p90_ratio),
            percent(row.left_out_median_ratio),
        ]
        for row in region_errors([found.steps], found.fit)
    ]
    yield paragraph("|predicted / measured - 1|:")
    headers = ("steps", "shapes", "before, median", "fitted, median", "fitted, 90 %", "left out, median")
    yield table_of(headers, rows)


def _residuals(found: Examined, library: _Library) -> Iterator[str]:
    if found.predictions is None:
        yield missing("Without predictions there are no residuals.")
    else:
        basis = "the fit to this run" if found.fit is not None else "what was known before the run"
        yield paragraph(
            f"Of {basis}. Bars: median absolute deviation of the repetitions. Hollow: disturbed; those far out are "
            "beyond the axis, double-click to see all."
        )
        yield library.drawn(figures.residuals(found, found.predictions))
    yield from _kinds(found.points)


def _kinds(points: Sequence[StepPoint]) -> Iterator[str]:
    """Times, spread, and energy where it was measured, by kind of step."""
    rows = []
    for kind in StepKind:
        mine = [point for point in points if point.shape.kind is kind]
        if not mine:
            continue
        powered = [
            (point.telemetry.power_w_mean, point)
            for point in mine
            if point.telemetry is not None and point.telemetry.power_w_mean is not None
        ]
        joules = [watts * point.median_s / point.shape.scheduled_tokens for watts, point in powered]
        rows.append(
            [
                kind.value,
                f"{len(mine):,}",
                f"{number(seconds_to_ms(min(point.median_s for point in mine)))} ms",
                f"{number(seconds_to_ms(max(point.median_s for point in mine)))} ms",
                percent(median(point.spread_ratio for point in mine)),
                f"{number(median(watts for watts, _ in powered))} W" if powered else "not measured",
                f"{number(min(joules))} to {number(max(joules))} J" if joules else "not measured",
            ]
        )
    if rows:
        headers = (
            "steps",
            "shapes",
            "shortest",
            "longest",
            "spread, median",
            "power, median",
            "energy per token",
        )
        yield table_of(headers, rows)


def _roofline(found: Examined, library: _Library) -> Iterator[str]:
    if found.predictions is None:
        yield missing(
            "Without a model and a device that are known, FLOP and bytes of a step cannot be counted."
        )
        return
    yield paragraph(
        "FLOP and bytes as the step model counts them, over the whole time of a step, host work included. The fitted "
        "ceiling is that of dense matrix products alone: what a deployment's own curve adds is not in it."
    )
    yield library.drawn(figures.roofline(found, found.predictions))


def _sensors(run: CalibrationRun, library: _Library) -> Iterator[str]:
    figure = None if run.series is None else run_figures.sensors(run.series)
    if figure is None:
        why = "nothing was watched" if run.series is None else "no sensor of this device could be read"
        yield missing(f"No clocks, power or temperature: {why}.")
        return
    yield library.drawn(figure)
    assert run.series is not None
    silent = [
        title.partition(",")[0]
        for name, title in run_figures.SENSORS.items()
        if all(value is None for value in getattr(run.series, name))
    ]
    if silent:
        yield missing(
            f"Not read on this machine: {', '.join(silent)}; the notes above say why where it is known."
        )
    yield from _throttling(run)


def _throttling(run: CalibrationRun) -> Iterator[str]:
    seen = [*(one.telemetry for one in run.points), *(one.telemetry for one in run.serving)]
    reasons = sorted({reason for one in seen if one is not None for reason in one.throttle_reasons})
    if reasons:
        yield missing(f"Clocks were held back by: {', '.join(reasons)}.")


def _coverage(found: Examined, library: _Library) -> Iterator[str]:
    figure = figures.coverage(found)
    if figure is None:
        yield missing("No shape was tried.")
        return
    yield library.drawn(figure)
    if found.unmeasured:
        rows = [
            [point.shape.label, f"{point.attempt}", point.failed or "no time"] for point in found.unmeasured
        ]
        yield table_of(("never measured", "attempts", "why"), rows)


def _serving(run: CalibrationRun, library: _Library) -> Iterator[str]:
    answered = [point for point in run.serving if point.requests]
    for point in run.serving:
        if point.failed:
            yield missing(f"A serving run of {point.load.concurrency:,} users failed: {point.failed}")
    if not answered:
        yield missing("No serving run was measured.")
        return
    yield library.drawn(run_figures.served(answered))
    headers = ("users", "tokens", "requests", "TTFT, mean", "median", "TPOT, mean", "tokens/s", "power")
    yield table_of((*headers, "energy per token", "disturbed"), [_served_row(point) for point in answered])


def _served_row(point: ServingPoint) -> Row:
    """One serving run; energy is of tokens put out."""
    requests, telemetry, tpot_s = point.requests, point.telemetry, point.tpot_s_mean
    tokens = sum(one.output_tokens for one in requests)
    took_s = max(one.sent_s + one.e2e_s for one in requests) - min(one.sent_s for one in requests)
    watts = None if telemetry is None else telemetry.power_w_mean
    energy_j = None if telemetry is None else telemetry.energy_j
    return (
        f"{point.load.concurrency:,}",
        f"{fmean(one.input_tokens for one in requests):,.0f} + {tokens / len(requests):,.0f}",
        f"{len(requests):,}",
        f"{number(seconds_to_ms(point.ttft_s_mean))} ms",
        f"{number(seconds_to_ms(median(one.ttft_s for one in requests)))} ms",
        "one token each" if tpot_s is None else f"{number(seconds_to_ms(tpot_s))} ms",
        number(tokens / took_s) if took_s > 0 else "unknown",
        "not measured" if watts is None else f"{number(watts)} W",
        "not measured" if energy_j is None else f"{number(energy_j / tokens)} J",
        ", ".join(point.disturbed),
    )


def _parameters(found: Examined, library: _Library) -> Iterator[str]:
    if found.fit is None:
        yield from map(missing, found.missing)
        return
    fitted = found.fit.parameters
    yield paragraph(
        "Found from this run alone, drawn to what was known before. Grey: the run does not tell it."
    )
    yield library.drawn(run_figures.parameters(fitted))
    rows = [_parameter_row(one) for one in fitted]
    headers = ("parameter", "of", "before", "90 % before", "found", "90 %", "told by this run")
    yield table_of(headers, rows, faint=[not one.identified for one in fitted])


def _parameter_row(one: FittedParameter) -> Row:
    return (
        one.name,
        MEANINGS.get(one.name, ""),
        number(one.prior.value),
        f"{number(one.prior.low)} to {number(one.prior.high)}",
        number(one.estimate.value),
        f"{number(one.estimate.low)} to {number(one.estimate.high)}",
        "yes" if one.identified else "no",
    )
