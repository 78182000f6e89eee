"""Files that are there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from planner.domain.base import InputError


def check_writable(path: Path) -> None:
    """Finds out before the work is done whether its result can be written.

    Raises:
        InputError: the folder is missing or may not be written, or `path` is a folder.
    """
    try:
        folder = path.resolve().parent
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder, name a file in it")
        if not folder.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {folder}")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise InputError(f"cannot write {path}: permission denied")
    except OSError as error:
        raise InputError(f"cannot write {str(path)[:200]}: {error.strerror or error}") from None


def check_outputs(*paths: Path | None) -> None:
    """The same for every output of one command that is wanted; no two may be one file. Raises InputError."""
    wanted = [path for path in paths if path is not None]
    for index, path in enumerate(wanted):
        check_writable(path)
        if path.resolve() in [other.resolve() for other in wanted[:index]]:
            raise InputError(f"cannot write {path} twice: name another file for one of the outputs")


@contextlib.contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text stream that becomes `path` when the block ends well, and leaves nothing when it does not.

    Line ends are written as given. A device or pipe is written straight, since it cannot be replaced.

    Raises:
        InputError: the file cannot be written.
    """
    check_writable(path)
    target = path.resolve()
    try:
        if target.exists() and not target.is_file():
            with _open(target) as stream:
                yield stream
            return
        with _temporary_beside(target) as temporary:
            with _open(temporary) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def _open(path: Path) -> TextIO:
    """Valid UTF-8 whatever is written: file names may hold bytes that are not."""
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")


@contextlib.contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    """An empty file in the target's folder with the rights a new file would have; gone afterwards unless renamed."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """One whole file. Raises InputError where it cannot be written."""
    with atomic_text(path) as stream:
        stream.write(text)
