"""Which machine this is, and a rough datasheet for a device that the catalog does not have."""

import platform
import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from planner.calibrate.measure import cuda_driver
from planner.calibrate.measure import nvml as ask
from planner.calibrate.measure.cpu_load import (
    cpu_name,
    memory_bytes,
    usable_core_count,
)
from planner.catalog.load import find_gpu
from planner.domain.base import InputError
from planner.domain.calibration import Device, Machine
from planner.domain.dtypes import ComputeDtype
from planner.domain.hardware import Confidence, Gpu
from planner.domain.units import GB_BYTES

UUID_DIGITS = 16
LONGEST_NAME = 60
GUESSED_CLOCK_MHZ = 2500.0
CPU_LANES = 16
CORES_PER_CHANNEL = 8
CHANNEL_BYTES_PER_S = 20.0 * GB_BYTES
PCIE_LANE_BYTES_PER_S = 2.0 * GB_BYTES
"""Generation 3, both directions together; each later generation doubles it."""
GUESSED_PCIE_BYTES_PER_S = 2 * 16 * PCIE_LANE_BYTES_PER_S
"""Generation 4, sixteen lanes, where the driver does not tell."""
NVLINK_BYTES_PER_S = 50.0 * GB_BYTES
"""One link, both directions together, NVLink 2 to 4; NVLink 5 (compute capability 10) has twice that."""


class Architecture(NamedTuple):
    """What one multiprocessor of a compute capability does."""

    name: str
    cores: int
    """fp32 lanes of a multiprocessor."""
    fp16_flop_per_cycle: int
    """Dense, of its tensor cores together, accumulated in fp32."""


ARCHITECTURES = {
    "7.0": Architecture("Volta", 64, 1024),
    "7.5": Architecture("Turing", 64, 1024),
    "8.0": Architecture("Ampere", 64, 2048),
    "8.6": Architecture("Ampere", 128, 1024),
    "8.9": Architecture("Ada", 128, 1024),
    "9.0": Architecture("Hopper", 128, 4096),
    "10.0": Architecture("Blackwell", 128, 8192),
    "10.3": Architecture("Blackwell Ultra", 128, 8192),
    "12.0": Architecture("Blackwell", 128, 1024),
    "12.1": Architecture("Blackwell", 128, 1024),
}
"""From NVIDIA's architecture whitepapers (V100, Turing, A100, GA102, AD102, H100, Blackwell): peak rate over SMs and
boost clock. GeForce cards accumulate in fp32 at half of it."""
GEFORCE_RATIO = 0.5


class Silicon(NamedTuple):
    """What the driver tells of a card's chip; 0 where it does not."""

    compute_capability: str
    cuda_cores: int
    max_sm_clock_mhz: int
    max_memory_clock_mhz: int
    memory_bus_bits: int
    pcie_bytes_per_s: float
    nvlinks: int


class Described(NamedTuple):
    """The machine, with what only a live card tells."""

    machine: Machine
    silicon: Silicon | None
    missing: tuple[str, ...]
    """One line on each thing that could not be read, and why."""


def describe(
    device: Device,
    gpu_indices: Sequence[int] = (0,),
    *,
    nvml: Any = None,
    cuda_library: str = cuda_driver.LIBRARY,
) -> Described:
    """This machine, as far as it can be asked: through NVML, and where that is missing CUDA's driver.

    `nvml` and `cuda_library` take the place of pynvml and of that driver. Raises InputError where the GPUs are of
    several kinds, where there is no such GPU, and where nothing tells which GPU it is.
    """
    if device is Device.CPU:
        return _describe_cpu()
    try:
        opened = ask.open_nvml(gpu_indices, nvml=nvml)
    except ask.NvmlMissing as error:
        try:
            cards = cuda_driver.cuda_cards(gpu_indices, library=cuda_library)
        except cuda_driver.CudaMissing as other:
            raise InputError(f"cannot tell which GPU this is: {error}, and {other}") from None
        return _describe_without_nvml(cards, str(error))
    try:
        return _describe_gpus(opened)
    finally:
        opened.close()


