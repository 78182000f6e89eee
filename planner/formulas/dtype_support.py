"""Which number formats vLLM runs on a GPU, and what its tensor cores then multiply.

Rules of vLLM 0.32.0: `get_min_capability` of vllm/model_executor/layers/quantization/*.py, the kernels of
vllm/model_executor/kernels/linear and vllm/model_executor/layers/fused_moe/oracle, and
`supported_quantization` of vllm/platforms/rocm.py.
"""

import re
from typing import NamedTuple

from planner.domain.dtypes import ComputeDtype, KvDtype, WeightDtype
from planner.domain.hardware import Gpu

CUDA = "cuda"
ROCM = "rocm"


class Capability(NamedTuple):
    """CUDA compute capability; compares in order of generation."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


TURING, AMPERE, ADA, BLACKWELL = Capability(7, 5), Capability(8, 0), Capability(8, 9), Capability(10, 0)

OLDEST_CAPABILITY: dict[WeightDtype, Capability] = {
    WeightDtype.BF16: AMPERE,
    WeightDtype.FP8: TURING,
    WeightDtype.FP8_BLOCK: TURING,
    WeightDtype.INT8: TURING,
    WeightDtype.INT4: TURING,
    WeightDtype.AWQ: TURING,
    WeightDtype.GPTQ: TURING,
    WeightDtype.MXFP4: AMPERE,
    WeightDtype.NVFP4: TURING,
}
"""Below fp8 and fp4 tensor cores these weights are widened to 16 bits in the kernel (Marlin)."""
OLDEST_FP8_KV = AMPERE
FP8_ROCM_TARGETS = ("gfx942", "gfx950")
FP16_HINT = "; fp16 runs there"


def weight_dtype_problem(dtype: WeightDtype, gpu: Gpu) -> str | None:
    """Why vLLM cannot run weights stored like this on this GPU, in one sentence; None where it can."""
    if gpu.vllm_backend == ROCM:
        return _rocm_problem(dtype, gpu)
    capability = _cuda_capability(gpu)
    if capability is None:
        return f"vLLM's kernels for {gpu.name} are not known here"
    oldest = OLDEST_CAPABILITY.get(dtype)
    if oldest is not None and capability < oldest:
        hint = FP16_HINT if dtype is WeightDtype.BF16 else ""
        return f"{dtype} weights need compute capability {oldest}, {gpu.name} has {capability}{hint}"
    if dtype is WeightDtype.INT8 and capability >= BLACKWELL:
        return f"vLLM has no int8 kernels for compute capability {capability} ({gpu.name}); fp8 runs there"
    return None


def kv_dtype_problem(dtype: KvDtype, gpu: Gpu) -> str | None:
    """Why vLLM cannot keep keys and values like this on this GPU, in one sentence; None where it can."""
    if gpu.vllm_backend == ROCM:
        if dtype is KvDtype.FP8 and gpu.compute_capability not in FP8_ROCM_TARGETS:
            return f"an fp8 KV cache needs {' or '.join(FP8_ROCM_TARGETS)}, {gpu.name} is {gpu.compute_capability}"
        return None
    capability = _cuda_capability(gpu)
    if capability is None:
        return f"vLLM's kernels for {gpu.name} are not known here"
    if dtype in (KvDtype.FP8, KvDtype.BF16) and capability < OLDEST_FP8_KV:
        return f"a {dtype} KV cache needs compute capability {OLDEST_FP8_KV}, {gpu.name} has {capability}"
    return None


def compute_dtype(dtype: WeightDtype, gpu: Gpu) -> ComputeDtype:
    """What the tensor cores multiply for weights stored like this.

    Weight-only formats are widened to 16 bits; fp8 and nvfp4 are multiplied as they are where the GPU can.
    vLLM prefers 16-bit activations for mxfp4 experts on every GPU (oracle/mxfp4.py).
    """
    half = ComputeDtype.BF16 if ComputeDtype.BF16 in gpu.peak_flop_per_s else ComputeDtype.FP16
    match dtype:
        case WeightDtype.FP8 | WeightDtype.FP8_BLOCK:
            return ComputeDtype.FP8 if ComputeDtype.FP8 in gpu.peak_flop_per_s else half
        case WeightDtype.INT8:
            return ComputeDtype.INT8 if ComputeDtype.INT8 in gpu.peak_flop_per_s else half
        case WeightDtype.NVFP4:
            capability = _cuda_capability(gpu)
            is_native = capability is not None and capability >= BLACKWELL
            return ComputeDtype.FP4 if is_native and ComputeDtype.FP4 in gpu.peak_flop_per_s else half
        case WeightDtype.FP16:
            return ComputeDtype.FP16
        case _:
            return half


def _cuda_capability(gpu: Gpu) -> Capability | None:
    """The compute capability of a CUDA GPU; None for anything else."""
    match = re.fullmatch(r"(\d+)\.(\d)", gpu.compute_capability)
    if gpu.vllm_backend != CUDA or match is None:
        return None
    return Capability(int(match[1]), int(match[2]))


def _rocm_problem(dtype: WeightDtype, gpu: Gpu) -> str | None:
    target = gpu.compute_capability
    if dtype is WeightDtype.NVFP4:
        return f"vLLM only emulates nvfp4 weights on ROCm ({gpu.name})"
    if dtype in (WeightDtype.FP8, WeightDtype.FP8_BLOCK) and target not in FP8_ROCM_TARGETS:
        return f"{dtype} weights need {' or '.join(FP8_ROCM_TARGETS)}, {gpu.name} is {target}"
    return None
