"""The probe: its thread, what it says of a stretch of time, what it cannot read, and what counts as disturbed."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from planner.calibrate.measure import nvml as ask
from planner.calibrate.measure.cpu_load import core_time, family, processes, usable_core_count, usable_cpus
from planner.calibrate.measure.probe import watch
from planner.calibrate.measure.telemetry import (
    THROTTLE_NAMES,
    Edge,
    EnergyCounters,
    Sample,
    disturbances,
    summarise,
)
from planner.domain.base import InputError
from planner.domain.calibration import Device, Telemetry, TelemetrySeries
from tests.calibrate.measure.stand_in_nvml import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    NO_PERMISSION,
    NOT_SUPPORTED,
    TIMEOUT,
    NVMLError,
    StandInNvml,
)

linux_only = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads Linux's /proc")


def probe_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "probe"]


def test_the_thread_reads_at_ten_hertz_or_better_and_sums_up() -> None:
    nvml = StandInNvml(cards=2)
    with watch(Device.CUDA, (0, 1), nvml=nvml) as probe:
        mark = probe.mark()
        time.sleep(0.6)
        told = probe.since(mark)
        series = probe.series()
    assert told.samples >= 4  # 12 where the machine is free
    assert told.sm_clock_mhz_mean == told.sm_clock_mhz_min == 1755
    assert told.memory_clock_mhz_mean == 2619
    assert told.power_w_mean == told.power_w_max == 1300  # two cards of 650 W
    assert told.energy_j == pytest.approx(1300 * told.seconds, rel=0.01)
    assert told.temperature_c_max == 61
    assert told.utilization_ratio_mean == pytest.approx(0.97)
    assert told.memory_used_bytes_max == 72_000_000_000
    assert told.throttle_reasons == ("software power cap",)
    assert told.other_processes == 0
    assert told.other_use_ratio is None
    assert 1 <= len(series.seconds) <= 3  # two a second
    assert set(series.power_w) == {1300}


def test_a_free_machine_is_read_at_twenty_hertz() -> None:
    nvml = StandInNvml()
    with watch(Device.CUDA, nvml=nvml) as probe:
        for _ in range(20):
            mark = probe.mark()
            time.sleep(0.5)
            if probe.since(mark).samples / 0.5 >= 10:
                return
    pytest.fail("never ten readings a second in twenty tries")


def test_the_thread_ends_with_the_context_and_nvml_is_shut_down() -> None:
    def watch_an_engine_that_dies() -> None:
        with watch(Device.CUDA, nvml=nvml):
            assert len(probe_threads()) == 1
            raise RuntimeError("the engine died")

    nvml = StandInNvml()
    with pytest.raises(RuntimeError, match="engine died"):
        watch_an_engine_that_dies()
    assert not probe_threads()
    assert not nvml.is_open


def test_energy_counters_are_preferred_where_the_stretch_is_long_enough() -> None:
    def edge(at_s: float, energy_j: float, watts: float) -> Edge:
        return Edge(Sample(at_s, power_w=watts), EnergyCounters((energy_j,), (0.0,), 0.1))

    inside = [Sample(10.5, power_w=300.0)]
    long = summarise(edge(10, 5000, 100), inside, edge(12, 5900, 100))
    assert long.energy_j == 900
    assert long.power_w_mean == 450
    # Ten periods of a counter that is renewed every 0.1 s are more than 0.8 s: 100 -> 300 -> 100 W over 0.5 + 0.3 s.
    short = summarise(edge(10, 5000, 100), inside, edge(10.8, 5900, 100))
    assert short.energy_j == pytest.approx(0.5 * 200 + 0.3 * 200)
    assert short.power_w_mean == 300


def test_an_energy_counter_may_start_anew() -> None:
    start = Edge(Sample(0.0), EnergyCounters((262_000.0, 10.0), (262_143.0, 262_143.0), 0.001))
    end = Edge(Sample(2.0), EnergyCounters((57.0, 110.0), (262_143.0, 262_143.0), 0.001))
    assert summarise(start, [], end).energy_j == (262_143 - 262_000 + 57) + 100


def test_what_a_card_does_not_tell_is_said_once_and_the_rest_is_read() -> None:
    nvml = StandInNvml(
        nvmlDeviceGetPowerUsage=NVMLError(NOT_SUPPORTED),
        nvmlDeviceGetComputeRunningProcesses=NVMLError(NO_PERMISSION),
    )
    with watch(Device.CUDA, nvml=nvml) as probe:
        mark = probe.mark()
        time.sleep(0.3)
        told = probe.since(mark)
        missing = probe.missing
    assert told.power_w_mean is told.energy_j is None
    assert told.sm_clock_mhz_mean == 1755
    assert "power cannot be read on GPU 0: Not Supported" in missing
    assert "processes on the card cannot be read on GPU 0: Insufficient Permissions" in missing
    assert nvml.calls["nvmlDeviceGetPowerUsage"] == 1  # not asked again


def test_an_older_driver_is_asked_by_the_old_name() -> None:
    nvml = StandInNvml(nvmlDeviceGetCurrentClocksEventReasons=NVMLError(FUNCTION_NOT_FOUND))
    with watch(Device.CUDA, nvml=nvml) as probe:
        told = probe.since(probe.mark())
        missing = probe.missing
    assert told.throttle_reasons == ("software power cap",)
    assert not any("throttle" in line for line in missing)
    assert nvml.calls["nvmlDeviceGetCurrentClocksEventReasons"] == 1


def test_a_passing_error_is_asked_again() -> None:
    nvml = StandInNvml(nvmlDeviceGetTemperature=NVMLError(TIMEOUT))
    with watch(Device.CUDA, nvml=nvml) as probe:
        assert probe.since(probe.mark()).temperature_c_max is None
        assert any("Timeout" in line for line in probe.missing)
        nvml.answers["nvmlDeviceGetTemperature"] = 70
        assert probe.since(probe.mark()).temperature_c_max == 70
        assert not any("temperature" in line for line in probe.missing)


@pytest.mark.parametrize("nvml", [None, StandInNvml(nvmlInit=NVMLError(DRIVER_NOT_LOADED))])
def test_without_nvml_the_run_goes_on(nvml: StandInNvml | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with watch(Device.CUDA, nvml=nvml) as probe:
        mark = probe.mark()
        time.sleep(0.01)
        told = probe.since(mark)
        (line,) = probe.missing
    assert told.samples == 0
    assert told.seconds >= 0.01
    assert line.endswith("NVML does not start: Driver Not Loaded" if nvml else "(pip install nvidia-ml-py)")
    assert disturbances(told, [told, told]) == ()
    assert probe.series() == TelemetrySeries()


def test_sensors_that_break_are_told_and_do_not_end_the_run() -> None:
    nvml = StandInNvml()
    with watch(Device.CUDA, nvml=nvml) as probe:
        usual = probe.since(probe.mark())
        nvml.answers["nvmlDeviceGetMemoryInfo"] = SimpleNamespace()
        mark = probe.mark()
        nvml.answers["nvmlDeviceGetMemoryInfo"] = "nonsense"
        told = probe.since(mark)
        assert any("read no longer: AttributeError" in line for line in probe.missing)
    assert told.samples == 0
    assert disturbances(told, [usual]) == ("the sensors said nothing",)


def test_there_is_no_such_gpu() -> None:
    with pytest.raises(InputError, match="no GPU 3"), watch(Device.CUDA, (3,), nvml=StandInNvml()):
        pass
    with pytest.raises(InputError, match="hidden"):
        ask.physical_name(2, "4,6")


def test_processes_of_others_are_not_ours_nor_our_childrens(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    listed = [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=child.pid), SimpleNamespace(pid=1)]
    nvml = StandInNvml(nvmlDeviceGetComputeRunningProcesses=listed)
    try:
        with watch(Device.CUDA, nvml=nvml) as probe:
            told = probe.since(probe.mark())
            assert not any("numbered" in line for line in probe.missing)
        assert told.other_processes == 1
        assert disturbances(told, []) == ("processes of others on the GPU: 1",)
        with watch(Device.CUDA, own_pids=lambda: (1,), nvml=nvml) as probe:
            assert probe.since(probe.mark()).other_processes == 0
    finally:
        child.communicate(b"\n")


@pytest.mark.parametrize(("on_the_host", "others"), [(True, 3), (False, 1)])
def test_numbers_of_another_namespace(
    on_the_host: bool, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cards, no number of ours listed: in a container one on each card is taken for the engine's."""
    monkeypatch.setattr("planner.calibrate.measure.sensors._numbered_as_on_the_host", lambda: on_the_host)
    cards = [[2**22 + 1], [2**22 + 2, 2**22 + 3]]
    nvml = StandInNvml(
        cards=2,
        nvmlDeviceGetComputeRunningProcesses=lambda card: [SimpleNamespace(pid=pid) for pid in cards[card]],
    )
    with watch(Device.CUDA, (0, 1), nvml=nvml) as probe:
        assert probe.since(probe.mark()).other_processes == others
        assert any("numbered as on the host" in line for line in probe.missing) is not on_the_host


