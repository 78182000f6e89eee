"""`validate`: predicts measured runs and says how far off it is."""

import csv as csv_module
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from planner.catalog.atomic import atomic_text, check_outputs, write_text
from planner.cli.error_table import ErrorRow, Predicted, compare, error_rows, sorted_runs
from planner.cli.options import AsJson, CalibrationDir
from planner.cli.outcomes import Method, batches, outcomes
from planner.cli.predict import MethodOption, facts_of, summary
from planner.cli.runs import Run, open_runs
from planner.cli.screen import counting, note, records, say, show_json, show_markdown, show_table
from planner.domain.base import InputError
from planner.export.comparison import TITLES, ComparedRun, FigureRow, figure_rows
from planner.export.format import number, per_cent, relative_error
from planner.export.predictions import MEASURES, PREDICTION_COLUMNS, Status, prediction_cells
from planner.export.table import csv_cell, write_csv
from planner.planning.facts import Facts

ERROR_COLUMNS = ErrorRow._fields
TIMES, MEMORY = MEASURES[:3], MEASURES[3:]
SHORT = {
    "ttft_ms_mean": "TTFT",
    "tpot_ms_mean": "TPOT",
    "output_tokens_per_s": "tokens/s",
    "weights_gib_per_gpu": "weights",
    "kv_cache_gib_per_gpu": "KV cache",
    "kv_cache_tokens": "KV tokens",
}
LISTED_FAILURES = 10


class Failure(NamedTuple):
    """A row without a full answer."""

    row: str
    """Its `run_id`, else its number."""
    status: Status
    reason: str


class Exam(NamedTuple):
    """What came out of predicting measured runs."""

    counts: Counter[Status]
    runs: list[ComparedRun]
    """Those that were understood."""
    failures: list[Failure]


def _check_run_alone(measured: Path | None, options: Mapping[str, object]) -> None:
    """Raises `InputError` where options of a table came with a run."""
    given = [name for name, value in ({"MEASURED.csv": measured} | dict(options)).items() if value]
    if given:
        raise InputError(f"--run: a run is no table, leave {given[0]} out")


