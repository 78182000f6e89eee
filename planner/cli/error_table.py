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
from planner.export.predictions import MEASURES, Outcome, predicted

LOADS = ((1, 8), (9, 32), (33, 128), (129, 1_000_000))
"""Bands of concurrency."""
SMALLEST, LARGEST = 1e-6, 1e9
"""Bounds of what a run can measure, in ms, tokens/s, GiB or tokens; anything else counts as not measured."""


class Checked(NamedTuple):
    """A measured run with its prediction."""

    groups: Mapping[str, str]
    """Its model, GPU, TP and load."""
    ratios: Mapping[str, float]
    """Predicted / measured, by measure."""


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


def check(columns: Sequence[str], run: Run, outcome: Outcome) -> Checked:
    """A run's predictions over its measurements."""
    values = predicted(outcome.prediction)
    ratios = {
        measure: value / actual
        for measure, actual in measured(columns, run).items()
        if (value := values[measure]) is not None
    }
    return Checked(_groups(columns, run), ratios)


def _groups(columns: Sequence[str], run: Run) -> dict[str, str]:
    def cell(column: str) -> str:
        return run.cells[columns.index(column)].strip() if column in columns else ""

    try:
        gpu = find_gpu(cell("gpu")).name
    except InputError:
        gpu = cell("gpu")
    degree = _float(cell("tp") or "1")
    return {
        "all": "all",
        "model": cell("model"),
        "GPU": gpu,
        "TP": f"{degree:g}",
        "load": _load(_float(cell("concurrency")), _float(cell("request_rate_per_s"))),
    }


def _load(users: float, requests_per_s: float) -> str:
    for low, high in LOADS:
        if low <= users <= high:
            return f"{low}-{high} users" if high < LOADS[-1][1] else f"{low} users or more"
    return "open loop" if 0 < requests_per_s < math.inf else "memory alone"


def error_rows(checked: Iterable[Checked]) -> list[ErrorRow]:
    """Errors by group, everything first; groups in the order of their names, loads from light to heavy."""
    ratios: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for one in checked:
        for group, name in one.groups.items():
            for measure, ratio in one.ratios.items():
                ratios[group, name, measure].append(ratio)
    rows = []
    for (group, name, measure), values in ratios.items():
        errors = np.array(values) - 1.0
        rows.append(
            ErrorRow(
                group=group,
                name=name,
                measure=measure,
                rows=len(values),
                median_ratio=float(np.median(np.abs(errors))),
                p90_ratio=float(np.quantile(np.abs(errors), 0.9)),
                bias_ratio=float(np.median(errors)),
            )
        )
    groups = ("all", "model", "GPU", "TP", "load")
    return sorted(
        rows, key=lambda row: (groups.index(row.group), _order(row.name), MEASURES.index(row.measure))
    )


def _order(name: str) -> tuple[float, str]:
    """Numbers by size, before words."""
    leading = re.match(r"\d+", name)
    return (int(leading[0]), "") if leading else (math.inf, name)
