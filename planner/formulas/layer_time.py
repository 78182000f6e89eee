"""Time of one decoder layer on one rank: its matrix products, its communication and its attention kernels."""

from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Interconnect
from planner.domain.model import (
    Attention,
    GemmRole,
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
    MoeFfn,
)
from planner.formulas.arrays import FloatArray
from planner.formulas.engine_defaults import EngineRules
from planner.formulas.gemms import layer_gemms
from planner.formulas.operators import (
    AttentionShape,
    ContextAttention,
    DecodeAttention,
    GpuOperators,
    IndexerShape,
    LatentShape,
    LinearShape,
    MoeShape,
    all_reduce_s,
    context_attention,
    decode_attention,
    elementwise_s,
    gemm_s,
    indexer_context,
    indexer_decode,
    linear_attention_context,
    linear_attention_decode,
    mla_context,
    mla_decode,
    moe_s,
)

UNLIMITED_TOKENS = 1e12
ACTIVATION_BYTES = 2
MIXER_KERNELS = 4
"""Two norms with their residual sums, rotary positions, cache write."""


class Rank(NamedTuple):
    """One GPU of a replica, and what runs on it."""

    model: Model
    parallelism: Parallelism
    ops: GpuOperators
    interconnect: Interconnect
    engine: EngineRules


class AttentionPart(NamedTuple):
    """One attention kernel of a layer and how far back its queries see."""

    decode: DecodeAttention
    context: ContextAttention
    scope_tokens: float


def layer_body_s(rank: Rank, kind_index: int, tokens: FloatArray) -> FloatArray:
    """One layer on one rank without attention, its communication included, at `tokens` scheduled there [G]."""
    model, ops = rank.model, rank.ops
    kind = model.layer_kinds[kind_index]
    work = layer_gemms(model, kind_index, rank.parallelism)
    total_s = _communication_s(rank, kind, tokens)
    for gemm in work.gemms:
        if gemm.role is GemmRole.MLA_KV_UP:
            continue  # absorbed in the decode kernel, part of the context kernel's fit
        total_s = total_s + gemm_s(tokens, gemm.n, gemm.k, gemm.dtype, ops)
    if work.experts is not None:
        e = work.experts
        shape = MoeShape(
            experts=e.experts,
            local_experts=e.local_experts,
            experts_per_token=e.experts_per_token,
            inputs=e.inputs,
            intermediate=e.intermediate,
            gated=e.gated,
            dtype=_expert_kernel(e.dtype, ops, rank.engine),
            ep=e.ep,
        )
        total_s = total_s + moe_s(tokens * rank.parallelism.dp, shape, ops)
    return total_s + elementwise_s(tokens, *_elementwise(kind, model.hidden, rank.parallelism.tp), ops)


def _communication_s(rank: Rank, kind: Layer, tokens: FloatArray) -> FloatArray:
    """All-reduces after the mixer and after the feed-forward block [G].

    Experts of data-parallel ranks form one group: every rank's tokens are gathered there and reduced back, which
    moves as much as an all-reduce of all of them.
    """
    parallelism, message_bytes = rank.parallelism, tokens * (rank.model.hidden * ACTIVATION_BYTES)
    own_s = all_reduce_s(message_bytes, parallelism.tp, rank.interconnect, rank.ops)
    total_s = own_s * ((kind.attention is not None) + (kind.ffn is not None))
    if isinstance(kind.ffn, MoeFfn) and parallelism.dp > 1:
        group = parallelism.tp * parallelism.dp
        total_s = (
            total_s - own_s + all_reduce_s(message_bytes * parallelism.dp, group, rank.interconnect, rank.ops)
        )
    return total_s


def _expert_kernel(dtype: WeightDtype, ops: GpuOperators, kernels: EngineRules) -> WeightDtype:
    """The format whose kernel times stand for these experts; Marlin's 4-bit kernels take equally long."""
    if dtype is WeightDtype.MXFP4 and ops.gpu.is_hopper and kernels.marlin_mxfp4_on_hopper:
        return WeightDtype.INT4
    return dtype


