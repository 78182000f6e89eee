"""What is said of a machine, and the rough datasheet of a device that the catalog does not have."""

import shutil
import subprocess
import sys
from hashlib import sha256

import pytest

from planner.calibrate.measure.machine import ARCHITECTURES, canonical_name, describe, nominal_gpu, slug
from planner.catalog.load import find_gpu, gpus
from planner.domain.base import InputError
from planner.domain.calibration import Device
from planner.domain.dtypes import ComputeDtype
from planner.domain.hardware import Confidence
from tests.calibrate.measure.stand_in_nvml import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    NOT_SUPPORTED,
    NVMLError,
    StandInNvml,
)

TODAY = "2026-11-23"
DRIVER_SOURCE = """
#include <stddef.h>
#include <string.h>
typedef int CUresult; typedef int CUdevice; typedef struct { char bytes[16]; } CUuuid;
CUresult cuInit(unsigned int flags) { return flags; }
CUresult cuDeviceGetCount(int *count) { *count = 2; return 0; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal + 40; return ordinal > 1 ? 101 : 0; }
CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    strncpy(name, device == 40 ? "NVIDIA L4" : "NVIDIA A10", length);
    return 0;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { *bytes = 23609475072UL; return device < 40; }
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    for (int i = 0; i < 16; i++) uuid->bytes[i] = i + 16 * (device - 40);
    return 0;
}
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    if (device < 40) return 101;
    switch (attribute) {
        case 13: *value = 2040000; return 0;   /* CU_DEVICE_ATTRIBUTE_CLOCK_RATE */
        case 16: *value = 58; return 0;        /* CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT */
        case 32: *value = 1; return 0;         /* CU_DEVICE_ATTRIBUTE_ECC_ENABLED */
        case 36: *value = 6251000; return 0;   /* CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE */
        case 37: *value = 192; return 0;       /* CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH */
        case 75: *value = 8; return 0;         /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR */
        case 76: *value = 9; return 0;         /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR */
    }
    return 1;
}
"""


def test_a_gpu_of_the_catalog_has_its_name_there() -> None:
    machine, _, missing = describe(Device.CUDA, (0, 1), nvml=StandInNvml(cards=2))
    assert machine.gpu == "H100-SXM-80GB"
    assert machine.device_name == "NVIDIA H100 80GB HBM3"
    assert machine.device_uuid_hash == tuple(
        sha256(f"GPU-0000-{card}".encode()).hexdigest()[:16] for card in range(2)
    )
    assert "GPU-0000" not in machine.model_dump_json()
    assert machine.device_memory_bytes == 85_520_809_984
    assert machine.driver_version == "580.95.05"
    assert machine.ecc_enabled is True
    assert machine.mig_enabled is False
    assert machine.power_limit_w == 700
    assert machine.cpu_count >= 1
    assert missing == ()


@pytest.mark.parametrize("gpu", [gpu for gpu in gpus() if gpu.vendor == "NVIDIA"], ids=lambda gpu: gpu.name)
def test_every_name_of_a_driver_leads_to_the_catalog(gpu: object) -> None:
    names = [alias for alias in gpu.aliases if alias.startswith(("NVIDIA", "Tesla"))]  # type: ignore[attr-defined]
    assert names
    assert {canonical_name(name) for name in names} == {gpu.name}  # type: ignore[attr-defined]


def test_gpus_of_two_kinds_are_refused() -> None:
    nvml = StandInNvml(cards=2, nvmlDeviceGetName=lambda card: ["NVIDIA A10", "NVIDIA L4"][card])
    with pytest.raises(InputError, match="GPU 0 is NVIDIA A10, GPU 1 is NVIDIA L4"):
        describe(Device.CUDA, (0, 1), nvml=nvml)
    assert not nvml.is_open


def test_a_slice_is_not_taken_for_the_card() -> None:
    machine = describe(Device.CUDA, nvml=StandInNvml(nvmlDeviceGetMigMode=[1, 1])).machine
    assert machine.mig_enabled
    assert machine.gpu == "NVIDIA-H100-80GB-HBM3-MIG"


@pytest.fixture(scope="module")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A driver library with two cards, of the signatures that cuda.h gives."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("SKIPPED LOUDLY: no C compiler to make a driver library of")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "driver.c").write_text(DRIVER_SOURCE, encoding="utf-8")
    library = folder / "libcuda.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "driver.c"], check=True)
    return str(library)


