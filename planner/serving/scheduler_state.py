"""What the scheduler loop remembers between steps: requests, queues, blocks, the clock."""

from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import BoolArray, FloatArray, IntArray
from planner.serving.scheduler_cache import (
    FREE,
    NOBODY,
    Cache,
    Windows,
    find_again,
    give_back,
    leave,
    make_room,
    new_cache,
    read,
    stop_reading,
    store,
)
from planner.serving.scheduler_compiler import compiled, inlined
from planner.serving.scheduler_parts import push, record, unfilled_blocks
from planner.serving.scheduler_types import BlockPool, Outcome, RequestStream, SchedulerLimits, StepTimes
from planner.serving.scheduler_windows import drop_unseen, read_in_sight, release_windowed, store_in_sight

WAITING, ACTIVE, SCHEDULED, ARRIVED, KNOWN, FINISHED = range(6)
ENDING, BUDGET, LONGEST, DECISIONS, LOGGED, COUNTS = range(6, 12)
"""`State.counts`: requests waiting, running, scheduled in this step; requests that reached the engine, were sent, have
ended, have ended and still hold slot and blocks; tokens left in this step, and the most that one request may have;
steps decided on; lines of the log."""
NOW, DECIDED, FRONT_FREE, QUEUE_FRONT, CLOCKS = range(5)
"""`State.clock`: now, when this step was decided on, when the front end is free [s], the key before all who wait."""


class State(NamedTuple):
    """Everything that changes; N requests."""

    computed: IntArray
    """Tokens with keys and values in the cache [N]."""
    answered: IntArray
    admitted: IntArray
    """Tokens it had when it was admitted last, its answer so far among them [N]."""
    held: IntArray
    """Blocks of its own, and windowed ones that it reads together with others [N]."""
    shares: IntArray
    """Prefix blocks it reads together with others [N]."""
    last_token_s: FloatArray
    keys: FloatArray
    """Order in the waiting queue: priority, then arrival [N, 2]."""
    visible_s: FloatArray
    """When the engine sees a request [N]."""
    heap: IntArray
    """The waiting queue."""
    running: IntArray
    """In the order of admission."""
    chunk: IntArray
    """Tokens of each running request in this step."""
    seen: FloatArray
    """Tokens that decoding requests see together in each attention scope [S]."""
    cache: Cache
    counts: IntArray
    clock: FloatArray
    stop: BoolArray
    """Set by another thread that wants no more steps [1]."""


def new_state(
    stream: RequestStream, limits: SchedulerLimits, pool: BlockPool, times: StepTimes, stop: BoolArray
) -> State:
    """Before anything is sent."""
    count = stream.prompt_tokens.size
    slots = min(limits.max_num_seqs, count)
    priority = stream.priority if limits.priority_policy else np.zeros(count)
    return State(
        computed=np.zeros(count, np.int64),
        answered=np.zeros(count, np.int64),
        admitted=np.zeros(count, np.int64),
        held=np.zeros(count, np.int64),
        shares=np.zeros(count, np.int64),
        last_token_s=np.zeros(count),
        keys=np.ascontiguousarray(np.column_stack((priority, np.arange(count))), np.float64),
        visible_s=np.empty(count),
        heap=np.empty(count, np.int64),
        running=np.empty(slots, np.int64),
        chunk=np.empty(slots, np.int64),
        seen=np.zeros(times.scope_tokens.size),
        cache=new_cache(stream, limits, pool),
        counts=np.zeros(COUNTS, np.int64),
        clock=np.zeros(CLOCKS),
        stop=stop,
    )


@compiled
def send_first(
    stream: RequestStream, limits: SchedulerLimits, times: StepTimes, state: State, out: Outcome
) -> None:
    """In an open loop everything is sent, in a closed one what the users begin with."""
    count = stream.prompt_tokens.size
    for r in range(count if limits.users == 0 else min(limits.users, count)):
        send(stream, times, state, out, stream.sent_s[r] if limits.users == 0 else 0.0)


@compiled
def send(stream: RequestStream, times: StepTimes, state: State, out: Outcome, sent_s: float) -> None:
    """The next request leaves its client and passes the front end, after those before it."""
    r = state.counts[KNOWN]
    out.sent_s[r] = sent_s
    free_s = max(state.clock[FRONT_FREE], sent_s) + times.front_s
    free_s += times.front_per_token_s * stream.prompt_tokens[r]
    state.visible_s[r] = free_s
    state.clock[FRONT_FREE] = free_s
    state.counts[KNOWN] += 1


@inlined
def take_blocks(state: State, r: int, blocks: int) -> None:
    """Gives a request blocks; there are enough. Fewer than none takes full ones from it."""
    if blocks < 0:
        _take_back(state.cache, state.cache.windows, -blocks)
    else:
        if blocks > state.cache.tallies[FREE]:
            make_room(state.cache, blocks)
        state.cache.tallies[FREE] -= blocks
    state.held[r] += blocks


