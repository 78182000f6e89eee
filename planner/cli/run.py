"""The command line as a whole: its verbs, and how an error becomes one line and an exit code."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from planner.catalog.nearest import harmless, unknown
from planner.domain.base import InputError

ANSWERED, NOTHING_FITS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
LONGEST_ERROR = 500
"""Characters; a longer line keeps its beginning and its end."""

VERBS = (
    "plan",
    "predict",
    "validate",
    "memory",
    "simulate",
    "explain",
    "catalog",
    "export",
    "calibrate",
    "fit",
    "ui",
)
"""In the order of the help; each has a module of its name."""


def app_of(verbs: Sequence[str]) -> typer.Typer:
    """The command line with some of its verbs."""
    app = typer.Typer(
        name="planner",
        help="From a model, its traffic and the latency promised (SLO) to a costed vLLM deployment.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback(invoke_without_command=True)(root)
    for verb in verbs:
        module = importlib.import_module(f"planner.cli.{verb}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb)(getattr(module, verb))
    return app


def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Shows the help where no verb is given."""
    if version:
        from planner import __version__

        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0 answered, 1 nothing fits, 2 bad input.

    Where it begins with a verb, no other is imported.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    verbs = arguments[:1] if arguments and arguments[0] in VERBS else VERBS
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        outcome = app_of(verbs)(args=arguments, prog_name="planner", standalone_mode=False)
        sys.stdout.flush()
    except InputError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # Whoever read the output has seen enough (typer exits then).
        _silence(sys.stdout)
        return ANSWERED
    except OSError as error:
        _silence(sys.stdout)
        return _refuse(str(error))
    except Exception as error:
        if not isinstance(error, _USAGE_ERROR):
            raise
        return _refuse(_usage_problem(error))
    return outcome if isinstance(outcome, int) else ANSWERED


_USAGE_ERROR = typer.BadParameter.__mro__[2]
"""What typer raises for a command line it cannot parse."""


def _replace_closed_streams() -> None:
    """Python has no stream where the shell closed it (`>&-`), and then prints one stream's text on the other."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _silence(stream: TextIO) -> None:
    """What could not be written goes nowhere, or Python complains of it at exit and changes the exit code."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _refuse(message: str) -> int:
    line = harmless(" ".join(message.split()))
    if len(line) > LONGEST_ERROR:
        line = f"{line[: LONGEST_ERROR * 2 // 3]} ... {line[-LONGEST_ERROR // 3 :]}"
    try:
        print("error:", line, file=sys.stderr)
    except OSError:
        _silence(sys.stderr)
    return BAD_INPUT


def _usage_problem(error: Exception) -> str:
    """One line for a command line that typer refused; an unknown option comes with the nearest known ones."""
    context = getattr(error, "ctx", None)
    option = getattr(error, "option_name", "")
    if option and context is not None and type(error).__name__ == "NoSuchOption":
        known = [name for parameter in context.command.params for name in parameter.opts]
        return str(unknown("option", option, [name for name in known if name.startswith("--")]))
    return str(getattr(error, "format_message", error.__str__)())
