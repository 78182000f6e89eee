"""CSV tables read strictly: a cell that is not what its column needs is refused by file, line and column."""

import csv
import io
import math
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, TypeVar

from planner.catalog.nearest import nearest, shown
from planner.domain.base import InputError

LARGEST_BYTES = 20_000_000
_ISO_DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")

Choice = TypeVar("Choice", bound=StrEnum)


class Columns(NamedTuple):
    """The columns a table must have and those it may have; any other is refused."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


class Row(NamedTuple):
    """One row of a table and where it stands; an absent column reads as an empty cell."""

    path: Path
    line: int
    cells: dict[str, str]

    def error(self, column: str, needed: str) -> InputError:
        """The error for this cell: file, line, column, what is there and what is legal."""
        there = shown(self.cells.get(column, ""))
        return InputError(f'{self.path}:{self.line}: column {column} is "{there}"; {needed} is needed')

    def text(self, column: str) -> str:
        """The cell's text, which must not be empty."""
        return self.cells.get(column, "") or self._refuse(column, "a text")

    def optional_text(self, column: str) -> str:
        """The cell's text, empty where there is none."""
        return self.cells.get(column, "")

    def number(self, column: str, *, zero_is_legal: bool = False) -> float:
        """A finite number above 0 (or at least 0)."""
        text = self.cells.get(column, "")
        try:
            value = math.nan if "_" in text else float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and (value > 0 or (zero_is_legal and value == 0)):
            return value
        raise self.error(
            column, "a finite number of at least 0" if zero_is_legal else "a finite number above 0"
        )

    def optional_number(self, column: str) -> float | None:
        """A finite number above 0, or None where the cell is empty."""
        return self.number(column) if self.cells.get(column) else None

    def count(self, column: str) -> int:
        """A whole number above 0."""
        value = self.number(column)
        if value != int(value):
            raise self.error(column, "a whole number above 0")
        return int(value)

    def optional_count(self, column: str) -> int | None:
        """A whole number above 0, or None where the cell is empty."""
        return self.count(column) if self.cells.get(column) else None

    def flag(self, column: str) -> bool:
        """`yes` or `no`."""
        if self.cells.get(column) not in ("yes", "no"):
            raise self.error(column, "yes or no")
        return self.cells[column] == "yes"

    def choice(self, column: str, kind: type[Choice]) -> Choice:
        """One of an enumeration's values."""
        try:
            return kind(self.cells.get(column, ""))
        except ValueError:
            raise self.error(column, f"one of {', '.join(kind)}") from None

    def optional_date(self, column: str) -> str:
        """An ISO date, month or year, or empty."""
        text = self.cells.get(column, "")
        if text and not _ISO_DATE.fullmatch(text):
            raise self.error(column, "an ISO date (2026-08-20), month (2026-08) or nothing")
        return text

    def _refuse(self, column: str, needed: str) -> str:
        raise self.error(column, needed)


def read_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a UTF-8 CSV with a header; blank lines are passed over.

    Raises InputError where the file cannot be read, lacks a required column, has an unknown or repeated one,
    or has a row with more or fewer cells than the header.
    """
    text = read_text(path, LARGEST_BYTES, "a table of ours")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(lines, [])]
        _check_header(path, header, columns)
        for cells in lines:
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{path}:{lines.line_num}: {len(cells)} cells where the header has {len(header)} columns"
                )
            stripped = (cell.strip() for cell in cells)
            yield Row(path, lines.line_num, dict(zip(header, stripped, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}:{lines.line_num}: not a CSV row: {error}") from None


def read_text(path: Path, largest_bytes: int, kind: str) -> str:
    """A UTF-8 file as it is, of a bounded size; `kind` says what a larger one cannot be.

    Raises:
        InputError: not there, not readable, too large (a device has no end), or not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(largest_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if len(raw) > largest_bytes:
        raise InputError(f"{path}: larger than {largest_bytes // 10**6} MB, not {kind}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None


def _check_header(path: Path, header: list[str], columns: Columns) -> None:
    legal = columns.required + columns.optional
    for name in header:
        if name not in legal:
            near = nearest(name, legal, limit=1)
            hint = f"did you mean {near[0]}?" if near else f"legal columns: {', '.join(legal)}"
            raise InputError(f'{path}:1: unknown column "{shown(name)}"; {hint}')
    for name in columns.required:
        if name not in header:
            raise InputError(f"{path}:1: column {name} is missing; required: {', '.join(columns.required)}")
    if len(set(header)) != len(header):
        raise InputError(f"{path}:1: a column stands twice in the header")
