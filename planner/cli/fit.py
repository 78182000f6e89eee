"""`fit`: coefficients from kernel tables, and the errors they leave on measured runs."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.screen import note, records, show_json, show_table
from planner.export.format import percent
from planner.export.table import Cell, write_csv

app = typer.Typer(help="Fit coefficients and their errors from evidence.", rich_markup_mode=None)

OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--calibration-dir", metavar="DIR", help="Where to write; the checkout's or the user's if left out."
    ),
]


def _show(columns: tuple[str, ...], rows: list[tuple[Cell, ...]], csv: Path | None, *, as_json: bool) -> None:
    if csv is not None:
        write_csv(csv, columns, rows)
        note(f"wrote {csv}")
    if as_json:
        show_json(records(columns, rows))
    else:
        show_table("", columns, [[_text(cell) for cell in row] for row in rows])


def _text(cell: Cell) -> str:
    if isinstance(cell, float):
        return percent(cell)
    return "" if cell is None else str(cell)
