"""Reads what was fitted on serving runs: the user's own where there is any, else what is shipped."""

from pathlib import Path

from pydantic import Field, ValidationError

from planner.catalog.calibration_files import is_there
from planner.catalog.paths import shipped_calibration_dir, user_calibration_dir
from planner.domain.base import Frozen, InputError
from planner.formulas.host_time import HostTime
from planner.formulas.tuning import ServingTuning

MADE_ANEW = "make it anew with `fit serving RUNS.csv`"
FILE_NAME = "serving.json"


class FittedServing(Frozen):
    """Host time, what runs say of kernels, and what it was fitted on."""

    host: HostTime
    tuning: ServingTuning
    runs: int = Field(ge=1)
    async_runs: int = Field(ge=0)
    """Of them, scheduled asynchronously; where none or all were, the other way has what it is drawn to."""
    fitted_on: str
    provenance: str


def read_serving(calibration_dir: Path | None = None) -> FittedServing:
    """The fit in `calibration_dir`, else in the user's folder, else the shipped one.

    Raises:
        InputError: the file cannot be read, is a folder, or is not what `fit serving` writes.
    """
    wanted = (calibration_dir, user_calibration_dir(), shipped_calibration_dir())
    candidates = [folder / FILE_NAME for folder in wanted if folder is not None]
    return _read(next((path for path in candidates if is_there(path)), candidates[-1]))


def _read(path: Path) -> FittedServing:
    try:
        return FittedServing.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"serving fit {path} cannot be read: {error.strerror}; {MADE_ANEW}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InputError(f"serving fit {path}: {where}: {first['msg']}; {MADE_ANEW}") from None
