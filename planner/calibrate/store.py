"""Coefficients on disk: written whole or not at all, read before the shipped ones, checked as they are read."""

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from planner.calibrate.plain_operators import plain_operators
from planner.catalog.atomic import write_text
from planner.catalog.calibration_files import is_there
from planner.catalog.paths import shipped_calibration_dir, user_calibration_dir
from planner.domain.base import InputError
from planner.domain.evidence import Accuracy, Basis
from planner.domain.hardware import Gpu
from planner.formulas.gpu_fit import GPU_FIT_FORMAT, GpuFit
from planner.formulas.operators.coefficients import OPERATOR_FORMAT, GpuOperators, OperatorCoefficients
from planner.formulas.operators.scales import scaled

OPERATORS_FOLDER = "operators"
GPU_FITS_FOLDER = "gpus"
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
    return _write(operators_path(directory, coefficients.gpu), coefficients.model_dump_json(indent=1))


def write_gpu_fit(fit: GpuFit, directory: Path) -> Path:
    """Writes what steps measured on one GPU say, likewise."""
    return _write(gpu_fit_path(directory, fit.gpu.name), fit.model_dump_json(indent=1))


def _write(path: Path, indented: str) -> Path:
    """A whole file of JSON, its lists of numbers on one line each, or none."""
    text = _NUMBER_LIST.sub(lambda found: " ".join(found.group().split()), indented) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    write_text(path, text)
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


def table_operators_for(gpu: Gpu, directories: Sequence[Path]) -> GpuOperators:
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


def operators_for(gpu: Gpu, directories: Sequence[Path]) -> GpuOperators:
    """The same, with what steps measured on this GPU say of its kernels, where there are any."""
    fit = gpu_fit(gpu.name, directories)
    return table_operators_for(gpu, directories) if fit is None else fitted_operators(fit, directories)


def fitted_operators(fit: GpuFit, directories: Sequence[Path]) -> GpuOperators:
    """Kernels as the measured steps have them."""
    before = plain_operators(fit.gpu) if fit.plain else table_operators_for(fit.gpu, directories)
    return before._replace(
        coefficients=scaled(before.coefficients, fit.scales), basis=Basis.CALIBRATED, host=fit.host
    )


def gpu_fit_path(directory: Path, gpu: str) -> Path:
    """File of what steps measured on one GPU say, in a calibration directory."""
    return directory / GPU_FITS_FOLDER / f"{gpu}.json"


def gpu_fit(gpu: str, directories: Sequence[Path]) -> GpuFit | None:
    """What steps measured on a GPU say, from the first directory that has it; None where none has.

    Raises InputError where the file is not what `fit runs` writes.
    """
    paths = (gpu_fit_path(directory, gpu) for directory in directories)
    path = next((path for path in paths if is_there(path)), None)
    return None if path is None else _gpu_fit(path)


def gpu_fits(directories: Sequence[Path], *, without: Collection[str] = ()) -> tuple[GpuFit, ...]:
    """Every GPU's, each from the first directory that has it, but for those named `without`.

    Raises InputError as `gpu_fit` does.
    """
    found: dict[str, GpuFit] = {}
    for directory in directories:
        try:
            paths = sorted((directory / GPU_FITS_FOLDER).glob("*.json"))
        except OSError as error:
            raise InputError(f"{directory} cannot be read: {error.strerror or error}") from None
        for path in paths:
            if path.stem in without:
                continue
            fit = _gpu_fit(path)
            found.setdefault(fit.gpu.name, fit)
    return tuple(found.values())


def _gpu_fit(path: Path) -> GpuFit:
    fit = _parse(path, GpuFit, "fit runs DIR")
    if fit.format != GPU_FIT_FORMAT:
        raise InputError(
            f"{path}: has format {fit.format}, this program reads {GPU_FIT_FORMAT}; make it anew with `fit runs DIR`"
        )
    if fit.gpu.name != path.stem:
        raise InputError(
            f"{path}: is of {fit.gpu.name}, not of {path.stem}; make it anew with `fit runs DIR`"
        )
    return fit


def read_accuracy(directories: Sequence[Path]) -> Accuracy:
    """Known errors from the first directory that has them; no bands where none has.

    Raises InputError where the file is not what `fit errors` writes.
    """
    for directory in directories:
        path = directory / ACCURACY_FILE
        if is_there(path):
            return _parse(path, Accuracy, "fit errors MEASURED.csv")
    return Accuracy(source="", fitted_on="", bands=())
