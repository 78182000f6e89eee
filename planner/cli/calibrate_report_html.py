"""`calibrate report`: one run as a page of figures."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from planner.calibrate.step_deployment import operators_before
from planner.calibrate.store import calibration_directories
from planner.catalog.atomic import check_outputs
from planner.catalog.calibration_runs import read_run
from planner.cli.options import CalibrationDir
from planner.cli.screen import note
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun
from planner.formulas.operators import GpuOperators


def report_run(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.json", help="A run that `calibrate` wrote.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE.html", help="RUN.html beside it if left out.")
    ] = None,
    calibration_dir: CalibrationDir = None,
) -> None:
    """Draw one run as a page: parity, residuals, roofline, sensors, coverage, serving runs, parameters."""
    page = page_path(run_file) if output is None else output
    check_outputs(page, inputs=(run_file,))
    if find_spec("plotly") is None:
        raise InputError("plotly is not installed here; install it, or draw the report where it is")
    run = read_run(run_file)
    from planner.export.calibration_report import write_report

    operators = None
    try:
        operators = operators_before(run.machine, calibration_directories(calibration_dir))
    except InputError as error:
        note(f"{run_file}: {error}; nothing is predicted")
    write_report(run, operators, page)
    note(f"wrote {page}")


def page_path(run_file: Path) -> Path:
    """Where the page of a run goes unless somewhere else is named."""
    return run_file.with_suffix(".html")


def report_beside(run_file: Path, run: CalibrationRun, operators: GpuOperators) -> None:
    """The page beside the run, where plotly is installed; the run counts, so failing to draw it is a note."""
    if find_spec("plotly") is None:
        note(
            "plotly is not installed here; make the report with "
            f"`python -m planner calibrate report {run_file}` where it is"
        )
        return
    from planner.export.calibration_report import write_report

    try:
        write_report(run, operators, page_path(run_file))
    except InputError as error:
        note(f"no report: {error}")
        return
    note(f"wrote {page_path(run_file)}")
