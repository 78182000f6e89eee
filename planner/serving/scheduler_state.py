"""What the scheduler loop remembers between steps: requests, queues, blocks, the clock."""

from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import FloatArray, IntArray
from planner.serving.scheduler_cache import (
    FREE,
    Cache,
    find_again,
    give_back,
    leave,
    make_room,
    new_cache,
    read,
    stop_reading,
    store,
)
from planner.serving.scheduler_compiler import allocating, compiled, inlined
from planner.serving.scheduler_parts import push, record, unfilled_blocks
from planner.serving.scheduler_types import BlockPool, Outcome, RequestStream, SchedulerLimits, StepTimes

WAITING, ACTIVE, SCHEDULED, ARRIVED, KNOWN, FINISHED, BUDGET, LONGEST, DECISIONS, LOGGED, COUNTS = range(11)
"""`State.counts`: requests waiting, running, scheduled in this step; requests that reached the engine, were sent, have
ended; tokens left in this step, and the most that one request may have; steps decided on; lines of the log."""
NOW, DECIDED, FRONT_FREE, QUEUE_FRONT, CLOCKS = range(5)
"""`State.clock`: now, when this step was decided on, when the front end is free [s], the key before all who wait."""


class State(NamedTuple):
    """Everything that changes; N requests."""

    computed: IntArray
    """Tokens with keys and values in the cache [N]."""
    answered: IntArray
    held: IntArray
    """Blocks of its own [N]."""
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
    cache: Cache
    counts: IntArray
    clock: FloatArray


@allocating
def new_state(
    stream: RequestStream, limits: SchedulerLimits, pool: BlockPool, times: StepTimes, out: Outcome
) -> State:
    """Before the first step; in an open loop everything is sent, in a closed one what the users begin with."""
    count = stream.prompt_tokens.size
    slots = min(limits.max_num_seqs, count)
    state = State(
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count),
        np.zeros((count, 2)),
        np.empty(count),
        np.empty(count, np.int64),
        np.empty(slots, np.int64),
        np.empty(slots, np.int64),
        new_cache(stream, limits, pool),
        np.zeros(COUNTS, np.int64),
        np.zeros(CLOCKS),
    )
    for r in range(count):
        state.keys[r, 0] = stream.priority[r] if limits.priority_policy else 0.0
        state.keys[r, 1] = r
    for r in range(count if limits.users == 0 else min(limits.users, count)):
        send(stream, times, state, out, stream.sent_s[r] if limits.users == 0 else 0.0)
    return state


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
        give_back(state.cache, -blocks)
    else:
        if blocks > state.cache.tallies[FREE]:
            make_room(state.cache, blocks)
        state.cache.tallies[FREE] -= blocks
    state.held[r] += blocks


@compiled
def release(stream: RequestStream, pool: BlockPool, state: State, r: int, tokens: int, returns: bool) -> None:
    """Frees the blocks of a request, `tokens` long; what is full stays cached, its end to be evicted first.

    One that `returns` may find its own again, those behind its prefix as long as that is there.
    """
    cache = state.cache
    empty = state.held[r]
    if cache.enabled:
        empty = min(unfilled_blocks(pool, tokens), empty)
    cache.tallies[FREE] += empty
    full = state.held[r] - empty
    first = stream.prefix_start[r]
    if (
        returns
        and cache.own_block_tokens > 0
        and full > 0
        and first + state.shares[r] == stream.prefix_start[r + 1]
    ):
        leave(cache, r, full)
    elif full > 0:
        give_back(cache, full)
    state.held[r] = 0
    for place in range(first + state.shares[r] - 1, first - 1, -1):
        stop_reading(cache, place)
    state.shares[r] = 0


@compiled
def read_prefix(stream: RequestStream, state: State, r: int, hits: int, own: int) -> None:
    """A request that is admitted reads stored prefix blocks, and takes up blocks it left when it was preempted."""
    for place in range(stream.prefix_start[r], stream.prefix_start[r] + hits):
        read(state.cache, place, stream.prefix_ids[place])
    state.shares[r] = hits
    find_again(state.cache, r, own)
    state.held[r] += own


@compiled
def store_prefix(stream: RequestStream, state: State, r: int, tokens: int) -> None:
    """Prefix blocks that are filled in this step can be read by others, even in the same step
    (vllm/v1/core/kv_cache_manager.py, allocate_slots)."""
    while stream.prefix_start[r] + state.shares[r] < stream.prefix_start[r + 1]:
        place = stream.prefix_start[r] + state.shares[r]
        whole = (state.shares[r] + 1) * stream.prefix_block_tokens
        if whole > min(tokens, stream.prompt_tokens[r]) or not store(
            state.cache, place, stream.prefix_ids[place]
        ):
            return
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
        record(out, start_s, end_s - start_s, (0, 0, 1, 0, 0))
