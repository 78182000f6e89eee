"""`ui` starts streamlit on the shipped app, and does not start it here."""

from planner.catalog.paths import app_path
from planner.cli.ui import streamlit_command


def test_the_server_is_local_and_sends_no_statistics() -> None:
    command = streamlit_command(port=9000, address="localhost", headless=True, extra=["--theme.base=dark"])
    assert command[1:5] == ["-m", "streamlit", "run", str(app_path())]
    assert "--server.address=localhost" in command
    assert "--server.headless=true" in command
    assert "--browser.gatherUsageStats=false" in command
    assert command[-1] == "--theme.base=dark"
