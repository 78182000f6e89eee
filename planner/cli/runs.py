"""Runs tables: any CSV with the columns of a benchmark run, rows in any order, read as a stream."""

import contextlib
import csv
from collections import deque
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, TextIO

from planner.catalog.nearest import fold, nearest
from planner.cli.run_cases import KNOWN_COLUMNS, REQUIRED_COLUMNS, CaseReader, RunCases
from planner.cli.screen import note
from planner.domain.base import InputError
from planner.export.predictions import MEASURES, PREDICTION_COLUMNS

LARGEST_CELL = 1_000_000
"""Characters; a quotation mark that is not closed within them counts as never closed."""
LONGEST_LINE = 10_000_000
"""Characters; a device such as `/dev/zero` is one line without end."""
SHORTEST_WORD = 4
"""Shorter names (tp, dp, tps) are alike without being meant."""
ALIKE_RATIO = 0.85
"""`difflib` similarity from which a column is taken for a misspelt one; a name without its unit is one too."""


class Run(NamedTuple):
    """One row: its cells as they are, what it asks for, or why it was not understood."""

    cells: Sequence[str]
    """Of the kept columns."""
    asks: RunCases | None
    problem: str = ""


class RunsTable(NamedTuple):
    """A runs table that is being read."""

    columns: tuple[str, ...]
    """Kept ones, in the file's order; those that a prediction writes itself are left out."""
    runs: Iterator[Run]


@contextlib.contextmanager
def open_runs(path: Path) -> Iterator[RunsTable]:
    """A runs table, read row by row.

    Raises:
        InputError: not readable, empty, no `model` or `gpu` column, or a column that stands twice.
    """
    csv.field_size_limit(LARGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            records = _records(stream)
            first = next(records, Record([]))
            if first.problem:
                raise InputError(f"{path}: {first.problem}")
            header = [name.strip() for name in first.cells]
            _check_header(path, header)
            for name, meant in misspelt(header):
                note(f"{path}: column {name} is not used; did you mean {meant}?")
            kept = [index for index, name in enumerate(header) if name not in PREDICTION_COLUMNS]
            yield RunsTable(tuple(header[index] for index in kept), _runs(records, header, kept))
            if len(kept) < len(header):
                note(f"{path}: earlier predictions in it are replaced")
    except LineTooLong as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


class LineTooLong(Exception):
    """A line beyond `LONGEST_LINE`."""


class Record(NamedTuple):
    """The cells of one row, or of as much of it as can be split, and what is wrong with it."""

    cells: list[str]
    problem: str = ""


def _records(stream: TextIO) -> Iterator[Record]:
    """CSV records without blank lines.

    A record of several lines must be sound and as wide as the first one. Where it is not, a quotation mark in
    its first line was never closed: that line is a record with a problem, and reading goes on at the next line.
    """
    lines = _Lines(stream)
    reader, width = csv.reader(lines, strict=True), 0
    while True:
        lines.taken.clear()
        try:
            cells, problem = next(reader), ""
        except StopIteration:
            return
        except csv.Error as error:
            cells, problem = [], str(error)
        several = len(lines.taken) > 1
        if (problem and (several or lines.ended)) or (several and width and len(cells) != width):
            problem = f"a quotation mark opened in line {lines.put_back()} is never closed"
            cells = _split(lines.taken[0])
        elif problem:
            cells = _split(lines.taken[0])
            problem = "" if cells else f"line {lines.number}: {problem}"
        width = width or len(cells)
        if cells or problem:
            yield Record(cells, problem)


def _split(line: str) -> list[str]:
    """The cells of one line, however its quotation marks stand; none where it cannot be split."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


class _Lines:
    """Lines of a stream, those of the present record kept so that they can be put back."""

    def __init__(self, stream: TextIO) -> None:
        self.number = 0
        self.taken: list[str] = []
        self.ended = False
        self._stream = stream
        self._ahead: deque[str] = deque()

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else self._stream.readline(LONGEST_LINE + 1)
        self.ended = not line
        if self.ended:
            raise StopIteration
        self.number += 1
        if len(line) > LONGEST_LINE:
            raise LineTooLong(f"line {self.number} is longer than {LONGEST_LINE:,} characters")
        self.taken.append(line)
        return line

    def put_back(self) -> int:
        """Keeps only the first line of the record and returns its number."""
        self._ahead.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1
        del self.taken[1:]
        return self.number


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise InputError(
            f"{path}: empty; a runs table has a header with at least {', '.join(REQUIRED_COLUMNS)}"
        )
    for name in REQUIRED_COLUMNS:
        if name not in header:
            near = nearest(name, header, limit=1)
            hint = f"; is it {near[0]}?" if near else ", in a comma-separated table in UTF-8"
            raise InputError(f"{path}: no column {name}{hint}")
    for name in (*KNOWN_COLUMNS, *MEASURES):
        if header.count(name) > 1:
            raise InputError(f"{path}: column {name} stands twice")


def misspelt(header: Sequence[str]) -> list[tuple[str, str]]:
    """Columns that nothing reads, each with the absent one that it is nearly called.

    >>> misspelt(["model", "gpu", "concurency", "comment"])
    [('concurency', 'concurrency')]
    """
    absent = {fold(name): name for name in KNOWN_COLUMNS if name not in header and len(name) >= SHORTEST_WORD}
    read = {*KNOWN_COLUMNS, *MEASURES, *PREDICTION_COLUMNS}
    found = []
    for name in header:
        if name not in read and len(name) >= SHORTEST_WORD:
            word = fold(name)
            shortened = [f"{word}pers"] if f"{word}pers" in absent else []
            near = shortened or get_close_matches(word, absent, n=1, cutoff=ALIKE_RATIO)
            found += [(name, absent[meant]) for meant in near]
    return found


def _runs(records: Iterator[Record], header: list[str], kept: list[int]) -> Iterator[Run]:
    reader = CaseReader(header)
    for cells, problem in records:
        if problem or len(cells) != len(header):
            padded = (cells + [""] * len(header))[: len(header)]
            width = f"{len(cells)} cells where the header has {len(header)}"
            yield Run([padded[index] for index in kept], None, problem or width)
            continue
        asks = reader.read(cells)
        shown = [cells[index] for index in kept]
        yield Run(shown, None, asks) if isinstance(asks, str) else Run(shown, asks)
