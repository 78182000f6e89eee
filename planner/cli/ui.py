"""`ui`: starts the dashboard."""

import importlib.util
import os
import socket
import subprocess
import sys
from typing import Annotated

import typer

from planner.catalog.paths import app_path
from planner.domain.base import InputError


def ui(
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8501,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
) -> None:
    """Start the dashboard."""
    if importlib.util.find_spec("streamlit") is None:
        raise InputError("the dashboard needs streamlit: pip install streamlit")
    if not app_path().is_file():
        raise InputError(f"the dashboard is not there: {app_path()}")
    _check_free(address, port)
    command = streamlit_command(port=port, address=address, headless=headless)
    if os.name == "posix":
        # The server takes this process's place: whoever ends it by its id ends the server.
        os.execv(command[0], command)
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def _check_free(address: str, port: int) -> None:
    """Raises InputError where nothing can listen there: a wrong address, or a port in use."""
    try:
        socket.create_server((address, port)).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {address} port {port}: {reason}") from None


def streamlit_command(*, port: int, address: str, headless: bool) -> list[str]:
    """The command line of the server: local, and without sending usage statistics."""
    return [
        *(sys.executable, "-m", "streamlit", "run", str(app_path())),
        f"--server.port={port}",
        f"--server.address={address}",
        f"--server.headless={'true' if headless else 'false'}",
        "--browser.gatherUsageStats=false",
    ]