def test_memory_errors_and_mig_are_noted() -> None:
    nvml = StandInNvml(nvmlDeviceGetTotalEccErrors=2, nvmlDeviceGetMigMode=[1, 1])
    with watch(Device.CUDA, nvml=nvml) as probe:
        nvml.answers["nvmlDeviceGetTotalEccErrors"] = 5
        errors, mig = probe.notes
    assert "5 uncorrected memory errors" in errors
    assert "3 of them during this run" in errors
    assert "MIG" in mig


def telemetry(**changes: object) -> Telemetry:
    return Telemetry.model_validate({"seconds": 1.0, "samples": 20, "sm_clock_mhz_mean": 1755.0} | changes)


@pytest.mark.parametrize(
    "reason",
    [
        "software thermal slowdown",
        "hardware thermal slowdown",
        "hardware power brake",
        "hardware slowdown",
    ],
)
def test_slowdowns_disturb(reason: str) -> None:
    assert disturbances(telemetry(throttle_reasons=(reason,)), []) == (reason,)


def test_the_power_cap_of_a_heavy_load_does_not_disturb() -> None:
    usual = [telemetry()] * 3
    capped = telemetry(throttle_reasons=("idle", "software power cap"), sm_clock_mhz_mean=1200.0)
    assert disturbances(capped, usual) == ()
    assert disturbances(telemetry(sm_clock_mhz_mean=1200.0), usual) == (
        "clock of 1200 MHz, 1755 in steps of this kind",
    )
    assert disturbances(telemetry(sm_clock_mhz_mean=1200.0), usual[:2]) == ()  # too few to know what is usual
    assert disturbances(telemetry(sm_clock_mhz_mean=1640.0), usual) == ()