def canonical_name(device_name: str) -> str:
    """The catalog's name of a device that its driver calls so; else that name in safe characters.

    >>> canonical_name("NVIDIA H100 80GB HBM3")
    'H100-SXM-80GB'
    >>> canonical_name("NVIDIA GeForce RTX 3090")
    'NVIDIA-GeForce-RTX-3090'
    """
    try:
        return find_gpu(device_name).name
    except InputError:
        return slug(device_name)


def slug(text: str) -> str:
    """Letters, digits, `.`, `_` and `-` of a name, at most 60 of them.

    >>> slug("Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz")
    'Intel-Xeon-Platinum-8480'
    """
    plain = re.sub(r"\((R|TM|C)\)|\bCPU\b|@.*", " ", text, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._]+", "-", plain).strip("-.")[:LONGEST_NAME].rstrip("-.") or "unknown"


def nominal_gpu(
    machine: Machine, silicon: Silicon | None = None, *, as_of: str, memory_bytes_per_s: float | None = None
) -> Gpu:
    """A datasheet worked out from what the device tells of itself: right in its order of magnitude.

    For a GPU: bandwidth is two transfers a memory clock over the bus, rates are multiprocessors times highest
    clock times `ARCHITECTURES`. For a CPU: 2 FLOP in 16 lanes a core and cycle, and the bandwidth as it was timed, else
    20 GB/s for each of a guessed number of memory channels. A compute capability without a row there takes that of the
    one before it. Raises InputError where a GPU does not tell enough.
    """
    if machine.device is Device.CPU:
        return _nominal_cpu(machine, as_of, memory_bytes_per_s)
    if silicon is None or not all(silicon[:5]) or not machine.device_memory_bytes:
        raise InputError(
            f"{machine.device_name} is not in data/gpus.csv, and its driver does not tell its compute capability, "
            "cores, clocks, bus and memory: add a row for it"
        )
    return _nominal_nvidia(machine, silicon, as_of)


def _describe_cpu() -> Described:
    name = cpu_name() or platform.processor() or platform.machine() or "unknown"
    machine = _host(Device.CPU, f"cpu-{slug(name)}", name)
    memory = memory_bytes()
    missing = () if memory else ("the size of memory cannot be read: this system has no /proc/meminfo",)
    return Described(
        machine.model_copy(update={"device_memory_bytes": memory[0] if memory else 0}), None, missing
    )


def _check_one_kind(labels: Sequence[str], names: Sequence[str]) -> None:
    if len(set(names)) > 1:
        kinds = ", ".join(f"{label} is {name}" for label, name in zip(labels, names, strict=True))
        raise InputError(f"the GPUs of one engine must be of one kind: {kinds}")


def _describe_without_nvml(cards: Sequence[cuda_driver.CudaCard], why: str) -> Described:
    """Name, memory and clocks as CUDA has them; what only NVML tells is missing."""
    names = [card.name for card in cards]
    _check_one_kind([f"GPU {index}" for index in range(len(cards))], names)
    first = cards[0]
    sliced = "MIG" in first.name
    machine = _host(
        Device.CUDA, slug(first.name) if sliced else canonical_name(first.name), first.name
    ).model_copy(
        update={
            "device_uuid_hash": tuple(hashed(card.uuid) for card in cards),
            "device_memory_bytes": min(card.memory_bytes for card in cards),
            "mig_enabled": sliced,
            "ecc_enabled": all(card.ecc_enabled for card in cards),
        }
    )
    kind = _architecture(first.compute_capability)
    silicon = Silicon(
        compute_capability=first.compute_capability,
        cuda_cores=first.sm_count * kind.cores if kind is not None else 0,
        max_sm_clock_mhz=first.max_sm_clock_mhz,
        max_memory_clock_mhz=first.max_memory_clock_mhz,
        memory_bus_bits=first.memory_bus_bits,
        pcie_bytes_per_s=0.0,
        nvlinks=0,
    )
    lines = (f"driver version, power limit, MIG mode and links between GPUs cannot be read: {why}",)
    return Described(machine, silicon, lines)


