"""Memory of the routed experts' kernels while the profiling run passes through them.

Modular kernels take their workspaces from one buffer that is never freed
(vllm/v1/worker/workspace.py, vllm/model_executor/layers/fused_moe/modular_kernel.py, _allocate_buffers); older
paths allocated and freed them in every layer.
"""

from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.formulas.engine_defaults import EngineVersion
from planner.formulas.gemms import Experts
from planner.formulas.load_target import LoadTarget, has_deep_gemm_experts
from planner.formulas.mxfp4_layout import Mxfp4Kernel, mxfp4_kernel

BYTES_PER_VALUE = 2
FP8_BYTES_PER_VALUE = 1
DEEP_GEMM_BLOCK = 128
"""DeepGEMM lays each expert's rows out on multiples of this, and takes only widths that are."""
DEEP_GEMM_LEAST_WIDTH = 512
"""Narrower first products run in Triton all the same."""
CHUNK_TOKENS = 16_384
OLD_CHUNK_TOKENS = 32_768
"""VLLM_FUSED_MOE_CHUNK_SIZE: releases before 0.18 passed a larger batch through the experts in parts."""

FOUR_BITS = frozenset(
    {WeightDtype.INT4, WeightDtype.AWQ, WeightDtype.GPTQ, WeightDtype.MXFP4, WeightDtype.NVFP4}
)
"""Dequantised by Marlin where the tensor cores cannot multiply them."""


class ExpertKernel(StrEnum):
    """What computes the routed experts, as far as memory goes."""

    TRITON_FUNCTION = "triton function"
    """Triton (or Marlin) called as a function: its buffers come and go with the layer."""
    TRITON = "triton"
    """Modular Triton and vLLM CUTLASS experts."""
    DEEP_GEMM = "deep gemm"
    MARLIN = "marlin"
    FLASHINFER = "flashinfer"
    """FlashInfer's CUTLASS and TensorRT-LLM kernels: the engine keeps only their output."""
    ROUTED_TRITON = "routed triton"
    """OpenAI's Triton kernels for mxfp4: activation and gate are fused into the first product."""


class ScaleKind(StrEnum):
    """What an fp8 scale belongs to."""

    CHANNEL = "channel"
    TENSOR = "tensor"
    """Activations are scaled as they come."""
    STATIC_TENSOR = "static tensor"
    """Activations have a stored scale too."""


class ExpertMemory(NamedTuple):
    """Bytes of one rank's expert kernels."""

    kept_bytes: int
    """Stays until the engine ends."""
    passing_bytes: int
    """Only while a layer's experts run."""


class KernelSite(NamedTuple):
    """Where experts run: what the choice of a kernel depends on beside the weights."""

    target: LoadTarget
    parallelism: Parallelism = Parallelism()


ADAPTED_SINCE = {WeightDtype.FP8: 13, WeightDtype.FP8_BLOCK: 13}
"""First 0.x release in which adapters change the kernel of experts stored so (12 for the others); before, experts
took none."""
_MXFP4 = {Mxfp4Kernel.TRTLLM: ExpertKernel.FLASHINFER, Mxfp4Kernel.TRITON: ExpertKernel.ROUTED_TRITON}
"""Marlin keeps its buffers or not by the release, as for other four-bit experts."""


@lru_cache(maxsize=4096)
def expert_kernel(dtype: WeightDtype, site: KernelSite, scales: ScaleKind = ScaleKind.TENSOR) -> ExpertKernel:
    """The kernel a release takes by default for experts stored so.

    Sources: vllm/model_executor/layers/fused_moe/oracle/{unquantized,fp8,mxfp4,nvfp4}.py since 0.14, before
    layers/quantization/{fp8,mxfp4}.py and fused_moe/{layer,unquantized_fused_moe_method}.py. That 0.11.1 and
    0.11.2 kept their fp8 workspaces is inferred from start-up logs.
    """
    if site.target.lora and site.target.since(ADAPTED_SINCE.get(dtype, 12)):
        return ExpertKernel.TRITON if site.target.since(14) else ExpertKernel.TRITON_FUNCTION
    if dtype is WeightDtype.NVFP4 and site.target.is_datacenter_blackwell:
        return ExpertKernel.FLASHINFER
    if dtype is WeightDtype.MXFP4 and (kernel := _MXFP4.get(mxfp4_kernel(site.target))) is not None:
        return kernel
    if dtype in FOUR_BITS:
        return ExpertKernel.MARLIN if site.target.since(20) else ExpertKernel.TRITON_FUNCTION
    if dtype is WeightDtype.FP8_BLOCK:
        return _fp8_block_kernel(site)
    return _fp8_kernel(site, scales) if dtype is WeightDtype.FP8 else _plain_kernel(site)


def _fp8_kernel(site: KernelSite, scales: ScaleKind) -> ExpertKernel:
    """CUTLASS took channel scales as a modular kernel from the first; FlashInfer takes known tensor scales."""
    is_new = site.target.is_hopper or site.target.is_datacenter_blackwell
    if scales is ScaleKind.STATIC_TENSOR and is_new and site.target.since(16):
        return ExpertKernel.FLASHINFER
    if (scales is ScaleKind.CHANNEL and is_new) or _kept_early(site) or site.target.since(14):
        return ExpertKernel.TRITON
    return ExpertKernel.TRITON_FUNCTION


