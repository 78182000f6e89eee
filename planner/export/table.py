"""Tables that other programs read: explicit columns, RFC 4180, safe in a spreadsheet."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from planner.catalog.atomic import atomic_text

Cell = str | int | float | bool | None
DECIMALS = 6
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet may run a cell that begins so."""


def safe_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula.

    >>> safe_text("=HYPERLINK(1)"), safe_text("p5.48xlarge")
    ("'=HYPERLINK(1)", 'p5.48xlarge')
    """
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text


def csv_cell(value: Cell) -> str:
    """A value as a CSV cell; empty where there is none, or no finite one.

    >>> csv_cell(1234.56789012), csv_cell(True), csv_cell(float("nan"))
    ('1234.56789', 'true', '')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(round(value, DECIMALS))
    return safe_text(value) if isinstance(value, str) else str(value)


def write_rows(stream: TextIO, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """A header and rows as RFC 4180 wants them."""
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows([csv_cell(value) for value in row] for row in rows)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """The same as one text, for a download."""
    stream = io.StringIO(newline="")
    write_rows(stream, columns, rows)
    return stream.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """The same as a file. Raises InputError where it cannot be written; nothing is left half-written."""
    with atomic_text(path) as stream:
        write_rows(stream, columns, rows)
