"""Time of attention kernels: softmax, latent and linear, for decoding and for prompts."""

from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from planner.domain.dtypes import ComputeDtype
from planner.domain.hardware import Gpu
from planner.formulas.arrays import FloatArray
from planner.formulas.operators.coefficients import GpuOperators, p_norm, peak_flop_per_s

ACTIVATION_BYTES = 2.0
LATENT_EXPONENT = 4.0


class _PerHeadDim(Protocol):
    @property
    def head_dim(self) -> int: ...
    @property
    def windowed(self) -> bool: ...


FitT = TypeVar("FitT", bound=_PerHeadDim)


def _nearest(fits: tuple[FitT, ...], head_dim: int, windowed: bool) -> FitT:
    """The fit of the same kind of scope where there is one, then of the nearest head size."""
    return min(fits, key=lambda fit: (fit.windowed is not windowed, abs(fit.head_dim - head_dim)))


class DecodeAttention(NamedTuple):
    """Decode time of one layer: constant_s + batch (per_sequence_s + context_tokens per_context_token_s)."""

    constant_s: float
    per_sequence_s: float
    per_context_token_s: float

    def time_s(self, batch: FloatArray, context_tokens: FloatArray) -> FloatArray:
        """Seconds for `batch` sequences [G] of `context_tokens` each [G] (clip to the window where there is one)."""
        return self.constant_s + batch * (self.per_sequence_s + context_tokens * self.per_context_token_s)

    def times(self, factor: float) -> "DecodeAttention":
        """A kernel that takes `factor` as long."""
        return DecodeAttention(*(factor * value for value in self))


class ContextAttention(NamedTuple):
    """Prompt time of one layer, linear in query-key pairs and in tokens read or written."""

    constant_s: float
    per_pair_s: float
    per_query_token_s: float
    per_past_token_s: float
    window_tokens: int | None

    def times(self, factor: float) -> "ContextAttention":
        """A kernel that takes `factor` as long."""
        return ContextAttention(
            factor * self.constant_s,
            factor * self.per_pair_s,
            factor * self.per_query_token_s,
            factor * self.per_past_token_s,
            self.window_tokens,
        )

    def pairs(self, query_tokens: FloatArray, past_tokens: FloatArray) -> FloatArray:
        """Query-key pairs [G]: q x past + q^2 / 2, each query seeing at most its window."""
        if self.window_tokens is None:
            return query_tokens * (past_tokens + 0.5 * query_tokens)
        growing = np.minimum(np.maximum(self.window_tokens - past_tokens, 0.0), query_tokens)
        return growing * (past_tokens + 0.5 * growing) + (query_tokens - growing) * self.window_tokens

    def time_s(self, query_tokens: FloatArray, past_tokens: FloatArray) -> FloatArray:
        """Seconds for one sequence's chunk of `query_tokens` after `past_tokens` [G]; 0 where there is no query."""
        read = past_tokens if self.window_tokens is None else np.minimum(past_tokens, self.window_tokens)
        work_s = (
            self.pairs(query_tokens, past_tokens) * self.per_pair_s
            + query_tokens * self.per_query_token_s
            + read * self.per_past_token_s
            + self.constant_s
        )
        return np.where(query_tokens > 0, work_s, 0.0)


class AttentionShape(NamedTuple):
    """Softmax attention of one layer as one rank holds it."""

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    kv_bytes: int
    """Of one cached value: 2 or 1."""
    window_tokens: int | None = None


def decode_attention(shape: AttentionShape, ops: GpuOperators) -> DecodeAttention:
    """Decode time of one layer: KV bytes / (BW e) + c + batch (kv_heads tau_kv + heads tau_q)."""
    windowed = shape.window_tokens is not None
    fit = _nearest(ops.coefficients.decode_attention[shape.kv_bytes], shape.head_dim, windowed)
    token_bytes = shape.kv_heads * (shape.head_dim + shape.v_head_dim) * shape.kv_bytes
    return DecodeAttention(
        constant_s=fit.constant_s,
        per_sequence_s=shape.kv_heads * fit.per_kv_head_s + shape.heads * fit.per_query_head_s,
        per_context_token_s=token_bytes / (ops.gpu.memory_bandwidth_bytes_per_s * fit.byte_efficiency),
    )


