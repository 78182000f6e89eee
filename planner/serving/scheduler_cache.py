"""The blocks of one replica between requests: free ones, what the prefix cache keeps in them, and its eviction.

vLLM hands out blocks without content first, then those with content, least recently used first. A request that ends
gives its blocks back from its last to its first, so the ends of prompts go before their beginnings
(vllm/v1/core/block_pool.py, free_blocks; before 0.23 blocks without content waited their turn like the others).
Blocks in which nobody can find anything are only counted: so many behind a block that somebody may ask for, and as
free ones where no such block is before them.
"""

from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import IntArray
from planner.serving.scheduler_compiler import compiled, inlined
from planner.serving.scheduler_parts import shared_blocks
from planner.serving.scheduler_types import BlockPool, RequestStream, SchedulerLimits

NOBODY = -1
FREE, CACHED, SPARE, TALLIES = range(4)
"""`Cache.tallies`: blocks that go first, in which nobody finds anything; the others that nobody reads; the first copy
not in use."""


PARTING, DROPPED, MARKS = range(3)


class Windows(NamedTuple):
    """What windowed groups keep of prompts beside the groups that see everything; N requests.

    Their blocks go out of sight, and are evicted, apart from the others'; a prompt is found up to where the blocks in
    sight are left. All windowed groups of a prefix block are one copy, which is evicted as a whole.
    """

    blocks: int
    """KV blocks that they keep of one prefix block."""
    alone: bool
    """There are no groups that see everything."""
    sight: int
    """Prefix blocks before a place that must be left for a prompt to be found up to there."""
    sight_tokens: int
    align_tokens: int
    """Prompts are found in multiples of these."""
    chunk_tokens: int
    """In sight are the tokens since the last multiple of these, whole prefix blocks; 0: a window that slides."""
    sparse: bool
    """Kept is only what is in sight where a prompt ends, or where it parts from one before it."""
    marks: IntArray
    """Tokens of each request [N, MARKS]: where its prompt parts from those before it and what is in sight was not
    kept; how many were computed when it last gave back what was out of sight."""


class Cache(NamedTuple):
    """N requests; room for C copies of prefix blocks of P different contents, read in E places of prompts.

    Where windows are followed, contents from P on are what windowed groups keep of the first P, and places likewise.

    The nodes of the list of idle content are copies, then what each preempted request left, then the list's ends.
    """

    enabled: bool
    unit_blocks: int
    """KV blocks of one prefix block."""
    own_block_tokens: int
    """Tokens of a block of a preempted request that it can find again; 0 where a group sees only a window or keeps a
    state: there the first block that goes makes the others useless."""
    content: IntArray
    """What a copy is a copy of [C]."""
    readers: IntArray
    """Requests that read a copy [C]."""
    other: IntArray
    """The next copy of the same content, or the next not in use [C]."""
    first: IntArray
    """The oldest copy of a content [P]."""
    read: IntArray
    """The copy that a request reads at a place of its prompt [E]."""
    left: IntArray
    """Blocks that a preempted request will find again [N]."""
    unnamed: IntArray
    """Blocks between a node and the next in which nobody finds anything [C + N]."""
    links: IntArray
    """Before and after each node, least recently used first [C + N + 1, 2]."""
    tallies: IntArray
    contents: int
    """P."""
    windows: Windows | None
    """None where windowed groups keep nothing: then the loop is compiled without them, in half of the time."""