def validate(
    *,
    measured: Annotated[
        Path | None, typer.Argument(metavar="MEASURED.csv", help="A runs table with measured columns.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN.json",
            help="A run of `calibrate`, in place of a table: its steps and serving runs.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="OUT.csv", help="Write every row with its prediction.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the error table to FILE.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.html", help="Draw predicted against measured as a page."),
    ] = None,
    rows: Annotated[
        bool, typer.Option("--rows", help="Also print measured, predicted and error of every run.")
    ] = False,
    method: MethodOption = Method.SIMULATE,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables in Markdown.")] = False,
    calibration_dir: CalibrationDir = None,
    as_json: AsJson = False,
) -> None:
    """Predict measured runs and print the errors."""
    if run is not None:
        from planner.cli.validate_run import validate_run

        _check_run_alone(
            measured, {"--output": output, "--plot": plot, "--rows": rows, "--markdown": markdown}
        )
        check_outputs(csv, inputs=(run,))
        validate_run(run, calibration_dir, csv=csv, as_json=as_json)
        return
    if measured is None:
        raise InputError("validate: name a runs table (MEASURED.csv) or --run RUN.json")
    check_outputs(output, csv, plot, inputs=(measured,))
    found = examine(measured, facts_of(method, calibration_dir), output, method)
    errors = error_rows(found.runs)
    figures = list(figure_rows(sorted_runs(found.runs))) if rows else []
    if csv is not None:
        write_csv(csv, ERROR_COLUMNS, errors)
    if plot is not None:
        from planner.export.parity import parity_page

        write_text(plot, parity_page(found.runs, measured.name))
    for path in (output, csv, plot):
        if path is not None:
            note(f"wrote {path}")
    if as_json:
        show_json(
            {
                "counts": {"rows": found.counts.total(), **{s.value: found.counts[s] for s in Status}},
                "errors": records(ERROR_COLUMNS, errors),
                "not_answered": records(Failure._fields, found.failures),
                **({"rows": records(FigureRow._fields, figures)} if rows else {}),
            }
        )
        return
    say(summary(found.counts))
    say()
    for measures in (TIMES, MEMORY):
        _show(measures, errors, markdown=markdown)
    for measure in MEASURES:
        _show_runs(measure, [row for row in figures if row.measure == measure], markdown=markdown)
    for failure in found.failures[:LISTED_FAILURES]:
        note(f"{failure.status.value}: {failure.row}: {failure.reason}")
    if len(found.failures) > LISTED_FAILURES:
        note(
            f"and {len(found.failures) - LISTED_FAILURES} more rows without an answer (--output has them all)"
        )


def examine(path: Path, facts: Facts, output: Path | None = None, method: Method = Method.SIMULATE) -> Exam:
    """Predicts a measured table, and writes every row with its prediction where asked to.

    Raises:
        InputError: the table cannot be read, or has none of the measured columns.
    """
    exam = Exam(Counter(), [], [])
    with ExitStack() as stack:
        table = stack.enter_context(open_runs(path))
        if not set(MEASURES) & set(table.columns):
            raise InputError(
                f"{path}: nothing measured; it needs at least one column of {', '.join(MEASURES)}"
            )
        writer = csv_module.writer(stack.enter_context(atomic_text(output))) if output is not None else None
        if writer is not None:
            writer.writerow((*table.columns, *PREDICTION_COLUMNS))
        advance = stack.enter_context(counting("predicting", None))
        for batch in batches(table.runs, method):
            for run, outcome in zip(batch, outcomes(batch, facts, method), strict=True):
                _count(exam, table.columns, run, Predicted(outcome, facts.accuracy))
                if writer is not None:
                    cells = prediction_cells(outcome, facts.accuracy)
                    writer.writerow((*run.cells, *map(csv_cell, cells)))
            advance(len(batch))
    return exam


def _count(exam: Exam, columns: Sequence[str], run: Run, found: Predicted) -> None:
    outcome = found.outcome
    exam.counts[outcome.status] += 1
    if outcome.status is not Status.ERROR:
        exam.runs.append(compare(columns, run, found, exam.counts.total()))
    if outcome.status is not Status.OK:
        named = run.cells[columns.index("run_id")] if "run_id" in columns else ""
        exam.failures.append(Failure(named or f"row {exam.counts.total()}", outcome.status, outcome.reason))


def _show(measures: Sequence[str], rows: Sequence[ErrorRow], *, markdown: bool) -> None:
    """One table with a column a measure: median and 90th percentile of |error|, the bias, and the share of rows in
    their interval."""
    present = [measure for measure in measures if any(row.measure == measure for row in rows)]
    if not present:
        return
    cells = {(row.group, row.name, row.measure): row for row in rows}
    lines = []
    for group, name in dict.fromkeys((row.group, row.name) for row in rows if row.measure in present):
        found = [cells.get((group, name, measure)) for measure in present]
        count = max(row.rows for row in found if row is not None)
        lines.append(
            [name if group == "all" else f"{group} {name}", str(count), *(_errors(row) for row in found)]
        )
    headers = ["", "rows", *(f"{SHORT[measure]} error" for measure in present)]
    title = (
        "|predicted / measured - 1| in %: median / 90th percentile (bias), % of rows in their 90 % interval"
    )
    _print(title, headers, lines, markdown=markdown)


def _show_runs(measure: str, rows: Sequence[FigureRow], *, markdown: bool) -> None:
    """One measure of every run that has it, by model, GPU, TP and load."""
    if not rows:
        return
    lines = [
        [
            *(row.model, row.gpu, row.tp, row.load, str(row.row)),
            *(number(row.measured), number(row.predicted), relative_error(row.error_ratio)),
            "" if row.low is None or row.high is None else f"{number(row.low)} to {number(row.high)}",
        ]
        for row in rows
    ]
    headers = ["model", "GPU", "TP", "load", "row", "measured", "predicted", "error", "90 %"]
    _print("{}, {}".format(*TITLES[measure]), headers, lines, markdown=markdown)


def _print(title: str, headers: Sequence[str], lines: Sequence[Sequence[str]], *, markdown: bool) -> None:
    if markdown:
        say(f"{title}\n")
        show_markdown(headers, lines)
        say()
    else:
        show_table(title, headers, lines)


def _errors(row: ErrorRow | None) -> str:
    if row is None:
        return ""
    bias = per_cent(row.bias_ratio, "+")
    inside = "" if row.inside_ratio is None else f", {100.0 * row.inside_ratio:.0f}"
    return f"{per_cent(row.median_ratio)} / {per_cent(row.p90_ratio)} ({bias}){inside}"
