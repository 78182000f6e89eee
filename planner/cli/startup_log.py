"""`memory --log`: what an engine logged when it started, beside what is predicted for it."""

import sys
from pathlib import Path

from planner.assemble.log_check import LogCheck, LogRow, check_log
from planner.assemble.logged_deployment import Given
from planner.calibrate.startup_log import read_startup_log
from planner.catalog.table import LARGEST_BYTES, read_text
from planner.cli.screen import Json, note, records, show_json, show_table
from planner.domain.base import InputError
from planner.export.format import logged_figure, relative_error
from planner.export.table import write_csv
from planner.planning.facts import Facts

COLUMNS = ("what", "predicted", "actual", "unit", "error_ratio", "line_number")
KIND = "a start-up log"


def show_log(path: Path, given: Given, *, facts: Facts, csv: Path | None, as_json: bool) -> None:
    """Prints and writes a log's figures beside the predicted ones; `-` reads standard input.

    Raises:
        InputError: the log cannot be read, or the deployment behind it is not known (see `check_log`).
    """
    check = check_log(read_startup_log(read_log(path)), given, facts)
    if csv is not None:
        write_csv(csv, COLUMNS, check.rows)
        note(f"wrote {csv}")
    if as_json:
        show_json(log_json(check))
        return
    layout = check.case.parallelism
    title = f"{check.case.model.name} on {check.case.gpu.name}, TP {layout.tp}: one GPU"
    show_table(title, ["what", "predicted", "actual", "error", "line"], [_cells(row) for row in check.rows])
    for text in check.notes:
        note(text)


def read_log(path: Path) -> str:
    """The text of a log. Raises InputError where it cannot be read, is too large, or is no text."""
    text = _read_stdin() if str(path) == "-" else read_text(path, LARGEST_BYTES, KIND)
    if "\0" in text:
        raise InputError(f"{path}: binary, not {KIND}")
    return text


def _read_stdin() -> str:
    raw = sys.stdin.buffer.read(LARGEST_BYTES + 1)
    if len(raw) > LARGEST_BYTES:
        raise InputError(f"-: larger than {LARGEST_BYTES // 10**6} MB, not {KIND}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"-: not UTF-8 text (byte {error.start})") from None


def log_json(check: LogCheck) -> dict[str, Json]:
    """The comparison as JSON, with the deployment it is of."""
    case = check.case
    settings = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization")
    return {
        "model": case.model.name,
        "gpu": case.gpu.name,
        **{name: getattr(case.parallelism, name) for name in ("tp", "pp", "dp")},
        **{name: getattr(case.engine, name) for name in (*settings, "engine_version")},
        "rows": records(COLUMNS, check.rows),
        "notes": list(check.notes),
    }


def _cells(row: LogRow) -> list[str]:
    return [
        row.what,
        logged_figure(row.predicted, row.unit),
        logged_figure(row.actual, row.unit),
        relative_error(row.error_ratio),
        "" if row.line_number is None else str(row.line_number),
    ]
