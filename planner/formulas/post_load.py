"""What vLLM changes in a rank's weights after the checkpoint is loaded (process_weights_after_loading).

Only what changes the bytes is here: most kernels reorder weights in place. Left out because it is
some kilobytes a layer: workspaces of Marlin, input scales that are dropped or joined, indices of activation order.
"""

from collections.abc import Iterable, Iterator
from math import ceil

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import GemmRole, LatentAttention, Layer, Model
from planner.formulas.allocator import round_up
from planner.formulas.gemms import FP8_BLOCK, Experts, Gemm, LayerGemms, expert_block
from planner.formulas.load_target import LoadTarget, has_deep_gemm_experts
from planner.formulas.mxfp4_layout import mxfp4_tensors
from planner.formulas.tensors import PlainTensor, WeightTensor, plain, scale_bytes

POST_LOAD = "post_load"
"""Group of the tensors that appear after the checkpoint is loaded."""
PACKED_SCALES = 4
"""Power-of-two scales that DeepGEMM packs into one int32."""
NVFP4_SCALE_ROWS, NVFP4_SCALE_COLUMNS = 128, 4
"""Scales of nvfp4 are padded to tiles of this size for the fp4 tensor cores."""
NVFP4_GROUP = 16


def post_load_tensors(
    model: Model, layer: Layer, products: LayerGemms, parallelism: Parallelism, target: LoadTarget
) -> Iterator[WeightTensor]:
    """What one layer of one rank takes beyond its parameters; negative where something is given up."""
    attention = layer.attention
    if isinstance(attention, LatentAttention) and layer.stored(GemmRole.MLA_KV_UP) is not None:
        # W_UK and W_UV are views: of kv_b_proj itself where it is in the model's dtype, else of one expanded copy
        # of it (get_and_maybe_dequant_weights); kv_b_proj stays for prompts.
        heads = attention.heads // parallelism.tp
        shape = (heads, attention.kv_lora_rank, attention.qk_nope_head_dim + attention.v_head_dim)
        yield plain(PlainTensor(POST_LOAD, "mla_absorbed", shape, model.activation_dtype))
    for gemm in products.gemms:
        extra = _linear_extra(gemm, target)
        if extra:
            yield _scales(gemm.role, extra)
    if products.experts is not None:
        yield from _expert_tensors(products.experts, parallelism, target)


def _scales(name: str, size_bytes: int) -> WeightTensor:
    return WeightTensor(POST_LOAD, f"{name}_scales", (size_bytes,), 1, "byte", size_bytes)


def _linear_extra(gemm: Gemm, target: LoadTarget) -> int:
    """Bytes that the scales of one projection grow or shrink by."""
    stored = gemm.stored
    if stored is None or not target.is_cuda:
        return 0
    loaded = scale_bytes(gemm.n, gemm.k, stored)
    match gemm.dtype:
        case WeightDtype.FP8_BLOCK if not target.has_fp8:
            return _marlin_block_scales(gemm.n, gemm.k, FP8_BLOCK) - loaded
        case WeightDtype.FP8_BLOCK if _has_packed_scales(gemm, target):
            return _packed_scales(gemm.n, gemm.k) - loaded
        case WeightDtype.NVFP4 if target.is_blackwell:
            return _nvfp4_padding(gemm.n, gemm.k)
        case WeightDtype.GPTQ if stored.zero_points and target.has_marlin and not target.is_hopper:
            # Symmetric GPTQ needs no zero points: Marlin drops them; Machete, on Hopper, leaves them there.
            groups = ceil(gemm.k / stored.group_size) if stored.group_size else 1
            return -(gemm.n * groups // 2)
    return 0


def _marlin_block_scales(n: int, k: int, block: int) -> int:
    """Marlin expands block scales to one 16-bit scale an output and block of inputs (marlin_utils_fp8.py)."""
    return 2 * n * ceil(k / block)


def _has_packed_scales(gemm: Gemm, target: LoadTarget) -> bool:
    """DeepGEMM takes this product on B200 (vllm/utils/deep_gemm.py, should_use_deepgemm_for_fp8_linear)."""
    fits = gemm.n % 64 == 0 and gemm.k % FP8_BLOCK == 0
    return fits and target.has_deep_gemm and target.is_datacenter_blackwell


def _packed_scales(n: int, k: int) -> int:
    """One int32 holds four powers of two, for each output (DeepGEMM's layout of sm100, rows a multiple of 16 bytes)."""
    return 4 * round_up(n, 4) * ceil(ceil(k / FP8_BLOCK) / PACKED_SCALES)


def _nvfp4_padding(n: int, k: int) -> int:
    """Swizzled scales come in whole tiles (quantization/utils/nvfp4_utils.py, swizzle_blockscale)."""
    groups = ceil(k / NVFP4_GROUP)
    return round_up(n, NVFP4_SCALE_ROWS) * round_up(groups, NVFP4_SCALE_COLUMNS) - n * groups


def _expert_tensors(experts: Experts, parallelism: Parallelism, target: LoadTarget) -> Iterator[WeightTensor]:
    if experts.dtype is WeightDtype.MXFP4:
        yield from mxfp4_tensors(experts, target)
        return
    extra = experts.local_experts * sum(
        _expert_extra(n, k, experts, parallelism, target) for n, k in _expert_shapes(experts)
    )
    if extra:
        yield _scales("experts", extra)


def _expert_shapes(experts: Experts) -> Iterable[tuple[int, int]]:
    return (experts.up_width, experts.inputs), (experts.inputs, experts.intermediate)


def _expert_extra(n: int, k: int, experts: Experts, parallelism: Parallelism, target: LoadTarget) -> int:
    if not target.is_cuda:
        return 0
    match experts.dtype:
        case WeightDtype.FP8_BLOCK:
            block = expert_block(experts)
            loaded = 4 * ceil(n / block) * ceil(k / block)
            if not target.has_fp8:
                return _marlin_block_scales(n, k, block) - loaded
            if target.is_datacenter_blackwell and has_deep_gemm_experts(target, parallelism):
                return _packed_scales(n, k) - loaded
        case WeightDtype.NVFP4 if target.is_blackwell:
            return _nvfp4_padding(n, k)
    return 0
