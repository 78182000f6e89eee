"""What sensors said of a stretch of time, summed up, and whether it was disturbed. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import NamedTuple

from planner.calibrate.measure.cpu_load import CoreTime
from planner.domain.calibration import Telemetry

USING_CORE_RATIO = 0.05
"""A process that took less of one core is not counted among those that used the CPU."""
OTHERS_RATIO = 0.10
TICKS_S = 0.02
SLOW_GPU_CLOCK_RATIO = 0.93
SLOW_CPU_CLOCK_RATIO = 0.8
FEWEST_BASELINE = 3
FEWEST_CLOCKS = 3
COUNTER_PERIODS = 10

POWER_CAP = "software power cap"
HARDWARE_SLOWDOWN = "hardware slowdown"
THROTTLE_NAMES = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: POWER_CAP,
    0x8: HARDWARE_SLOWDOWN,
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
"""Bits of nvmlClocksEventReasons (once nvmlClocksThrottleReasons) in words."""
HARDWARE_CAUSES = frozenset(("hardware thermal slowdown", "hardware power brake"))
SLOWING_REASONS = HARDWARE_CAUSES | {HARDWARE_SLOWDOWN, "software thermal slowdown"}


class Sample(NamedTuple):
    """All sensors at one moment, over all cards of the engine; None where one is missing."""

    at_s: float
    """Of the monotonic clock."""
    sm_clock_mhz: float | None = None
    """Mean over cards."""
    sm_clock_mhz_min: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    """Sum over cards."""
    temperature_c: float | None = None
    utilization_ratio: float | None = None
    memory_used_bytes: int | None = None
    """Of the fullest card."""
    reasons: frozenset[str] = frozenset()
    other_processes: int | None = None


class EnergyCounters(NamedTuple):
    """Energy used since some moment, a counter for each card or package."""

    counters_j: tuple[float, ...]
    ranges_j: tuple[float, ...]
    """Where each counter starts anew; 0 where it never does."""
    period_s: float
    """How often they are renewed."""


class Edge(NamedTuple):
    """Where a stretch of time begins or ends: what only counters tell."""

    sample: Sample
    energy: EnergyCounters | None = None
    cores: CoreTime | None = None
    own_s: float = 0.0
    """Of the engine's processes and those of this program."""
    others_s: Mapping[int, float] = {}
    """CPU time of each other process."""


def summarise(start: Edge, inside: Sequence[Sample], end: Edge) -> Telemetry:
    """What the sensors said of a stretch of time: readings from inside it, counters from its edges.

    Where it was too short for a reading inside, those at its edges stand in. The driver also reports a hardware
    slowdown while clocks change (nvmlClocksThrottleReasonHwSlowdown), so one that was seen once among several
    readings, with no thermal or power cause beside it, does not count.
    """
    samples = list(inside) or [start.sample, end.sample]
    seconds = max(0.0, end.sample.at_s - start.sample.at_s)
    power = present(sample.power_w for sample in samples)
    counted_j = energy_between(start.energy, end.energy)
    if end.energy is not None and seconds < COUNTER_PERIODS * end.energy.period_s:
        counted_j = None
    integral_j = _integral([start.sample, *inside, end.sample]) if power else None
    others = present(one.other_processes for one in (start.sample, *inside, end.sample))
    busy = busy_ratio(start.cores, end.cores)
    return Telemetry(
        seconds=seconds,
        samples=sum(any(value is not None for value in sample[1:8]) for sample in samples),
        sm_clock_mhz_mean=mean(present(sample.sm_clock_mhz for sample in samples)),
        sm_clock_mhz_min=min(present(sample.sm_clock_mhz_min for sample in samples), default=None),
        memory_clock_mhz_mean=mean(present(sample.memory_clock_mhz for sample in samples)),
        power_w_mean=mean(power) if counted_j is None or not seconds else counted_j / seconds,
        power_w_max=max(power, default=None),
        energy_j=integral_j if counted_j is None else counted_j,
        temperature_c_max=max(present(sample.temperature_c for sample in samples), default=None),
        utilization_ratio_mean=busy
        if busy is not None
        else mean(present(sample.utilization_ratio for sample in samples)),
        memory_used_bytes_max=max(present(sample.memory_used_bytes for sample in samples), default=None),
        throttle_reasons=_reasons(samples),
        other_processes=_count_users(start, end, seconds) if start.cores else int(max(others, default=0)),
        other_use_ratio=_others_ratio(start, end),
    )


