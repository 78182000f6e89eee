"""Reads the fitted host time: the user's own where there is any, else what is shipped."""

from functools import lru_cache
from pathlib import Path

from pydantic import Field, ValidationError

from planner.catalog.paths import shipped_calibration_dir, user_calibration_dir
from planner.domain.base import Frozen, InputError
from planner.formulas.host_time import HostTime

FILE_NAME = "serving.json"


class FittedHostTime(Frozen):
    """Host time, and what it was fitted on."""

    host: HostTime
    runs: int = Field(ge=1)
    async_runs: int = Field(ge=0)
    """Of them, scheduled asynchronously; where none or all were, both ways have the same time."""
    fitted_on: str
    provenance: str


def read_host_time(calibration_dir: Path | None = None) -> FittedHostTime:
    """The host time in `calibration_dir`, else in the user's folder, else the shipped one.

    Raises:
        InputError: the file cannot be read, or is not what `fit serving` writes.
    """
    wanted = (calibration_dir, user_calibration_dir(), shipped_calibration_dir())
    candidates = [folder / FILE_NAME for folder in wanted if folder is not None]
    return _read(next((path for path in candidates if path.is_file()), candidates[-1]))


@lru_cache(maxsize=8)
def _read(path: Path) -> FittedHostTime:
    try:
        return FittedHostTime.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"host time {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InputError(f"host time {path}: {where}: {first['msg']}") from None
