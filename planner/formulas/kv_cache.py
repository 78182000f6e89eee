"""KV cache of one replica: bytes a token takes by layer type, and the blocks and tokens that fit in memory.

Follows vllm/v1/kv_cache_interface.py and vllm/v1/core/kv_cache_utils.py (kv_cache_planning.py since 0.33) of
vLLM 0.32.0 and 0.33.0; what differed in older releases is selected by `EngineRules`, what the GPU and the flags
decide by `KvPaging`.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from planner.domain.base import InputError
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KV_BYTES, KvDtype, WeightDtype
from planner.domain.model import LatentAttention, Model
from planner.formulas.arrays import FloatArray
from planner.formulas.engine_defaults import EngineRules, engine_rules
from planner.formulas.kv_groups import Group, group_layers, page_layers
from planner.formulas.kv_layers import CacheFormat, CacheKind, LayerCache, layer_caches
from planner.formulas.kv_paging import KvPaging, paging_problem
from planner.formulas.profile_rules import uses_v2_runner
from planner.formulas.weights import pipeline_layers

NULL_BLOCKS = 1
"""vLLM's pool keeps one block as a placeholder: counted in `num_gpu_blocks`, it holds no token."""
DEFAULT_PAGING = KvPaging()


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


class KvGroupRow(NamedTuple):
    """One KV group as a report shows it."""

    kind: CacheKind
    layers: int
    """Of all pipeline stages."""
    block_tokens: int
    page_bytes: tuple[int, ...]
    """One block of one layer [bytes]: more than one size where layers of one group differ in width."""
    padding_bytes: int
    """What a block of this group cannot use on the fullest stage: padded pages, and room for layers that only a
    larger group has [bytes]."""
    window_tokens: int | None
    state_blocks: int
    """Blocks that a running sequence holds whatever its length, where the layers keep a state."""


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that share a block table, and how many blocks a sequence holds in it."""

    kind: CacheKind
    layers: int
    block_tokens: int
    page_bytes: tuple[int, ...]
    """The page sizes of its layers, ascending [bytes]."""
    content_bytes: int
    """What of a block can hold something on the fullest pipeline stage [bytes]."""
    window_tokens: int | None = None
    state_blocks: int = 0
    """Blocks a sequence holds whatever its length, where the layers keep a state."""
    checkpoint_blocks: int = 0
    """More of them that are set aside for a prefill."""

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
            return self.state_blocks + self.checkpoint_blocks
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
    stage_block_bytes: tuple[int, ...]
    """What one block id takes over all layers of the largest group, on each pipeline stage."""
    block_size: int
    """Tokens of the smallest block that grows with a sequence."""
    bytes_per_token: int
    """Growth of one sequence by one token within every window [bytes]."""
    batches_in_flight: int
    logs_concurrency_tokens: bool
    reserves_null_block: bool
    """The null block is not lent to the one request that must fit for the engine to start."""
    lookahead_tokens: int = 0
    """Slots a sequence has beyond its tokens, for what is being drafted."""

    @property
    def block_bytes(self) -> int:
        """What one block id takes on the pipeline stage where it takes most [bytes]."""
        return max(self.stage_block_bytes)

    def blocks(self, available_bytes: float) -> int:
        """Blocks that vLLM allocates in so much memory, its null block among them; 0 where none fits."""
        return max(0, int(available_bytes // self.block_bytes))

    def common_blocks(self, available_bytes: Sequence[float]) -> int:
        """Blocks that all pipeline stages allocate, given the memory of each: what the poorest can."""
        pairs = zip(available_bytes, self.stage_block_bytes, strict=True)
        return max(0, min(int(available // size) for available, size in pairs if size))

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
        """What the engine must have free to start [bytes]: one request of `max_model_len` tokens, since vLLM 0.29
        beside the null block.
        """
        null_blocks = NULL_BLOCKS if self.reserves_null_block else 0
        return (self._reserved_blocks(max_model_len, max_num_batched_tokens) + null_blocks) * self.block_bytes

    def starts(self, available_bytes: float, max_model_len: int, max_num_batched_tokens: int) -> bool:
        """True where the engine accepts so much memory for requests of `max_model_len` tokens."""
        return self.reserved_bytes(max_model_len, max_num_batched_tokens) <= available_bytes

    def request_bytes(self, context_tokens: FloatArray | float) -> FloatArray:
        """What running sequences of these lengths occupy, windows bounded [bytes] (same shape)."""
        context = np.asarray(context_tokens, dtype=np.float64) + self.lookahead_tokens
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
    model: Model,
    parallelism: Parallelism,
    kv_dtype: KvDtype = KvDtype.AUTO,
    pp_rank: int | None = None,
    *,
    paging: KvPaging = DEFAULT_PAGING,
) -> tuple[KvPart, ...]:
    """What one rank keeps of a sequence, by layer type; without `pp_rank`, the rank that keeps most."""
    stored = _stored(model, kv_dtype, paging)
    ranks = range(parallelism.pp) if pp_rank is None else (pp_rank,)
    parts = [_rank_parts(model, parallelism, stored, rank) for rank in ranks]
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
    paging: KvPaging = DEFAULT_PAGING,
) -> KvLayout:
    """How vLLM pages this model's KV cache, and that of its draft model, over the ranks of one replica.

    Raises:
        InputError: the version is not one of vLLM, or vLLM does not start with this cache.
    """
    problem = paging_problem(model, paging)
    if problem is not None:
        raise InputError(problem)
    rules = engine_rules(paging.engine_version)
    stored = _stored(model, kv_dtype, paging)
    caches = list(_caches(model, parallelism.tp, stored))
    if paging.draft is not None:
        # Its layers follow the target's and are on the last stage.
        caches += _caches(paging.draft, parallelism.tp, stored, numbered_from=model.layers)
    stages = _stages(model, parallelism.pp)
    growth = [sum(cache.bytes_per_token for layer, cache in caches if a <= layer < b) for a, b in stages]
    paged = page_layers(_promoted(caches, paging, rules), paging.block_size, paging.state_step_tokens)
    groups = group_layers(paged, rules.group_ratio)
    stage_block_bytes = [max(group.block_bytes(*stage) for group in groups) for stage in stages]
    fullest = stages[stage_block_bytes.index(max(stage_block_bytes))]
    return KvLayout(
        groups=tuple(_kv_group(group, fullest, paging, rules) for group in groups),
        stage_block_bytes=tuple(stage_block_bytes),
        block_size=min(group.page.block_tokens for group in groups),
        bytes_per_token=max(growth),
        batches_in_flight=_batches_in_flight(model, parallelism, paging, rules),
        logs_concurrency_tokens=rules.logs_concurrency_tokens,
        reserves_null_block=rules.reserves_null_block,
        lookahead_tokens=paging.num_speculative_tokens,
    )


def kv_report(layout: KvLayout) -> tuple[KvGroupRow, ...]:
    """The KV groups, in the order in which vLLM makes them."""
    return tuple(
        KvGroupRow(
            group.kind,
            group.layers,
            group.block_tokens,
            group.page_bytes,
            layout.block_bytes - group.content_bytes,
            group.window_tokens,
            group.state_blocks,
        )
        for group in layout.groups
    )


def _kv_group(group: Group, stage: tuple[int, int], paging: KvPaging, rules: EngineRules) -> KvGroup:
    page = group.page
    states = checkpoints = 0
    if page.kind is CacheKind.STATE:
        cached = paging.enable_prefix_caching and rules.mamba_prefix_caching
        states = (2 if cached else 1) + paging.num_speculative_tokens
        checkpoints = paging.checkpoint_states if cached else 0
    return KvGroup(
        kind=page.kind,
        layers=len(group.members),
        block_tokens=page.block_tokens,
        page_bytes=tuple(sorted({member.page.size_bytes for member in group.members})),
        content_bytes=group.content_bytes(*stage),
        window_tokens=page.window_tokens,
        state_blocks=states,
        checkpoint_blocks=checkpoints,
    )


def _promoted(
    caches: Sequence[tuple[int, LayerCache]], paging: KvPaging, rules: EngineRules
) -> list[tuple[int, LayerCache]]:
    """Without the hybrid manager, windowed layers beside full ones keep every token (unify_hybrid_kv_cache_specs)."""
    kinds = {cache.kind for _, cache in caches}
    hybrid = paging.hybrid_kv_cache_manager and (rules.chunked_local_hybrid or CacheKind.CHUNKED not in kinds)
    if hybrid or CacheKind.FULL not in kinds:
        return list(caches)
    return [(layer, _as_full(cache)) for layer, cache in caches]


def _batches_in_flight(model: Model, parallelism: Parallelism, paging: KvPaging, rules: EngineRules) -> int:
    """Steps that run at once (vllm/config/vllm.py, max_concurrent_batches).

    The V1 model runner does not overlap steps of a pipeline; the V2 runner does.
    """
    if not rules.reserves_in_flight_batches:
        return 1
    v2_runner = uses_v2_runner(model, rules.version, drafts=paging.draft is not None)
    overlaps = paging.async_scheduling and (v2_runner or parallelism.pp == 1)
    return parallelism.pp + int(overlaps)


def _stages(model: Model, pp: int) -> list[tuple[int, int]]:
    """First and last layer of each stage; the last one has no end, so that a draft model is on it."""
    stages = [pipeline_layers(model.layers, pp, rank) for rank in range(pp)]
    return [*stages[:-1], (stages[-1][0], sys.maxsize)]


def _stored(model: Model, kv_dtype: KvDtype, paging: KvPaging) -> CacheFormat:
    dtype = resolve_kv_dtype(model, kv_dtype, paging.engine_version)
    return CacheFormat(KV_BYTES[dtype], paging.packs_fp8_latent, paging.num_speculative_tokens)


def _caches(
    model: Model, tp: int, stored: CacheFormat, *, numbered_from: int = 0
) -> Iterator[tuple[int, LayerCache]]:
    """Every cache of every decoder layer, with the layer's number."""
    kinds = [
        tuple(layer_caches(kind.attention, tp, stored)) if kind.attention is not None else ()
        for kind in model.layer_kinds
    ]
    for layer, index in enumerate(model.layer_pattern, start=numbered_from):
        for cache in kinds[index]:
            yield layer, cache


def _rank_parts(
    model: Model, parallelism: Parallelism, stored: CacheFormat, pp_rank: int
) -> tuple[KvPart, ...]:
    first, last = pipeline_layers(model.layers, parallelism.pp, pp_rank)
    counted = Counter(
        cache for layer, cache in _caches(model, parallelism.tp, stored) if first <= layer < last
    )
    return tuple(
        KvPart(cache.kind, n, n * cache.bytes_per_token, n * cache.state_bytes, cache.window_tokens)
        for cache, n in counted.items()
    )


def _growth_bytes(parts: tuple[KvPart, ...]) -> int:
    return sum(part.bytes_per_token for part in parts)


def _as_full(cache: LayerCache) -> LayerCache:
    if cache.kind is CacheKind.STATE:
        return cache
    return cache._replace(kind=CacheKind.FULL, window_tokens=None)


def _is_sparse(model: Model) -> bool:
    return any(
        isinstance(kind.attention, LatentAttention) and kind.attention.indexer_heads
        for kind in model.layer_kinds
    )


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
