"""What the kernel says of a CPU's cores, of processes and of memory: Linux's /proc and /sys, read as text."""

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
SYS = Path("/sys")
KIB = 1024


class CoreTime(NamedTuple):
    """Seconds since the machine started, summed over the cores that this process may use.

    Source: proc(5), /proc/stat; counted in ticks (10 ms).
    """

    busy_s: float
    stolen_s: float
    """Taken by other guests of the host."""
    total_s: float


class Process(NamedTuple):
    """One process as /proc/PID/stat has it."""

    parent: int
    cpu_s: float
    """User and system time, with that of children that ended and were waited for."""


def usable_cpus() -> frozenset[int]:
    """Numbers of the cores that this process may run on; empty where the system does not tell."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def usable_core_count(proc: Path = PROC, sysfs: Path = SYS) -> int:
    """Cores that this process can keep busy: its affinity, less where a cgroup's quota is below it."""
    cores = len(usable_cpus()) or os.cpu_count() or 1
    quota = _cgroup_quota(proc, sysfs)
    return cores if quota is None else max(1, min(cores, ceil(quota)))


def core_time(cpus: Collection[int], proc: Path = PROC) -> CoreTime | None:
    """Time of these cores (of all where none is named); None where there is no readable /proc/stat."""
    tick_s = _tick_s()
    busy = stolen = total = 0
    try:
        lines = (proc / "stat").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, *fields = line.split()
        if not (found := re.fullmatch(r"cpu(\d+)", name)) or (cpus and int(found[1]) not in cpus):
            continue
        # Guest time is counted in user time already.
        user, nice, system, idle, waiting, interrupts, softly, steal = (int(field) for field in fields[:8])
        worked = user + nice + system + interrupts + softly
        busy, stolen, total = busy + worked, stolen + steal, total + worked + idle + waiting + steal
    return CoreTime(busy * tick_s, stolen * tick_s, total * tick_s) if total else None


def processes(proc: Path = PROC) -> dict[int, Process]:
    """Every process that this one can see, by its number; those that end meanwhile are left out."""
    tick_s = _tick_s()
    found = {}
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            # The name of the program stands in brackets and may contain anything, brackets and spaces too.
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            ticks = sum(int(field) for field in fields[11:15])
            found[int(folder.name)] = Process(parent=int(fields[1]), cpu_s=ticks * tick_s)
    return found


def family(roots: Collection[int], table: Mapping[int, Process]) -> set[int]:
    """The processes named, where they live, and all that descend from them.

    >>> family([2], {1: Process(0, 0.0), 2: Process(1, 0.0), 3: Process(2, 0.0), 4: Process(3, 0.0)})
    {2, 3, 4}
    """
    children: dict[int, list[int]] = {}
    for number, process in table.items():
        children.setdefault(process.parent, []).append(number)
    members: set[int] = set()
    waiting = [root for root in roots if root in table]
    while waiting:
        number = waiting.pop()
        if number not in members:
            members.add(number)
            waiting.extend(children.get(number, ()))
    return members


def clock_mhz(cpus: Collection[int], sysfs: Path = SYS) -> float | None:
    """Mean clock of these cores as cpufreq has it; None on most virtual machines, which hide it."""
    clocks = [
        value
        for cpu in cpus
        if (value := _number(sysfs / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq")) is not None
    ]
    return sum(clocks) / len(clocks) / 1e3 if clocks else None


class EnergyZone(NamedTuple):
    """A processor package that counts its energy (RAPL), with the value at which its counter starts anew."""

    counter: Path
    range_j: float


def energy_zones(sysfs: Path = SYS) -> tuple[EnergyZone, ...]:
    """Packages whose energy counter this process may read: root only on most systems, none on virtual machines.

    Source: Linux, Documentation/power/powercap/powercap.rst (microjoules).
    """
    zones = []
    for folder in sorted((sysfs / "class/powercap").glob("intel-rapl:*")):
        limit = _number(folder / "max_energy_range_uj")
        if (
            re.fullmatch(r"intel-rapl:\d+", folder.name)
            and limit
            and _number(folder / "energy_uj") is not None
        ):
            zones.append(EnergyZone(folder / "energy_uj", limit / 1e6))
    return tuple(zones)


def energy_j(zone: EnergyZone) -> float | None:
    """What the zone's counter shows; None where it cannot be read."""
    value = _number(zone.counter)
    return None if value is None else value / 1e6


def memory_bytes(proc: Path = PROC) -> tuple[int, int] | None:
    """Bytes of RAM in all and in use (all less what is available); None where /proc/meminfo is not."""
    try:
        text = (proc / "meminfo").read_text()
    except OSError:
        return None
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", text, re.MULTILINE))
    if len(found) != 2:
        return None
    total = int(found["MemTotal"]) * KIB
    return total, max(0, total - int(found["MemAvailable"]) * KIB)


def cpu_name(proc: Path = PROC) -> str:
    """The processor's own name, or what implements it on Arm, else empty."""
    try:
        text = (proc / "cpuinfo").read_text()
    except OSError:
        return ""
    for key in ("model name", "Model", "CPU implementer"):
        if found := re.search(rf"^{key}\s*:\s*(\S.*)$", text, re.MULTILINE):
            return found[1].strip()
    return ""


def _cgroup_quota(proc: Path, sysfs: Path) -> float | None:
    """Cores that the cgroups of this process grant, the tightest of them; None without a limit.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max), cgroup v1's cpu.cfs_quota_us.
    """
    folders = [sysfs / "fs/cgroup", sysfs / "fs/cgroup/cpu"]
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root = sysfs / "fs/cgroup" / ("cpu" if "cpu" in controllers.split(",") else "")
            parts = Path(path.lstrip("/")).parts
            folders += [root.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    quotas = []
    for folder in folders:
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(float(quota) / float(period))
        granted, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if granted and period_us and granted > 0:
            quotas.append(granted / period_us)
    return min(quotas, default=None)


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _tick_s() -> float:
    return 1.0 / float(os.sysconf("SC_CLK_TCK"))
