"""The main paths through the dashboard in a real browser."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from planner.catalog.load import find_preset
from planner.export.recommendation import PLAN_COLUMNS, REJECTION_COLUMNS

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

LOGS = Path(__file__).parents[1] / "calibrate" / "startup_logs"
SHOWN = {
    "": "stMetric",
    "compare": "stPlotlyChart",
    "memory": "stPlotlyChart",
    "simulate": "stPlotlyChart",
    "calibration": "stTabs",
    "catalog": "stDataFrame",
}
"""What tells that a page has been drawn."""


def open_page(screen: "Page", address: str, shown: str = "stMetric") -> None:
    screen.goto(address)
    screen.get_by_test_id(shown).first.wait_for(timeout=30_000)
    settle(screen)


def settle(screen: "Page") -> None:
    """Waits until the script has run."""
    screen.wait_for_timeout(300)
    screen.wait_for_function("document.querySelector('[data-test-script-state=\"running\"]') === null")
    screen.wait_for_timeout(200)


def query(screen: "Page") -> dict[str, list[str]]:
    return parse_qs(urlsplit(screen.url).query)


def number_field(screen: "Page", label: str) -> str:
    return screen.get_by_label(label, exact=True).input_value()


def enter(screen: "Page", label: str, text: str) -> None:
    field = screen.get_by_label(label, exact=True)
    field.fill(text)
    field.press("Enter")
    settle(screen)


@pytest.mark.parametrize("path", list(SHOWN))
def test_a_page_shows_no_error_and_fits_the_screen(dashboard: str, screen: "Page", path: str) -> None:
    asked: list[str] = []
    screen.on("request", lambda request: asked.append(request.url))
    open_page(screen, f"{dashboard}/{path}", SHOWN[path])
    assert screen.get_by_test_id("stException").count() == 0
    assert screen.get_by_test_id("stAlertContentError").count() == 0
    overflow = "element => element.scrollWidth - element.clientWidth"
    assert screen.locator("html").evaluate(overflow) <= 0
    assert screen.get_by_test_id("stMain").evaluate(overflow) <= 0
    foreign = [url for url in asked if not url.startswith((dashboard, "data:", "blob:"))]
    assert foreign == []


@pytest.mark.parametrize(
    "search",
    [
        "",
        "?model=deepseek-ai/DeepSeek-V3&requests_per_s=500",
        "?model=Qwen/Qwen3-0.6B",
        "memory?model=Qwen/Qwen3-0.6B&memory_gpu=B300&memory_tp=2",
        "memory?model=deepseek-ai/DeepSeek-V3&memory_tp=1",
    ],
)
def test_no_metric_is_cut_off(dashboard: str, screen: "Page", search: str) -> None:
    open_page(screen, f"{dashboard}/{search}")
    cut = screen.get_by_test_id("stMetric").evaluate_all(
        """tiles => tiles.flatMap(tile => [...tile.querySelectorAll('*')])
           .filter(part => part.childElementCount === 0 && part.clientWidth > 0)
           .filter(part => part.scrollWidth > part.clientWidth + 1)
           .map(part => part.textContent)"""
    )
    assert cut == []


def test_the_url_carries_what_differs_from_the_defaults(dashboard: str, desktop: "Page") -> None:
    open_page(desktop, dashboard)
    assert query(desktop) == {}
    enter(desktop, "Requests per second", "30")
    assert query(desktop) == {"requests_per_s": ["30"]}
    cost = desktop.get_by_test_id("stMetricValue").first.inner_text()

    desktop.get_by_role("link", name="Compare").click()
    desktop.get_by_test_id("stPlotlyChart").first.wait_for()
    assert query(desktop) == {"requests_per_s": ["30"]}

    open_page(desktop, f"{dashboard}/?requests_per_s=30")
    assert number_field(desktop, "Requests per second") == "30"
    assert desktop.get_by_test_id("stMetricValue").first.inner_text() == cost

    enter(desktop, "Requests per second", f"{find_preset('chat').requests_per_s:g}")
    assert query(desktop) == {}


def test_a_preset_fills_the_fields_and_names_itself_alone_in_the_url(dashboard: str, desktop: "Page") -> None:
    open_page(desktop, dashboard)
    enter(desktop, "Input tokens", "99")
    desktop.get_by_test_id("stSidebar").get_by_role("combobox").first.click()
    desktop.get_by_role("option", name="rag", exact=True).click()
    settle(desktop)
    rag = find_preset("rag")
    assert number_field(desktop, "Input tokens") == f"{rag.input_tokens:g}"
    assert number_field(desktop, "TTFT p95, ms") == f"{rag.ttft_p95_ms:g}"
    assert query(desktop) == {"preset": ["rag"]}


def test_bad_values_in_the_url_are_dropped(dashboard: str, desktop: "Page") -> None:
    open_page(desktop, f"{dashboard}/?preset=nonsense&requests_per_s=many&gpu=abacus")
    assert desktop.get_by_test_id("stException").count() == 0
    assert query(desktop) == {}


def test_a_typed_model_that_does_not_exist_is_one_line(dashboard: str, desktop: "Page") -> None:
    open_page(desktop, f"{dashboard}/?model=no-such-model", "stAlert")
    assert "no-such-model" in desktop.get_by_test_id("stAlert").inner_text()
    assert desktop.get_by_test_id("stException").count() == 0


def test_the_tables_download_as_csv(dashboard: str, screen: "Page", tmp_path: Path) -> None:
    open_page(screen, dashboard)
    buttons = screen.get_by_test_id("stDownloadButton").get_by_role("button")
    for index, columns in enumerate((PLAN_COLUMNS, REJECTION_COLUMNS)):
        with screen.expect_download() as download:
            buttons.nth(index).click()
        download.value.save_as(tmp_path / "table.csv")
        with (tmp_path / "table.csv").open(newline="") as stream:
            rows = list(csv.reader(stream))
        assert tuple(rows[0]) == columns
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(columns)}


def test_selecting_a_row_shows_that_plan(dashboard: str, desktop: "Page") -> None:
    open_page(desktop, dashboard)
    before = desktop.get_by_test_id("stMetricValue").all_inner_texts()
    desktop.get_by_test_id("stDataFrame").first.click(position={"x": 15, "y": 36 + 4 * 33 + 16})
    settle(desktop)
    assert desktop.get_by_test_id("stMetricValue").all_inner_texts() != before


def test_touching_a_point_pins_it(dashboard: str, desktop: "Page") -> None:
    open_page(desktop, f"{dashboard}/compare", "stPlotlyChart")
    legend = desktop.get_by_test_id("stPlotlyChart").last.locator(".legendtext")
    before = legend.all_text_contents()
    points = desktop.get_by_test_id("stPlotlyChart").first.locator(".scatterlayer .point")
    points.nth(points.count() // 2).click(force=True)
    settle(desktop)
    assert legend.all_text_contents() != before


def test_memory_follows_the_plan_and_compares_a_log(dashboard: str, desktop: "Page") -> None:
    open_page(desktop, f"{dashboard}/?gpu=H200-SXM-141GB")
    desktop.get_by_role("link", name="Memory").click()
    desktop.get_by_text("Memory of each GPU").wait_for()
    settle(desktop)
    assert query(desktop)["memory_gpu"] == ["H200-SXM-141GB"]
    assert query(desktop)["memory_tp"] == [number_field(desktop, "TP")]
    enter(desktop, "TP", "1")
    assert query(desktop)["memory_tp"] == ["1"]
    enter(desktop, "Max model length", "4096")
    assert desktop.get_by_role("heading", level=3).first.inner_text().startswith(("Fits", "Does not fit"))
    shown = desktop.get_by_test_id("stMetricValue").all_inner_texts()

    desktop.get_by_text("Compare with your start-up log").click()
    log = LOGS / "vllm-0.13.0.txt"
    desktop.get_by_role("textbox", name="What vLLM printed when it started").fill(log.read_text())
    desktop.keyboard.press("Control+Enter")
    desktop.get_by_text("the log names the GPU on line").wait_for()
    assert desktop.get_by_test_id("stAlertContentError").count() == 0

    open_page(desktop, desktop.url)
    assert desktop.get_by_test_id("stMetricValue").all_inner_texts() == shown
    desktop.get_by_role("link", name="Size").click()
    desktop.get_by_test_id("stMetric").first.wait_for()
    settle(desktop)
    enter(desktop, "Requests per second", "60")
    desktop.get_by_role("link", name="Memory").click()
    desktop.get_by_text("Memory of each GPU").wait_for()
    settle(desktop)
    assert number_field(desktop, "TP") == "1"


def test_sidebar_and_formulas_open_within_the_screen(dashboard: str, screen: "Page") -> None:
    open_page(screen, dashboard)
    screen.get_by_text("The formulas with your numbers").click()
    screen.get_by_text("KV cache per token and GPU").wait_for()
    assert screen.get_by_test_id("stMain").evaluate("main => main.scrollWidth - main.clientWidth") <= 0
    field = screen.get_by_label("Requests per second", exact=True)
    if not field.is_visible():
        screen.get_by_test_id("stExpandSidebarButton").click()
    field.wait_for(state="visible")
