"""Time of one engine iteration, as curves and linear coefficients that evaluate over whole arrays of layouts.

    t_step = layers x (GEMMs(m) + MoE(m) + 2 all-reduce(m) + element-wise(m) + attention) + head(rows sampled)

with m the tokens scheduled. What depends on m alone is compiled once per layout on a fixed grid of m; attention is
linear in sequences, cached tokens and query-key pairs, so a handful of coefficients describe it.

Host time per step is not in here: it hides behind the GPU where scheduling is asynchronous, and only end-to-end
runs can show the rest.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KV_BYTES, KvDtype, WeightDtype
from planner.domain.hardware import Interconnect
from planner.domain.model import (
    Attention,
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
    MoeFfn,
)
from planner.formulas.arrays import FloatArray, IntArray
from planner.formulas.engine_defaults import EngineRules, engine_rules
from planner.formulas.gemms import head_gemm, layer_gemms
from planner.formulas.kv_cache import resolve_kv_dtype
from planner.formulas.operators import (
    AttentionShape,
    ContextAttention,
    DecodeAttention,
    GpuOperators,
    LatentShape,
    LinearShape,
    MoeShape,
    all_reduce_s,
    context_attention,
    decode_attention,
    elementwise_s,
    gemm_s,
    linear_attention_context,
    linear_attention_decode,
    mla_context,
    mla_decode,
    moe_s,
    send_recv_s,
)

GRID_TOKENS: FloatArray = np.array(
    [
        *(1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768),
        *(1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 65536),
    ],
    dtype=np.float64,
)
SCOPES = 3
"""Attention scopes told apart in one model: unlimited and up to two windows."""
UNLIMITED_TOKENS = 1e12
ACTIVATION_BYTES = 2
HOPPER = "9."
MIXER_KERNELS = 4
"""Two norms with their residual sums, rotary positions, cache write."""


class Cluster(NamedTuple):
    """The wires one replica runs over."""

    interconnect: Interconnect
    network_bytes_per_s: float
    """Between instances, one way."""
    stages_per_instance: int = 1
    """Pipeline stages that fit one instance; further hops cross the network."""


class StepModel(NamedTuple):
    """Iteration time of one layout."""

    body_s: FloatArray
    """All layers without attention, and pipeline hops, at GRID_TOKENS scheduled tokens [G]."""
    head_s: FloatArray
    """Logits of GRID_TOKENS sampled rows [G]."""
    decode_constant_s: float
    decode_per_sequence_s: float
    scope_tokens: FloatArray
    """Window of each attention scope [SCOPES]."""
    decode_per_token_s: FloatArray
    """Per sequence and cached token in scope [SCOPES]."""
    context_constant_s: float
    context_per_token_s: float
    context_per_pair_s: FloatArray
    """Per query-key pair in scope [SCOPES]."""
    context_per_past_s: FloatArray
    """Per earlier token in scope that a chunk of a prompt reads again [SCOPES]."""
    pp: int


class StepTable(NamedTuple):
    """Many step models stacked; L layouts, G grid points, S scopes."""

    body_s: FloatArray
    head_s: FloatArray
    decode_constant_s: FloatArray
    decode_per_sequence_s: FloatArray
    scope_tokens: FloatArray
    decode_per_token_s: FloatArray
    context_constant_s: FloatArray
    context_per_token_s: FloatArray
    context_per_pair_s: FloatArray
    context_per_past_s: FloatArray
    pp: FloatArray


class PromptLoad(Protocol):
    """What a prompt chunk's cost depends on, arrays of one shape."""

    @property
    def layout(self) -> IntArray: ...
    @property
    def input_tokens(self) -> FloatArray: ...
    @property
    def cached_tokens(self) -> FloatArray: ...


def stack(models: Iterable[StepModel]) -> StepTable:
    """Step models as one table of arrays."""
    return StepTable(*(np.array(column, dtype=np.float64) for column in zip(*models, strict=True)))


