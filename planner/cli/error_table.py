"""Errors of predictions against measured runs, over everything and by model, GPU, TP and load."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from planner.catalog.load import find_gpu
from planner.cli.runs import Run
from planner.domain.base import InputError
from planner.domain.evidence import Accuracy
from planner.domain.units import ms_to_seconds
from planner.export.comparison import ComparedRun, Figure
from planner.export.predictions import MEASURES, Outcome, predicted, predicted_ranges

LOADS = ((1, 8), (9, 32), (33, 128), (129, 1_000_000))
"""Bands of requests in flight."""
OPEN_LOOP = "open loop"
GROUPS = ("all", "model", "GPU", "TP", "load")
SMALLEST, LARGEST = 1e-6, 1e9
"""Bounds of what a run can measure, in ms, tokens/s, GiB or tokens; anything else counts as not measured."""


class ErrorRow(NamedTuple):
    """How far one measure was off in one group of runs."""

    group: str
    name: str
    measure: str
    rows: int
    median_ratio: float
    """Of |predicted / measured - 1|."""
    p90_ratio: float
    bias_ratio: float
    """Median of predicted / measured - 1."""
    measured_median: float
    """In the unit that the measure's name ends in, as the next."""
    predicted_median: float
    inside_ratio: float | None
    """Share of the rows with a 90 % interval whose measured value is in it; None where none has one."""


def measured(columns: Sequence[str], run: Run) -> dict[str, float]:
    """What a run measured, by measure; cells that are no number a run can have are left out."""
    found = {}
    for measure in MEASURES:
        if measure in columns:
            value = _float(run.cells[columns.index(measure)])
            if SMALLEST < value < LARGEST:
                found[measure] = value
    return found


def _float(text: str) -> float:
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


class Predicted(NamedTuple):
    """What became of a row, and how far such predictions are off."""

    outcome: Outcome
    accuracy: Accuracy


def compare(columns: Sequence[str], run: Run, found: Predicted, row: int) -> ComparedRun:
    """A run's predictions beside its measurements; `row` is its place in the table, from 1."""
    actual, values = measured(columns, run), predicted(found.outcome.prediction)
    ranges = predicted_ranges(*found)
    figures = {
        measure: Figure(measured_value, value, ranges.get(measure))
        for measure, measured_value in actual.items()
        if (value := values[measure]) is not None
    }
    cells = {name: cell.strip() for name, cell in zip(columns, run.cells, strict=True)}
    return ComparedRun(row, cells.get("run_id") or f"row {row}", _groups(cells, actual), figures)


def _groups(cells: Mapping[str, str], actual: Mapping[str, float]) -> dict[str, str]:
    named = cells.get("gpu", "")
    try:
        gpu = find_gpu(named).name
    except InputError:
        gpu = named
    return {
        "all": "all",
        "model": cells.get("model", ""),
        "GPU": gpu,
        "TP": f"{_float(cells.get('tp') or '1'):g}",
        "load": _load(cells, actual),
    }


def _load(cells: Mapping[str, str], actual: Mapping[str, float]) -> str:
    """Users of a closed loop; requests in flight of an open one, by Little's law from what was measured."""
    users = _band(_float(cells.get("concurrency", "")))
    if users:
        return users.format("users")
    requests_per_s = _float(cells.get("request_rate_per_s", ""))
    if not 0 < requests_per_s < math.inf:
        return "memory alone"
    answer_tokens = _float(cells.get("output_tokens", ""))
    answer_tokens *= (1.0 + _float(cells.get("length_low_ratio") or "1")) / 2.0
    ttft_ms, tpot_ms = (actual.get(measure, math.nan) for measure in MEASURES[:2])
    stay_ms = ttft_ms + tpot_ms * max(answer_tokens - 1.0, 0.0)
    in_flight = _band(requests_per_s * ms_to_seconds(stay_ms))
    return f"{OPEN_LOOP}, {in_flight.format('in flight')}" if in_flight else OPEN_LOOP


def _band(in_flight: float) -> str:
    """The band of so many, with a place for the noun; empty where that is not known."""
    for low, high in LOADS:
        if 0 < in_flight < high + 0.5:
            return f"{low}-{high} {{}}" if high < LOADS[-1][1] else f"{low} {{}} or more"
    return ""


def error_rows(runs: Iterable[ComparedRun]) -> list[ErrorRow]:
    """Errors by group, everything first; groups in the order of their names, loads from light to heavy."""
    found: defaultdict[tuple[str, str, str], list[Figure]] = defaultdict(list)
    for run in runs:
        for group, name in run.groups.items():
            for measure, figure in run.figures.items():
                found[group, name, measure].append(figure)
    rows = []
    for (group, name, measure), figures in found.items():
        actual, values = np.array([(figure.measured, figure.predicted) for figure in figures]).T
        inside = [held for figure in figures if (held := figure.is_inside) is not None]
        errors = values / actual - 1.0
        rows.append(
            ErrorRow(
                group=group,
                name=name,
                measure=measure,
                rows=len(figures),
                median_ratio=float(np.median(np.abs(errors))),
                p90_ratio=float(np.quantile(np.abs(errors), 0.9)),
                bias_ratio=float(np.median(errors)),
                measured_median=float(np.median(actual)),
                predicted_median=float(np.median(values)),
                inside_ratio=float(np.mean(inside)) if inside else None,
            )
        )
    return sorted(
        rows, key=lambda row: (GROUPS.index(row.group), _order(row.name), MEASURES.index(row.measure))
    )


def sorted_runs(runs: Iterable[ComparedRun]) -> list[ComparedRun]:
    """The runs by model, GPU, TP and load, in the order in which groups come."""
    return sorted(runs, key=lambda run: [_order(run.groups[group]) for group in GROUPS])


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by size, before words; open loops after closed ones."""
    leading = re.match(rf"({OPEN_LOOP}, )?(\d+)", name)
    return (int(leading[1] is not None), int(leading[2]), "") if leading else (2, math.inf, name)