def disturbances(telemetry: Telemetry, baseline: Sequence[Telemetry]) -> tuple[str, ...]:
    """Why times measured meanwhile may not be the engine's alone, one reason a line; empty where nothing was seen.

    `baseline`: the same kind of step in the same run. Thermal slowdowns, power brakes and hardware slowdowns take
    clocks to a half or less and come and go (NVML, nvmlClocksEventReasons). A software power cap does not disturb:
    it keeps the card within its power limit, which large matrix products reach in service as they do here. Clocks
    below the run's others are therefore a disturbance only without it. Use of a CPU by others is known to a tick
    or two of 10 ms, so that a short stretch needs more of it.
    """
    found = [reason for reason in telemetry.throttle_reasons if reason in SLOWING_REASONS]
    if slow := _slow_clock(telemetry, baseline):
        found.append(slow)
    use = telemetry.other_use_ratio
    if use is not None:
        if use > OTHERS_RATIO + TICKS_S / max(telemetry.seconds, TICKS_S):
            found.append(f"others used {use:.0%} of the cores")
    elif telemetry.other_processes:
        found.append(f"processes of others on the GPU: {telemetry.other_processes}")
    if not telemetry.samples and any(one.samples for one in baseline):
        found.append("the sensors said nothing")
    return tuple(found)


def energy_between(start: EnergyCounters | None, end: EnergyCounters | None) -> float | None:
    """What all counters together counted [J], also where one started anew; None where there are none."""
    if start is None or end is None or len(start.counters_j) != len(end.counters_j):
        return None
    used = (after - before for before, after in zip(start.counters_j, end.counters_j, strict=True))
    return sum(one + limit if one < 0 else one for one, limit in zip(used, end.ranges_j, strict=True))


def _slow_clock(telemetry: Telemetry, baseline: Sequence[Telemetry]) -> str:
    clocks = present(one.sm_clock_mhz_mean for one in baseline)
    clock = telemetry.sm_clock_mhz_mean
    capped = POWER_CAP in telemetry.throttle_reasons
    if clock is None or capped or len(clocks) < FEWEST_BASELINE or telemetry.samples < FEWEST_CLOCKS:
        return ""
    usual = median(clocks)
    on_gpu = telemetry.other_use_ratio is None
    slow = clock < (SLOW_GPU_CLOCK_RATIO if on_gpu else SLOW_CPU_CLOCK_RATIO) * usual
    return f"clock of {clock:.0f} MHz, {usual:.0f} in steps of this kind" if slow else ""


def _reasons(samples: Sequence[Sample]) -> tuple[str, ...]:
    seen = [name for name in THROTTLE_NAMES.values() if any(name in one.reasons for one in samples)]
    times = sum(HARDWARE_SLOWDOWN in one.reasons for one in samples)
    if times == 1 < len(samples) and HARDWARE_CAUSES.isdisjoint(seen):
        seen.remove(HARDWARE_SLOWDOWN)
    return tuple(seen)


def busy_ratio(start: CoreTime | None, end: CoreTime | None) -> float | None:
    """Share of the cores' time that was worked or stolen; None where it cannot be told."""
    if start is None or end is None or end.total_s <= start.total_s:
        return None
    busy_s = end.busy_s - start.busy_s + end.stolen_s - start.stolen_s
    return min(1.0, max(0.0, busy_s / (end.total_s - start.total_s)))


def _others_ratio(start: Edge, end: Edge) -> float | None:
    busy = busy_ratio(start.cores, end.cores)
    if busy is None or start.cores is None or end.cores is None:
        return None
    own = (end.own_s - start.own_s) / (end.cores.total_s - start.cores.total_s)
    return min(1.0, max(0.0, busy - own))


def _count_users(start: Edge, end: Edge, seconds: float) -> int:
    """Other processes that took more than a twentieth of a core."""
    least_s = max(USING_CORE_RATIO * seconds, TICKS_S)
    return sum(used_s - start.others_s.get(pid, 0.0) > least_s for pid, used_s in end.others_s.items())


def _integral(samples: Sequence[Sample]) -> float:
    """Energy under the readings of power, trapezoid by trapezoid."""
    known = [(one.at_s, one.power_w) for one in samples if one.power_w is not None]
    return sum((b_w + a_w) / 2 * (b_s - a_s) for (a_s, a_w), (b_s, b_w) in pairwise(known))


def present(values: Iterable[float | None]) -> list[float]:
    """What was read."""
    return [value for value in values if value is not None]


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return fmean(values) if values else None