@compiled
def _take_back(cache: Cache, windows: Windows | None, blocks: int) -> None:
    if windows is not None and windows.sparse:
        cache.tallies[FREE] += blocks
    else:
        give_back(cache, blocks)


@compiled
def hide(
    stream: RequestStream, pool: BlockPool, state: State, windows: Windows | None, r: int, computed: int
) -> None:
    """Takes from a request the prefix blocks that went out of its sight in windowed groups."""
    if windows is not None:
        state.held[r] -= drop_unseen(stream, pool, (state.cache, windows), r, (state.shares[r], computed))


@compiled
def release(
    stream: RequestStream,
    pool: BlockPool,
    state: State,
    windows: Windows | None,
    r: int,
    tokens: tuple[int, int],
) -> None:
    """Frees the blocks of a request; what is full stays cached, its end to be evicted first.

    `tokens`: those it has slots for, and how many of them are known, so that they can be found.
    One that has not ended may find its own again, those behind its prefix as long as that is there.
    """
    cache = state.cache
    if windows is not None:
        state.held[r] -= release_windowed(stream, pool, (cache, windows), r, (state.shares[r], *tokens))
    empty = state.held[r]
    if cache.enabled:
        empty = min(unfilled_blocks(pool, tokens[0], tokens[1], windows is None), empty)
    cache.tallies[FREE] += empty
    full = state.held[r] - empty
    first = stream.prefix_start[r]
    if (
        state.answered[r] < stream.output_tokens[r]
        and cache.own_block_tokens > 0
        and full > 0
        and first + state.shares[r] == stream.prefix_start[r + 1]
    ):
        leave(cache, r, full)
    elif full > 0:
        give_back(cache, full)
    state.held[r] = 0
    for place in range(first + state.shares[r] - 1, first - 1, -1):
        if cache.read[place] != NOBODY:
            stop_reading(cache, place)
    state.shares[r] = 0


@compiled
def forget_ended(stream: RequestStream, pool: BlockPool, state: State) -> int:
    """Takes slots and blocks from requests that have all their tokens; returns how many they were."""
    counts = state.counts
    kept = scheduled = 0
    for j in range(counts[ACTIVE]):
        r = state.running[j]
        if state.answered[r] == stream.output_tokens[r]:
            release(stream, pool, state, state.cache.windows, r, (state.computed[r], state.computed[r]))
            continue
        state.running[kept] = r
        state.chunk[kept] = state.chunk[j]
        kept += 1
        scheduled += j < counts[SCHEDULED]
    ended = counts[ACTIVE] - kept
    counts[ACTIVE] = kept
    counts[SCHEDULED] = scheduled
    counts[ENDING] = 0
    return ended


@compiled
def read_prefix(
    stream: RequestStream, state: State, windows: Windows | None, r: int, hits: int, own: int
) -> None:
    """A request that is admitted reads stored prefix blocks, and takes up blocks it left when it was preempted."""
    if windows is None or not windows.alone:
        for place in range(stream.prefix_start[r], stream.prefix_start[r] + hits):
            read(state.cache, place, stream.prefix_ids[place])
    if windows is not None:
        state.held[r] += read_in_sight(stream, (state.cache, windows), r, hits)
    state.shares[r] = hits
    find_again(state.cache, r, own)
    state.held[r] += own


@compiled
def store_prefix(stream: RequestStream, state: State, windows: Windows | None, r: int, tokens: int) -> None:
    """Prefix blocks that are filled in this step can be read by others, even in the same step
    (vllm/v1/core/kv_cache_manager.py, allocate_slots)."""
    while stream.prefix_start[r] + state.shares[r] < stream.prefix_start[r + 1]:
        place = stream.prefix_start[r] + state.shares[r]
        whole = (state.shares[r] + 1) * stream.prefix_block_tokens
        if whole > min(tokens, stream.prompt_tokens[r]):
            return
        alone = windows is not None and windows.alone
        if not alone and not store(state.cache, place, stream.prefix_ids[place]):
            return
        if windows is not None:
            store_in_sight(stream, (state.cache, windows), r, place)
        state.shares[r] += 1
        state.held[r] -= state.cache.unit_blocks


@compiled
def wait(state: State, r: int) -> None:
    """Puts a request into the waiting queue."""
    state.counts[WAITING] = push(state.heap, state.keys, state.counts[WAITING], r)


@compiled
def record_arrivals(state: State, out: Outcome, end_s: float) -> None:
    """Counts those as waiting who come during a step, and who wait for the one after because of it."""
    for r in range(state.counts[ARRIVED], state.counts[KNOWN]):
        if state.visible_s[r] >= end_s:
            return
        start_s = max(state.visible_s[r], state.clock[NOW])
        none = np.int64(0)
        record(out, start_s, end_s - start_s, (none, none, np.int64(1), none, none, none))
