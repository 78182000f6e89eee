"""Looks for calibration files."""

from pathlib import Path

from planner.domain.base import InputError


def is_there(path: Path) -> bool:
    """Whether a calibration file is there.

    Raises:
        InputError: what is there is no file, or its folder may not be read.
    """
    try:
        if path.is_file():
            return True
        if path.exists():
            raise InputError(f"{path} is not a file; remove it or put a calibration file in its place")
    except OSError as error:
        raise InputError(
            f"calibration folder {path.parent} cannot be read: {error.strerror or error}"
        ) from None
    return False
