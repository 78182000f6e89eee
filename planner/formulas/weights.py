"""Weight bytes of one rank, tensor by tensor, as vLLM's model classes allocate them."""

from collections.abc import Iterator
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import (
    GemmRole,
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
    MoeFfn,
    QkNorm,
    Quantization,
    SoftmaxAttention,
)
from planner.formulas.gemms import (
    FP8_BLOCK,
    Experts,
    Gemm,
    expert_block,
    head_gemm,
    layer_gemms,
    padded_vocab,
)

FP32 = "fp32"
POST_LOAD = "post_load"
"""Group of the tensors that appear after the checkpoint is loaded."""
MXFP4_KERNEL_PADDING = 64
"""vLLM's Triton kernel for mxfp4 experts (Hopper) takes whole multiples of this width."""

VALUE_BYTES: dict[str, float] = {
    WeightDtype.BF16: 2,
    WeightDtype.FP16: 2,
    FP32: 4,
    WeightDtype.FP8: 1,
    WeightDtype.FP8_BLOCK: 1,
    WeightDtype.INT8: 1,
    WeightDtype.INT4: 0.5,
    WeightDtype.AWQ: 0.5,
    WeightDtype.GPTQ: 0.5,
    WeightDtype.MXFP4: 0.5,
    WeightDtype.NVFP4: 0.5,
}
FUSED_PARTS: dict[GemmRole, int] = {
    GemmRole.QKV: 3,
    GemmRole.GATE_UP: 2,
    GemmRole.SHARED_GATE_UP: 2,
    GemmRole.MLA_DOWN: 2,
    GemmRole.LINEAR_IN: 2,
    GemmRole.LINEAR_GATES: 2,
}
"""Checkpoint tensors that vLLM joins into one projection; each keeps its own per-tensor scale."""


class WeightTensor(NamedTuple):
    """Tensors of one shape on one rank."""

    group: str
    """`embedding`, `attention`, `ffn`, `experts`, `norm`, `head`, `vision` or `post_load`."""
    name: str
    shape: tuple[int, ...]
    copies: int
    dtype: str
    size_bytes: int
    """All of them together, with scales and zero points."""


class ParameterCount(NamedTuple):
    """Parameters of the whole model, without scales and padding."""

    total: int
    active: int
    """Those one token passes through."""


class _Small(NamedTuple):
    """A tensor outside the matrix products: norms, convolutions, biases of routing."""

    group: str
    name: str
    shape: tuple[int, ...]
    dtype: str


def pipeline_layers(layers: int, pp: int, pp_rank: int) -> tuple[int, int]:
    """First layer and one past the last of a pipeline rank (vllm/distributed/utils.py, get_pp_indices).

    Layers left over go to the ranks before the last, one each, from the back.

    >>> [pipeline_layers(61, 4, rank) for rank in range(4)]
    [(0, 15), (15, 30), (30, 46), (46, 61)]
    """
    share, left_over = divmod(layers, pp)
    sizes = [share] * pp
    for i in range(2, left_over + 2):
        sizes[-i] += 1
    first = sum(sizes[:pp_rank])
    return first, first + sizes[pp_rank]


def stored_bytes(n: int, k: int, dtype: WeightDtype, stored: Quantization | None, parts: int = 1) -> int:
    """Bytes of an `[n, k]` weight with the scales and zero points that stand beside it.

    `parts` checkpoint tensors were joined into it. Sources: vllm/model_executor/layers/quantization.

    >>> stored_bytes(4096, 4096, WeightDtype.AWQ, Quantization(dtype="awq", group_size=128, zero_points=True))
    8716288
    """
    weight_bytes = round(n * k * VALUE_BYTES[dtype])
    if stored is None:
        return weight_bytes
    return weight_bytes + scale_bytes(n, k, stored, parts)


