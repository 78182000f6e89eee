"""The devices that can be watched: the cards of an engine, the cores of this machine, or nothing."""

import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from planner.calibrate.measure import nvml as ask
from planner.calibrate.measure.cpu_load import (
    CoreTime,
    clock_mhz,
    core_time,
    energy_j,
    energy_zones,
    family,
    memory_bytes,
    processes,
    usable_cpus,
)
from planner.calibrate.measure.telemetry import (
    THROTTLE_NAMES,
    Edge,
    EnergyCounters,
    Sample,
    busy_ratio,
    energy_between,
    mean,
)
from planner.domain.calibration import Device

GPU_RATE_HZ = 20.0
CPU_RATE_HZ = 2.0
"""Slower than a GPU's: a CPU's counters are cumulative and count in 10 ms, and reading them takes its time."""
PROCESSES_PERIOD_S = 0.5
GPU_ENERGY_PERIOD_S = 0.1
CPU_ENERGY_PERIOD_S = 0.001
FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""The host's own, whose number is fixed in Linux (PROC_PID_INIT_INO)."""
FOREIGN_NAMESPACE = (
    "processes on the GPU are numbered as on the host: all but one on each card count as others'"
)


class Sensors(Protocol):
    """A device that can be read."""

    rate_hz: float

    def sample(self) -> Sample:
        """Reads what changes from moment to moment: called from the thread."""

    def edge(self) -> Edge:
        """Reads everything: called where a stretch begins and ends."""

    def missing(self) -> tuple[str, ...]:
        """One line on each thing that cannot be read, and why."""

    def notes(self) -> tuple[str, ...]:
        """One line on each thing about the device that a reader of the figures should know."""

    def close(self) -> None:
        """Lets the device go."""


