"""KV cache as vLLM lays it out: pages by layer type, groups that share one block pool, tokens that fit.

Follows vllm/v1/kv_cache_interface.py and vllm/v1/core/kv_cache_utils.py of vLLM 0.32.0; what differed in
older releases is selected by `EngineRules`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import NamedTuple

import numpy as np

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KV_BYTES, KvDtype
from planner.domain.model import LatentAttention, LinearAttention, MambaMixer, Model, SoftmaxAttention
from planner.formulas.arrays import FloatArray
from planner.formulas.engine_defaults import DEFAULT_BLOCK_SIZE_TOKENS, EngineRules, engine_rules
from planner.formulas.weights import pipeline_layers

SCALE_GROUP = 128
"""Values of an fp8 latent or indexer vector that share one fp32 scale (DeepSeek V3.2)."""
SCALE_BYTES = 4
CONV_STATE_BYTES_PER_VALUE = 2
MLA_HYBRID_ALIGNMENT_TOKENS = 128
NULL_BLOCKS = 1
"""vLLM's block pool keeps one block as a placeholder; it is counted in `num_gpu_blocks` and holds no token."""


class CacheKind(StrEnum):
    """What a layer keeps of a sequence."""

    FULL = "full"
    SLIDING = "sliding_window"
    CHUNKED = "chunked_local"
    STATE = "state"
    """A recurrent state of constant size (Mamba, gated delta net)."""


class KvPart(NamedTuple):
    """Layers of one rank that keep the same of a sequence."""

    kind: CacheKind
    layers: int
    bytes_per_token: int
    """All of them together, for every token within the window [bytes]; 0 for a state."""
    state_bytes: int
    """All of them together, whatever the length [bytes]; 0 where the cache grows."""
    window_tokens: int | None = None
    """Tokens a layer can still see: sliding window or chunk; None where it sees all."""


class LayerCache(NamedTuple):
    """What one layer keeps of a sequence on one rank, before vLLM groups layers."""

    kind: CacheKind
    bytes_per_token: int = 0
    state_bytes: int = 0
    window_tokens: int | None = None
    latent: bool = False
    """MLA: read in whole token rows."""


class KvGroup(NamedTuple):
    """Layers that share a block table; every group draws its blocks from one pool."""

    kind: CacheKind
    layers: int
    """Of all pipeline ranks."""
    block_tokens: int
    window_tokens: int | None
    state_blocks: int
    """Blocks a sequence holds whatever its length; 0 unless the layers keep a state."""

    def held_blocks(self, context_tokens: FloatArray) -> FloatArray:
        """Blocks that sequences of these lengths hold once out-of-window blocks are freed (same shape)."""
        if self.kind is CacheKind.STATE:
            return np.full_like(context_tokens, self.state_blocks)
        blocks = np.ceil(context_tokens / self.block_tokens)
        if self.window_tokens is None:
            return blocks
        return np.minimum(blocks, self._window_blocks(self.window_tokens))

    def reserved_blocks(self, max_model_len: int, in_flight_tokens: int) -> int:
        """Blocks the engine sets aside for one request of `max_model_len` tokens.

        A windowed layer frees blocks only after a step, so it also needs room for the tokens in flight.
        """
        if self.kind is CacheKind.STATE:
            return self.state_blocks
        if self.window_tokens is None:
            return ceil(max_model_len / self.block_tokens)
        seen = self.window_tokens - 1 if self.kind is CacheKind.SLIDING else self.window_tokens
        return self._window_blocks_of(min(seen + in_flight_tokens, max_model_len))

    def _window_blocks(self, window_tokens: int) -> int:
        seen = window_tokens - 1 if self.kind is CacheKind.SLIDING else window_tokens
        return self._window_blocks_of(seen)

    def _window_blocks_of(self, tokens: int) -> int:
        straddles = 1 if self.kind is CacheKind.SLIDING else 0
        return ceil(tokens / self.block_tokens) + straddles


