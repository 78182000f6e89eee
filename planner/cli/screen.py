"""Where output goes: tables and JSON to stdout, everything else to stderr."""

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from planner.catalog.nearest import harmless
from planner.export.table import DECIMALS, Cell

if TYPE_CHECKING:
    from rich.console import Console

Json = Cell | Sequence["Json"] | Mapping[str, "Json"]

PIPE_WIDTH = 120
"""Columns of a table where no terminal says how wide it is."""
_FIGURE = re.compile(r"[-+]?\$?[\d,.]+( ?(ms|s|%|x|GiB))?\*?|unknown|∞")


def say(text: str = "") -> None:
    """One line to stdout, as it is: never wrapped, never coloured."""
    print(text)


def note(text: str) -> None:
    """One line to stderr, which may be closed or full: a note is no part of the answer."""
    with contextlib.suppress(OSError):
        print(harmless(text), file=sys.stderr)


def show_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table to stdout; columns of figures are set flush right and never broken."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, (header, figures) in enumerate(zip(headers, _figures(headers, rows), strict=True)):
        words = header.split() + ([row[index] for row in rows] if figures else [])
        table.add_column(
            Text(header),
            justify="right" if figures else "left",
            overflow="fold",
            min_width=max(map(len, words), default=1),
            no_wrap=index == 0,
        )
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    console = _console()
    with console.capture() as captured:
        if title:
            console.print(Text(harmless(title), style="bold"), soft_wrap=True)
        console.print(table)
    for line in captured.get().splitlines():
        say(line.rstrip())


def _figures(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold nothing but figures."""
    columns = [[row[index] for row in rows if row[index]] for index in range(len(headers))]
    return [bool(cells) and all(_FIGURE.fullmatch(cell) for cell in cells) for cells in columns]


def show_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The same table in Markdown, for a page that shows it as it is."""
    say("| " + " | ".join(headers) + " |")
    say("|" + "|".join("---:" if figures else "---" for figures in _figures(headers, rows)) + "|")
    for row in rows:
        say("| " + " | ".join(harmless(cell).replace("|", "\\|") for cell in row) + " |")


def show_json(value: Json) -> None:
    """A JSON document to stdout; what is not a finite number is null."""
    say(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Json) -> Json:
    if isinstance(value, float):
        return round(value, DECIMALS) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def records(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[dict[str, Cell]]:
    """Rows as JSON objects."""
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _console() -> "Console":
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else PIPE_WIDTH, highlight=False)


@contextlib.contextmanager
def working(message: str) -> Iterator[None]:
    """A spinner on stderr while something runs, where a person is watching."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(message):
        yield


@contextlib.contextmanager
def counting(message: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, where a person is watching; what it yields is told how many more are done."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(message, total=total)
        yield lambda done: progress.advance(task, done)


@contextlib.contextmanager
def fraction(message: str) -> Iterator[Callable[[str, float], None]]:
    """A progress bar on stderr, where a person is watching; it is told what is done now and which share is over."""
    if not sys.stderr.isatty():
        yield lambda what, _share: note(f"{message}: {what}")
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(message, total=1.0)
        yield lambda what, share: progress.update(task, completed=share, description=f"{message}: {what}")
