"""The parent's handle on an engine process: starts it, asks it, hears of its death, and leaves nothing running."""

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

import planner
from planner.calibrate.measure.engine_failures import says_out_of_memory
from planner.calibrate.measure.engine_log import MOST_CHARS, memory_from_log, only_points, reason_in_log
from planner.calibrate.measure.engine_protocol import (
    Answer,
    Failed,
    FailureKind,
    Measure,
    Question,
    Serve,
    Start,
    Started,
    Stop,
    encode,
    read_answer,
)
from planner.calibrate.startup_log import read_startup_log

MODULE = "planner.calibrate.measure.engine"
POLL_S = 0.1
STOP_S = 10.0
"""That a stopped process gets to end by itself."""
TERMINATE_S = 3.0
READ_BYTES = 1 << 16


class EngineDied(Exception):
    """The engine process is gone, or does not answer; one line says why."""

    def __init__(self, message: str, *, out_of_memory: bool | None = False) -> None:
        """`out_of_memory`: whether that was why; None where it may have been."""
        super().__init__(message)
        self.out_of_memory = out_of_memory


class EngineProcess:
    """One engine process at a time; a context manager that leaves none behind.

    `log_path` gets everything the engine prints; an engine started later on the same path is logged after the first.
    """

    def __init__(
        self, log_path: Path, *, command: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
    ):
        """`command` and `environment` default to this interpreter running the engine and to this process's own."""
        self._log_path = log_path
        self._command = command or (sys.executable, "-m", MODULE)
        self._environment = dict(os.environ if environment is None else environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._log_begin = self._log_asked = 0
        self._oom_kills: int | None = None

    def __enter__(self) -> Self:
        """Starts nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends what runs; at once where something went wrong."""
        self.close(patience_s=STOP_S if kind is None else 0.0)

    @property
    def pid(self) -> int | None:
        """Of the running process, which leads a process group of its own; None where none runs."""
        return None if self._process is None else self._process.pid

    def start(self, start: Start, *, timeout_s: float = 1200.0) -> Started | Failed:
        """Starts an engine, without made-up context where the engine refuses that.

        Raises:
            EngineDied: the process ended, or took longer than `timeout_s`.
            OSError: the log cannot be written.
        """
        answer = self._start(start, timeout_s)
        if isinstance(answer, Failed) and answer.kind == FailureKind.CONTEXT and start.made_up_context:
            answer = self._start(start.model_copy(update={"made_up_context": False}), timeout_s)
        if isinstance(answer, Started):
            return answer.model_copy(
                update={"memory": memory_from_log(self._log(self._log_begin), answer.memory)}
            )
        self.close()
        if isinstance(answer, Failed):
            return self._root_cause(answer)
        raise EngineDied(f"the engine process answered {answer.type} when it was to start")

    def ask(self, question: Measure | Serve, *, timeout_s: float) -> Answer:
        """The answer to one question. After EngineDied or a failure that lost the engine, `start` may be called again.

        Raises:
            EngineDied: the process ended, or gave no answer within `timeout_s` and was ended.
        """
        return self._ask(question, timeout_s)

    def close(self, *, patience_s: float = STOP_S) -> None:
        """Ends the process and all it started. Does nothing where none runs."""
        process = self._process
        if process is None:
            return
        try:
            if patience_s and self._runs() and self._tell(Stop()):
                self._wait(patience_s)
            if self._runs():
                _signal_group(process.pid, signal.SIGTERM)
                self._wait(TERMINATE_S if patience_s else POLL_S)
        finally:
            _signal_group(process.pid, signal.SIGKILL)
            self._process = None
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def _start(self, start: Start, timeout_s: float) -> Answer:
        self.close()
        here = str(Path(planner.__file__).parent.parent)
        path = os.pathsep.join(part for part in (here, self._environment.get("PYTHONPATH", "")) if part)
        self._oom_kills = count_oom_kills()
        with self._log_path.open("ab") as log:
            self._log_begin = log.tell()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
                env=self._environment | {"PYTHONPATH": path},
            )
        self._unread = b""
        return self._ask(start, timeout_s)

    def _ask(self, question: Question, timeout_s: float) -> Answer:
        if self._process is None:
            raise EngineDied("no engine process runs")
        until = time.monotonic() + timeout_s
        self._log_asked = self._log_path.stat().st_size
        self._tell(question)
        line = self._line(until)
        if line is None:
            self.close(patience_s=0.0)
            raise EngineDied(f"the engine process gave no answer within {timeout_s:,.0f} s")
        if not line:
            death = self._death()
            self.close(patience_s=0.0)
            raise death
        try:
            return read_answer(line)
        except ValidationError as error:
            self.close(patience_s=0.0)
            raise EngineDied(f"the engine process wrote what is no answer: {line[:80]!r}") from error

    def _tell(self, question: Question) -> bool:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encode(question))
        except OSError:
            return False
        return True

    def _line(self, until: float) -> bytes | None:
        """The next line; empty where the process is gone, None where there is none in time.

        Workers may hold the pipe open after their parent died, so the end of the pipe is not waited for.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                ended = not self._runs()
                if selector.select(0 if ended else POLL_S):
                    read = os.read(self._process.stdout.fileno(), READ_BYTES)
                    self._unread += read
                    if read:
                        continue
                    ended = True
                if ended:
                    return b""
                if time.monotonic() > until:
                    return None
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _runs(self) -> bool:
        """Whether the process is alive. It is not reaped, so that its group's number stays its own."""
        assert self._process is not None
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self._process.pid, flags) is None

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._runs() and time.monotonic() < until:
            time.sleep(POLL_S / 4)

    def _death(self) -> EngineDied:
        """How the process ended, and the line of its log that says most."""
        assert self._process is not None
        self._wait(TERMINATE_S)
        said = reason_in_log(self._log(self._log_asked))
        out_of_memory: bool | None = says_out_of_memory(said)
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is None:
            how = "the engine process closed its output"
        elif ended.si_code == os.CLD_EXITED:
            how = f"the engine process ended with exit code {ended.si_status}"
        else:
            how = f"the engine process was killed by {_signal_name(ended.si_status)}"
            if ended.si_status == signal.SIGKILL:
                how += ", which is what the operating system does when memory runs out"
                out_of_memory = out_of_memory or self._memory_ran_out()
        return EngineDied(f"{how}: {said}" if said else how, out_of_memory=out_of_memory)

    def _memory_ran_out(self) -> bool | None:
        """True where the operating system killed a process for memory since the engine started, else None."""
        now = count_oom_kills()
        killed = now is not None and self._oom_kills is not None and now > self._oom_kills
        return True if killed else None

    def _root_cause(self, failed: Failed) -> Failed:
        """The same failure in the words of the worker that failed first, where the engine's own only point there."""
        if not only_points(failed.message):
            return failed
        log = self._log(self._log_begin)
        kind = FailureKind.OUT_OF_MEMORY if read_startup_log(log).failure else failed.kind
        return Failed(kind=kind, message=reason_in_log(log) or failed.message)

    def _log(self, since: int) -> str:
        """What the engine has written since a place in its log; of much the beginning and the end."""
        half = MOST_CHARS // 2
        with self._log_path.open("rb") as log:
            log.seek(since)
            begin = log.read(half)
            log.seek(max(log.seek(0, os.SEEK_END) - half, since + len(begin)))
            return (begin + log.read()).decode(errors="replace")


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def count_oom_kills(path: Path = Path("/proc/vmstat")) -> int | None:
    """Processes that Linux killed because memory ran out, since it started, also in a cgroup; None elsewhere."""
    try:
        found = re.search(r"^oom_kill (\d+)$", path.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return int(found[1]) if found else None


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
