"""Files that are there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from planner.domain.base import InputError


def check_writable(path: Path) -> None:
    """Finds out before the work is done whether its result can be written.

    Raises:
        InputError: the folder is missing or may not be written, `path` is a folder, or its links form a loop.
    """
    folder = _resolved(path).parent
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder, name a file in it")
        if not folder.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {folder}")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise InputError(f"cannot write {path}: permission denied, or its disk is read-only")
    except OSError as error:
        raise InputError(f"cannot write {str(path)[:200]}: {error.strerror or error}") from None


def check_outputs(*paths: Path | None, inputs: Iterable[Path | None] = ()) -> None:
    """The same for every output of one command that is wanted; no two may be one file, and none an input.

    Raises:
        InputError: see `check_writable`; or two of the files are one.
    """
    wanted = [path for path in paths if path is not None]
    read = [path for path in inputs if path is not None]
    for index, path in enumerate(wanted):
        check_writable(path)
        if _resolved(path) in [_resolved(other) for other in wanted[:index]]:
            raise InputError(f"cannot write {path} twice: name another file for one of the outputs")
        if any(_is_same_file(path, other) for other in read):
            raise InputError(f"cannot write {path}: this command reads it, name another file")


def _resolved(path: Path) -> Path:
    """The file that is written in the end."""
    try:
        target = path.resolve()
        is_loop = target.is_symlink()
    except RuntimeError:
        # Up to Python 3.12; later ones leave the link as it is.
        is_loop = True
    except OSError as error:
        raise InputError(f"cannot write {str(path)[:200]}: {error.strerror or error}") from None
    if is_loop:
        raise InputError(f"cannot write {path}: its symbolic links form a loop")
    return target


def _is_same_file(output: Path, read: Path) -> bool:
    """True where writing would replace what is read; devices cannot be replaced."""
    try:
        return output.is_file() and output.samefile(read)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text stream that becomes `path` when the block ends well, and leaves nothing when it does not.

    Line ends are written as given. A device or pipe is written straight, since it cannot be replaced.

    Raises:
        InputError: the file cannot be written.
    """
    check_writable(path)
    target = _resolved(path)
    with _named(path):
        if _is_special(target):
            with _open(target) as stream:
                yield stream
            return
        with _temporary_beside(target) as temporary:
            with _stored(temporary) as stream:
                yield stream
            temporary.replace(target)


def write_texts(texts: Mapping[Path, str]) -> None:
    """Several whole files; where one cannot be written, those there already are left as they were.

    Raises:
        InputError: a file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        renames = []
        for path, text in texts.items():
            check_writable(path)
            target = _resolved(path)
            with _named(path):
                if _is_special(target):
                    with _open(target) as stream:
                        stream.write(text)
                    continue
                temporary = stack.enter_context(_temporary_beside(target))
                with _stored(temporary) as stream:
                    stream.write(text)
                renames.append((path, temporary, target))
        for path, temporary, target in renames:
            with _named(path):
                temporary.replace(target)


def write_text(path: Path, text: str) -> None:
    """One whole file. Raises InputError where it cannot be written."""
    write_texts({path: text})


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the system says of a write, with the name that the user gave."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def _is_special(target: Path) -> bool:
    """A device or a pipe."""
    return target.exists() and not target.is_file()


@contextlib.contextmanager
def _stored(path: Path) -> Iterator[TextIO]:
    """A stream whose text is on the disk when the block ends well."""
    with _open(path) as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


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
