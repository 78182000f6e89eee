"""What windowed layers leave of the prefix cache.

vLLM gives the blocks of a windowed group back when they go out of sight, and finds a prompt only up to a place before
which all of them in sight are left (vllm/v1/core/single_type_kv_cache_manager.py, SlidingWindowManager,
ChunkedLocalAttentionManager; kv_cache_coordinator.py, HybridKVCacheCoordinator.find_longest_cache_hit). Since 0.29 a
sliding window keeps only what is in sight where a prompt ends, and where it parts from those before it: at the end of
what the other groups found (reachable_block_mask, kv_cache_manager.py, get_computed_blocks).
"""

from planner.serving.scheduler_cache import (
    DROPPED,
    FREE,
    NOBODY,
    PARTING,
    Cache,
    Windows,
    give_back,
    read,
    stop_reading,
    store,
)
from planner.serving.scheduler_compiler import compiled
from planner.serving.scheduler_parts import unseen_blocks
from planner.serving.scheduler_types import BlockPool, RequestStream

Kept = tuple[Cache, Windows]
"""A cache, and its windows apart: there are some."""


@compiled
def windowed_prefix(stream: RequestStream, kept: Kept, r: int, total: int) -> tuple[int, int, int]:
    """Stored prefix blocks that the prompt begins with, what is in sight after them in windowed groups; how many KV
    blocks both are, and how many of these nobody reads. One token is left to compute."""
    cache, windows = kept
    start = stream.prefix_start[r]
    hits = min(stream.prefix_start[r + 1] - start, (total - 1) // stream.prefix_block_tokens)
    if not windows.alone:
        stored = 0
        while stored < hits and cache.first[stream.prefix_ids[start + stored]] != NOBODY:
            stored += 1
        hits = stored
    found = _windowed_hits(stream, kept, r, hits)
    windows.marks[r, PARTING] = 0 if found == hits or windows.alone else hits * stream.prefix_block_tokens
    sight = _first_in_sight(stream, windows, found)
    idle = 0
    for place in range(start, start + found):
        content = stream.prefix_ids[place]
        if not windows.alone:
            idle += cache.unit_blocks * (cache.readers[cache.first[content]] == 0)
        if place >= start + sight:
            idle += windows.blocks * (cache.readers[cache.first[cache.contents + content]] == 0)
    return found, found * cache.unit_blocks + (found - sight) * windows.blocks, idle


@compiled
def _windowed_hits(stream: RequestStream, kept: Kept, r: int, hits: int) -> int:
    """How many of the prefix blocks that the other groups found the windowed ones find too."""
    cache, windows = kept
    start = stream.prefix_start[r]
    found = run = 0
    if windows.chunk_tokens > 0:
        found = _first_in_sight(stream, windows, hits)
        while found < hits and cache.first[cache.contents + stream.prefix_ids[start + found]] != NOBODY:
            found += 1
    else:
        found = hits
        while found > run and run < windows.sight:
            if cache.first[cache.contents + stream.prefix_ids[start + found - run - 1]] != NOBODY:
                run += 1
            else:
                found -= run + 1
                run = 0
    return found


@compiled
def _first_in_sight(stream: RequestStream, windows: Windows, hits: int) -> int:
    """The first prefix block that is in sight after so many."""
    if windows.chunk_tokens > 0:
        begun = hits * stream.prefix_block_tokens // windows.chunk_tokens * windows.chunk_tokens
        return begun // stream.prefix_block_tokens
    return max(hits - windows.sight, 0)


@compiled
def read_in_sight(stream: RequestStream, kept: Kept, r: int, hits: int) -> int:
    """A request that is admitted reads what is in sight after so many prefix blocks; returns its KV blocks."""
    cache, windows = kept
    seen = _first_in_sight(stream, windows, hits)
    for place in range(stream.prefix_start[r] + seen, stream.prefix_start[r] + hits):
        read(cache, stream.prefix_ids.size + place, cache.contents + stream.prefix_ids[place])
    windows.marks[r, DROPPED] = hits * stream.prefix_block_tokens
    return (hits - seen) * windows.blocks


@compiled
def store_in_sight(stream: RequestStream, kept: Kept, r: int, place: int) -> None:
    """Keeps what windowed groups keep of a prefix block that was filled."""
    cache, windows = kept
    if windows.sparse:
        end = (place - stream.prefix_start[r] + 1) * stream.prefix_block_tokens
        last = stream.prompt_tokens[r] - 1
        if not (
            _is_in_sight(stream, windows, end, last)
            or _is_in_sight(stream, windows, end, windows.marks[r, PARTING])
        ):
            return
    store(cache, stream.prefix_ids.size + place, cache.contents + stream.prefix_ids[place])


@compiled
def _is_in_sight(stream: RequestStream, windows: Windows, end: int, boundary: int) -> bool:
    """Whether what is kept of a prefix block that ends there is in sight at a boundary."""
    boundary = boundary // windows.align_tokens * windows.align_tokens
    kept = min(windows.sight_tokens, stream.prefix_block_tokens)
    return boundary - windows.sight_tokens <= end - kept and end <= boundary


@compiled
def drop_unseen(stream: RequestStream, pool: BlockPool, kept: Kept, r: int, places: tuple[int, int]) -> int:
    """Gives back what is out of sight and keeps its content; returns how many blocks a request lost.

    `places`: the prefix blocks that it shares, the tokens that are computed. What has no content is left to be used
    again by its next tokens.
    """
    cache, windows = kept
    shares, computed = places
    own = 0
    shown = hidden = shares
    for group in range(pool.block_tokens.size):
        if pool.window_tokens[group] == 0 or pool.state_blocks[group] > 0:
            continue
        before = unseen_blocks(pool, group, windows.marks[r, DROPPED])
        now = unseen_blocks(pool, group, computed)
        own += _kept_blocks(stream, pool, windows, r, group, (shares, before, now))
        shown = min(shown, before * pool.block_tokens[group] // stream.prefix_block_tokens)
        hidden = min(hidden, now * pool.block_tokens[group] // stream.prefix_block_tokens)
    windows.marks[r, DROPPED] = computed
    if own > 0:
        give_back(cache, own)
    own += _stop_seeing(stream, kept, r, shown, hidden)
    return own


@compiled
def _stop_seeing(stream: RequestStream, kept: Kept, r: int, first: int, end: int) -> int:
    """A request stops reading what it reads of the windowed groups in these of its prefix blocks, the last first;
    returns how many KV blocks these are."""
    cache, windows = kept
    blocks = 0
    begin = stream.prefix_ids.size + stream.prefix_start[r]
    for place in range(begin + end - 1, begin + first - 1, -1):
        if cache.read[place] != NOBODY:
            stop_reading(cache, place)
            cache.read[place] = NOBODY
            blocks += windows.blocks
    return blocks


@compiled
def _kept_blocks(
    stream: RequestStream,
    pool: BlockPool,
    windows: Windows,
    r: int,
    group: int,
    places: tuple[int, int, int],
) -> int:
    """Blocks of its own between two of a windowed group that have content; `places`: prefix blocks before, from, to."""
    shares, begin, end = places
    size = pool.block_tokens[group]
    begin = max(begin, shares * stream.prefix_block_tokens // size)
    if windows.sparse:
        boundary = (stream.prompt_tokens[r] - 1) // windows.align_tokens * windows.align_tokens // size
        begin = max(begin, boundary - windows.sight_tokens // size)
        end = min(end, boundary)
    return max(end - begin, 0)


@compiled
def release_windowed(
    stream: RequestStream, pool: BlockPool, kept: Kept, r: int, places: tuple[int, int, int]
) -> int:
    """Frees what a request holds of windowed groups; returns how many blocks that were.

    `places`: the prefix blocks that it shares, the tokens it has slots for, and how many of them are known.
    """
    cache, windows = kept
    shares, tokens, known = places
    held = full = 0
    for group in range(pool.block_tokens.size):
        if pool.window_tokens[group] == 0 or pool.state_blocks[group] > 0:
            continue
        size = pool.block_tokens[group]
        unseen = unseen_blocks(pool, group, windows.marks[r, DROPPED])
        held += (tokens + size - 1) // size - unseen
        full += _kept_blocks(stream, pool, windows, r, group, (shares, unseen, known // size))
    if full > 0:
        give_back(cache, full)
    cache.tallies[FREE] += held - full - _stop_seeing(stream, kept, r, 0, shares)
    return held