def context_attention(shape: AttentionShape, ops: GpuOperators) -> ContextAttention:
    """Prompt time of one layer: F / (P e_f) + B / (BW e_b) + keys tau + c, F = 2 pairs x heads (head_dim + v_dim).

    Computed in 16 bit whatever the cache holds. B is Q, K, V and the output of the chunk, and the past's K and V;
    keys are those of the sequence, or of the window.
    """
    windowed = shape.window_tokens is not None
    fit = _nearest(ops.coefficients.context_attention[shape.kv_bytes], shape.head_dim, windowed)
    flop_per_s = peak_flop_per_s(ops.gpu, ComputeDtype.BF16) * fit.flop_efficiency
    bytes_per_s = ops.gpu.memory_bandwidth_bytes_per_s * fit.byte_efficiency
    width = shape.head_dim + shape.v_head_dim
    kv_token_bytes = shape.kv_heads * width * shape.kv_bytes
    walk_s = 0.0 if windowed else fit.per_key_s
    return ContextAttention(
        constant_s=fit.constant_s + (shape.window_tokens or 0) * (fit.per_key_s - walk_s),
        per_pair_s=2.0 * shape.heads * width / flop_per_s * ops.compute_slowdown,
        per_query_token_s=(shape.heads * width * ACTIVATION_BYTES + kv_token_bytes) / bytes_per_s + walk_s,
        per_past_token_s=kv_token_bytes / bytes_per_s + walk_s,
        window_tokens=shape.window_tokens,
    )


class LatentShape(NamedTuple):
    """Multi-head latent attention of one layer as one rank holds it."""

    heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    kv_bytes: int

    @property
    def latent(self) -> int:
        """Width of what is cached for one token: compressed KV and rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim


class LatentWork(NamedTuple):
    """What one token costs in latent attention at the datasheet's rates [s]."""

    cached_byte_s: float
    """Reading its latent vector, once for all heads."""
    cached_flop_s: float
    """Scores and values of every head in the latent space."""
    expand_flop_s: float
    """kv_b projection of its latent vector to keys and values of every head."""
    expand_byte_s: float
    """Writing and reading those keys and values."""
    pair_flop_s: float
    """One query against one expanded key, all heads."""


def latent_work(shape: LatentShape, gpu: Gpu) -> LatentWork:
    """Costs of one token in latent attention at the datasheet's rates."""
    flop_per_s = peak_flop_per_s(gpu, ComputeDtype.BF16)
    bytes_per_s = gpu.memory_bandwidth_bytes_per_s
    key = shape.qk_nope_head_dim + shape.qk_rope_head_dim
    expanded = shape.heads * (key + shape.v_head_dim)
    expand_flop = 2.0 * shape.kv_lora_rank * shape.heads * (shape.qk_nope_head_dim + shape.v_head_dim)
    return LatentWork(
        cached_byte_s=shape.latent * shape.kv_bytes / bytes_per_s,
        cached_flop_s=2.0 * shape.heads * (shape.latent + shape.kv_lora_rank) / flop_per_s,
        expand_flop_s=expand_flop / flop_per_s,
        expand_byte_s=2.0 * expanded * ACTIVATION_BYTES / bytes_per_s,
        pair_flop_s=2.0 * expanded / flop_per_s,
    )


def latent_cached_token_s(byte_s: FloatArray | float, flop_s: FloatArray | float) -> FloatArray:
    """A cached token's cost: the longer of its bytes and its FLOP, rounded off where they meet."""
    return p_norm(np.asarray(byte_s), np.asarray(flop_s), LATENT_EXPONENT)


def mla_decode(shape: LatentShape, ops: GpuOperators) -> DecodeAttention:
    """Decode time of one MLA layer without its projections: two absorbed batched matmuls and the latent cache.

    A context token costs the longer of its bytes (read once, whatever the heads) and 2 heads (latent + rank) FLOP.
    """
    fit = ops.coefficients.mla
    bytes_per_s = ops.gpu.memory_bandwidth_bytes_per_s
    absorbed = shape.heads * shape.kv_lora_rank * (shape.qk_nope_head_dim + shape.v_head_dim)
    work = latent_work(shape, ops.gpu)
    cached_s = latent_cached_token_s(
        work.cached_byte_s / fit.decode_byte_efficiency,
        work.cached_flop_s / fit.decode_flop_efficiency,
    )
    return DecodeAttention(
        constant_s=(
            fit.decode_constant_s
            + 2.0 * fit.bmm_constant_s
            + absorbed * ACTIVATION_BYTES / (bytes_per_s * fit.bmm_byte_efficiency)
        ),
        per_sequence_s=work.expand_flop_s / fit.bmm_flop_efficiency,
        per_context_token_s=float(cached_s),
    )


