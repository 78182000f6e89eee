"""The parity plot: every run that can be drawn is a point, whatever it is called."""

import math
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from planner.export.comparison import ComparedRun, Figure, figure_rows
from planner.export.parity import MOST_RUNS, parity, parity_page, thinned
from tests.export.plotted import drawn

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'


def run(
    row: int, *, model: str = "m", tp: str = "1", name: str = "", **figures: tuple[float, float]
) -> ComparedRun:
    groups = {"all": "all", "model": model, "GPU": "H100-SXM-80GB", "TP": tp, "load": "1-8 users"}
    return ComparedRun(row, name or f"row {row}", groups, {k: Figure(*v) for k, v in figures.items()})


RUNS = [
    run(1, model="b", tp="2", ttft_ms_mean=(100.0, 110.0), tpot_ms_mean=(10.0, 9.0)),
    run(2, model="a", tp="16", ttft_ms_mean=(200.0, 150.0)),
    run(3, model="a", tp="2", tpot_ms_mean=(20.0, 30.0), kv_cache_tokens=(1e6, 1.1e6)),
    run(4, model="a", tp="2", kv_cache_tokens=(5e5, 0.0)),
    run(5, model="c", tp="2"),
]


def test_points_are_the_rows_that_have_a_place_on_a_logarithmic_axis() -> None:
    figure = parity(RUNS)
    points = [
        (trace.name, x, y)
        for trace in figure.data
        if trace.mode == "markers"
        for x, y in zip(trace.x, trace.y, strict=True)
    ]
    rows = [
        (f"{row.model}, TP {row.tp}", row.measured, row.predicted)
        for row in figure_rows(RUNS)
        if row.predicted > 0
    ]
    assert sorted(points) == sorted(rows)
    titles = [note.text for note in figure.layout.annotations]
    # |110/100 - 1| = 10 % and |150/200 - 1| = 25 %: 17.5 % in the middle; |9/10 - 1| and |30/20 - 1|: 30 %
    assert titles == [
        "TTFT: 2 runs, median error 17.5 %",
        "TPOT: 2 runs, median error 30.0 %",
        "KV cache: 2 runs, median error 55.0 %, 1 predicted as none",
    ]


def test_a_model_has_one_colour_a_tp_one_symbol_and_the_legend_each_pair_once() -> None:
    markers = [trace for trace in parity(RUNS).data if trace.mode == "markers"]
    by_name = {trace.name: trace for trace in markers}
    assert by_name["a, TP 2"].marker.color == by_name["a, TP 16"].marker.color
    assert by_name["a, TP 2"].marker.symbol == by_name["b, TP 2"].marker.symbol
    assert by_name["a, TP 2"].marker.color != by_name["b, TP 2"].marker.color
    assert by_name["a, TP 2"].marker.symbol != by_name["a, TP 16"].marker.symbol
    shown = [trace.name for trace in markers if trace.showlegend]
    assert sorted(shown) == sorted(by_name)


def test_lines_of_equal_error_cross_the_whole_panel() -> None:
    figure = parity(RUNS[:1])
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.xaxis == "x"]
    errors = [trace.y[0] / trace.x[0] - 1 for trace in lines]
    assert errors == pytest.approx([0, 0.1, -0.1, 0.2, -0.2])
    for line in lines:
        assert line.y[1] / line.x[1] == pytest.approx(line.y[0] / line.x[0])
        assert line.x[0] < 100.0
        assert line.x[1] > 110.0
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert figure.layout.xaxis.range == figure.layout.yaxis.range
    assert figure.layout.xaxis.range == pytest.approx([math.log10(lines[0].x[0]), math.log10(lines[0].x[1])])


def test_every_model_and_tp_of_a_large_table_is_told_apart() -> None:
    runs = [
        run(row, model=f"m{row % 12}", tp=f"{2 ** (row % 5)}", tpot_ms_mean=(row + 1.0, row + 1.0))
        for row in range(60)
    ]
    looks = {
        (trace.marker.color, trace.marker.symbol) for trace in parity(runs).data if trace.mode == "markers"
    }
    assert len(looks) == 60


class Page(HTMLParser):
    """The tags of a page, and where its scripts come from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_is_whole_fetches_nothing_and_runs_nothing_that_a_table_says() -> None:
    named = [
        run(1, model=HOSTILE, name=HOSTILE, tpot_ms_mean=(1.0, 2.0)),
        run(2, model="<b>", name="=1+1\x00\u2028", tpot_ms_mean=(3.0, 4.0)),
    ]
    text = parity_page(named, f"{HOSTILE}.csv")
    plain = parity_page([run(1, tpot_ms_mean=(1.0, 2.0)), run(2, tpot_ms_mean=(3.0, 4.0))], "runs.csv")
    page = Page(text)
    assert page.tags == Page(plain).tags
    assert page.sources == []
    assert "img" not in page.tags
    assert "alert(1)>" not in text
    assert sorted(point for trace in drawn(text) for point in trace) == [(1.0, 2.0), (3.0, 4.0)]
    assert "2 runs of runs.csv" in plain


def test_nothing_measured_is_an_empty_page() -> None:
    assert drawn(parity_page([run(1)], "runs.csv")) == []
    assert drawn(parity_page([], "runs.csv")) == []


def test_too_many_runs_are_thinned_and_said() -> None:
    runs = [run(row, tpot_ms_mean=(10.0, 10.0)) for row in range(2 * MOST_RUNS + 1)]
    shown = thinned(runs)
    assert MOST_RUNS / 2 < len(shown) <= MOST_RUNS
    assert len({later.row - earlier.row for earlier, later in pairwise(shown)}) == 1
    assert thinned(runs[:MOST_RUNS]) == runs[:MOST_RUNS]