@pytest.mark.parametrize(("seconds", "disturbed"), [(0.1, False), (1.0, True)])
def test_use_by_others_is_known_to_a_tick_or_two(seconds: float, disturbed: bool) -> None:
    told = telemetry(seconds=seconds, other_use_ratio=0.2, other_processes=1)
    assert bool(disturbances(told, [])) is disturbed
    assert disturbances(telemetry(other_use_ratio=0.09, other_processes=4), []) == ()


def test_a_slowdown_seen_once_is_a_change_of_clocks() -> None:
    start, end = Edge(Sample(0.0)), Edge(Sample(1.0))
    clear = [Sample(0.1 * step, sm_clock_mhz=1755.0) for step in range(9)]
    once = Sample(0.95, reasons=frozenset(("hardware slowdown",)))
    assert summarise(start, [*clear, once], end).throttle_reasons == ()
    assert summarise(start, [*clear, once, once], end).throttle_reasons == ("hardware slowdown",)
    caused = once._replace(reasons=once.reasons | {"hardware thermal slowdown"})
    assert len(summarise(start, [*clear, caused], end).throttle_reasons) == 2


@linux_only
def test_a_busy_stranger_is_others_and_an_engine_of_that_number_is_not() -> None:
    code = "import time; end = time.time() + 30\nwhile time.time() < end: pass"
    shell = ["/bin/sh", "-c", '"$0" -c "$1" >/dev/null 2>&1 & echo $!', sys.executable, code]
    pid = int(
        subprocess.check_output(shell)
    )  # the shell is gone: its child descends from this process no longer
    try:
        with watch(Device.CPU) as alone, watch(Device.CPU, own_pids=lambda: (pid,)) as with_engine:
            before_s = processes()[pid].cpu_s
            marks = alone.mark(), with_engine.mark()
            time.sleep(1.5)
            other, own = alone.since(marks[0]), with_engine.since(marks[1])
            used_s = processes()[pid].cpu_s - before_s
    finally:
        os.kill(pid, 9)
    assert used_s > 0.1
    assert other.other_use_ratio is not None
    assert own.other_use_ratio is not None
    assert other.utilization_ratio_mean is not None
    cores_s = other.seconds * len(usable_cpus())
    # What else runs on this machine is in both; the stranger's own time is the difference.
    tolerance = 0.25 * used_s / cores_s + 0.05
    assert other.other_use_ratio - own.other_use_ratio == pytest.approx(used_s / cores_s, abs=tolerance)
    assert other.other_use_ratio >= (used_s - 0.1) / cores_s - tolerance
    assert other.other_use_ratio <= other.utilization_ratio_mean + 1e-9
    assert other.other_processes >= 1
    assert other.memory_used_bytes_max
    assert other.samples >= 2


