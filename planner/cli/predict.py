"""`predict`: bulk prediction of a runs table."""

import csv
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from planner.assemble.question import facts_for
from planner.catalog.atomic import atomic_text, check_outputs
from planner.cli.options import AsJson, CalibrationDir
from planner.cli.outcomes import Method, batches, outcomes
from planner.cli.runs import open_runs
from planner.cli.screen import Json, counting, note, records, show_json, show_table
from planner.export.format import number
from planner.export.predictions import PREDICTION_COLUMNS, Status, prediction_cells
from planner.export.table import Cell, csv_cell
from planner.planning.facts import Facts

MethodOption = Annotated[
    Method,
    typer.Option("--method", help="simulate: request by request; steady: closed form."),
]
SHOWN_ROWS = 20
SHOWN_COLUMNS = {
    "model": "model",
    "gpu": "GPU",
    "tp": "TP",
    "concurrency": "users",
    "request_rate_per_s": "requests/s",
    "pred_ttft_ms_mean": "TTFT ms",
    "pred_tpot_ms_mean": "TPOT ms",
    "pred_output_tokens_per_s": "tokens/s",
    "pred_kv_cache_tokens": "KV tokens",
    "status": "status",
    "reason": "reason",
}
"""What tells rows apart on a screen, with its heading."""


def predict(
    *,
    runs: Annotated[Path, typer.Argument(metavar="IN.csv", help="A runs table.")],
    output: Annotated[
        Path | None, typer.Option("--output", "--csv", metavar="OUT.csv", help="Write every row there.")
    ] = None,
    method: MethodOption = Method.SIMULATE,
    calibration_dir: CalibrationDir = None,
    as_json: AsJson = False,
) -> None:
    """Predict every row of a runs table."""
    check_outputs(output)
    facts = facts_of(method, calibration_dir)
    if output is not None:
        started = time.perf_counter()
        counts = write_predictions(runs, output, facts, method)
        spent_s = time.perf_counter() - started
        note(f"wrote {output}: {summary(counts)} in {number(spent_s)} s")
        if as_json:
            show_json(_counts_json(counts))
        return
    columns, rows, counts = _predicted(runs, facts, method)
    if as_json:
        show_json({**_counts_json(counts), "rows": records(columns, rows)})
    else:
        _show(columns, rows)
        note(f"{summary(counts)}; --output FILE keeps every column")


def facts_of(method: Method, calibration_dir: Path | None) -> Facts:
    """What predictions rest on, with errors as the method has them."""
    facts = facts_for(calibration_dir=calibration_dir)
    return facts if method is Method.SIMULATE else facts._replace(accuracy=facts.accuracy.of_closed_form)


def write_predictions(
    runs: Path, output: Path, facts: Facts, method: Method = Method.SIMULATE
) -> Counter[Status]:
    """Predicts a table into a file, row by row in their order, and counts what became of them.

    Raises:
        InputError: the table as a whole cannot be read, or the file cannot be written.
    """
    counts: Counter[Status] = Counter()
    with open_runs(runs) as table, atomic_text(output) as stream, counting("predicting", None) as advance:
        writer = csv.writer(stream)
        writer.writerow((*table.columns, *PREDICTION_COLUMNS))
        for batch in batches(table.runs, method):
            for run, outcome in zip(batch, outcomes(batch, facts, method), strict=True):
                cells = prediction_cells(outcome, facts.accuracy)
                writer.writerow((*run.cells, *map(csv_cell, cells)))
                counts[outcome.status] += 1
            advance(len(batch))
    return counts


def _predicted(
    runs: Path, facts: Facts, method: Method
) -> tuple[tuple[str, ...], list[tuple[Cell, ...]], Counter[Status]]:
    """The whole table in memory."""
    counts: Counter[Status] = Counter()
    rows: list[tuple[Cell, ...]] = []
    with open_runs(runs) as table, counting("predicting", None) as advance:
        for batch in batches(table.runs, method):
            for run, outcome in zip(batch, outcomes(batch, facts, method), strict=True):
                rows.append((*run.cells, *prediction_cells(outcome, facts.accuracy)))
                counts[outcome.status] += 1
            advance(len(batch))
    return (*table.columns, *PREDICTION_COLUMNS), rows, counts


def summary(counts: Counter[Status]) -> str:
    """How many rows there are and what became of them."""
    parts = ", ".join(f"{counts[status]:,} {status.value}" for status in Status)
    return f"{counts.total():,} rows: {parts}"


def _counts_json(counts: Counter[Status]) -> dict[str, Json]:
    return {"counts": {"rows": counts.total(), **{status.value: counts[status] for status in Status}}}


def _show(columns: tuple[str, ...], rows: list[tuple[Cell, ...]]) -> None:
    """The first rows, the columns that tell them apart."""
    present = [name for name in SHOWN_COLUMNS if name in columns]
    at = [columns.index(name) for name in present]
    shown = [[_text(row[index]) for index in at] for row in rows[:SHOWN_ROWS]]
    hidden = len(rows) - len(shown)
    show_table(
        f"The first {len(shown)} of {len(rows):,} rows" if hidden else "",
        [SHOWN_COLUMNS[name] for name in present],
        shown,
    )


def _text(cell: Cell) -> str:
    if isinstance(cell, float):
        return number(cell)
    return "" if cell is None else str(cell)