class Blind:
    """No sensors at all, and why."""

    rate_hz = 0.0

    def __init__(self, why: str) -> None:
        self._why = why

    def sample(self) -> Sample:
        """Only the time."""
        return Sample(time.monotonic())

    def edge(self) -> Edge:
        """Only the time."""
        return Edge(self.sample())

    def missing(self) -> tuple[str, ...]:
        """The reason."""
        return (self._why,)

    def notes(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def close(self) -> None:
        """Nothing to let go."""


class GpuSensors:
    """The cards of an engine, through NVML.

    The driver numbers processes as the host does. Where one of ours is listed, or this process is not in a
    PID namespace of its own, whoever is not ours is another. Else ours cannot be told from theirs: one process on
    each card is taken for the engine's rank, the rest for others. Utilisation is of the driver's last 1/6 to 1 s
    (nvmlUtilization_t), power on most cards of the last second (nvmlDeviceGetPowerUsage): energy counters are
    preferred for power over a stretch.
    """

    rate_hz = GPU_RATE_HZ

    def __init__(self, nvml: ask.Nvml, own_pids: Callable[[], Collection[int]]) -> None:
        self._nvml = nvml
        self._own_pids = own_pids
        self._own: set[int] = set()
        self._others: int | None = None
        self._others_at_s = -PROCESSES_PERIOD_S
        self._foreign = False
        self._ecc_errors = self._count_ecc_errors()

    def sample(self) -> Sample:
        """Reads every card; processes on them at most twice a second."""
        now_s = time.monotonic()
        if now_s - self._others_at_s >= PROCESSES_PERIOD_S:
            self._others, self._others_at_s = self._count_others(), now_s
        clocks = self._read(ask.SM_CLOCK)
        power_mw = self._read(ask.POWER)
        memory = [one.used for one in self._read(ask.MEMORY)]
        bits = [int(one) for one in self._read(ask.THROTTLE_REASONS)]
        return Sample(
            at_s=now_s,
            sm_clock_mhz=mean(clocks),
            sm_clock_mhz_min=min(clocks, default=None),
            memory_clock_mhz=mean(self._read(ask.MEMORY_CLOCK)),
            power_w=sum(power_mw) / 1e3 if len(power_mw) == len(self._nvml.cards) else None,
            temperature_c=max(self._read(ask.TEMPERATURE), default=None),
            utilization_ratio=mean([one.gpu / 100 for one in self._read(ask.UTILIZATION)]),
            memory_used_bytes=max(memory, default=None),
            reasons=frozenset(name for bit, name in THROTTLE_NAMES.items() for one in bits if one & bit),
            other_processes=self._others,
        )

    def edge(self) -> Edge:
        """A sample with the energy counters."""
        self._others_at_s = -PROCESSES_PERIOD_S
        counters_mj = self._read(ask.ENERGY)
        counters = EnergyCounters(
            tuple(one / 1e3 for one in counters_mj), (0.0,) * len(counters_mj), GPU_ENERGY_PERIOD_S
        )
        complete = len(counters_mj) == len(self._nvml.cards)
        return Edge(self.sample(), energy=counters if complete else None)

    def missing(self) -> tuple[str, ...]:
        """What the cards refuse, and whose processes cannot be told."""
        return self._nvml.missing() + ((FOREIGN_NAMESPACE,) if self._foreign else ())

    def notes(self) -> tuple[str, ...]:
        """MIG, and memory errors that could not be corrected."""
        lines = []
        for card, before, now in zip(
            self._nvml.cards, self._ecc_errors, self._count_ecc_errors(), strict=True
        ):
            if now:
                lines.append(
                    f"{card.label} had {now} uncorrected memory errors since its driver started, "
                    f"{max(0, now - before)} of them during this run"
                )
            if (mode := card.ask(ask.MIG_MODE, needed=False)) and mode[0]:
                lines.append(f"{card.label} is split by MIG: clocks and power are of the whole card")
        return tuple(lines)

    def close(self) -> None:
        """Shuts NVML down."""
        self._nvml.close()

    def _read(self, sensor: ask.Sensor) -> list[Any]:
        return [value for card in self._nvml.cards if (value := card.ask(sensor)) is not None]

    def _count_ecc_errors(self) -> list[int]:
        return [int(card.ask(ask.ECC_ERRORS) or 0) for card in self._nvml.cards]

    def _count_others(self) -> int | None:
        listed = [card.ask(ask.PROCESSES) for card in self._nvml.cards]
        if None in listed:
            return None
        pids = [[int(process.pid) for process in card] for card in listed]
        known = [pid for card in pids for pid in card]
        if not self._own.issuperset(known):
            self._own = family({os.getpid(), *self._own_pids()}, processes())
        strangers = [pid for pid in known if pid not in self._own]
        self._foreign = bool(known) and len(strangers) == len(known) and not _numbered_as_on_the_host()
        if self._foreign:
            return sum(max(0, len(card) - 1) for card in pids)
        # Processes of a namespace that this one does not see may be listed as 0.
        return len({pid for pid in strangers if pid}) + strangers.count(0)


class CpuSensors:
    """The cores that this process may use, through Linux's /proc and /sys.

    What is busy and not ours is others': their processes, the kernel and, as stolen time, other guests of the host.
    """

    rate_hz = CPU_RATE_HZ

    def __init__(self, own_pids: Callable[[], Collection[int]]) -> None:
        self._own_pids = own_pids
        self._cpus = usable_cpus()
        self._zones = energy_zones()
        self._before: tuple[float, CoreTime | None, EnergyCounters | None] = (0.0, None, None)

    def sample(self) -> Sample:
        """Use of the cores and power since the last sample."""
        return self._sample(remember=True)

    def edge(self) -> Edge:
        """A sample with the counters and the CPU time of each process."""
        table = processes()
        own = family({os.getpid(), *self._own_pids()}, table)
        return Edge(
            sample=self._sample(remember=False),
            energy=self._energy(),
            cores=core_time(self._cpus),
            own_s=sum(table[pid].cpu_s for pid in own),
            others_s={pid: process.cpu_s for pid, process in table.items() if pid not in own},
        )

    def missing(self) -> tuple[str, ...]:
        """Clocks and energy, which virtual machines and unprivileged users rarely see."""
        lines = []
        if clock_mhz(self._cpus) is None:
            lines.append("the clock of the cores cannot be read: this system has no cpufreq")
        if not self._zones:
            lines.append("power cannot be read: no RAPL counter that this user may read")
        return tuple(lines)

    def notes(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def close(self) -> None:
        """Nothing to let go."""

    def _sample(self, *, remember: bool) -> Sample:
        now_s, cores, energy = time.monotonic(), core_time(self._cpus), self._energy()
        then_s, before, energy_before = self._before
        clock, memory = clock_mhz(self._cpus), memory_bytes()
        used_j = energy_between(energy_before, energy)
        if remember:
            self._before = now_s, cores, energy
        return Sample(
            at_s=now_s,
            sm_clock_mhz=clock,
            sm_clock_mhz_min=clock,
            power_w=used_j / (now_s - then_s) if used_j is not None and now_s > then_s else None,
            utilization_ratio=busy_ratio(before, cores),
            memory_used_bytes=memory[1] if memory else None,
        )

    def _energy(self) -> EnergyCounters | None:
        found = [value for zone in self._zones if (value := energy_j(zone)) is not None]
        if not found or len(found) < len(self._zones):
            return None
        return EnergyCounters(tuple(found), tuple(zone.range_j for zone in self._zones), CPU_ENERGY_PERIOD_S)


def sensors_of(
    device: Device, gpu_indices: Sequence[int], own_pids: Callable[[], Collection[int]], nvml: Any
) -> Sensors:
    """The sensors of the device, or `Blind` with the reason. Raises InputError where there is no such GPU."""
    if device is Device.CPU:
        if core_time(()) is None:
            return Blind("the use of the cores cannot be read: this system has no /proc/stat")
        return CpuSensors(own_pids)
    try:
        return GpuSensors(ask.open_nvml(gpu_indices, nvml=nvml), own_pids)
    except ask.NvmlMissing as error:
        return Blind(f"clocks, power, temperature and others on the GPU cannot be read: {error}")


def _numbered_as_on_the_host() -> bool:
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == FIRST_PID_NAMESPACE
    except OSError:
        return False
