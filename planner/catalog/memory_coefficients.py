"""Reads the fitted memory coefficients: the user's own where there are any, else those shipped."""

from pathlib import Path

from pydantic import ValidationError

from planner.catalog.calibration_files import is_there
from planner.catalog.paths import shipped_calibration_dir, user_calibration_dir
from planner.domain.base import InputError
from planner.formulas.memory import MemoryCoefficients

MADE_ANEW = "make it anew with `fit memory LOGS.csv`"
FILE_NAME = "memory.json"


def read_memory_coefficients(calibration_dir: Path | None = None) -> MemoryCoefficients:
    """The coefficients in `calibration_dir`, else in the user's folder, else the shipped ones.

    Raises:
        InputError: the file cannot be read, is a folder, or is not what `fit memory` writes.
    """
    wanted = (calibration_dir, user_calibration_dir(), shipped_calibration_dir())
    candidates = [folder / FILE_NAME for folder in wanted if folder is not None]
    return _read(next((path for path in candidates if is_there(path)), candidates[-1]))


def _read(path: Path) -> MemoryCoefficients:
    try:
        return MemoryCoefficients.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"memory coefficients {path} cannot be read: {error.strerror}; {MADE_ANEW}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InputError(f"memory coefficients {path}: {where}: {first['msg']}; {MADE_ANEW}") from None