def scale_bytes(n: int, k: int, stored: Quantization, parts: int = 1) -> int:
    """Bytes of the scales and zero points of a quantised `[n, k]` weight."""
    static_activations = 0 if stored.dynamic_activations else 4 * parts
    match stored.dtype:
        case WeightDtype.FP8 | WeightDtype.INT8:
            return 4 * (parts if stored.per_tensor_scale else n) + static_activations
        case WeightDtype.FP8_BLOCK:
            return 4 * ceil(n / FP8_BLOCK) * ceil(k / FP8_BLOCK)
        case WeightDtype.MXFP4:
            return n * ceil(k / 32)
        case WeightDtype.NVFP4:
            return n * ceil(k / 16) + 4 * parts + static_activations
        case WeightDtype.INT4 | WeightDtype.AWQ | WeightDtype.GPTQ:
            groups = ceil(k / stored.group_size) if stored.group_size else 1
            return n * groups * 2 + (n * groups // 2 if stored.zero_points else 0)
        case _:
            return 0


def weight_tensors(model: Model, parallelism: Parallelism, pp_rank: int = 0) -> tuple[WeightTensor, ...]:
    """Everything one rank of pipeline stage `pp_rank` holds for `model`, including what appears after loading."""
    first, last = pipeline_layers(model.layers, parallelism.pp, pp_rank)
    part = model.layer_pattern[first:last]
    tensors = list(_outer_tensors(model, parallelism, pp_rank))
    for kind_index in range(len(model.layer_kinds)):
        count = part.count(kind_index)
        if count:
            tensors += [
                tensor._replace(copies=tensor.copies * count, size_bytes=tensor.size_bytes * count)
                for tensor in _layer_tensors(model, kind_index, parallelism)
            ]
    return tuple(tensors)


@lru_cache(maxsize=4096)
def weights_bytes(model: Model, parallelism: Parallelism) -> int:
    """Weight bytes of the fullest rank, as vLLM reports after loading [bytes]."""
    return max(
        sum(tensor.size_bytes for tensor in weight_tensors(model, parallelism, pp_rank))
        for pp_rank in range(parallelism.pp)
    )


def parameter_bytes(model: Model, parallelism: Parallelism, pp_rank: int = 0) -> int:
    """Bytes of the parameters vLLM's model class allocates before it loads the checkpoint [bytes]."""
    tensors = weight_tensors(model, parallelism, pp_rank)
    return sum(tensor.size_bytes for tensor in tensors if tensor.group != POST_LOAD)


def parameter_count(model: Model) -> ParameterCount:
    """Parameters of the whole model and those one token passes through; the vision tower counts as inactive."""
    whole = Parallelism()
    total = active = 0
    for tensor in _outer_tensors(model, whole, 0):
        values = prod(tensor.shape) * tensor.copies
        total += values
        active += 0 if tensor.group == "vision" else values
    padding = (padded_vocab(model.vocab) - model.vocab) * model.hidden * (1 if model.tied_embeddings else 2)
    for kind_index, layer in enumerate(model.layer_kinds):
        count = model.layer_pattern.count(kind_index)
        for tensor in _layer_tensors(model, kind_index, whole):
            if tensor.group == POST_LOAD:
                continue
            values = prod(tensor.shape) * tensor.copies * count
            total += values
            active += _active_values(values, tensor, layer)
    return ParameterCount(total - padding, active - padding)


def _active_values(values: int, tensor: WeightTensor, layer: Layer) -> int:
    if tensor.group == "experts" and isinstance(layer.ffn, MoeFfn):
        return values * layer.ffn.experts_per_token // layer.ffn.experts
    return values


def _outer_tensors(model: Model, parallelism: Parallelism, pp_rank: int) -> Iterator[WeightTensor]:
    """Embeddings, head, final norm and vision tower."""
    tp = parallelism.tp
    dtype = model.activation_dtype
    first, last = pp_rank == 0, pp_rank == parallelism.pp - 1
    head = head_gemm(model, parallelism)
    if first or (last and model.tied_embeddings):
        yield _plain(
            _Small("embedding", "embed_tokens", (padded_vocab(model.vocab) // tp, model.hidden), dtype)
        )
    if first and model.position_embeddings:
        yield _plain(_Small("embedding", "positions", (model.position_embeddings, model.hidden), dtype))
    if last and not model.tied_embeddings:
        yield _gemm_tensor(head)
    if last and head.bias:
        yield _plain(_Small("head", "head_bias", (head.n,), dtype))
    if last and model.final_norm:
        yield _plain(_Small("norm", "final_norm", (1 + model.norm_bias, model.hidden), dtype))
    if first and model.vision is not None:
        parameters = ceil(model.vision.parameters / tp) if model.vision.sharded else model.vision.parameters
        yield _plain(_Small("vision", "vision_tower", (parameters,), dtype))


@lru_cache(maxsize=4096)
def _layer_tensors(model: Model, kind_index: int, parallelism: Parallelism) -> tuple[WeightTensor, ...]:
    layer = model.layer_kinds[kind_index]
    products = layer_gemms(model, kind_index, parallelism)
    tensors: list[WeightTensor] = []
    for gemm in products.gemms:
        tensors.append(_gemm_tensor(gemm, fp32=_is_fp32_router(gemm, layer)))
        if gemm.bias:
            tensors.append(
                _plain(_Small(_group(gemm.role), f"{gemm.role}_bias", (gemm.n,), model.activation_dtype))
            )
    if products.experts is not None:
        tensors += _expert_tensors(products.experts, model.activation_dtype)
    tensors += [_plain(small) for small in _small_tensors(model, layer, parallelism)]
    tensors += _post_load_tensors(model, layer, products.experts, parallelism)
    return tuple(tensors)


def _is_fp32_router(gemm: Gemm, layer: Layer) -> bool:
    return gemm.role is GemmRole.ROUTER and isinstance(layer.ffn, MoeFfn) and layer.ffn.router_fp32


def _gemm_tensor(gemm: Gemm, *, fp32: bool = False) -> WeightTensor:
    size_bytes = (
        gemm.n * gemm.k * 4
        if fp32
        else stored_bytes(gemm.n, gemm.k, gemm.dtype, gemm.stored, FUSED_PARTS.get(gemm.role, 1))
    )
    dtype = FP32 if fp32 else gemm.dtype
    return WeightTensor(_group(gemm.role), gemm.role, (gemm.n, gemm.k), 1, dtype, size_bytes)


def _plain(small: _Small) -> WeightTensor:
    size_bytes = round(prod(small.shape) * VALUE_BYTES[small.dtype])
    return WeightTensor(small.group, small.name, small.shape, 1, small.dtype, size_bytes)


def _group(role: GemmRole) -> str:
    if role is GemmRole.HEAD:
        return "head"
    return "ffn" if role in _FFN_ROLES else "attention"


_FFN_ROLES = frozenset(
    {
        GemmRole.GATE_UP,
        GemmRole.DOWN,
        GemmRole.SHARED_GATE_UP,
        GemmRole.SHARED_DOWN,
        GemmRole.ROUTER,
        GemmRole.LATENT_IN,
        GemmRole.LATENT_OUT,
    }
)


def _expert_tensors(experts: Experts, activation_dtype: WeightDtype) -> list[WeightTensor]:
    up = (experts.local_experts, experts.up_width, experts.inputs)
    down = (experts.local_experts, experts.inputs, experts.intermediate)
    tensors = [
        _expert_tensor("up", up, experts, parts=2 if experts.gated else 1),
        _expert_tensor("down", down, experts, parts=1),
    ]
    if experts.bias:
        tensors += [
            _plain(_Small("experts", "experts_up_bias", up[:2], activation_dtype)),
            _plain(_Small("experts", "experts_down_bias", down[:2], activation_dtype)),
        ]
    return tensors


def _expert_tensor(name: str, shape: tuple[int, int, int], experts: Experts, *, parts: int) -> WeightTensor:
    count, n, k = shape
    one_bytes = stored_bytes(n, k, experts.dtype, experts.stored, parts)
    if experts.dtype is WeightDtype.FP8_BLOCK:
        block = expert_block(experts)
        one_bytes = n * k + 4 * ceil(n / block) * ceil(k / block)
    return WeightTensor("experts", f"experts_{name}", shape, 1, experts.dtype, count * one_bytes)


def _small_tensors(model: Model, layer: Layer, parallelism: Parallelism) -> Iterator[_Small]:
    dtype = model.activation_dtype
    if layer.norms:
        yield _Small("norm", "layer_norms", (layer.norms * (1 + layer.norm_bias), model.hidden), dtype)
    if layer.scalars:
        yield _Small("norm", "scalars", (layer.scalars,), dtype)
    match layer.attention:
        case SoftmaxAttention():
            yield from _softmax_small(layer.attention, parallelism.tp, dtype)
            if any(how.dtype in {WeightDtype.FP8, WeightDtype.FP8_BLOCK} for _, how in layer.quantized):
                yield _Small("attention", "kv_scales", (2,), FP32)
        case LatentAttention():
            yield from _latent_small(layer.attention, dtype)
        case LinearAttention():
            yield from _linear_small(layer.attention, parallelism.tp, dtype)
        case MambaMixer():
            yield from _mamba_small(layer.attention, parallelism.tp, dtype)
    if isinstance(layer.ffn, MoeFfn) and layer.ffn.correction_bias:
        yield _Small("ffn", "correction_bias", (layer.ffn.experts,), FP32)


def _softmax_small(attention: SoftmaxAttention, tp: int, dtype: str) -> Iterator[_Small]:
    heads, kv_heads = attention.heads, attention.kv_heads
    if attention.qk_norm is QkNorm.ALL_HEADS_SPLIT:
        heads, kv_heads = heads // tp, max(1, kv_heads // tp)
    elif attention.qk_norm is QkNorm.PER_HEAD:
        heads = kv_heads = 1
    if attention.qk_norm is not QkNorm.NONE:
        yield _Small("norm", "qk_norm", ((heads + kv_heads) * attention.head_dim,), dtype)
    if attention.sinks:
        yield _Small("attention", "sinks", (attention.heads // tp,), dtype)


def _latent_small(attention: LatentAttention, dtype: str) -> Iterator[_Small]:
    yield _Small("norm", "latent_norms", (attention.kv_lora_rank + (attention.q_lora_rank or 0),), dtype)
    if attention.indexer_heads:
        yield _Small("norm", "indexer_norm", (2, attention.indexer_head_dim), FP32)


def _linear_small(attention: LinearAttention, tp: int, dtype: str) -> Iterator[_Small]:
    keys = attention.key_heads * attention.key_head_dim // tp
    values = attention.value_heads * attention.value_head_dim // tp
    heads = attention.value_heads // tp
    yield _Small("attention", "convolution", (2 * keys + values, attention.conv_kernel), dtype)
    yield _Small("attention", "dt_bias", (heads,), dtype)
    yield _Small("attention", "decay", (heads,), FP32)
    yield _Small("norm", "output_norm", (attention.value_head_dim,), dtype)


def _mamba_small(mixer: MambaMixer, tp: int, dtype: str) -> Iterator[_Small]:
    heads = mixer.heads // tp
    channels = heads * mixer.head_dim + 2 * mixer.groups_on_rank(tp) * mixer.state_size
    yield _Small("attention", "convolution", (channels, mixer.conv_kernel + mixer.conv_bias), dtype)
    yield _Small("attention", "decay", (heads,), FP32)
    yield _Small("attention", "skip_and_dt_bias", (2, heads), dtype)
    yield _Small("norm", "output_norm", (heads * mixer.head_dim,), dtype)


def _post_load_tensors(
    model: Model, layer: Layer, experts: Experts | None, parallelism: Parallelism
) -> Iterator[WeightTensor]:
    if isinstance(layer.attention, LatentAttention):
        attention = layer.attention
        heads = attention.heads // parallelism.tp
        shape = (heads, attention.kv_lora_rank, attention.qk_nope_head_dim + attention.v_head_dim)
        yield _plain(_Small(POST_LOAD, "mla_absorbed", shape, model.activation_dtype))
    if experts is not None and experts.dtype is WeightDtype.MXFP4:
        padding = -experts.intermediate % MXFP4_KERNEL_PADDING
        if padding:
            shape = (experts.local_experts, (3 if experts.gated else 2) * padding, experts.inputs)
            size_bytes = experts.local_experts * stored_bytes(
                shape[1], shape[2], WeightDtype.MXFP4, experts.stored
            )
            yield WeightTensor(POST_LOAD, "expert_padding", shape, 1, WeightDtype.MXFP4, size_bytes)
