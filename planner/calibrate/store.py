"""Coefficients on disk: written whole or not at all, read before the shipped ones, checked as they are read."""

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from planner.catalog.calibration_files import is_there
from planner.catalog.paths import shipped_calibration_dir, user_calibration_dir
from planner.domain.base import InputError
from planner.domain.evidence import Accuracy, Basis
from planner.domain.hardware import Gpu
from planner.formulas.operators.coefficients import OPERATOR_FORMAT, GpuOperators, OperatorCoefficients

OPERATORS_FOLDER = "operators"
ACCURACY_FILE = "accuracy.json"

DONOR_OF_ARCHITECTURE = {
    "Volta": "A100-SXM-80GB",
    "Turing": "A100-SXM-80GB",
    "Ampere": "A100-SXM-80GB",
    "Ada": "L40S",
    "Hopper": "H100-SXM-80GB",
    "Blackwell": "B200",
    "Blackwell Ultra": "B200",
}
"""The measured sibling whose efficiencies a GPU without tables is given."""
FALLBACK_DONOR = "H100-SXM-80GB"
"""For architectures that no table covers; such GPUs rest on their datasheet."""

_NUMBER_LIST = re.compile(r"\[[\s\d.,eE+-]+\]")
"""A list of numbers, to be written on one line."""

FileT = TypeVar("FileT", bound=BaseModel)


def calibration_directories(calibration_dir: Path | None = None) -> tuple[Path, ...]:
    """Where coefficients are looked for, first match first: as asked, the user's folder, the shipped ones."""
    wanted = (calibration_dir, user_calibration_dir(), shipped_calibration_dir())
    return tuple(dict.fromkeys(folder for folder in wanted if folder is not None))


def operators_path(directory: Path, gpu: str) -> Path:
    """File of one GPU's coefficients in a calibration directory."""
    return directory / OPERATORS_FOLDER / f"{gpu}.json"


def write_coefficients(coefficients: OperatorCoefficients, directory: Path) -> Path:
    """Writes one GPU's coefficients into a calibration directory and returns the file.

    Raises InputError where the directory cannot be written; a file already there is then left as it was.
    """
    path = operators_path(directory, coefficients.gpu)
    indented = coefficients.model_dump_json(indent=1)
    text = _NUMBER_LIST.sub(lambda found: " ".join(found.group().split()), indented) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _parse(path: Path, kind: type[FileT], made_by: str) -> FileT:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise InputError(f"{path}: {where}: {first['msg']}; make it anew with `{made_by}`") from None


@lru_cache(maxsize=64)
def _read_version(path: Path, modified_ns: int) -> OperatorCoefficients:  # noqa: ARG001
    found = _parse(path, OperatorCoefficients, "fit operators DIR")
    if found.format != OPERATOR_FORMAT:
        raise InputError(
            f"{path}: has format {found.format}, this program reads {OPERATOR_FORMAT};"
            " make it anew with `fit operators DIR`"
        )
    return found


def read_coefficients(path: Path) -> OperatorCoefficients:
    """One file of coefficients; InputError where it cannot be read or is not what `fit operators` writes."""
    try:
        modified_ns = path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    return _read_version(path, modified_ns)


def _of_gpu(path: Path, gpu: str) -> OperatorCoefficients:
    """Coefficients of this GPU; those of another under its name would pass for its own."""
    found = read_coefficients(path)
    if found.gpu != gpu:
        raise InputError(
            f"{path}: has the coefficients of {found.gpu}, not of {gpu}; make it anew with `fit operators DIR`"
        )
    return found


def _find(gpu: str, directories: Sequence[Path]) -> Path | None:
    paths = (operators_path(directory, gpu) for directory in directories)
    return next((path for path in paths if is_there(path)), None)


def operators_for(gpu: Gpu, directories: Sequence[Path]) -> GpuOperators:
    """A GPU's own coefficients from the first directory that has them, else its measured sibling's, labelled.

    Raises InputError where there is neither, or a file is broken.
    """
    own = _find(gpu.name, directories)
    if own is not None:
        return GpuOperators(gpu, _of_gpu(own, gpu.name), Basis.OPERATORS, gpu.name)
    sibling = DONOR_OF_ARCHITECTURE.get(gpu.architecture)
    donor = sibling or FALLBACK_DONOR
    path = _find(donor, directories)
    if path is None:
        places = ", ".join(str(directory / OPERATORS_FOLDER) for directory in directories)
        raise InputError(
            f"no operator coefficients for {gpu.name} or {donor} in {places}; make them with `fit operators DIR`"
        )
    basis = Basis.TRANSFERRED if sibling else Basis.DATASHEET
    return GpuOperators(gpu, _of_gpu(path, donor), basis, donor)


def read_accuracy(directories: Sequence[Path]) -> Accuracy:
    """Known errors from the first directory that has them; no bands where none has.

    Raises InputError where the file is not what `fit errors` writes.
    """
    for directory in directories:
        path = directory / ACCURACY_FILE
        if is_there(path):
            return _parse(path, Accuracy, "fit errors MEASURED.csv")
    return Accuracy(source="", fitted_on="", bands=())
