"""Reads calibration runs from disk: files of `calibrate`, one a run."""

from pathlib import Path

from pydantic import BaseModel, StrictInt, ValidationError

from planner.domain.base import InputError
from planner.domain.calibration import RUN_FORMAT, CalibrationRun, CalibrationTarget, Machine

RUN_PREFIX = "run-"
"""Of every such file's name, which tells them from imported benchmarks in one folder."""
LARGEST_BYTES = 256 * 2**20


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
        return CalibrationRun.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise InputError(f"{path}: {where}: {first['msg']}; not a run that `calibrate` wrote") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deep; not a run that `calibrate` wrote") from None


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