def _fp8_block_kernel(site: KernelSite) -> ExpertKernel:
    if site.target.since(16):
        if site.target.is_datacenter_blackwell:
            return ExpertKernel.FLASHINFER
        if site.target.is_hopper and (site.parallelism.ep or not site.target.since(17)):
            return ExpertKernel.FLASHINFER
        return ExpertKernel.TRITON
    if has_deep_gemm_experts(site.target, site.parallelism):
        return ExpertKernel.DEEP_GEMM
    return _fp8_kernel(site, ScaleKind.TENSOR)


def _plain_kernel(site: KernelSite) -> ExpertKernel:
    """Experts in 16 bit (and int8): 0.20 to 0.22 preferred FlashInfer on Hopper too."""
    if site.target.is_datacenter_blackwell and site.target.since(20) and site.parallelism.dp == 1:
        return ExpertKernel.FLASHINFER
    if (
        site.target.is_hopper
        and site.target.since(20)
        and not site.target.since(23)
        and site.parallelism.dp == 1
    ):
        return ExpertKernel.FLASHINFER
    return ExpertKernel.TRITON if site.target.since(14) else ExpertKernel.TRITON_FUNCTION


def _scale_kind(experts: Experts) -> ScaleKind:
    stored = experts.stored
    if stored is None or not stored.per_tensor_scale:
        return ScaleKind.CHANNEL
    return ScaleKind.TENSOR if stored.dynamic_activations else ScaleKind.STATIC_TENSOR


def _kept_early(site: KernelSite) -> bool:
    return EngineVersion(0, 11, 1) <= site.target.version < EngineVersion(0, 12, 0)


def expert_memory(experts: Experts, tokens: int, site: KernelSite) -> ExpertMemory:
    """Bytes the routed experts of a layer need for a batch of this many tokens on one rank.

    Shapes as in the `workspace_shapes` of each kernel: a row for every token and expert it goes to, as wide as
    the first product's outputs or the hidden states; another after the activation.
    """
    kernel = expert_kernel(experts.dtype, site, _scale_kind(experts))
    batch = tokens * site.parallelism.dp
    if not site.target.since(18):
        batch = min(batch, CHUNK_TOKENS if site.target.since(12) else OLD_CHUNK_TOKENS)
    rows = batch * experts.experts_per_token
    wide, narrow, hidden = experts.up_width, experts.intermediate, experts.inputs
    output = batch * hidden * BYTES_PER_VALUE
    if kernel is ExpertKernel.DEEP_GEMM:
        kernel = _narrow_deep_gemm(experts, site)
    match kernel:
        case ExpertKernel.TRITON_FUNCTION:
            return ExpertMemory(0, rows * (max(wide, hidden) + narrow) * BYTES_PER_VALUE + output)
        case ExpertKernel.TRITON | ExpertKernel.MARLIN:
            return ExpertMemory(rows * (max(wide, hidden) + max(narrow, hidden)) * BYTES_PER_VALUE, output)
        case ExpertKernel.DEEP_GEMM:
            rows += experts.local_experts * (DEEP_GEMM_BLOCK - 1)
            kept = rows * (max(wide, hidden) + max(narrow, hidden)) * BYTES_PER_VALUE
            return ExpertMemory(kept, rows * hidden * FP8_BYTES_PER_VALUE + output)
        case ExpertKernel.ROUTED_TRITON:
            kept = rows * narrow * BYTES_PER_VALUE if site.target.since(20) else 0
            passing = rows * hidden * BYTES_PER_VALUE + output
            return ExpertMemory(kept, passing + (0 if kept else rows * narrow * BYTES_PER_VALUE))
        case ExpertKernel.FLASHINFER:
            return ExpertMemory(output, rows * _flashinfer_values(experts, site) * BYTES_PER_VALUE)


def _flashinfer_values(experts: Experts, site: KernelSite) -> int:
    """Values of a routed row inside FlashInfer: TensorRT-LLM's kernels on Blackwell gather the hidden states as
    they multiply, CUTLASS's first put a copy in order."""
    if site.target.is_datacenter_blackwell:
        return experts.inputs + experts.up_width
    return max(experts.up_width, experts.inputs) + max(experts.intermediate, experts.inputs)


def _narrow_deep_gemm(experts: Experts, site: KernelSite) -> ExpertKernel:
    """The kernel whose workspaces a block-quantised layer gets where DeepGEMM is the default."""
    fits = experts.up_width % DEEP_GEMM_BLOCK == 0 and experts.inputs % DEEP_GEMM_BLOCK == 0
    if fits and (experts.up_width > DEEP_GEMM_LEAST_WIDTH or site.target.since(14)):
        return ExpertKernel.DEEP_GEMM
    return _fp8_kernel(site, ScaleKind.TENSOR)