@dataclass(frozen=True, slots=True)
class KvLayout:
    """How one replica's KV cache is paged on its fullest rank; made once per model, layout and KV dtype.

    `kv_layout` makes it; `block_bytes` is what one block id takes on that rank, over all layers of the
    largest group.
    """

    groups: tuple[KvGroup, ...]
    block_bytes: int
    block_size: int
    """Tokens of a full-attention block."""
    bytes_per_token: int
    """Growth of one sequence by one token within every window, on the fullest rank [bytes]."""
    batches_in_flight: int
    logs_concurrency_tokens: bool

    def blocks(self, available_bytes: float) -> int:
        """Blocks that vLLM allocates in so much memory, its null block among them; 0 where none fits."""
        return max(0, int(available_bytes // self.block_bytes))

    def usable_bytes(self, available_bytes: float) -> int:
        """Bytes of blocks that can hold tokens: all but the null block [bytes]."""
        return max(0, self.blocks(available_bytes) - NULL_BLOCKS) * self.block_bytes

    def max_concurrency(self, available_bytes: float, max_model_len: int, max_num_batched_tokens: int) -> float:
        """Requests of `max_model_len` tokens that fit at once, as vLLM logs it."""
        return self.blocks(available_bytes) / self._reserved_blocks(max_model_len, max_num_batched_tokens)

    def tokens(self, available_bytes: float, max_model_len: int, max_num_batched_tokens: int) -> int:
        """KV cache size in tokens as vLLM logs it.

        Concurrency x `max_model_len`, which for a hybrid is more than blocks x block size; before
        vLLM 0.21 blocks // groups x block size.
        """
        if self.logs_concurrency_tokens:
            return int(
                self.max_concurrency(available_bytes, max_model_len, max_num_batched_tokens) * max_model_len
            )
        return self.blocks(available_bytes) // len(self.groups) * self.block_size

    def reserved_bytes(self, max_model_len: int, max_num_batched_tokens: int) -> int:
        """KV memory the engine demands before it starts: one request of `max_model_len` tokens [bytes]."""
        return self._reserved_blocks(max_model_len, max_num_batched_tokens) * self.block_bytes

    def request_bytes(self, context_tokens: FloatArray | float) -> FloatArray:
        """KV memory that sequences of these lengths occupy, windows bounded [bytes] (same shape)."""
        context = np.asarray(context_tokens, dtype=np.float64)
        blocks = np.zeros_like(context)
        for group in self.groups:
            blocks += group.held_blocks(context)
        return blocks * self.block_bytes

    def _reserved_blocks(self, max_model_len: int, max_num_batched_tokens: int) -> int:
        in_flight = self.batches_in_flight * max_num_batched_tokens
        return sum(group.reserved_blocks(max_model_len, in_flight) for group in self.groups)


def resolve_kv_dtype(model: Model, kv_dtype: KvDtype) -> KvDtype:
    """The dtype `auto` stands for: fp8 where the checkpoint asks for it, else 16 bits as the model computes."""
    if kv_dtype is not KvDtype.AUTO:
        return kv_dtype
    if model.quantization is not None and model.quantization.kv_fp8:
        return KvDtype.FP8
    return KvDtype.FP16 if model.activation_dtype == "fp16" else KvDtype.BF16


def kv_parts(
    model: Model, parallelism: Parallelism, kv_dtype: KvDtype = KvDtype.AUTO, pp_rank: int | None = None
) -> tuple[KvPart, ...]:
    """What one rank keeps of a sequence, by layer type; without `pp_rank`, on the rank that keeps most."""
    ranks = range(parallelism.pp) if pp_rank is None else (pp_rank,)
    bytes_per_value = KV_BYTES[resolve_kv_dtype(model, kv_dtype)]
    parts = (_rank_parts(model, parallelism, bytes_per_value, rank) for rank in ranks)
    return max(parts, key=lambda rank: (_total_bytes_per_token(rank), sum(part.state_bytes for part in rank)))


def kv_bytes_per_token(
    model: Model, parallelism: Parallelism, kv_dtype: KvDtype = KvDtype.AUTO, pp_rank: int | None = None
) -> int:
    """Growth of one sequence by one token within every window on one rank [bytes].

    `2 x kv_heads/tp x head_dim x bytes` a layer; `(kv_lora_rank + qk_rope_head_dim) x bytes` with MLA, on
    every TP rank. Llama-3.1-8B in bf16: 32 layers x 2 x 8 x 128 x 2 = 131,072.
    """
    return _total_bytes_per_token(kv_parts(model, parallelism, kv_dtype, pp_rank))


def kv_layout(
    model: Model,
    parallelism: Parallelism,
    kv_dtype: KvDtype = KvDtype.AUTO,
    *,
    block_size: int = DEFAULT_BLOCK_SIZE_TOKENS,
    engine_version: str = "",
    async_scheduling: bool = True,
) -> KvLayout:
    """How vLLM pages this model's KV cache: page sizes made equal, layers put into groups of one size."""
    rules = engine_rules(engine_version)
    bytes_per_value = KV_BYTES[resolve_kv_dtype(model, kv_dtype)]
    layers = [list(_layer_caches(model, index, parallelism.tp, bytes_per_value)) for index in model.layer_pattern]
    grouped = _group(layers, block_size, rules)
    stages = [pipeline_layers(model.layers, parallelism.pp, rank) for rank in range(parallelism.pp)]
    block_bytes = max(group.stage_bytes(first, last) for group in grouped for first, last in stages)
    concurrent = parallelism.pp + (1 if async_scheduling else 0) if rules.reserves_in_flight_batches else 1
    full = [g.group.block_tokens for g in grouped if g.group.kind is not CacheKind.STATE]
    return KvLayout(
        groups=tuple(g.group for g in grouped),
        block_bytes=max(block_bytes, 1),
        block_size=min(full, default=block_size),
        bytes_per_token=kv_bytes_per_token(model, parallelism, kv_dtype),
        batches_in_flight=concurrent,
        logs_concurrency_tokens=rules.logs_concurrency_tokens,
    )
