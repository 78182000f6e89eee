"""Time of one engine iteration, as curves and linear coefficients that evaluate over whole arrays of layouts.

    t_step = layers x (GEMMs(m) + MoE(m) + 2 all-reduce(m) + element-wise(m) + attention) + head(rows sampled)

with m the tokens scheduled. What depends on m alone is compiled once per layout on a fixed grid of m; attention is
linear in sequences, cached tokens and query-key pairs, so a handful of coefficients describe it.

Host time per step is not in these: it hides behind the GPU where scheduling is asynchronous, and only end-to-end
runs can show the rest. What launching the kernels takes at least stands beside them (`launches.py`).
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KV_BYTES, KvDtype
from planner.domain.hardware import Interconnect
from planner.domain.model import Model
from planner.formulas.arrays import FloatArray, IntArray
from planner.formulas.engine_defaults import engine_rules
from planner.formulas.gemms import head_gemm
from planner.formulas.kv_cache import resolve_kv_dtype
from planner.formulas.launches import LaunchTime, launch_time
from planner.formulas.layer_time import (
    ACTIVATION_BYTES,
    UNLIMITED_TOKENS,
    Rank,
    attention_parts,
    layer_body_s,
)
from planner.formulas.operators import GpuOperators, gemm_s, send_recv_s

GRID_TOKENS: FloatArray = np.array(
    [
        *(1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768),
        *(1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 65536),
    ],
    dtype=np.float64,
)
SCOPES = 3
"""Attention scopes told apart in one model: unlimited and up to two windows."""


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
    launch_s: FloatArray
    """Host time of launches, as `LaunchTime` has it [4]."""
    pp: int

    @property
    def launches(self) -> LaunchTime:
        """What the host needs for launches alone."""
        return LaunchTime(*self.launch_s.tolist())


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
    launch_s: FloatArray
    pp: FloatArray

    def launches(self, layout: IntArray) -> LaunchTime:
        """What the host needs for launches alone [shape of `layout`]."""
        return LaunchTime(*np.moveaxis(self.launch_s[layout], -1, 0))


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
    scopes: dict[float, list[float]] = {UNLIMITED_TOKENS: [0.0, 0.0, 0.0]}
    decode_constant_s = decode_per_sequence_s = context_constant_s = context_per_token_s = 0.0
    rules = engine_rules(engine_version)
    rank = Rank(model, parallelism, ops, cluster.interconnect, rules)
    for index, kind in enumerate(model.layer_kinds):
        count = model.layer_pattern.count(index)
        body_s += count * layer_body_s(rank, index, tokens)
        for decode, context, scope in attention_parts(kind.attention, parallelism.tp, kv_bytes, ops):
            decode_constant_s += count * decode.constant_s
            decode_per_sequence_s += count * decode.per_sequence_s
            context_constant_s += count * context.constant_s
            context_per_token_s += count * context.per_query_token_s
            sums = scopes.setdefault(_free_scope(scopes, scope), [0.0, 0.0, 0.0])
            sums[0] += count * decode.per_context_token_s
            sums[1] += count * context.per_pair_s
            sums[2] += count * context.per_past_token_s
    body_s += hops_s(model, parallelism, ops, cluster)
    head = head_gemm(model, parallelism)
    head_s = gemm_s(tokens, head.n, head.k, head.dtype, ops) * ops.tuning.decode_ratio
    padded = list(scopes.items()) + [(UNLIMITED_TOKENS, [0.0, 0.0, 0.0])] * (SCOPES - len(scopes))
    return StepModel(
        body_s=body_s,
        head_s=head_s + tokens * (model.vocab * ops.coefficients.elementwise.logit_s),
        decode_constant_s=decode_constant_s,
        decode_per_sequence_s=decode_per_sequence_s,
        scope_tokens=np.array([scope for scope, _ in padded]),
        decode_per_token_s=np.array([sums[0] for _, sums in padded]),
        context_constant_s=context_constant_s,
        context_per_token_s=context_per_token_s,
        context_per_pair_s=np.array([sums[1] for _, sums in padded]),
        context_per_past_s=np.array([sums[2] for _, sums in padded]),
        launch_s=np.array(launch_time(model, parallelism, rules.version))
        * ops.coefficients.elementwise.dispatch_ratio,
        pp=parallelism.pp,
    )


def _free_scope(scopes: dict[float, list[float]], scope: float) -> float:
    """The scope itself while there is room to tell it apart, else the nearest known one."""
    if scope in scopes or len(scopes) < SCOPES:
        return scope
    return min(scopes, key=lambda known: abs(np.log(known / scope)))


def hops_s(model: Model, parallelism: Parallelism, ops: GpuOperators, cluster: Cluster) -> FloatArray:
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
