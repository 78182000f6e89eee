"""Reads calibration runs from disk: files of `calibrate`, one a run."""

import re
from pathlib import Path

from pydantic import BaseModel, StrictInt, ValidationError

from planner.catalog.nearest import shown
from planner.domain.base import InputError
from planner.domain.calibration import RUN_FORMAT, CalibrationRun, CalibrationTarget, Machine

RUN_PREFIX = "run-"
"""Of every such file's name, which tells them from imported benchmarks in one folder."""
LARGEST_BYTES = 256 * 2**20
SHORTEST_S = 1e-7
"""Of a step; a launch alone takes longer."""
_FILE_NAME = re.compile(r"[\w()+-][\w .()+-]{0,119}", re.ASCII)
"""A device's fit is kept under its name; one with a folder in it would lead out of that of the fits."""


def read_run(path: Path) -> CalibrationRun:
    """One run.

    Raises:
        InputError: the file cannot be read, is too large, or is not what `calibrate` writes.
    """
    text = _content(path)
    try:
        found = _Versioned.model_validate_json(text).format
        if found != RUN_FORMAT:
            raise InputError(f"{path}: has format {found}, this program reads {RUN_FORMAT}")
        run = CalibrationRun.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise InputError(f"{path}: {where}: {first['msg']}; not a run that `calibrate` wrote") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deep; not a run that `calibrate` wrote") from None
    problem = _problem(run)
    if problem:
        raise InputError(f"{path}: {problem}; not a run that `calibrate` wrote")
    return run


def _problem(run: CalibrationRun) -> str:
    """What fields that are legal one by one cannot be together, or in any run; empty where there is nothing."""
    gpu, sheet = run.machine.gpu, run.machine.datasheet
    if not _FILE_NAME.fullmatch(gpu):
        return f'machine.gpu is "{shown(gpu)}", a name of letters, digits, spaces and ._()+- is needed'
    if sheet is not None and sheet.name != gpu:
        return f'machine.datasheet is of "{shown(sheet.name)}", the run of {gpu}'
    for index, point in enumerate(run.points):
        if point.times_s and min(point.times_s) < SHORTEST_S:
            return f"points.{index}.times_s: {min(point.times_s):g} s is shorter than any step"
    for index, served in enumerate(run.serving):
        if served.tpot_s_mean is not None and served.tpot_s_mean < SHORTEST_S:
            return f"serving.{index}: its answers took no time after their first tokens"
    return ""


class _Versioned(BaseModel):
    """What is read first: another format may have other fields."""

    format: StrictInt


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file; name one that `calibrate` wrote")
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"{path}: larger than any run of `calibrate`, {LARGEST_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def run_paths(folder: Path) -> tuple[Path, ...]:
    """Every run of a folder, by name, which is by date.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder of calibration runs")
        return tuple(sorted(folder.glob(f"{RUN_PREFIX}*.json")))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from None


def runs_of(
    folder: Path, target: CalibrationTarget, machine: Machine
) -> tuple[tuple[Path, CalibrationRun], ...]:
    """The runs of a folder that measured the same on the same device, the newest first.

    Raises:
        InputError: a run cannot be read.
    """
    runs = ((path, read_run(path)) for path in reversed(run_paths(folder)))
    return tuple(
        (path, run)
        for path, run in runs
        if run.target == target and run.machine.device_name == machine.device_name
    )
