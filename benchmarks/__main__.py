"""Runs the benchmarks named, or all, and prints one table of ratios; a miss is shown and fails nothing."""

import argparse
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.inputs import MEASURED, PEER, TRACE, Inputs
from benchmarks.measure import HEADERS, Row, not_measured
from planner.catalog.nearest import unknown
from planner.cli.screen import note, say, show_markdown, show_table
from planner.domain.base import InputError

NAMES = (
    "simulator",
    "compilation",
    "aiconfigurator",
    "planning",
    "predictions",
    "capacity_disagreement",
    "calibration",
)
"""Modules beside this one, each with `rows(inputs)`, or with a `main()` that prints a table of its own."""
BUSY = 0.5
"""Processes a core, before anything was started, above which wall times say as much of others as of us."""


def benchmarks() -> dict[str, ModuleType]:
    """The benchmarks by name, in the order of the table."""
    there = [name for name in NAMES if importlib.util.find_spec(f"benchmarks.{name}")]
    return {name: importlib.import_module(f"benchmarks.{name}") for name in there}


def chosen(names: Sequence[str], known: dict[str, ModuleType]) -> dict[str, ModuleType]:
    """Those named, all without a name; raises `InputError` for an unknown one."""
    for name in names:
        if name not in known:
            raise unknown("benchmark", name, tuple(known))
    return {name: known[name] for name in names or known}


def inputs_from(options: argparse.Namespace) -> Inputs:
    """Files named must be there; those that stand beside the checkout are taken where they are."""
    files = {}
    for name, default in (("trace", TRACE), ("measured", MEASURED), ("aiconfigurator", PEER)):
        given: Path | None = getattr(options, name)
        if given is not None and not given.is_file():
            raise InputError(f"--{name} {given}: no such file")
        files[name] = given or (default if default.is_file() else None)
    if options.repeats < 1:
        raise InputError(f"--repeats must be at least 1, got {options.repeats}")
    return Inputs(
        trace=files["trace"],
        measured=files["measured"],
        peer=files["aiconfigurator"],
        vidur_python=options.vidur_python or None,
        left_out=options.left_out,
        repeats=options.repeats,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    found.add_argument("names", nargs="*", metavar="NAME", help="which to run; all if left out")
    found.add_argument("--list", action="store_true", help="say what there is, and stop")
    found.add_argument(
        "--trace", type=Path, metavar="FILE", help="requests to simulate (Azure CSV or .jsonl)"
    )
    found.add_argument("--measured", type=Path, metavar="RUNS.csv", help="measured runs")
    found.add_argument("--aiconfigurator", type=Path, metavar="FILE", help="its predictions for these runs")
    found.add_argument("--vidur-python", metavar="PYTHON", help="the interpreter that has vidur")
    found.add_argument(
        "--left-out", action="store_true", help="errors with each model left out too (minutes)"
    )
    found.add_argument("--repeats", type=int, default=5, help="timed runs of each kind; the best counts")
    found.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    return found


def measured_rows(modules: dict[str, ModuleType], inputs: Inputs, failed: list[str]) -> Iterator[Row]:
    """Every row, with a line on stderr as each benchmark ends; one that fails is a row that says why, and is named."""
    for name, module in modules.items():
        start = time.perf_counter()
        try:
            if hasattr(module, "rows"):
                yield from module.rows(inputs)
            else:
                module.main()
        except InputError as error:
            failed.append(name)
            yield not_measured(f"{name}, the rest", str(error))
        note(f"{name}: {time.perf_counter() - start:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all was measured, however it came out; 1 where a benchmark failed; 2 for bad input."""
    options = parser().parse_args(arguments)
    try:
        modules = chosen(options.names, benchmarks())
        if options.list:
            for name, module in modules.items():
                say(f"{name:24}{(module.__doc__ or '').splitlines()[0]}")
            return 0
        inputs = inputs_from(options)
        busy = os.getloadavg()[0] / (os.cpu_count() or 1)
        if busy > BUSY:
            note(f"the machine is busy ({busy:.1f} processes a core): wall times come out too long")
    except InputError as error:
        note(f"error: {error}")
        return 2
    failed: list[str] = []
    lines = [row.cells() for row in measured_rows(modules, inputs, failed)]
    if options.markdown:
        show_markdown(HEADERS, lines)
    else:
        show_table("Measured against budgets and other programs", HEADERS, lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
