"""Time of one decoder layer on one rank: its matrix products, its communication and its attention kernels."""

from collections.abc import Sequence
from enum import StrEnum
from math import log2
from typing import NamedTuple

import numpy as np

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
from planner.formulas.allocator import round_up
from planner.formulas.arrays import FloatArray
from planner.formulas.engine_defaults import EngineRules
from planner.formulas.gemms import Experts, layer_gemms
from planner.formulas.operators import (
    UNTUNED,
    AttentionShape,
    ContextAttention,
    DecodeAttention,
    GpuOperators,
    IndexerShape,
    LatentShape,
    LinearShape,
    MoeShape,
    RankGroup,
    StepTuning,
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
    share_of_large,
)

UNLIMITED_TOKENS = 1e12
ACTIVATION_BYTES = 2
MIXER_KERNELS = 4
"""Two norms with their residual sums, rotary positions, cache write."""


SHARED_EXPERTS = (GemmRole.SHARED_GATE_UP, GemmRole.SHARED_DOWN)
SHARED_STREAM_TOKENS = 256
"""VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD."""
MARLIN_INPUTS, MARLIN_INTERMEDIATE = 256, 128
MXFP4_WEIGHT_BYTES = 0.5 + 1.0 / 32


class OtherWork(StrEnum):
    """What a layer does besides matrix products and attention kernels."""

    ALL_REDUCE = "all_reduce"
    ELEMENTWISE = "elementwise"


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


class LayerPart(NamedTuple):
    """One operator of a layer without its attention kernels."""

    what: GemmRole | OtherWork
    time_s: FloatArray
    """At each number of scheduled tokens [G]."""


def layer_body_s(rank: Rank, kind_index: int, tokens: FloatArray) -> FloatArray:
    """One layer on one rank without attention, its communication included, at `tokens` scheduled there [G]."""
    total_s = np.zeros_like(tokens)
    for part in layer_parts(rank, kind_index, tokens):
        total_s += part.time_s
    return total_s


def layer_parts(rank: Rank, kind_index: int, tokens: FloatArray) -> tuple[LayerPart, ...]:
    """What that time is made of, operator by operator."""
    model, ops = rank.model, rank.ops
    kind = model.layer_kinds[kind_index]
    work = layer_gemms(model, kind_index, rank.parallelism)
    parts = [LayerPart(OtherWork.ALL_REDUCE, _communication_s(rank, kind, tokens))]
    for gemm in work.gemms:
        if gemm.role is GemmRole.MLA_KV_UP:
            continue  # absorbed in the decode kernel, part of the context kernel's fit
        parts.append(LayerPart(gemm.role, gemm_s(tokens, gemm.n, gemm.k, gemm.dtype, ops)))
    if work.experts is not None:
        shape = _expert_shape(work.experts, rank)
        experts_s = moe_s(tokens * rank.parallelism.dp, shape, ops)
        if rank.engine.shared_experts_stream:
            parts = _beside_experts(parts, experts_s, tokens)
        parts.append(LayerPart(GemmRole.EXPERTS, experts_s))
    moved = _elementwise(kind, model.hidden, rank.parallelism.tp)
    parts.append(LayerPart(OtherWork.ELEMENTWISE, elementwise_s(tokens, *moved, ops)))
    if ops.tuning == UNTUNED:
        return tuple(parts)
    ratio = _tuned_ratio(tokens, ops.tuning)
    return tuple(LayerPart(part.what, part.time_s * ratio) for part in parts)


def _beside_experts(parts: Sequence[LayerPart], experts_s: FloatArray, tokens: FloatArray) -> list[LayerPart]:
    """Of shared experts counts what is left when the routed ones beside them have ended.

    vllm/model_executor/layers/fused_moe/layer.py, _maybe_setup_shared_experts_stream.
    """
    shared_s = np.zeros_like(tokens)
    for part in parts:
        if part.what in SHARED_EXPERTS:
            shared_s += part.time_s
    left_s = np.maximum(shared_s - experts_s, 0.0)
    shown = np.where(
        tokens <= SHARED_STREAM_TOKENS, np.divide(left_s, shared_s, out=left_s, where=shared_s > 0), 1.0
    )
    return [
        part._replace(time_s=part.time_s * shown) if part.what in SHARED_EXPERTS else part for part in parts
    ]


