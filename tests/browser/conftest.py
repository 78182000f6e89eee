"""A running dashboard and a headless Chromium; without a browser these tests are skipped and say so."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from planner.catalog.paths import app_path

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SYSTEM_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START_S, INSTALL_S = 60, 180
WAYS_TO_GET_ONE = (
    "install chromium with the system's packages, or run: python -m playwright install --with-deps chromium"
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says at the end of the run that the dashboard was not seen in a browser."""
    skipped = [
        report for report in terminalreporter.stats.get("skipped", []) if "tests/browser/" in report.nodeid
    ]
    if skipped:
        reason = skipped[0].longrepr[2] if isinstance(skipped[0].longrepr, tuple) else ""
        terminalreporter.write_sep("!", f"{len(skipped)} BROWSER TESTS SKIPPED", yellow=True)
        terminalreporter.write_line(reason)


def _installed_by_playwright(executable: str) -> bool:
    """Asks playwright to fetch its own Chromium; False where it cannot."""
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and Path(executable).exists()


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Chromium of the system, else playwright's, which is fetched where that works."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next((path for name in SYSTEM_BROWSERS if (path := shutil.which(name))), None)
        if found is None and (Path(own).exists() or _installed_by_playwright(own)):
            found = own
        if found is None:
            pytest.skip(f"no Chromium: {WAYS_TO_GET_ONE}")
        try:
            chromium = playwright.chromium.launch(executable_path=found, args=list(CHROMIUM_FLAGS))
        except api.Error as error:
            pytest.skip(f"{found} does not start ({str(error).splitlines()[0]}): {WAYS_TO_GET_ONE}")
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def dashboard(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the app, started on a free port for this run and ended after it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("dashboard") / "log.txt"
    options = {
        "server.address": "127.0.0.1",
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    app = app_path()
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", str(app), *flags],
            cwd=app.parent,
            stdout=output,
            stderr=output,
        )
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/_stcore/health", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=20)


def _wait_until_healthy(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the dashboard did not start:\n{log.read_text()}")


@pytest.fixture(params=[(1440, 900), (390, 844)], ids=["desktop", "phone"])
def screen(request: pytest.FixtureRequest, browser: "Browser") -> Iterator["Page"]:
    """A fresh page at desktop and at phone width."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    yield context.new_page()
    context.close()


@pytest.fixture
def desktop(browser: "Browser") -> Iterator["Page"]:
    """A fresh page at desktop width."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    yield context.new_page()
    context.close()
