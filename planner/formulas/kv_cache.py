"""KV cache of one replica: bytes a token takes by layer type, and the blocks and tokens that fit in memory.

Follows vllm/v1/kv_cache_interface.py and vllm/v1/core/kv_cache_utils.py of vLLM 0.32.0; what differed in
older releases is selected by `EngineRules`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KV_BYTES, KvDtype, WeightDtype
from planner.domain.model import LatentAttention, Model
from planner.formulas.arrays import FloatArray
from planner.formulas.engine_defaults import DEFAULT_BLOCK_SIZE_TOKENS, engine_rules
from planner.formulas.kv_groups import Group, group_layers, page_layers
from planner.formulas.kv_layers import CacheKind, LayerCache, layer_caches
from planner.formulas.weights import pipeline_layers

NULL_BLOCKS = 1
"""vLLM's pool keeps one block as a placeholder: counted in `num_gpu_blocks`, it holds no token."""


class KvPart(NamedTuple):
    """Layers of one rank that keep the same of a sequence."""

    kind: CacheKind
    layers: int
    bytes_per_token: int
    """All of them together, for every token within the window [bytes]; 0 for a state."""
    state_bytes: int
    """All of them together, whatever the length [bytes]; 0 where the cache grows."""
    window_tokens: int | None
    """Tokens a layer still sees (sliding window or chunk); None where it sees all."""


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that share a block table, and how many blocks a sequence holds in it."""

    kind: CacheKind
    layers: int
    block_tokens: int
    window_tokens: int | None = None
    state_blocks: int = 0
    """Blocks a sequence holds whatever its length, where the layers keep a state."""

    def held_blocks(self, context_tokens: FloatArray) -> FloatArray:
        """Blocks that running sequences of these lengths hold (same shape)."""
        if self.kind is CacheKind.STATE:
            return np.full_like(context_tokens, self.state_blocks)
        blocks = np.ceil(context_tokens / self.block_tokens)
        if self.window_tokens is None:
            return blocks
        return np.minimum(blocks, self._window_blocks(self._seen_tokens(self.window_tokens)))

    def reserved_blocks(self, max_model_len: int, in_flight_tokens: int) -> int:
        """Blocks set aside for one request of `max_model_len` tokens.

        A windowed layer frees blocks only after a step, so it also needs room for the tokens in flight.
        """
        if self.kind is CacheKind.STATE:
            return self.state_blocks
        if self.window_tokens is None:
            return _blocks(max_model_len, self.block_tokens)
        return self._window_blocks(
            min(self._seen_tokens(self.window_tokens) + in_flight_tokens, max_model_len)
        )

    def _seen_tokens(self, window_tokens: int) -> int:
        return window_tokens - 1 if self.kind is CacheKind.SLIDING else window_tokens

    def _window_blocks(self, tokens: int) -> int:
        """A sliding window may start in the middle of a block; a chunk starts with one."""
        return _blocks(tokens, self.block_tokens) + (1 if self.kind is CacheKind.SLIDING else 0)


@dataclass(frozen=True, slots=True)
class KvLayout:
    """How one replica's KV cache is paged on its fullest rank; `kv_layout` makes it."""

    groups: tuple[KvGroup, ...]
    block_bytes: int
    """What one block id takes over all layers of the largest group."""
    block_size: int
    """Tokens of the smallest block that grows with a sequence."""
    bytes_per_token: int
    """Growth of one sequence by one token within every window [bytes]."""
    batches_in_flight: int
    logs_concurrency_tokens: bool

    def blocks(self, available_bytes: float) -> int:
        """Blocks that vLLM allocates in so much memory, its null block among them; 0 where none fits."""
        return max(0, int(available_bytes // self.block_bytes))

    def usable_bytes(self, available_bytes: float) -> int:
        """What of so much memory can hold tokens: whole blocks without the null block [bytes]."""
        return max(0, self.blocks(available_bytes) - NULL_BLOCKS) * self.block_bytes

    def max_concurrency(
        self, available_bytes: float, max_model_len: int, max_num_batched_tokens: int
    ) -> float:
        """Requests of `max_model_len` tokens that fit at once, as vLLM logs it."""
        return self.blocks(available_bytes) / self._reserved_blocks(max_model_len, max_num_batched_tokens)

    def tokens(self, available_bytes: float, max_model_len: int, max_num_batched_tokens: int) -> int:
        """KV cache size as vLLM logs it [tokens].

        `max_concurrency x max_model_len`, for a hybrid more than blocks x block size; before vLLM 0.21
        `blocks // groups x block size`.
        """
        if not self.logs_concurrency_tokens:
            return self.blocks(available_bytes) // len(self.groups) * self.block_size
        return int(
            self.max_concurrency(available_bytes, max_model_len, max_num_batched_tokens) * max_model_len
        )

    def reserved_bytes(self, max_model_len: int, max_num_batched_tokens: int) -> int:
        """What the engine must have free to start: one request of `max_model_len` tokens [bytes]."""
        return self._reserved_blocks(max_model_len, max_num_batched_tokens) * self.block_bytes

    def request_bytes(self, context_tokens: FloatArray | float) -> FloatArray:
        """What running sequences of these lengths occupy, windows bounded [bytes] (same shape)."""
        context = np.asarray(context_tokens, dtype=np.float64)
        blocks = np.zeros_like(context)
        for group in self.groups:
            blocks += group.held_blocks(context)
        return blocks * self.block_bytes

    def _reserved_blocks(self, max_model_len: int, max_num_batched_tokens: int) -> int:
        in_flight_tokens = self.batches_in_flight * max_num_batched_tokens
        return sum(group.reserved_blocks(max_model_len, in_flight_tokens) for group in self.groups)


def resolve_kv_dtype(model: Model, kv_dtype: KvDtype, engine_version: str = "") -> KvDtype:
    """The dtype `auto` stands for: fp8 where the checkpoint asks for it, else the model's own 16 bits.

    Sparse MLA (DeepSeek V3.2) was fp8 by default before vLLM 0.18.
    """
    if kv_dtype is not KvDtype.AUTO:
        return kv_dtype
    asks_fp8 = model.quantization is not None and model.quantization.kv_fp8
    if asks_fp8 or (_is_sparse(model) and engine_rules(engine_version).sparse_mla_caches_fp8):
        return KvDtype.FP8
    return KvDtype.FP16 if model.activation_dtype is WeightDtype.FP16 else KvDtype.BF16


def kv_parts(
    model: Model, parallelism: Parallelism, kv_dtype: KvDtype = KvDtype.AUTO, pp_rank: int | None = None
) -> tuple[KvPart, ...]:
    """What one rank keeps of a sequence, by layer type; without `pp_rank`, the rank that keeps most."""
    bytes_per_value = KV_BYTES[resolve_kv_dtype(model, kv_dtype)]
    ranks = range(parallelism.pp) if pp_rank is None else (pp_rank,)
    parts = [_rank_parts(model, parallelism, bytes_per_value, rank) for rank in ranks]
    return max(parts, key=lambda rank: (_growth_bytes(rank), sum(part.state_bytes for part in rank)))


def kv_bytes_per_token(
    model: Model, parallelism: Parallelism, kv_dtype: KvDtype = KvDtype.AUTO, pp_rank: int | None = None
) -> int:
    """Growth of one sequence by one token within every window on one rank [bytes].

    A layer: `2 x kv_heads/tp x head_dim x bytes`; with MLA `(kv_lora_rank + qk_rope_head_dim) x bytes` on
    every TP rank. Llama-3.1-8B in bf16: 32 layers x 2 x 8 x 128 x 2 = 131,072.
    """
    return _growth_bytes(kv_parts(model, parallelism, kv_dtype, pp_rank))


def kv_layout(
    model: Model,
    parallelism: Parallelism,
    kv_dtype: KvDtype = KvDtype.AUTO,
    *,
    block_size: int = DEFAULT_BLOCK_SIZE_TOKENS,
    engine_version: str = "",
    async_scheduling: bool = True,
) -> KvLayout:
    """How vLLM pages this model's KV cache over the ranks of one replica.

    Raises:
        InputError: `engine_version` is not a vLLM version.
    """
    rules = engine_rules(engine_version)
    stored = resolve_kv_dtype(model, kv_dtype, engine_version)
    caches = list(_caches(model, parallelism.tp, KV_BYTES[stored]))
    if not rules.chunked_local_hybrid and any(cache.kind is CacheKind.FULL for _, cache in caches):
        caches = [(layer, _as_full(cache)) for layer, cache in caches]
    groups = group_layers(page_layers(caches, block_size), rules.group_ratio)
    stages = [pipeline_layers(model.layers, parallelism.pp, rank) for rank in range(parallelism.pp)]
    batches = parallelism.pp + int(async_scheduling)
    return KvLayout(
        groups=tuple(_kv_group(group, states=2 if rules.mamba_prefix_caching else 1) for group in groups),
        block_bytes=max(group.block_bytes(first, last) for group in groups for first, last in stages),
        block_size=min(group.page.block_tokens for group in groups),
        bytes_per_token=kv_bytes_per_token(model, parallelism, stored),
        batches_in_flight=batches if rules.reserves_in_flight_batches else 1,
        logs_concurrency_tokens=rules.logs_concurrency_tokens,
    )


def _kv_group(group: Group, states: int) -> KvGroup:
    page = group.page
    state_blocks = states if page.kind is CacheKind.STATE else 0
    return KvGroup(page.kind, len(group.members), page.block_tokens, page.window_tokens, state_blocks)


def _caches(
    model: Model, tp: int, bytes_per_value: int, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, LayerCache]]:
    """Every cache of the decoder layers `[first, last)`, with its layer's number."""
    kinds = [
        tuple(layer_caches(kind.attention, tp, bytes_per_value)) if kind.attention is not None else ()
        for kind in model.layer_kinds
    ]
    for layer, index in enumerate(model.layer_pattern[first:last], start=first):
        for cache in kinds[index]:
            yield layer, cache


def _rank_parts(
    model: Model, parallelism: Parallelism, bytes_per_value: int, pp_rank: int
) -> tuple[KvPart, ...]:
    first, last = pipeline_layers(model.layers, parallelism.pp, pp_rank)
    counted = Counter(cache for _, cache in _caches(model, parallelism.tp, bytes_per_value, first, last))
    return tuple(
        KvPart(cache.kind, n, n * cache.bytes_per_token, n * cache.state_bytes, cache.window_tokens)
        for cache, n in counted.items()
    )


def _growth_bytes(parts: tuple[KvPart, ...]) -> int:
    return sum(part.bytes_per_token for part in parts)


def _as_full(cache: LayerCache) -> LayerCache:
    is_chunked = cache.kind is CacheKind.CHUNKED
    return cache._replace(kind=CacheKind.FULL, window_tokens=None) if is_chunked else cache


def _is_sparse(model: Model) -> bool:
    return any(
        isinstance(kind.attention, LatentAttention) and kind.attention.indexer_heads
        for kind in model.layer_kinds
    )


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
