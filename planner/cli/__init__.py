"""The command line: parses, calls, prints. Verbs live in one module each."""

from planner.cli.run import main

__all__ = ["main"]
