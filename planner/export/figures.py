"""What figures share: colours that the colour-blind tell apart, and one HTML page that opens without a network."""

from collections.abc import Mapping
from html import escape

import plotly.graph_objects as go

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette without its yellow, which is hard to see on white."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
INK, FAINT = "#1d2733", "#8a97a0"
STYLE = f"body {{font-family: sans-serif; color: {INK}; margin: 1rem 2rem}} h2 {{font-size: 1.1rem}}"


def html_page(title: str, figures: Mapping[str, go.Figure]) -> str:
    """A page of figures under their headings; plotly.js is in it, so nothing is fetched."""
    parts: list[str] = []
    for heading, figure in figures.items():
        drawn = figure_html(figure, with_library=not parts)
        parts.append(f"<h2>{escape(heading)}</h2>\n{drawn}\n")
    return page_of(title, "".join(parts))


def figure_html(figure: go.Figure, *, with_library: bool) -> str:
    """One figure as part of a page, of which the first brings plotly.js."""
    drawn: str = figure.to_html(full_html=False, include_plotlyjs=with_library, config={"displaylogo": False})
    return drawn


def page_of(title: str, body: str, style: str = "") -> str:
    """A whole page; `body` and `style` are markup already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}</body>\n</html>\n"
    )