def new_cache(stream: RequestStream, limits: SchedulerLimits, pool: BlockPool) -> Cache:
    """An empty cache: every block is free."""
    count, places = stream.prompt_tokens.size, stream.prefix_ids.size
    unit_blocks = shared_blocks(pool, stream.prefix_block_tokens)
    contents = int(stream.prefix_ids.max(initial=-1)) + 1
    copies = min(places, pool.blocks // unit_blocks) if unit_blocks > 0 else places
    windows = _new_windows(stream, limits, pool)
    halves = 1
    if windows is not None:
        halves = 2
        copies = (0 if windows.alone else copies) + min(places, pool.blocks // windows.blocks)
    if not limits.prefix_caching:
        copies = 0
    plain = pool.block_tokens.size == 1 and pool.state_blocks[0] == 0 and pool.window_tokens[0] == 0
    other = np.arange(1, copies + 1)
    other[-1:] = NOBODY
    links = np.empty((copies + count + 1, 2), np.int64)
    links[copies + count] = copies + count
    tallies = np.zeros(TALLIES, np.int64)
    tallies[FREE] = pool.blocks
    tallies[SPARE] = 0 if copies > 0 else NOBODY
    return Cache(
        enabled=limits.prefix_caching,
        unit_blocks=unit_blocks,
        own_block_tokens=int(pool.block_tokens[0]) if plain and limits.prefix_caching else 0,
        content=np.zeros(copies, np.int64),
        readers=np.zeros(copies, np.int64),
        other=other,
        first=np.full(halves * contents, NOBODY),
        read=np.full(halves * places, NOBODY),
        left=np.zeros(count, np.int64),
        unnamed=np.zeros(copies + count, np.int64),
        links=links,
        tallies=tallies,
        contents=contents,
        windows=windows,
    )


def _new_windows(stream: RequestStream, limits: SchedulerLimits, pool: BlockPool) -> Windows | None:
    """Nothing is kept yet; windows of several sizes are taken for the widest. None where nothing could be kept."""
    unit_tokens = stream.prefix_block_tokens
    sight_tokens = chunk_tokens = 0
    alone = True
    sizes = pool.block_tokens[pool.state_blocks == 0].tolist()
    seen = pool.window_tokens[pool.state_blocks == 0].tolist()
    chunked = pool.chunked[pool.state_blocks == 0].tolist()
    for size, window, begins_anew in zip(sizes, seen, chunked, strict=True):
        if window == 0:
            alone = False
        elif begins_anew:
            chunk_tokens = max(chunk_tokens, -(-window // unit_tokens) * unit_tokens)
        else:
            sight_tokens = max(sight_tokens, max((window + size - 2) // size, 1) * size)
    sparse = limits.sparse_windows and chunk_tokens == 0
    kept_tokens = min(sight_tokens, unit_tokens) if sparse else unit_tokens
    blocks = sum(kept_tokens // size for size, window in zip(sizes, seen, strict=True) if window > 0)
    if blocks == 0 or stream.prefix_ids.size == 0 or not limits.prefix_caching:
        return None
    return Windows(
        blocks=blocks,
        alone=alone,
        sight=-(-sight_tokens // unit_tokens),
        sight_tokens=sight_tokens,
        align_tokens=max(sizes),
        chunk_tokens=chunk_tokens,
        sparse=sparse,
        marks=np.zeros((stream.prompt_tokens.size, MARKS), np.int64),
    )


@inlined
def available_blocks(cache: Cache) -> int:
    """Blocks that can be taken: those without content, and content that nobody reads."""
    return cache.tallies[FREE] + cache.tallies[CACHED]


@compiled
def make_room(cache: Cache, blocks: int) -> None:
    """Evicts what was read longest ago until so many blocks go first; there are enough."""
    while blocks > cache.tallies[FREE]:
        _evict(cache, blocks - cache.tallies[FREE])


@compiled
def give_back(cache: Cache, blocks: int) -> None:
    """Blocks with content that nobody will look for."""
    end = cache.unnamed.size
    last = cache.links[end, 0]
    if cache.enabled and last != end:
        cache.unnamed[last] += blocks
        cache.tallies[CACHED] += blocks
    else:
        cache.tallies[FREE] += blocks


@compiled
def blocks_of_copy(cache: Cache, windows: Windows | None, copy: int) -> int:
    """KV blocks that a copy takes; `windows`: those of the cache, None where the compiler may leave them out."""
    if windows is None or cache.content[copy] < cache.contents:
        return cache.unit_blocks
    return windows.blocks


@compiled
def _evict(cache: Cache, wanted: int) -> None:
    """Empties so many blocks that a preempted request left, or a prefix block."""
    copies = cache.content.size
    node = cache.links[cache.unnamed.size, 1]
    if node < copies:
        blocks = blocks_of_copy(cache, cache.windows, node)
        _unlink(cache, node)
        _forget(cache, node)
    else:
        blocks = min(wanted, cache.left[node - copies])
        cache.left[node - copies] -= blocks
        if cache.left[node - copies] == 0:
            _unlink(cache, node)
    cache.tallies[CACHED] -= blocks
    cache.tallies[FREE] += blocks


@compiled
def _unlink(cache: Cache, node: int) -> None:
    before, after = cache.links[node, 0], cache.links[node, 1]
    cache.links[before, 1] = after
    cache.links[after, 0] = before
    if before == cache.unnamed.size:
        cache.tallies[CACHED] -= cache.unnamed[node]
        cache.tallies[FREE] += cache.unnamed[node]
    else:
        cache.unnamed[before] += cache.unnamed[node]
    cache.unnamed[node] = 0


@compiled
def _append(cache: Cache, node: int) -> None:
    """Last to be evicted."""
    end = cache.unnamed.size
    last = cache.links[end, 0]
    cache.links[last, 1] = node
    cache.links[node, 0] = last
    cache.links[node, 1] = end
    cache.links[end, 0] = node


@compiled
def _forget(cache: Cache, copy: int) -> None:
    """A copy that is not in use any more."""
    content = cache.content[copy]
    if cache.first[content] == copy:
        cache.first[content] = cache.other[copy]
    else:
        before = cache.first[content]
        while cache.other[before] != copy:
            before = cache.other[before]
        cache.other[before] = cache.other[copy]
    cache.other[copy] = cache.tallies[SPARE]
    cache.tallies[SPARE] = copy


@compiled
def store(cache: Cache, place: int, content: int) -> bool:
    """A request has filled a prefix block, which others can read from now on; False where there is no room."""
    copy = cache.tallies[SPARE]
    if copy == NOBODY:
        return False
    cache.tallies[SPARE] = cache.other[copy]
    cache.content[copy] = content
    cache.readers[copy] = 1
    cache.other[copy] = NOBODY
    cache.read[place] = copy
    if cache.first[content] == NOBODY:
        cache.first[content] = copy
        return True
    last = cache.first[content]
    while cache.other[last] != NOBODY:
        last = cache.other[last]
    cache.other[last] = copy
    return True


@compiled
def read(cache: Cache, place: int, content: int) -> None:
    """One more request reads a prefix block that is stored."""
    copy = cache.first[content]
    if cache.readers[copy] == 0:
        _unlink(cache, copy)
        cache.tallies[CACHED] -= blocks_of_copy(cache, cache.windows, copy)
    cache.readers[copy] += 1
    cache.read[place] = copy


@compiled
def stop_reading(cache: Cache, place: int) -> None:
    """One request less reads a prefix block."""
    copy = cache.read[place]
    cache.readers[copy] -= 1
    if cache.readers[copy] == 0:
        _append(cache, copy)
        cache.tallies[CACHED] += blocks_of_copy(cache, cache.windows, copy)


@compiled
def leave(cache: Cache, r: int, blocks: int) -> None:
    """Full blocks of a preempted request, which it may find again."""
    cache.left[r] = blocks
    _append(cache, cache.content.size + r)
    cache.tallies[CACHED] += blocks


@compiled
def find_again(cache: Cache, r: int, blocks: int) -> None:
    """A request takes up so many of the blocks that it left; nobody will find the others."""
    if cache.left[r] == 0:
        return
    node = cache.content.size + r
    # What it does not take up stays where it is in the order of eviction.
    cache.unnamed[node] += cache.left[r] - blocks
    cache.left[r] = 0
    cache.tallies[CACHED] -= blocks
    _unlink(cache, node)
