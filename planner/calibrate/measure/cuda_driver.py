"""What CUDA's driver library says of a GPU, for where there is no NVML: asked without torch and without a context."""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

LIBRARY = "libcuda.so.1"
NAME_BYTES = 256
UUID_BYTES = 16
COUNT, CLOCK_KHZ, ECC, MEMORY_CLOCK_KHZ, BUS_BITS, MAJOR, MINOR = 16, 13, 32, 36, 37, 75, 76
"""Of CUdevice_attribute: multiprocessors, highest clock, ECC, highest memory clock, bus width, compute capability."""


class CudaMissing(Exception):
    """CUDA's driver cannot be asked; the message says why."""


class CudaCard(NamedTuple):
    """One GPU, or MIG slice, as CUDA numbers them; 0 or empty where it is not told."""

    name: str
    memory_bytes: int
    uuid: str
    """As NVML writes it."""
    compute_capability: str
    sm_count: int
    max_sm_clock_mhz: int
    max_memory_clock_mhz: int
    memory_bus_bits: int
    ecc_enabled: bool


def cuda_cards(indices: Sequence[int], *, library: str = LIBRARY) -> tuple[CudaCard, ...]:
    """The GPUs that an engine would see under these numbers.

    Functions and attributes are of the CUDA driver API, "Device Management" (cuda.h).

    Raises:
        CudaMissing: there is no driver, or no such GPU.
    """
    try:
        driver = _Driver(ctypes.CDLL(library))
    except OSError as error:
        raise CudaMissing(f"CUDA's driver cannot be asked: {error}") from None
    count = ctypes.c_int()
    driver.ask("cuDeviceGetCount", ctypes.byref(count))
    absent = [index for index in indices if index >= count.value]
    if absent:
        raise CudaMissing(f"there is no GPU {absent[0]}: CUDA sees {count.value}")
    return tuple(_card(driver, index) for index in indices)


class _Driver:
    def __init__(self, library: Any) -> None:
        self._library = library
        self.ask("cuInit", 0)

    def ask(self, function: str, *arguments: Any) -> None:
        try:
            code = getattr(self._library, function)(*arguments)
        except AttributeError:
            raise CudaMissing(f"CUDA's driver has no {function}") from None
        if code:
            raise CudaMissing(f"CUDA's driver cannot be asked: {function} returned {code}")

    def attribute(self, device: ctypes.c_int, number: int) -> int:
        value = ctypes.c_int()
        try:
            self.ask("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        except CudaMissing:
            return 0
        return value.value


def _card(driver: _Driver, index: int) -> CudaCard:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name, uuid = ctypes.create_string_buffer(NAME_BYTES), ctypes.create_string_buffer(UUID_BYTES)
    driver.ask("cuDeviceGet", ctypes.byref(device), index)
    driver.ask("cuDeviceGetName", name, NAME_BYTES, device)
    driver.ask("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    driver.ask("cuDeviceGetUuid", uuid, device)
    found = {
        number: driver.attribute(device, number) for number in (MAJOR, MINOR, CLOCK_KHZ, MEMORY_CLOCK_KHZ)
    }
    return CudaCard(
        name=name.value.decode(errors="replace"),
        memory_bytes=memory.value,
        uuid=_uuid(uuid.raw),
        compute_capability=f"{found[MAJOR]}.{found[MINOR]}" if found[MAJOR] else "",
        sm_count=driver.attribute(device, COUNT),
        max_sm_clock_mhz=found[CLOCK_KHZ] // 1000,
        max_memory_clock_mhz=found[MEMORY_CLOCK_KHZ] // 1000,
        memory_bus_bits=driver.attribute(device, BUS_BITS),
        ecc_enabled=bool(driver.attribute(device, ECC)),
    )


def _uuid(raw: bytes) -> str:
    """The driver's 16 bytes as NVML words them.

    >>> _uuid(bytes(range(16)))
    'GPU-00010203-0405-0607-0809-0a0b0c0d0e0f'
    """
    text = raw.hex()
    return "GPU-" + "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
