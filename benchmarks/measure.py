"""What the benchmarks share: timing, peak memory, and the rows of their one table."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from planner.domain.base import InputError

HEADERS = ("what", "measured", "budget or peer", "ratio", "ok")
PEAK_OF_SELF = "import re; print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
"""Last statement of a child whose peak is asked for: the system's count for finished children begins at the
parent's own peak, this one at the child's start."""
_TAIL = re.compile(r"(\d+)\s*\Z")


class Timing(NamedTuple):
    """Time of some equal runs [s]: the fastest and the slowest, and the least processor time of one."""

    best_s: float
    worst_s: float
    cpu_s: float = 0.0
    """Of this process and those it started; 0 where the wall's clock was not read."""


class Row(NamedTuple):
    """One line of the table; `ok` is None where nothing was promised."""

    what: str
    measured: str
    against: str
    ratio: float | None
    ok: bool | None

    def cells(self) -> tuple[str, ...]:
        """As shown, in the order of HEADERS."""
        ratio = "" if self.ratio is None else figure(self.ratio)
        return self.what, self.measured, self.against, ratio, {None: "", True: "yes", False: "NO"}[self.ok]


def cpu_time_s() -> float:
    """Processor time so far of this process and of finished ones that it started [s]."""
    used = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def best_of(
    repeats: int,
    action: Callable[[], object],
    *,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times an action so many times, after one run not counted where `warm`; by the wall's clock or another."""
    if warm:
        action()
    times, cpu = [], []
    for _ in range(repeats):
        began_s, start = cpu_time_s(), clock()
        action()
        times.append(clock() - start)
        cpu.append(cpu_time_s() - began_s)
    return Timing(min(times), max(times), min(cpu) if clock is time.perf_counter else 0.0)


def figure(value: float) -> str:
    """Three significant digits, thousands separated, nothing rounded away above the point.

    >>> figure(0.12345), figure(430673.2)
    ('0.123', '430,673')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def at_most(what: str, value: float, budget: float, unit: str, *, note: str = "") -> Row:
    """A quantity that is to be small: its ratio to the budget, kept up to 1."""
    ratio = value / budget
    return Row(what, f"{figure(value)} {unit}{note}", f"{figure(budget)} {unit}", ratio, ratio <= 1.0)


def time_at_most(what: str, timing: Timing, budget_s: float) -> Row:
    """A wall time against its budget: the best run counts, the worst and the processor time are shown."""
    note = f" (worst {figure(timing.worst_s)}, CPU {figure(timing.cpu_s)})"
    return at_most(what, timing.best_s, budget_s, "s", note=note)


def rates(count: int, timing: Timing, unit: str) -> str:
    """So many in a timed run as rates: of the best run, of the worst, and by processor time where that was taken."""
    by_cpu = f", by CPU time {figure(count / timing.cpu_s)}" if timing.cpu_s > 0 else ""
    return f"{figure(count / timing.best_s)} {unit} (worst {figure(count / timing.worst_s)}{by_cpu})"


def rate_at_least(what: str, count: int, timing: Timing, budget_per_s: float, unit: str) -> Row:
    """So many in a timed run against a least rate, kept from 1: the best run counts."""
    ratio = count / timing.best_s / budget_per_s
    return Row(what, rates(count, timing, unit), f"{figure(budget_per_s)} {unit}", ratio, ratio >= 1.0)


def not_measured(what: str, why: str) -> Row:
    """A line that says what could not be measured here, and why."""
    return Row(what, "not measured", why, None, None)


def child(*arguments: str, environment: Mapping[str, str] | None = None, python: str = sys.executable) -> str:
    """What a Python process prints; the process must end well.

    Raises:
        InputError: it cannot be started or fails; the last line it wrote on stderr is passed on.
    """
    command = [python, *arguments]
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, **(environment or {})}
        )
    except OSError as error:
        raise InputError(f"{python}: {error.strerror or error}") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines() or ["no message"]
        raise InputError(f"{' '.join(command)[:200]}: {said[-1]}") from None
    return done.stdout


def planner(*arguments: str, environment: Mapping[str, str] | None = None) -> Callable[[], object]:
    """A whole process of the command line."""
    return lambda: child("-m", "planner", *arguments, environment=environment)


def peak_mb(statements: Iterable[str]) -> float:
    """Largest resident size of a fresh Python process that runs these statements [MB]; Linux alone counts it so."""
    said = _TAIL.search(child("-c", "\n".join((*statements, PEAK_OF_SELF))))
    assert said is not None
    return int(said[1]) * 1024 / 1e6


def has_peak() -> bool:
    """Whether this system tells a process its own peak."""
    return Path("/proc/self/status").is_file()