def compile_step(
    model: Model,
    parallelism: Parallelism,
    kv_dtype: KvDtype,
    ops: GpuOperators,
    cluster: Cluster,
    *,
    engine_version: str = "",
) -> StepModel:
    """The iteration time of a model on one replica's GPUs; pipeline stages are summed.

    Raises `InputError` where `engine_version` is not a vLLM version.
    """
    tokens = GRID_TOKENS
    body_s = np.zeros_like(tokens)
    kv_bytes = KV_BYTES[resolve_kv_dtype(model, kv_dtype, engine_version)]
    kernels = engine_rules(engine_version)
    scopes: dict[float, list[float]] = {UNLIMITED_TOKENS: [0.0, 0.0, 0.0]}
    decode_constant_s = decode_per_sequence_s = context_constant_s = context_per_token_s = 0.0
    message_s = all_reduce_s(
        tokens * (model.hidden * ACTIVATION_BYTES), parallelism.tp, cluster.interconnect, ops
    )
    for index, kind in enumerate(model.layer_kinds):
        count = model.layer_pattern.count(index)
        body_s += count * (
            _layer_body_s(model, index, parallelism, ops, kernels) + _reductions(kind) * message_s
        )
        if kind.attention is None:
            continue
        decode, context, scope = _attention(kind.attention, parallelism, kv_bytes, ops)
        decode_constant_s += count * decode.constant_s
        decode_per_sequence_s += count * decode.per_sequence_s
        context_constant_s += count * context.constant_s
        context_per_token_s += count * context.per_query_token_s
        sums = scopes.setdefault(_free_scope(scopes, scope), [0.0, 0.0, 0.0])
        sums[0] += count * decode.per_context_token_s
        sums[1] += count * context.per_pair_s
        sums[2] += count * context.per_past_token_s
    body_s += _hops_s(model, parallelism, ops, cluster)
    head = head_gemm(model, parallelism)
    padded = list(scopes.items()) + [(UNLIMITED_TOKENS, [0.0, 0.0, 0.0])] * (SCOPES - len(scopes))
    return StepModel(
        body_s=body_s,
        head_s=gemm_s(tokens, head.n, head.k, head.dtype, ops),
        decode_constant_s=decode_constant_s,
        decode_per_sequence_s=decode_per_sequence_s,
        scope_tokens=np.array([scope for scope, _ in padded]),
        decode_per_token_s=np.array([sums[0] for _, sums in padded]),
        context_constant_s=context_constant_s,
        context_per_token_s=context_per_token_s,
        context_per_pair_s=np.array([sums[1] for _, sums in padded]),
        context_per_past_s=np.array([sums[2] for _, sums in padded]),
        pp=parallelism.pp,
    )


def _free_scope(scopes: dict[float, list[float]], scope: float) -> float:
    """The scope itself while there is room to tell it apart, else the nearest known one."""
    if scope in scopes or len(scopes) < SCOPES:
        return scope
    return min(scopes, key=lambda known: abs(np.log(known / scope)))


def _layer_body_s(
    model: Model, kind_index: int, parallelism: Parallelism, ops: GpuOperators, kernels: EngineRules
) -> FloatArray:
    """One layer without attention and communication at GRID_TOKENS tokens [G]."""
    tokens = GRID_TOKENS
    kind = model.layer_kinds[kind_index]
    work = layer_gemms(model, kind_index, parallelism)
    total_s = np.zeros_like(tokens)
    for gemm in work.gemms:
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
            dtype=_expert_kernel(e.dtype, ops, kernels),
            ep=e.ep,
        )
        total_s = total_s + moe_s(tokens, shape, ops)
    return total_s + elementwise_s(tokens, *_elementwise(kind, model.hidden, parallelism.tp), ops)


def _reductions(kind: Layer) -> int:
    """All-reduces of one layer: one after the mixer, one after the feed-forward block."""
    return (kind.attention is not None) + (kind.ffn is not None)


def _expert_kernel(dtype: WeightDtype, ops: GpuOperators, kernels: EngineRules) -> WeightDtype:
    """The format whose kernel times stand for these experts; Marlin's 4-bit kernels take equally long."""
    on_hopper = ops.gpu.compute_capability.startswith(HOPPER)
    if dtype is WeightDtype.MXFP4 and on_hopper and kernels.marlin_mxfp4_on_hopper:
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


