"""How the scheduler loop is compiled, and where the machine code is kept for the next start.

Numba keeps what it compiled until the file of the function changes, not those of the functions it calls. So it is
kept by the content of all of these files: where NUMBA_CACHE_DIR says, else beside them, else where the user's programs
keep such things, else nowhere.
"""

import contextlib
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

import numpy as np

from planner.domain.base import InputError
from planner.formulas.arrays import BoolArray

try:
    import numba
    from numba.core.caching import FunctionCache
    from numba.core.registry import CPUDispatcher
except ModuleNotFoundError as error:
    # An environment made for the engine alone calibrates, and has no compiler.
    raise InputError(
        f"this Python has no {error.name}, which simulating needs: use the one that the planner is installed in"
    ) from None

CONFIG: Any = numba.config
Function = TypeVar("Function", bound=Callable[..., Any])
HERE = Path(__file__).parent
NAME = "llm-serving-planner"
LISTEN_S = 0.1
"""On Windows nothing else ends a wait for a thread."""
OTHERS_KEPT = 2
"""Folders of machine code beside the one in use."""
PROBE_BYTES = 4096
"""Written to find out whether a disk has room."""
_OURS = re.compile(r"scheduler-[0-9a-f]{16}")


def _places() -> Iterator[Path]:
    """Where machine code may be kept, best first."""
    if CONFIG.CACHE_DIR:
        yield Path(CONFIG.CACHE_DIR)
    yield HERE / "__pycache__"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    if home.is_absolute():
        yield home / NAME


def _digest() -> str:
    """Differs where a file of the scheduler does."""
    content = sha256()
    for path in sorted(HERE.glob("scheduler_*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


def _folder() -> str | None:
    """The first place that can be written; None where there is none."""
    for place in _places():
        folder = place / f"scheduler-{_digest()}"
        new = not folder.is_dir()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(PROBE_BYTES))
            if new:
                _clean(place, folder)
            return str(folder)
        except OSError:
            continue
    return None


def _clean(place: Path, folder: Path) -> None:
    """Removes what this program compiled before, but for the last few: another copy of it may keep its own there."""
    with contextlib.suppress(OSError):
        others = [one for one in place.iterdir() if one != folder and _OURS.fullmatch(one.name)]
        others.sort(key=lambda one: one.stat().st_mtime, reverse=True)
        for one in others[OTHERS_KEPT:]:
            shutil.rmtree(one, ignore_errors=True)


FOLDER = _folder()
"""Where the machine code is kept; None: nowhere, and every start compiles."""


UNKEPT: dict[str, str] = {}
"""Folders into which machine code could not be written since the start, and why."""


_INTERRUPTED = threading.Event()
"""Ctrl-C came where it could not be raised."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt for each Ctrl-C, even one that comes while LLVM calls back: there it would be lost, and
    break what is compiled. Elsewhere than in the main thread, or where Ctrl-C is handled otherwise, nothing changes."""
    handler = signal.default_int_handler
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) != handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
        _raise_interrupted()
    finally:
        _INTERRUPTED.clear()
        signal.signal(signal.SIGINT, handler)


def stoppable(work: Callable[[BoolArray], None]) -> None:
    """Does the work in a thread of its own, so that Ctrl-C is heard meanwhile; it ends once its flag [1] is set."""
    stop = np.array([False])
    with ThreadPoolExecutor(1) as thread:
        try:
            done = thread.submit(work, stop)
            while not done.done():
                wait((done,), LISTEN_S)
        finally:
            stop[0] = True
    done.result()


def _interrupt(_number: int, frame: FrameType | None) -> None:
    _INTERRUPTED.set()
    while frame is not None:
        if frame.f_globals.get("__name__") == "llvmlite.binding.executionengine":
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _raise_interrupted() -> None:
    if _INTERRUPTED.is_set():
        raise KeyboardInterrupt


class _Kept(FunctionCache):
    """Machine code in a folder; what is damaged there, or cannot be written, is compiled as if it were not there."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for these types; None where it must be compiled."""
        _raise_interrupted()
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception:
            with contextlib.suppress(OSError):
                self.flush()  # type: ignore[no-untyped-call]
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps what was compiled, if that can be written."""
        _raise_interrupted()
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except Exception as error:
            UNKEPT[str(FOLDER)] = getattr(error, "strerror", None) or type(error).__name__


def _njit(**options: Any) -> Callable[[Function], Function]:
    return numba.njit(**options)


def _compile(function: Function, **options: Any) -> Function:
    if FOLDER is None:
        return _njit(**options)(function)
    before = CONFIG.CACHE_DIR
    CONFIG.CACHE_DIR = FOLDER
    try:
        dispatcher: Any = _njit(**options)(function)
        dispatcher._cache = _Kept(function)  # type: ignore[no-untyped-call]
        return cast(Function, dispatcher)
    except (OSError, RuntimeError) as error:
        # No folder can be made in it any more.
        UNKEPT[FOLDER] = str(error)
        return _njit(**options)(function)
    finally:
        CONFIG.CACHE_DIR = before


class _Inner(CPUDispatcher):
    """A function that is compiled for compiled functions alone: making it callable from Python takes as long again.
    Called from there it runs uncompiled."""

    def __call__(self, *args: Any) -> Any:
        return self.py_func(*args)


def _compile_inner(function: Function, **options: Any) -> Function:
    dispatcher: Any = _compile(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)
    dispatcher.__class__ = _Inner
    return cast(Function, dispatcher)


def entry(function: Function) -> Function:
    """Compiles a function that Python calls; other threads run meanwhile."""
    return _compile(function, nogil=True)


def compiled(function: Function) -> Function:
    """Compiles a function for others that are compiled, which only borrows arrays: counting references to them would
    take longer than the work."""
    return _compile_inner(function, _nrt=False)


def inlined(function: Function) -> Function:
    """Puts a function into those that call it: for what is done most often, handing over the arrays takes longer."""
    return _compile_inner(function, _nrt=False, inline="always")
