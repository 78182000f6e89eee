"""mxfp4 experts (gpt-oss) as vLLM's kernels want them: which kernel runs where, and what it pads.

Sources: vllm/model_executor/layers/quantization/mxfp4.py (get_mxfp4_backend, create_weights, until 0.18),
vllm/model_executor/layers/fused_moe/oracle/mxfp4.py (select_mxfp4_moe_backend,
mxfp4_round_up_hidden_size_and_intermediate_size, convert_*_to_mxfp4_moe_kernel_format, since 0.19),
quantization/utils/mxfp4_utils.py (_swizzle_mxfp4) and triton_kernels' HopperMXScaleLayout.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from planner.domain.dtypes import WeightDtype
from planner.formulas.allocator import round_up
from planner.formulas.gemms import Experts
from planner.formulas.load_target import LoadTarget
from planner.formulas.tensors import FP32, WeightTensor

GROUP = 32
"""Values that share a scale of one byte."""
SWIZZLED_ROWS = 256
"""Scales on Hopper are padded to whole tiles of 8 warps."""
BLACKWELL_SWIZZLED_ROWS, BLACKWELL_SWIZZLED_GROUPS = 128, 8
"""On Blackwell to these (BlackwellMXScaleLayout), where Triton runs them: with adapters before 0.14, on B300 before
0.13."""
TRTLLM_CONSTANTS = 3
"""Alpha, beta and the clamp of SwiGLU, one fp32 an expert each."""


class Mxfp4Kernel(StrEnum):
    """What multiplies mxfp4 experts."""

    MARLIN = "marlin"
    TRITON = "triton"
    """OpenAI's kernels, of which vLLM's wheel holds a copy since 0.11.1."""
    TRTLLM = "trtllm"
    ROCM = "rocm"


class _Layout(NamedTuple):
    intermediate: int
    inputs: int
    bias_bytes: int
    scale_rows: int = 1
    """Scales are padded to this many outputs."""
    scale_groups: int = 1
    """And to this many groups."""
    keeps_loaded_scales: bool = False
    """The scales as loaded stay beside the kernel's own."""
    constants: int = 0


def mxfp4_kernel(target: LoadTarget) -> Mxfp4Kernel:
    """The kernel that vLLM chooses by itself, without environment variables.

    `pip install vllm` is meant: until 0.11.0 it brings neither FlashInfer nor triton_kernels, so every GPU ran Marlin.
    With adapters it is Marlin since 0.14 and Triton before (get_mxfp4_backend_with_lora, in 0.19 and 0.20 the
    oracle; later the oracle asks each kernel for supports_lora, and FlashInfer's with LoRA have to be named).
    """
    if not target.is_cuda:
        return Mxfp4Kernel.ROCM
    runs_triton = target.is_hopper or target.is_datacenter_blackwell
    if not target.has_flashinfer or not runs_triton or (target.lora and target.since(14)):
        return Mxfp4Kernel.MARLIN
    # Before 0.13 FlashInfer's kernels were for compute capability 10.0 alone.
    runs_trtllm = target.is_datacenter_blackwell if target.since(13) else target.is_b200
    return Mxfp4Kernel.TRTLLM if runs_trtllm and not target.lora else Mxfp4Kernel.TRITON


def _layout(experts: Experts, target: LoadTarget) -> _Layout:
    width, inputs = experts.intermediate, experts.inputs
    match mxfp4_kernel(target):
        case Mxfp4Kernel.MARLIN:
            return _Layout(round_up(width, 128), round_up(inputs, 256), 2)
        case Mxfp4Kernel.TRTLLM:
            step = 128 if target.since(27) else 256
            return _Layout(round_up(width, step), round_up(inputs, 256), 4, constants=TRTLLM_CONSTANTS)
        case Mxfp4Kernel.TRITON:
            groups = 4 if target.since(26) else 2
            return _Layout(
                round_up(width, 64),
                inputs,
                4,
                scale_rows=SWIZZLED_ROWS if target.is_hopper else BLACKWELL_SWIZZLED_ROWS,
                scale_groups=groups if target.is_hopper else BLACKWELL_SWIZZLED_GROUPS,
                keeps_loaded_scales=not target.since(25),
            )
        case Mxfp4Kernel.ROCM:
            return _Layout(round_up(width, 256), round_up(inputs, 256), 4)


def mxfp4_tensors(experts: Experts, target: LoadTarget) -> Iterator[WeightTensor]:
    """What the kernel's layout of one layer's experts takes beyond the checkpoint's."""
    layout = _layout(experts, target)
    gates = 2 if experts.gated else 1
    loaded = ((gates * experts.intermediate, experts.inputs), (experts.inputs, experts.intermediate))
    wanted = ((gates * layout.intermediate, layout.inputs), (layout.inputs, layout.intermediate))
    for name, (n, k), (padded_n, padded_k) in zip(("up", "down"), loaded, wanted, strict=True):
        padding = experts.local_experts * (padded_n * padded_k - n * k) // 2
        yield _extra(f"{name}_padding", padding, enlarges=f"experts_{name}")
        scales = experts.local_experts * n * (k // GROUP)
        padded_scales = experts.local_experts * _padded_scales(padded_n, padded_k, layout)
        kept = experts.local_experts * padded_n * (padded_k // GROUP) if layout.keeps_loaded_scales else 0
        yield _extra(f"{name}_scales_padding", padded_scales + kept - scales)
        if experts.bias:
            yield _extra(
                f"{name}_bias_padding", experts.local_experts * (padded_n * layout.bias_bytes - n * 2)
            )
    constants = layout.constants * experts.local_experts
    if constants:
        yield WeightTensor("post_load", "experts_constants", (constants,), 1, FP32, 4 * constants)


def _padded_scales(n: int, k: int, layout: _Layout) -> int:
    return round_up(n, layout.scale_rows) * round_up(k // GROUP, layout.scale_groups)


def _extra(name: str, size_bytes: int, enlarges: str = "") -> WeightTensor:
    return WeightTensor(
        "post_load", f"experts_{name}", (size_bytes,), 1, WeightDtype.MXFP4, size_bytes, enlarges=enlarges
    )
