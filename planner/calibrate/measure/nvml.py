"""NVIDIA's management library and the cards asked for. The only module that imports pynvml."""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from planner.domain.base import InputError

Ways = tuple[tuple[str, tuple[str | int, ...]], ...]
"""Functions to try, the first that works wins, each with its arguments; a text is the name of a constant."""

LASTING_ERRORS = frozenset((2, 3, 4, 13, 22, 25, 26))
"""NVML return codes that no later try will change: invalid argument, not supported, no permission, function not
found, ECC of a vGPU, version mismatch, deprecated (`nvmlReturn_t`)."""


class Sensor(NamedTuple):
    """One thing a card can be asked."""

    label: str
    ways: Ways


def _sensor(label: str, *ways: tuple[str | int, ...]) -> Sensor:
    return Sensor(label, tuple((str(way[0]), way[1:]) for way in ways))


SM_CLOCK = _sensor("the SM clock", ("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"))
MEMORY_CLOCK = _sensor("the memory clock", ("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"))
MAX_SM_CLOCK = _sensor("the highest SM clock", ("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"))
MAX_MEMORY_CLOCK = _sensor("the highest memory clock", ("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM"))
POWER = _sensor("power", ("nvmlDeviceGetPowerUsage",))
ENERGY = _sensor("the energy counter", ("nvmlDeviceGetTotalEnergyConsumption",))
TEMPERATURE = _sensor(
    "temperature",
    ("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
    ("nvmlDeviceGetTemperatureV", "NVML_TEMPERATURE_GPU"),
)
UTILIZATION = _sensor("utilisation", ("nvmlDeviceGetUtilizationRates",))
MEMORY = _sensor("memory", ("nvmlDeviceGetMemoryInfo",))
THROTTLE_REASONS = _sensor(
    "throttle reasons",
    ("nvmlDeviceGetCurrentClocksEventReasons",),
    ("nvmlDeviceGetCurrentClocksThrottleReasons",),
)
PROCESSES = _sensor("processes on the card", ("nvmlDeviceGetComputeRunningProcesses",))
ECC_MODE = _sensor("the ECC mode", ("nvmlDeviceGetEccMode",))
ECC_ERRORS = _sensor(
    "ECC errors",
    ("nvmlDeviceGetTotalEccErrors", "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", "NVML_VOLATILE_ECC"),
)
MIG_MODE = _sensor("the MIG mode", ("nvmlDeviceGetMigMode",))
POWER_LIMIT = _sensor("the power limit", ("nvmlDeviceGetEnforcedPowerLimit",))
NAME = _sensor("the name", ("nvmlDeviceGetName",))
UUID = _sensor("the UUID", ("nvmlDeviceGetUUID",))
COMPUTE_CAPABILITY = _sensor("the compute capability", ("nvmlDeviceGetCudaComputeCapability",))
CUDA_CORES = _sensor("the number of CUDA cores", ("nvmlDeviceGetNumGpuCores",))
BUS_WIDTH = _sensor("the width of the memory bus", ("nvmlDeviceGetMemoryBusWidth",))
PCIE_GENERATION = _sensor("the PCIe generation", ("nvmlDeviceGetMaxPcieLinkGeneration",))
PCIE_WIDTH = _sensor("the PCIe width", ("nvmlDeviceGetMaxPcieLinkWidth",))


class NvmlMissing(Exception):
    """NVML cannot be asked on this machine; the message says why."""


class Card:
    """One GPU, or one MIG slice of it. What it does not tell is None, and said once in `missing`."""

    def __init__(self, nvml: Any, handle: Any, label: str) -> None:
        self.label = label
        self.missing: dict[str, str] = {}
        self._nvml = nvml
        self._handle = handle
        self._left: dict[Sensor, Ways] = {}

    def ask(self, sensor: Sensor, *, needed: bool = True) -> Any:
        """What the sensor says, as pynvml returns it; None where it cannot be read.

        A way that NVML refuses for good (not supported, no permission) is not tried again. Not `needed`: nothing
        is missing where the card does not tell.
        """
        ways = self._left.get(sensor, sensor.ways)
        for position, (function, arguments) in enumerate(ways):
            try:
                found = self._call(function, arguments)
            except self._nvml.NVMLError as error:
                self._miss(sensor, str(error), needed)
                if getattr(error, "value", None) not in LASTING_ERRORS:
                    self._left[sensor] = ways[position:]
                    return None
            except AttributeError:
                self._miss(sensor, "this pynvml does not know how", needed)
            else:
                self.missing.pop(sensor.label, None)
                self._left[sensor] = ways[position:]
                return found
        self._left[sensor] = ()
        return None

    def count_nvlinks(self) -> int:
        """Active NVLinks; 0 where there are none or they cannot be asked."""
        active = 0
        for link in range(getattr(self._nvml, "NVML_NVLINK_MAX_LINKS", 18)):
            try:
                active += bool(self._nvml.nvmlDeviceGetNvLinkState(self._handle, link))
            except self._nvml.NVMLError:
                break
        return active

    def _miss(self, sensor: Sensor, why: str, needed: bool) -> None:
        if needed:
            self.missing[sensor.label] = why

    def _call(self, function: str, arguments: Sequence[str | int]) -> Any:
        values = [getattr(self._nvml, one) if isinstance(one, str) else one for one in arguments]
        return getattr(self._nvml, function)(self._handle, *values)


class Nvml:
    """NVML, open until `close`, and the cards of the engine in its own order."""

    def __init__(self, nvml: Any, cards: tuple[Card, ...]) -> None:
        self.nvml = nvml
        self.cards = cards

    def driver_version(self) -> str:
        """The driver's version; empty where NVML does not tell."""
        try:
            return str(self.nvml.nvmlSystemGetDriverVersion())
        except self.nvml.NVMLError:
            return ""

    def missing(self) -> tuple[str, ...]:
        """One line on each thing that could not be read, and why."""
        lines: dict[tuple[str, str], list[str]] = {}
        for card in self.cards:
            for label, why in card.missing.items():
                lines.setdefault((label, why), []).append(card.label)
        return tuple(
            f"{label} cannot be read on {', '.join(cards)}: {why}" for (label, why), cards in lines.items()
        )

    def close(self) -> None:
        """Lets NVML go; safe to call where the driver is gone."""
        try:
            self.nvml.nvmlShutdown()
        except self.nvml.NVMLError:
            return


def open_nvml(
    gpu_indices: Sequence[int], *, nvml: Any = None, environment: Mapping[str, str] = os.environ
) -> Nvml:
    """NVML with the cards that CUDA numbers so. `nvml`: a module with pynvml's functions, else pynvml itself.

    Raises NvmlMissing where there is no pynvml, library, driver or permission; InputError where there is no
    such GPU.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            raise NvmlMissing("pynvml is not installed (pip install nvidia-ml-py)") from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NvmlMissing(f"NVML does not start: {error}") from None
    try:
        cards = tuple(_card(nvml, index, environment) for index in gpu_indices)
    except BaseException:
        nvml.nvmlShutdown()
        raise
    return Nvml(nvml, cards)


def physical_name(index: int, visible: str | None) -> int | str:
    """The driver's number or the UUID of what CUDA calls device `index`; `visible`: CUDA_VISIBLE_DEVICES.

    CUDA's numbers are taken for the driver's where nothing is hidden: right for GPUs of one kind, and for
    CUDA_DEVICE_ORDER=PCI_BUS_ID.

    >>> physical_name(1, "4,6")
    6
    >>> physical_name(0, "GPU-8d0b")
    'GPU-8d0b'
    """
    if visible is None:
        return index
    shown = [part.strip() for part in visible.split(",") if part.strip()]
    if index >= len(shown):
        raise InputError(f'GPU {index} is hidden: CUDA_VISIBLE_DEVICES is "{visible}"')
    return int(shown[index]) if shown[index].isdigit() else shown[index]


def _card(nvml: Any, index: int, environment: Mapping[str, str]) -> Card:
    name = physical_name(index, environment.get("CUDA_VISIBLE_DEVICES"))
    try:
        if isinstance(name, int):
            handle = nvml.nvmlDeviceGetHandleByIndex(name)
        else:
            handle = nvml.nvmlDeviceGetHandleByUUID(name)
    except nvml.NVMLError as error:
        if getattr(error, "value", None) in (2, 6):
            raise InputError(f"there is no GPU {name} on this machine; see nvidia-smi -L") from None
        raise NvmlMissing(f"GPU {name} does not answer: {error}") from None
    return Card(nvml, handle, f"GPU {index}")
