"""`ui` starts streamlit on the shipped app, and does not start it here."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from planner.catalog.paths import app_path
from planner.cli.ui import streamlit_command
from tests.cli.conftest import Cli


def test_the_server_is_local_and_sends_no_statistics() -> None:
    command = streamlit_command(port=9000, address="localhost", headless=True)
    assert command[1:5] == ["-m", "streamlit", "run", str(app_path())]
    assert "--server.address=localhost" in command
    assert "--server.headless=true" in command
    assert "--browser.gatherUsageStats=false" in command


@pytest.mark.parametrize(
    "arguments", [("--nonsense",), ("--port", "0"), ("--address", "not.an.address.invalid")]
)
def test_bad_options_are_one_line(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli("ui", "--headless", *arguments).error


def test_a_port_in_use_is_one_line(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in cli("ui", "--headless", "--address", "127.0.0.1", "--port", port).error


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the server is a child process")
def test_ending_the_command_ends_the_server() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "planner",
        "ui",
        "--headless",
        "--address",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until_healthy(port, server)
        finally:
            server.terminate()
        server.wait(timeout=20)
    with socket.socket() as probe:
        probe.settimeout(2)
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def wait_until_healthy(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail("the dashboard did not start")
