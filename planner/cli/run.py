"""The command line as a whole: its verbs, and how an error becomes one line and an exit code."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from planner.catalog.nearest import unknown
from planner.cli import catalog, export, fit, memory, plan, predict, ui, validate
from planner.domain.base import InputError

ANSWERED, NOTHING_FITS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="planner",
    help="From a model, its traffic and the latency promised (SLO) to a costed vLLM deployment.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("plan")(plan.plan)
app.command("predict")(predict.predict)
app.command("validate")(validate.validate)
app.command("memory")(memory.memory)
app.add_typer(catalog.app, name="catalog")
app.add_typer(export.app, name="export")
app.add_typer(fit.app, name="fit")
app.command("ui", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(ui.ui)


@app.callback(invoke_without_command=True)
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
    """Runs one command line and returns its exit code: 0 answered, 1 nothing fits, 2 bad input."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        outcome = app(args=arguments, prog_name="planner", standalone_mode=False)
        sys.stdout.flush()
    except InputError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # Whoever read the output has seen enough (typer exits then); keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ANSWERED
    except OSError as error:
        return _refuse(str(error))
    except Exception as error:
        if not isinstance(error, _USAGE_ERROR):
            raise
        return _refuse(_usage_problem(error))
    return outcome if isinstance(outcome, int) else ANSWERED


_USAGE_ERROR = typer.BadParameter.__mro__[2]
"""What typer raises for a command line it cannot parse."""


def _refuse(message: str) -> int:
    line = " ".join(message.split())
    print("error:", "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return BAD_INPUT


def _usage_problem(error: Exception) -> str:
    """One line for a command line that typer refused; an unknown option comes with the nearest known ones."""
    context = getattr(error, "ctx", None)
    option = getattr(error, "option_name", "")
    if option and context is not None and type(error).__name__ == "NoSuchOption":
        known = [name for parameter in context.command.params for name in parameter.opts]
        return str(unknown("option", option, [name for name in known if name.startswith("--")]))
    return str(getattr(error, "format_message", error.__str__)())
