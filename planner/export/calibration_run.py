"""Keeps a calibration run on disk: written whole after every point, by one process alone."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from planner.catalog.atomic import write_text
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun

try:
    import fcntl
except ImportError:  # Windows has none; vLLM does not run there either.
    fcntl = None  # type: ignore[assignment]


def write_run(path: Path, run: CalibrationRun) -> None:
    """The whole run, replacing what was there. Raises InputError where it cannot be written; what was there stays."""
    # The format is a default too, and the one that no reader can do without.
    kept = {"format": run.format} | run.model_dump(mode="json", exclude_defaults=True)
    write_text(path, json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Holds the run against other processes until the block ends, or this process dies.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    handle = _locked(lock, path)
    try:
        yield
    finally:
        # Before it is let go, so that nobody waits for a name that is gone.
        with suppress(OSError):
            lock.unlink()
        os.close(handle)


def _locked(lock: Path, path: Path) -> int:
    """An open handle that holds the lock under its name."""
    while True:
        try:
            handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None
        if fcntl is None:
            return handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.fstat(handle).st_ino == lock.stat().st_ino:
                return handle
        except OSError as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise InputError(f"{path}: another calibration is writing it; let it end first") from None
            raise InputError(f"cannot lock {path}: {error.strerror or error}") from None
        # Who held it before has removed it between the two calls.
        os.close(handle)
