"""Watches the device while the engine runs: a thread that reads its sensors, and what they say of a stretch of time."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from threading import Event, Lock, Thread
from typing import Any

from planner.calibrate.measure.sensors import Sensors, sensors_of
from planner.calibrate.measure.telemetry import Edge, Sample, summarise
from planner.domain.calibration import Device, Telemetry, TelemetrySeries

SERIES_RATE_HZ = 2.0
LARGEST_SERIES = 4_000
KEPT_SAMPLES = 72_000
"""An hour of a GPU's."""


class Probe:
    """A thread that reads sensors until it is closed. `mark` and `since` frame what is measured."""

    def __init__(self, sensors: Sensors) -> None:
        self._sensors = sensors
        self._samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)
        self._series: list[Sample] = []
        self._lock = Lock()
        self._stop = Event()
        self._failure = ""
        self._began_s = self._edge().sample.at_s
        self._thread = Thread(target=self._watch, name="probe", daemon=True)
        if sensors.rate_hz:
            self._thread.start()

    @property
    def missing(self) -> tuple[str, ...]:
        """One line on each thing that cannot be read, and why; the measuring goes on without it."""
        with self._lock:
            return self._sensors.missing() + ((self._failure,) if self._failure else ())

    @property
    def notes(self) -> tuple[str, ...]:
        """One line on each thing about the device that a reader of the figures should know."""
        with self._lock:
            return self._sensors.notes()

    def mark(self) -> Edge:
        """Where a stretch of time begins."""
        with self._lock:
            return self._edge()

    def since(self, mark: Edge) -> Telemetry:
        """What the sensors said from `mark` until now."""
        with self._lock:
            end = self._edge()
            start = bisect_left(self._samples, mark.sample.at_s, key=lambda sample: sample.at_s)
            inside = list(islice(self._samples, start, None))
        if not self._sensors.rate_hz or self._failure:
            return Telemetry(seconds=end.sample.at_s - mark.sample.at_s, samples=0)
        return summarise(mark, inside, end)

    def series(self) -> TelemetrySeries:
        """The sensors since the probe started, twice a second or, after long, less often."""
        with self._lock:
            kept = self._series[:: 1 + len(self._series) // LARGEST_SERIES]
        return TelemetrySeries(
            seconds=tuple(round(one.at_s - self._began_s, 2) for one in kept),
            sm_clock_mhz=tuple(_rounded(one.sm_clock_mhz) for one in kept),
            power_w=tuple(_rounded(one.power_w) for one in kept),
            temperature_c=tuple(_rounded(one.temperature_c) for one in kept),
            utilization_ratio=tuple(_rounded(one.utilization_ratio, digits=3) for one in kept),
            memory_used_bytes=tuple(one.memory_used_bytes for one in kept),
        )

    def close(self) -> None:
        """Ends the thread and lets the device go."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._sensors.close()

    def _edge(self) -> Edge:
        if not self._failure:
            try:
                return self._sensors.edge()
            except Exception as error:
                self._fail(error)
        return Edge(Sample(time.monotonic()))

    def _fail(self, error: Exception) -> None:
        self._failure = f"the sensors are read no longer: {type(error).__name__}: {error}"

    def _watch(self) -> None:
        period_s = 1.0 / self._sensors.rate_hz
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                with self._lock:
                    sample = self._sensors.sample()
                    self._samples.append(sample)
                    if not self._series or sample.at_s - self._series[-1].at_s >= 0.99 / SERIES_RATE_HZ:
                        self._series.append(sample)
            except Exception as error:
                self._fail(error)
                return
            self._stop.wait(max(0.0, period_s - (time.monotonic() - began_s)))


@contextmanager
def watch(
    device: Device,
    gpu_indices: Sequence[int] = (0,),
    *,
    own_pids: Callable[[], Collection[int]] = tuple,
    nvml: Any = None,
) -> Iterator[Probe]:
    """A probe that reads the device until the context ends, also where it ends in an exception.

    `own_pids` names the engine's processes whenever it is asked; this process and all that descend from either are
    ours too. `nvml` takes the place of pynvml. Raises InputError where there is no such GPU.
    """
    probe = Probe(sensors_of(device, gpu_indices, own_pids, nvml))
    try:
        yield probe
    finally:
        probe.close()


def _rounded(value: float | None, *, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)
