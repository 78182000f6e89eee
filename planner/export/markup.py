"""Pieces of an HTML page: paragraphs and tables of plain text."""

from collections.abc import Iterable, Sequence
from html import escape

FAINT_ROW = '<tr class="faint">'
Row = Sequence[str]


def table_of(headers: Row, rows: Iterable[Row], faint: Sequence[bool] = ()) -> str:
    """A table; `faint`: which of its rows matter less."""
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "".join(
        f"{FAINT_ROW if faint and faint[index] else '<tr>'}"
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n"
        for index, row in enumerate(rows)
    )
    return f"<table>\n<tr>{head}</tr>\n{body}</table>\n"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>\n"


def missing(text: str) -> str:
    """A paragraph that says what is not there."""
    return f'<p class="missing">{escape(text)}</p>\n'