def _elementwise(kind: Layer, hidden: int, tp: int) -> tuple[float, int]:
    """Bytes a token moves through norms and activations of one layer, and the kernels that do it."""
    residual_bytes = 4 * hidden * ACTIVATION_BYTES * kind.norms
    ffn = kind.ffn
    if ffn is None:
        return float(residual_bytes), MIXER_KERNELS
    if isinstance(ffn, MoeFfn):
        widths = ffn.shared_intermediate + (ffn.parallel_dense.intermediate if ffn.parallel_dense else 0)
    else:
        widths = ffn.intermediate
    kernels = (MIXER_KERNELS if kind.attention is not None else 1) + (1 if widths else 0)
    return residual_bytes + 3 * widths / tp * ACTIVATION_BYTES, kernels


def attention_parts(
    attention: Attention | None, tp: int, kv_bytes: int, ops: GpuOperators
) -> tuple[AttentionPart, ...]:
    """The kernels of one layer's attention on one rank."""
    if attention is None:
        return ()
    if isinstance(attention, LatentAttention):
        return _latent_parts(attention, tp, kv_bytes, ops)
    if isinstance(attention, LinearAttention | MambaMixer):
        linear = _linear_shape(attention, tp)
        decode, context = linear_attention_decode(linear, ops), linear_attention_context(linear, ops)
        return (AttentionPart(decode, context, UNLIMITED_TOKENS),)
    shape = AttentionShape(
        heads=max(1, attention.heads // tp),
        kv_heads=max(1, attention.kv_heads // tp),
        head_dim=attention.head_dim,
        v_head_dim=attention.v_head_dim,
        kv_bytes=kv_bytes,
        window_tokens=attention.window_tokens,
    )
    # A query in a chunk sees half of it on average, as in a window of half the size.
    chunk = attention.chunk_tokens / 2.0 if attention.chunk_tokens else None
    scope = float(attention.window_tokens or chunk or UNLIMITED_TOKENS)
    return (AttentionPart(decode_attention(shape, ops), context_attention(shape, ops), scope),)


def _latent_parts(
    attention: LatentAttention, tp: int, kv_bytes: int, ops: GpuOperators
) -> tuple[AttentionPart, ...]:
    """Latent attention, over the best keys alone where an indexer scores them all."""
    shape = LatentShape(
        heads=max(1, attention.heads // tp),
        kv_lora_rank=attention.kv_lora_rank,
        qk_nope_head_dim=attention.qk_nope_head_dim,
        qk_rope_head_dim=attention.qk_rope_head_dim,
        v_head_dim=attention.v_head_dim,
        kv_bytes=kv_bytes,
    )
    scope = float(attention.indexer_topk or UNLIMITED_TOKENS)
    dense = AttentionPart(mla_decode(shape, ops), mla_context(shape, ops), scope)
    if not attention.indexer_heads:
        return (dense,)
    scorer = IndexerShape(attention.indexer_heads, attention.indexer_head_dim)
    return (
        dense,
        AttentionPart(indexer_decode(scorer, ops), indexer_context(scorer, ops), UNLIMITED_TOKENS),
    )


def _linear_shape(attention: LinearAttention | MambaMixer, tp: int) -> LinearShape:
    if isinstance(attention, MambaMixer):
        heads = max(1, attention.heads // tp)
        return LinearShape(
            heads=heads,
            key_dim=attention.state_size,
            value_dim=attention.head_dim,
            conv_channels=heads * attention.head_dim
            + 2 * max(1, attention.groups // tp) * attention.state_size,
            conv_kernel=attention.conv_kernel,
            state_bytes=attention.state_bytes_per_value,
        )
    value_heads = max(1, attention.value_heads // tp)
    return LinearShape(
        heads=value_heads,
        key_dim=attention.key_head_dim,
        value_dim=attention.value_head_dim,
        conv_channels=value_heads * attention.value_head_dim
        + 2 * max(1, attention.key_heads // tp) * attention.key_head_dim,
        conv_kernel=attention.conv_kernel,
        state_bytes=attention.state_bytes_per_value,
    )