def _describe_gpus(opened: ask.Nvml) -> Described:
    cards = opened.cards
    names = [str(card.ask(ask.NAME) or "") for card in cards]
    _check_one_kind([card.label for card in cards], names)
    split = [bool(mode[0]) for card in cards if (mode := card.ask(ask.MIG_MODE, needed=False))]
    ecc = [bool(mode[0]) for card in cards if (mode := card.ask(ask.ECC_MODE, needed=False))]
    limits_mw = [value for card in cards if (value := card.ask(ask.POWER_LIMIT)) is not None]
    memory = [value.total for card in cards if (value := card.ask(ask.MEMORY)) is not None]
    uuids = [str(value) for card in cards if (value := card.ask(ask.UUID)) is not None]
    name = names[0] or "unknown"
    sliced = any(split) or "MIG" in name
    machine = _host(
        Device.CUDA, slug(name if "MIG" in name else f"{name} MIG") if sliced else canonical_name(name), name
    ).model_copy(
        update={
            "device_uuid_hash": tuple(hashed(uuid) for uuid in uuids),
            "device_memory_bytes": min(memory, default=0),
            "driver_version": opened.driver_version(),
            "mig_enabled": sliced,
            "ecc_enabled": all(ecc) if ecc else None,
            "power_limit_w": min(limits_mw) / 1e3 if limits_mw else None,
        }
    )
    silicon = _silicon(cards[0])
    return Described(machine, silicon, opened.missing())


def hashed(uuid: str) -> str:
    """The first 16 hexadecimal digits of SHA-256: tells two cards apart and names neither."""
    return sha256(uuid.encode()).hexdigest()[:UUID_DIGITS]


def _silicon(card: ask.Card) -> Silicon:
    capability = card.ask(ask.COMPUTE_CAPABILITY)
    generation, lanes = card.ask(ask.PCIE_GENERATION, needed=False), card.ask(ask.PCIE_WIDTH, needed=False)
    pcie = PCIE_LANE_BYTES_PER_S * 2 ** (generation - 3) * lanes if generation and lanes else 0.0
    return Silicon(
        compute_capability=".".join(str(part) for part in capability) if capability else "",
        cuda_cores=int(card.ask(ask.CUDA_CORES) or 0),
        max_sm_clock_mhz=int(card.ask(ask.MAX_SM_CLOCK) or 0),
        max_memory_clock_mhz=int(card.ask(ask.MAX_MEMORY_CLOCK) or 0),
        memory_bus_bits=int(card.ask(ask.BUS_WIDTH) or 0),
        pcie_bytes_per_s=pcie,
        nvlinks=card.count_nvlinks(),
    )