def mla_context(shape: LatentShape, ops: GpuOperators) -> ContextAttention:
    """Prompt time of one MLA layer without its projections, the kv_b expansion of new and past tokens included.

    vLLM expands the latent cache through kv_b_proj and attends in the full head size; chunks expand their past again.
    """
    fit = ops.coefficients.mla
    work = latent_work(shape, ops.gpu)
    flop_efficiency = fit.context_flop_efficiency / ops.compute_slowdown
    expand_s = work.expand_flop_s / flop_efficiency + work.expand_byte_s / fit.context_byte_efficiency
    return ContextAttention(
        constant_s=fit.context_constant_s,
        per_pair_s=work.pair_flop_s / flop_efficiency,
        per_query_token_s=expand_s,
        per_past_token_s=expand_s,
        window_tokens=None,
    )


INDEX_SCALE_BYTES = 4.0
INDEX_VALUE_BYTES = 1.0


class IndexerShape(NamedTuple):
    """The scorer of sparse attention, whole on every rank: fp8 keys of one head, many query heads."""

    heads: int
    head_dim: int


def indexer_decode(shape: IndexerShape, ops: GpuOperators) -> DecodeAttention:
    """Decode time of one indexer: every earlier token's key and scale is read, at the latent cache's efficiency.

    Assumed from the latent kernel; its own table times whole modules.
    """
    token_bytes = shape.head_dim * INDEX_VALUE_BYTES + INDEX_SCALE_BYTES
    bytes_per_s = ops.gpu.memory_bandwidth_bytes_per_s * ops.coefficients.mla.decode_byte_efficiency
    return DecodeAttention(constant_s=0.0, per_sequence_s=0.0, per_context_token_s=token_bytes / bytes_per_s)


def indexer_context(shape: IndexerShape, ops: GpuOperators) -> ContextAttention:
    """Prompt time of one indexer: 2 heads x head_dim FLOP a query-key pair, in fp8 where the GPU has it."""
    flop_per_s = peak_flop_per_s(ops.gpu, ComputeDtype.FP8) * ops.coefficients.mla.context_flop_efficiency
    return ContextAttention(
        constant_s=0.0,
        per_pair_s=2.0 * shape.heads * shape.head_dim / flop_per_s * ops.compute_slowdown,
        per_query_token_s=0.0,
        per_past_token_s=0.0,
        window_tokens=None,
    )


class LinearShape(NamedTuple):
    """A gated delta net or Mamba mixer of one layer as one rank holds it."""

    heads: int
    """Heads that carry a state (value heads)."""
    key_dim: int
    """Rows of one head's state: key head size, or Mamba's state size."""
    value_dim: int
    """Columns of one head's state."""
    conv_channels: int
    conv_kernel: int
    state_bytes: int
    """Of one state value."""


def linear_state_bytes(shape: LinearShape) -> float:
    """State and convolution window of one sequence [bytes]."""
    state_bytes = shape.heads * shape.key_dim * shape.value_dim * shape.state_bytes
    return float(state_bytes + shape.conv_channels * shape.conv_kernel * ACTIVATION_BYTES)


def linear_token_bytes(shape: LinearShape) -> float:
    """Inputs before and after the convolution, and outputs, of one prompt token [bytes]."""
    return ACTIVATION_BYTES * (3 * shape.conv_channels + shape.heads * shape.value_dim)


def linear_attention_decode(shape: LinearShape, ops: GpuOperators) -> DecodeAttention:
    """Decode time of one linear layer without its projections: every state read and written once."""
    fit = ops.coefficients.linear_attention
    bytes_per_s = ops.gpu.memory_bandwidth_bytes_per_s * fit.decode_byte_efficiency
    return DecodeAttention(
        constant_s=fit.decode_constant_s,
        per_sequence_s=2.0 * linear_state_bytes(shape) / bytes_per_s,
        per_context_token_s=0.0,
    )


def linear_attention_context(shape: LinearShape, ops: GpuOperators) -> ContextAttention:
    """Prompt time of one linear layer without its projections: a chunked scan, linear in tokens."""
    fit = ops.coefficients.linear_attention
    bytes_per_s = ops.gpu.memory_bandwidth_bytes_per_s * fit.context_byte_efficiency
    return ContextAttention(
        constant_s=fit.context_constant_s,
        per_pair_s=0.0,
        per_query_token_s=linear_token_bytes(shape) / bytes_per_s + fit.context_per_token_s,
        per_past_token_s=0.0,
        window_tokens=None,
    )
