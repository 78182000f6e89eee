"""A temporary folder for an engine's config, and the end of those whose owners were killed."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree

try:
    import fcntl
except ImportError:  # Windows has none; vLLM does not run there either.
    fcntl = None  # type: ignore[assignment]

PREFIX = "planner-calibrate-"
_NAME = re.compile(rf"{PREFIX}(\d+)-\w+")


@contextmanager
def config_folder() -> Iterator[Path]:
    """A folder of this process's own that is gone afterwards, as are those that killed ones of this user left."""
    remove_stale(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as name:
        handle = _held(Path(name))
        try:
            yield Path(name)
        finally:
            if handle is not None:
                os.close(handle)


def remove_stale(folder: Path) -> None:
    """Removes such folders of this user whose process is gone, and that no process of another container holds."""
    if fcntl is None:
        return
    with suppress(OSError):
        for path in folder.iterdir():
            named = _NAME.fullmatch(path.name)
            if named is not None and _is_ours(path) and not _runs(int(named[1])):
                _remove_unheld(path)


def _is_ours(path: Path) -> bool:
    try:
        return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid()
    except OSError:
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove_unheld(path: Path) -> None:
    handle = _held(path)
    if handle is not None:
        rmtree(path, ignore_errors=True)
        os.close(handle)


def _held(path: Path) -> int | None:
    """An open handle that locks a folder until it is closed or this process ends; None where another has it."""
    if fcntl is None:
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
