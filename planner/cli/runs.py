"""Runs tables: any CSV with the columns of a benchmark run, rows in any order, read as a stream."""

import contextlib
import csv
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
"""Characters; a quotation mark that is never closed swallows what follows it up to here."""
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
            rows = _rows(stream)
            header = [name.strip() for name in next(rows, ())]
            _check_header(path, header)
            for name, meant in misspelt(header):
                note(f"{path}: column {name} is not used; did you mean {meant}?")
            kept = [index for index, name in enumerate(header) if name not in PREDICTION_COLUMNS]
            if len(kept) < len(header):
                note(f"{path}: earlier predictions in it are replaced")
            yield RunsTable(tuple(header[index] for index in kept), _runs(rows, header, kept))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _rows(stream: TextIO) -> Iterator[list[str]]:
    """CSV rows; one that cannot be split is a row of a single, hopeless cell."""
    reader = csv.reader(stream)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = [f"line {reader.line_num}: {error}"]
        if cells:
            yield cells


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
    for name in KNOWN_COLUMNS:
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


def _runs(rows: Iterator[list[str]], header: list[str], kept: list[int]) -> Iterator[Run]:
    reader = CaseReader(header)
    for cells in rows:
        if len(cells) != len(header):
            padded = (cells + [""] * len(header))[: len(header)]
            problem = f"{len(cells)} cells where the header has {len(header)}"
            yield Run([padded[index] for index in kept], None, problem)
            continue
        asks = reader.read(cells)
        shown = [cells[index] for index in kept]
        yield Run(shown, None, asks) if isinstance(asks, str) else Run(shown, asks)
