"""The Simulate page and the pages of figures that the command line writes, in a real browser."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from planner.export.comparison import ComparedRun, Figure
from planner.export.parity import parity_page
from planner.export.simulation import REQUEST_COLUMNS, SERIES_COLUMNS
from tests.browser.test_dashboard import open_page, query, settle

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{at},{300 + at},20\n" for at in range(25))


def test_a_trace_is_uploaded_and_its_requests_downloaded(
    dashboard: str, screen: "Page", tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)
    open_page(screen, f"{dashboard}/simulate?model=meta-llama/Llama-3.1-8B", "stPlotlyChart")
    screen.get_by_role("radio", name="trace").click()
    screen.get_by_text("Upload a trace to simulate it.").wait_for()
    settle(screen)
    assert query(screen)["simulate_load"] == ["trace"]
    screen.get_by_test_id("stMain").locator("input[type=file]").set_input_files(trace)
    screen.get_by_text("25 requests in").wait_for()
    settle(screen)
    assert screen.get_by_test_id("stException").count() == 0
    assert screen.get_by_test_id("stMain").evaluate("main => main.scrollWidth - main.clientWidth") <= 0
    buttons = screen.get_by_test_id("stMain").get_by_test_id("stDownloadButton").get_by_role("button")
    for index, columns in enumerate((REQUEST_COLUMNS, SERIES_COLUMNS)):
        with screen.expect_download() as download:
            buttons.nth(index).click()
        download.value.save_as(tmp_path / "table.csv")
        with (tmp_path / "table.csv").open(newline="") as stream:
            rows = list(csv.reader(stream))
        assert tuple(rows[0]) == columns
        assert len(rows) == 26 if index == 0 else len(rows) > 1


def test_a_parity_page_opens_without_a_network(desktop: "Page", tmp_path: Path) -> None:
    runs = [
        ComparedRun(
            row,
            "<img src=x onerror=document.title='run'>",
            {"model": f"<b>{row % 3}</b>", "GPU": "L4", "TP": "1", "load": "1-8 users"},
            {measure: Figure(row + 1.0, row + 1.1) for measure in ("ttft_ms_mean", "tpot_ms_mean")},
        )
        for row in range(9)
    ]
    page = tmp_path / "parity.html"
    page.write_text(parity_page(runs, "runs.csv"), encoding="utf-8")
    asked: list[str] = []
    desktop.on("request", lambda request: asked.append(request.url))
    desktop.goto(page.as_uri())
    points = desktop.locator(".scatterlayer .point")
    points.first.wait_for()
    assert points.count() == 2 * len(runs)
    assert desktop.locator(".legendtext").all_text_contents() == [f"<b>{row}</b>, TP 1" for row in range(3)]
    points.first.hover(force=True)
    desktop.locator(".hovertext").wait_for()
    assert "<img src=x" in (desktop.locator(".hovertext").text_content() or "")
    assert desktop.title() == "Predicted against measured"
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