def _attention(
    attention: Attention, parallelism: Parallelism, kv_bytes: int, ops: GpuOperators
) -> tuple[DecodeAttention, ContextAttention, float]:
    """One layer's attention on one rank, and how far back its queries see [tokens]."""
    tp = parallelism.tp
    if isinstance(attention, LatentAttention):
        latent = LatentShape(
            heads=max(1, attention.heads // tp),
            kv_lora_rank=attention.kv_lora_rank,
            qk_nope_head_dim=attention.qk_nope_head_dim,
            qk_rope_head_dim=attention.qk_rope_head_dim,
            v_head_dim=attention.v_head_dim,
            kv_bytes=kv_bytes,
        )
        return (
            mla_decode(latent, ops),
            mla_context(latent, ops),
            float(attention.indexer_topk or UNLIMITED_TOKENS),
        )
    if isinstance(attention, LinearAttention | MambaMixer):
        linear = _linear_shape(attention, tp)
        return linear_attention_decode(linear, ops), linear_attention_context(linear, ops), UNLIMITED_TOKENS
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
    return decode_attention(shape, ops), context_attention(shape, ops), scope


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


def _hops_s(model: Model, parallelism: Parallelism, ops: GpuOperators, cluster: Cluster) -> FloatArray:
    """Handing activations from stage to stage, all hops of one iteration [G]."""
    hops = parallelism.pp - 1
    if hops == 0:
        return np.zeros_like(GRID_TOKENS)
    message_bytes = GRID_TOKENS * (2.0 * model.hidden * ACTIVATION_BYTES)
    crossing = hops // max(1, cluster.stages_per_instance)
    total_s = (hops - crossing) * send_recv_s(message_bytes, ops)
    if crossing:
        total_s = total_s + crossing * send_recv_s(message_bytes, ops, cluster.network_bytes_per_s)
    return total_s


def _on_grid(curves_s: FloatArray, layout: IntArray, tokens: FloatArray) -> FloatArray:
    """Each layout's curve [L, G] at `tokens` [any shape], linear between grid points and beyond the last."""
    right = np.clip(np.searchsorted(GRID_TOKENS, tokens), 1, GRID_TOKENS.size - 1)
    share = (np.maximum(tokens, GRID_TOKENS[0]) - GRID_TOKENS[right - 1]) / (
        GRID_TOKENS[right] - GRID_TOKENS[right - 1]
    )
    low = curves_s[layout, right - 1]
    return np.asarray(low + share * (curves_s[layout, right] - low), dtype=np.float64)


def decode_step_s(
    table: StepTable, layout: IntArray, sequences: FloatArray, context_tokens: FloatArray
) -> FloatArray:
    """Time of an iteration in which `sequences` each decode one token at a mean context [s, any shape]."""
    return (
        _on_grid(table.body_s, layout, sequences)
        + _on_grid(table.head_s, layout, sequences)
        + _decode_attention_s(table, layout, sequences, context_tokens)
    )


def _decode_attention_s(
    table: StepTable, layout: IntArray, sequences: FloatArray, context_tokens: FloatArray
) -> FloatArray:
    cached_s = table.decode_per_sequence_s[layout]
    for scope in range(SCOPES):
        in_scope = np.minimum(context_tokens, table.scope_tokens[layout, scope])
        cached_s = cached_s + in_scope * table.decode_per_token_s[layout, scope]
    return np.asarray(table.decode_constant_s[layout] + sequences * cached_s, dtype=np.float64)


def mixed_step_s(
    table: StepTable,
    load: PromptLoad,
    sequences: FloatArray,
    context_tokens: FloatArray,
    prompt_tokens: FloatArray,
) -> FloatArray:
    """Time of an iteration with `sequences` decoding and `prompt_tokens` of prompts [s, any shape].

    A prompt token attends to the cached prefix and, on average, to half of its prompt; every chunk reads again what
    came before it.
    """
    layout = load.layout
    chunk = np.minimum(prompt_tokens, load.input_tokens)
    chunks = prompt_tokens / np.maximum(chunk, 1e-12)
    past = load.cached_tokens + (load.input_tokens - chunk) / 2.0
    pairs_s, past_s = table.context_per_token_s[layout], np.zeros_like(past)
    for scope in range(SCOPES):
        scope_tokens = table.scope_tokens[layout, scope]
        pairs_s = pairs_s + _mean_seen_tokens(load, scope_tokens) * table.context_per_pair_s[layout, scope]
        past_s = past_s + np.minimum(past, scope_tokens) * table.context_per_past_s[layout, scope]
    return np.asarray(
        _on_grid(table.body_s, layout, sequences + prompt_tokens)
        + _on_grid(table.head_s, layout, sequences + prompt_tokens / load.input_tokens)
        + _decode_attention_s(table, layout, sequences, context_tokens)
        + table.context_constant_s[layout]
        + prompt_tokens * pairs_s
        + chunks * past_s,
        dtype=np.float64,
    )


def _mean_seen_tokens(load: PromptLoad, scope_tokens: FloatArray) -> FloatArray:
    """Keys a prompt token attends to, averaged over positions [cached, cached + input] and cut at the scope."""
    start = load.cached_tokens
    end = start + load.input_tokens
    growing = np.clip(scope_tokens, start, end)
    area = (growing**2 - start**2) / 2.0 + (end - growing) * scope_tokens
    return np.asarray(np.where(scope_tokens <= start, scope_tokens, area / load.input_tokens))
