"""Reads figures back out of an HTML page."""

import json
from collections.abc import Iterator
from typing import Any

Trace = dict[str, Any]
CALL = "Plotly.newPlot("


def figures(page: str) -> list[list[Trace]]:
    """The traces of every figure of a page, in their order."""
    return list(_figures(page))


def _figures(page: str) -> Iterator[list[Trace]]:
    decoder = json.JSONDecoder()
    # plotly.js itself, which stands in the page too, calls nothing with a quoted name and an array.
    for part in page.split(CALL)[1:]:
        text = part.lstrip()
        if not text.startswith('"'):
            continue
        _, end = decoder.raw_decode(text)
        traces, _ = decoder.raw_decode(text[end:].lstrip(" ,\n"))
        yield traces


def drawn(page: str) -> list[list[tuple[float, float]]]:
    """The points of every trace of markers."""
    return [
        list(zip(trace["x"], trace["y"], strict=True))
        for figure in figures(page)
        for trace in figure
        if trace["mode"] == "markers"
    ]