@linux_only
def test_our_own_children_are_ours() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        table = processes()
        assert {os.getpid(), child.pid} <= family({os.getpid()}, table)
        assert 1 not in family({os.getpid()}, table)
        assert family({2**22 + 1}, table) == set()
    finally:
        child.communicate(b"\n")


def test_stat_lines_of_any_program_name_and_of_chosen_cores(tmp_path: Path) -> None:
    """Hand computation, 100 ticks a second: core 1 has 100 + 20 + 30 + 5 + 5 busy, 40 stolen, 790 + 10 idle."""
    (tmp_path / "stat").write_text(
        "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 9 9 9 9 9 9 9 9 0 0\ncpu1 100 20 30 790 10 5 5 40 0 0\nintr 5\n"
    )
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert core_time({1}, tmp_path) == pytest.approx((160 * tick_s, 40 * tick_s, 1000 * tick_s))
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "stat").write_text("77 (a) (b c) R 5 1 1 0 -1 0 1 1 1 1 30 20 7 3 20 0 1 0 99\n")
    assert processes(tmp_path)[77] == pytest.approx((5, 60 * tick_s))
    assert core_time({1}, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("limit", "cores"), [("50000 100000", 1), ("max 100000", None), ("9900000 100000", None)]
)
def test_a_quota_below_the_cores_counts(tmp_path: Path, limit: str, cores: int | None) -> None:
    (tmp_path / "fs/cgroup/pod").mkdir(parents=True)
    (tmp_path / "fs/cgroup/pod/cpu.max").write_text(limit)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/pod\n")
    assert usable_core_count(tmp_path, tmp_path) == (cores or len(usable_cpus()) or os.cpu_count())


def test_the_names_asked_are_pynvmls() -> None:
    pynvml = pytest.importorskip(
        "pynvml", reason="pynvml is not installed: true names of NVML were not checked"
    )
    sensors = [one for one in vars(ask).values() if isinstance(one, ask.Sensor)]
    assert len(sensors) >= 20
    for sensor in sensors:
        for function, arguments in sensor.ways:
            assert callable(getattr(pynvml, function)), function
            assert all(isinstance(getattr(pynvml, str(one)), int) for one in arguments)
    assert pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED).value == NOT_SUPPORTED
    codes = [
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_DEPRECATED,
    ]
    assert set(codes) == ask.LASTING_ERRORS
    mask = 0
    for bit in THROTTLE_NAMES:
        mask |= bit
    assert mask == pynvml.nvmlClocksEventReasonAll
    stand_in = {name: getattr(StandInNvml, name) for name in vars(StandInNvml) if name.startswith("NVML_")}
    del stand_in["NVML_NVLINK_MAX_LINKS"]
    assert stand_in == {name: getattr(pynvml, name) for name in stand_in}