def _host(device: Device, gpu: str, device_name: str) -> Machine:
    return Machine(
        device=device,
        gpu=gpu,
        device_name=device_name,
        cpu_name=cpu_name() or platform.processor() or "unknown",
        cpu_count=usable_core_count(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def _nominal_nvidia(machine: Machine, silicon: Silicon, as_of: str) -> Gpu:
    version = _version(silicon.compute_capability)
    kind = _architecture(silicon.compute_capability)
    if kind is None:
        raise InputError(f"{machine.device_name} has no tensor cores (compute capability below 7.0)")
    clock_hz = silicon.max_sm_clock_mhz * 1e6
    sm_count = max(1, silicon.cuda_cores // kind.cores)
    slower = GEFORCE_RATIO if "GeForce" in machine.device_name else 1.0
    fp16 = sm_count * kind.fp16_flop_per_cycle * clock_hz * slower
    nvlink_factor = 2 if version[0] == 10 else 1
    return Gpu(
        name=machine.gpu,
        vendor="NVIDIA",
        architecture=kind.name,
        compute_capability=silicon.compute_capability,
        aliases=(machine.device_name,),
        memory_bytes=machine.device_memory_bytes,
        memory_observed=True,
        memory_bandwidth_bytes_per_s=2 * silicon.max_memory_clock_mhz * 1e6 * silicon.memory_bus_bits / 8,
        peak_flop_per_s=_rates(silicon.compute_capability, fp16, 2 * silicon.cuda_cores * clock_hz),
        nvlink_bytes_per_s=silicon.nvlinks * NVLINK_BYTES_PER_S * nvlink_factor,
        pcie_bytes_per_s=silicon.pcie_bytes_per_s or GUESSED_PCIE_BYTES_PER_S,
        power_w=machine.power_limit_w or None,
        sm_count=sm_count,
        vllm_backend="cuda",
        source="worked out from the driver's clocks, cores and bus width",
        as_of=as_of,
        confidence=Confidence.LOW,
        notes="not a datasheet: highest clocks times the architecture's rates",
    )


def _architecture(capability: str) -> Architecture | None:
    """Its row, or that of the compute capability before it; None below 7.0 and where it is not known."""
    version = _version(capability) if capability else (0, 0)
    older = [kind for known, kind in ARCHITECTURES.items() if _version(known) <= version]
    return older[-1] if older else None


def _rates(capability: str, fp16: float, fp32: float) -> dict[ComputeDtype, float]:
    """Dense rates by the number formats that each generation's tensor cores have."""
    version = _version(capability)
    rates = {ComputeDtype.FP32: fp32, ComputeDtype.FP16: fp16}
    if version >= (7, 5):
        rates[ComputeDtype.INT8] = 2 * fp16
    if version >= (8, 0):
        rates |= {ComputeDtype.BF16: fp16, ComputeDtype.TF32: fp16 / 2}
    if version >= (8, 9):
        rates[ComputeDtype.FP8] = 2 * fp16
    if version >= (10, 0):
        rates[ComputeDtype.FP4] = 4 * fp16
    return rates


def _version(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)


def _nominal_cpu(machine: Machine, as_of: str, memory_bytes_per_s: float | None) -> Gpu:
    cores = max(1, machine.cpu_count)
    named = re.search(r"@\s*([\d.]+)\s*GHz", machine.cpu_name)
    clock_mhz = float(named[1]) * 1e3 if named else GUESSED_CLOCK_MHZ
    rate = 2.0 * CPU_LANES * cores * clock_mhz * 1e6
    channels = -(-cores // CORES_PER_CHANNEL)
    bandwidth = memory_bytes_per_s or channels * CHANNEL_BYTES_PER_S
    read = "memory as timed" if memory_bytes_per_s else f"20 GB/s for each of {channels} memory channels"
    vendor = re.match(r"(Intel|AMD|ARM|Apple|Ampere|AWS)", machine.cpu_name, re.IGNORECASE)
    return Gpu(
        name=machine.gpu,
        vendor=vendor[1] if vendor else "unknown",
        architecture="CPU",
        compute_capability="",
        memory_bytes=machine.device_memory_bytes or GB_BYTES,
        memory_observed=bool(machine.device_memory_bytes),
        memory_bandwidth_bytes_per_s=bandwidth,
        peak_flop_per_s=dict.fromkeys((ComputeDtype.FP32, ComputeDtype.BF16, ComputeDtype.FP16), rate),
        nvlink_bytes_per_s=0.0,
        # Ranks exchange what they computed through memory.
        pcie_bytes_per_s=bandwidth,
        source="guessed from the processor's cores",
        as_of=as_of,
        confidence=Confidence.LOW,
        notes=f"not a datasheet: 2 FLOP x {CPU_LANES} lanes x {cores} cores x {clock_mhz:.0f} MHz and {read}; "
        "right in its order of magnitude, and measured runs set the rest",
    )