def test_without_nvml_cudas_driver_says_which_gpu_it_is(
    monkeypatch: pytest.MonkeyPatch, cuda_library: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine, silicon, (line,) = describe(Device.CUDA, (0,), cuda_library=cuda_library)
    assert (machine.gpu, machine.device_name) == ("L4", "NVIDIA L4")
    assert machine.device_memory_bytes == 23_609_475_072
    # As NVML writes the UUID of bytes 0 to 15.
    assert machine.device_uuid_hash == (sha256(b"GPU-00010203-0405-0607-0809-0a0b0c0d0e0f").hexdigest()[:16],)
    assert machine.ecc_enabled is True
    assert machine.power_limit_w is None
    assert machine.driver_version == ""
    assert "power limit" in line
    assert "pynvml is not installed" in line
    # 58 multiprocessors of 128 lanes at 2.04 GHz; 2 x 6.251 GHz x 192 bit = 300 GB/s.
    gpu, known = nominal_gpu(machine, silicon, as_of=TODAY), find_gpu("L4")
    assert gpu.sm_count == known.sm_count == 58
    assert gpu.memory_bandwidth_bytes_per_s == pytest.approx(known.memory_bandwidth_bytes_per_s, rel=0.01)
    assert gpu.peak_flop_per_s[ComputeDtype.BF16] == pytest.approx(
        known.peak_flop_per_s[ComputeDtype.BF16], rel=0.1
    )


def test_nvml_that_does_not_start_is_no_end(cuda_library: str) -> None:
    nvml = StandInNvml(nvmlInit=NVMLError(DRIVER_NOT_LOADED))
    described = describe(Device.CUDA, (0,), nvml=nvml, cuda_library=cuda_library)
    assert described.machine.gpu == "L4"
    assert "NVML does not start: Driver Not Loaded" in described.missing[0]


@pytest.mark.parametrize(
    ("indices", "words"),
    [((0, 1), "GPU 0 is NVIDIA L4, GPU 1 is NVIDIA A10"), ((7,), "there is no GPU 7: CUDA sees 2")],
)
def test_without_nvml_gpus_are_checked_alike(
    monkeypatch: pytest.MonkeyPatch, cuda_library: str, indices: tuple[int, ...], words: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(InputError, match=words):
        describe(Device.CUDA, indices, cuda_library=cuda_library)


def test_without_nvml_and_driver_nothing_tells_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(InputError, match=r"cannot tell which GPU.*pynvml is not installed.*CUDA's driver"):
        describe(Device.CUDA, cuda_library="libno-such-driver.so.1")


def test_a_card_that_tells_little() -> None:
    nvml = StandInNvml(
        nvmlDeviceGetEccMode=NVMLError(NOT_SUPPORTED),
        nvmlDeviceGetMigMode=NVMLError(NOT_SUPPORTED),
        nvmlDeviceGetEnforcedPowerLimit=NVMLError(NOT_SUPPORTED),
    )
    machine, _, missing = describe(Device.CUDA, nvml=nvml)
    assert machine.ecc_enabled is None
    assert machine.mig_enabled is False
    assert machine.power_limit_w is None
    assert missing == ("the power limit cannot be read on GPU 0: Not Supported",)


def test_this_cpu() -> None:
    machine, _, _ = describe(Device.CPU)
    assert machine.gpu.startswith("cpu-")
    assert machine.gpu == f"cpu-{slug(machine.cpu_name)}"
    assert machine.device_memory_bytes > 2**28
    gpu = nominal_gpu(machine, as_of=TODAY)
    # 2 FLOP x 16 lanes a core and cycle, 1 to 6 GHz.
    rate = gpu.peak_flop_per_s[ComputeDtype.FP32] / machine.cpu_count / 32
    assert 1e9 <= rate <= 6e9
    assert gpu.memory_bytes == machine.device_memory_bytes
    assert gpu.confidence is Confidence.LOW
    assert "order of magnitude" in gpu.notes


def test_the_clock_in_a_cpus_name_is_used() -> None:
    machine = describe(Device.CPU).machine.model_copy(
        update={"cpu_name": "Intel(R) Xeon(R) Platinum 8480+ @ 2.00GHz", "cpu_count": 56}
    )
    gpu = nominal_gpu(machine, as_of=TODAY)
    assert gpu.vendor == "Intel"
    assert gpu.peak_flop_per_s[ComputeDtype.BF16] == 2 * 16 * 56 * 2.0e9
    assert gpu.memory_bandwidth_bytes_per_s == 7 * 20e9


def test_an_h100_worked_out_is_the_datasheets_within_a_tenth() -> None:
    """132 SM x 4096 x 1.98 GHz = 1,071 TFLOP/s for 989; 2 x 2.619 GHz x 5120 bit = 3,352 GB/s for 3,350."""
    machine, silicon, _ = describe(Device.CUDA, nvml=StandInNvml())
    gpu, known = nominal_gpu(machine, silicon, as_of=TODAY), find_gpu("H100-SXM-80GB")
    assert gpu.sm_count == known.sm_count == 132
    assert gpu.peak_flop_per_s.keys() == known.peak_flop_per_s.keys()
    for dtype, rate in known.peak_flop_per_s.items():
        assert gpu.peak_flop_per_s[dtype] == pytest.approx(rate, rel=0.1)
    assert gpu.memory_bandwidth_bytes_per_s == pytest.approx(known.memory_bandwidth_bytes_per_s, rel=0.01)
    assert gpu.nvlink_bytes_per_s == known.nvlink_bytes_per_s
    assert gpu.pcie_bytes_per_s == known.pcie_bytes_per_s
    assert gpu.power_w == known.power_w


def test_the_rates_of_each_architecture_are_the_catalogs() -> None:
    """Peak rate over SMs and FLOP a cycle is a clock: a card's boost clock. H20 is cut down by its maker, the A10G's
    datasheet gives half the rate of the same chip's A10."""
    cut_down = {"H20", "A10G", "L40"}
    checked = set()
    for gpu in gpus():
        if gpu.vendor != "NVIDIA" or not gpu.sm_count or gpu.name in cut_down:
            continue
        slower = 0.5 if gpu.name in ("RTX 4090", "RTX 5090") else 1.0
        flop = ARCHITECTURES[gpu.compute_capability].fp16_flop_per_cycle * slower
        clock_hz = gpu.peak_flop_per_s[ComputeDtype.FP16] / (gpu.sm_count * flop)
        assert 1.3e9 <= clock_hz <= 2.7e9, gpu.name
        checked.add(gpu.compute_capability)
    assert checked >= {"7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"}


def test_an_unknown_geforce_card() -> None:
    """An RTX 3090: 82 SM x 1024 / 2 x 2.1 GHz = 88 TFLOP/s; 2 x 9.751 GHz x 384 bit = 936 GB/s; no NVLink."""
    nvml = StandInNvml(
        nvmlDeviceGetName="NVIDIA GeForce RTX 3090",
        nvmlDeviceGetCudaComputeCapability=(8, 6),
        nvmlDeviceGetNumGpuCores=10_496,
        nvmlDeviceGetMaxClockInfo=lambda card, kind: {1: 2100, 2: 9751}[kind],
        nvmlDeviceGetMemoryBusWidth=384,
        nvmlDeviceGetNvLinkState=NVMLError(NOT_SUPPORTED),
    )
    machine, silicon, _ = describe(Device.CUDA, nvml=nvml)
    gpu = nominal_gpu(machine, silicon, as_of=TODAY)
    assert gpu.name == machine.gpu == "NVIDIA-GeForce-RTX-3090"
    assert gpu.sm_count == 82
    assert gpu.peak_flop_per_s[ComputeDtype.BF16] == pytest.approx(82 * 512 * 2.1e9)
    assert ComputeDtype.FP8 not in gpu.peak_flop_per_s
    assert gpu.memory_bandwidth_bytes_per_s == pytest.approx(936.1e9, rel=0.001)
    assert gpu.nvlink_bytes_per_s == 0


def test_a_card_newer_than_the_table_takes_the_row_before_it() -> None:
    nvml = StandInNvml(nvmlDeviceGetName="NVIDIA R100", nvmlDeviceGetCudaComputeCapability=(10, 7))
    machine, silicon, _ = describe(Device.CUDA, nvml=nvml)
    assert nominal_gpu(machine, silicon, as_of=TODAY).architecture == "Blackwell Ultra"


@pytest.mark.parametrize(
    "changes",
    [
        {"nvmlDeviceGetMemoryBusWidth": NVMLError(FUNCTION_NOT_FOUND)},
        {"nvmlDeviceGetCudaComputeCapability": NVMLError(NOT_SUPPORTED)},
        {"nvmlDeviceGetCudaComputeCapability": (6, 1)},
    ],
)
def test_a_gpu_that_does_not_tell_enough_asks_for_a_row(changes: dict[str, object]) -> None:
    machine, silicon, _ = describe(Device.CUDA, nvml=StandInNvml(nvmlDeviceGetName="NVIDIA R100", **changes))
    with pytest.raises(InputError, match="R100"):
        nominal_gpu(machine, silicon, as_of=TODAY)
    with pytest.raises(InputError, match="R100"):
        nominal_gpu(machine, as_of=TODAY)


def test_a_timed_bandwidth_takes_the_guess_s_place() -> None:
    machine = describe(Device.CPU).machine
    gpu = nominal_gpu(machine, as_of=TODAY, memory_bytes_per_s=12.5e9)
    assert gpu.memory_bandwidth_bytes_per_s == gpu.pcie_bytes_per_s == 12.5e9
    assert "memory as timed" in gpu.notes
    assert "GB/s for each" in nominal_gpu(machine, as_of=TODAY).notes