def _tuned_ratio(tokens: FloatArray, tuning: StepTuning) -> FloatArray:
    """Measured over predicted time of a step, going over from decode steps to prompts where the matmuls do [G]."""
    log2_tokens = np.log2(tokens)
    prompts = share_of_large(log2_tokens)
    ratio = np.asarray(tuning.decode_ratio ** (1.0 - prompts) * tuning.prompt_ratio**prompts)
    if not tuning.log2_tokens:
        return ratio
    return ratio * np.exp(np.interp(log2_tokens, tuning.log2_tokens, tuning.log_ratio))


def _communication_s(rank: Rank, kind: Layer, tokens: FloatArray) -> FloatArray:
    """All-reduces after the mixer and after the feed-forward block [G].

    Experts of data-parallel ranks form one group: every rank's tokens are gathered there and reduced back, which
    moves as much as an all-reduce of all of them.
    """
    parallelism, message_bytes = rank.parallelism, tokens * (rank.model.hidden * ACTIVATION_BYTES)
    group = RankGroup(parallelism.tp, rank.interconnect, rank.engine.version)
    own_s = all_reduce_s(message_bytes, group, rank.ops) + wait_s(parallelism.tp, rank.ops)
    total_s = own_s * ((kind.attention is not None) + (kind.ffn is not None))
    if isinstance(kind.ffn, MoeFfn) and parallelism.dp > 1:
        everyone = group._replace(ranks=parallelism.tp * parallelism.dp)
        everyone_s = all_reduce_s(message_bytes * parallelism.dp, everyone, rank.ops)
        total_s = total_s - own_s + everyone_s + wait_s(everyone.ranks, rank.ops)
    return total_s


def wait_s(ranks: int, ops: GpuOperators) -> float:
    """How long a collective waits for the last of its ranks [s]."""
    return log2(ranks) * ops.tuning.rank_wait_s


def _expert_shape(experts: Experts, rank: Rank) -> MoeShape:
    """The experts as their kernel sees them.

    mxfp4 through Marlin takes as long as int4 of the same size, padded as Marlin wants it
    (vllm/model_executor/layers/quantization/mxfp4.py, create_weights).
    """
    shape = MoeShape(
        experts=experts.experts,
        local_experts=experts.local_experts,
        experts_per_token=experts.experts_per_token,
        inputs=experts.inputs,
        intermediate=experts.intermediate,
        gated=experts.gated,
        dtype=experts.dtype,
        ep=experts.ep,
    )
    group = experts.stored.group_size if experts.stored is not None else None
    if experts.dtype in (WeightDtype.INT4, WeightDtype.AWQ, WeightDtype.GPTQ) and group:
        return shape._replace(weight_bytes=0.5 + 2.0 / group)
    through_marlin = rank.ops.gpu.is_hopper and rank.engine.marlin_mxfp4_on_hopper
    if experts.dtype is WeightDtype.MXFP4 and through_marlin:
        return shape._replace(
            inputs=round_up(experts.inputs, MARLIN_INPUTS),
            intermediate=round_up(experts.intermediate, MARLIN_INTERMEDIATE),
            dtype=WeightDtype.INT4,
            weight_bytes=MXFP4_WEIGHT_BYTES,
        )
    return shape


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
    parts = _kernel_parts(attention, tp, kv_bytes, ops)
    if ops.tuning == UNTUNED:
        return parts
    decode, prompt = ops.tuning.decode_ratio, ops.tuning.prompt_ratio
    return tuple(
        AttentionPart(part.decode.times(decode), part.context.times(prompt), part.scope_tokens)
        for part in parts
    )


def _kernel_parts(
    attention: Attention | None, tp: int, kv_bytes: int, ops: GpuOperators
) -> tuple[AttentionPart, ...]:
    """As the tables have them."""
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
