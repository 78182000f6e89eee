"""What the scheduler loop remembers between steps: requests, queues, blocks, the prefix cache, the clock."""

from typing import NamedTuple

import numpy as np
from numba import njit

from planner.formulas.arrays import BoolArray, FloatArray, IntArray
from planner.serving.scheduler_parts import append, compiled, push, shared_blocks, unlink
from planner.serving.scheduler_types import BlockPool, Outcome, RequestStream, SchedulerLimits, StepTimes

WAITING, ACTIVE, SCHEDULED, FREE, IDLE_PREFIXES, ARRIVED, KNOWN, FINISHED, BUDGET, COUNTS = range(10)
"""`State.counts`: requests waiting, running, scheduled in this step; free blocks; prefix blocks nobody uses; requests
that reached the engine, were sent, have ended; tokens left in this step."""
NOW, DECIDED, FRONT_FREE, QUEUE_FRONT, CLOCKS = range(5)
"""`State.clock`: now, when this step was decided on, when the front end is free [s], the key before all who wait."""


class State(NamedTuple):
    """Everything that changes; N requests, P prefix blocks."""

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
    readers: IntArray
    """Requests that read a prefix block [P + 1]."""
    stored: BoolArray
    links: IntArray
    """Prefix blocks that nobody reads, least recently used first [P + 1, 2]."""
    unit_blocks: int
    """KV blocks of one prefix block."""
    counts: IntArray
    clock: FloatArray


@njit(cache=True)
def new_state(
    stream: RequestStream, limits: SchedulerLimits, pool: BlockPool, times: StepTimes, out: Outcome
) -> State:
    """Before the first step; in an open loop everything is sent, in a closed one what the users begin with."""
    count = stream.prompt_tokens.size
    prefixes = stream.prefix_start[count]
    slots = min(limits.max_num_seqs, count)
    links = np.empty((prefixes + 1, 2), np.int64)
    links[prefixes] = prefixes
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
        np.zeros(prefixes + 1, np.int64),
        np.zeros(prefixes + 1, np.bool_),
        links,
        shared_blocks(pool, stream.prefix_block_tokens),
        np.zeros(COUNTS, np.int64),
        np.zeros(CLOCKS),
    )
    state.counts[FREE] = pool.blocks
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


@compiled
def available_blocks(state: State) -> int:
    """Blocks that can be taken: free ones, and prefixes that nobody reads."""
    return state.counts[FREE] + state.counts[IDLE_PREFIXES] * state.unit_blocks


@compiled
def take_blocks(state: State, r: int, blocks: int) -> None:
    """Gives a request blocks, evicting the prefixes read longest ago; there are enough."""
    end = state.links.shape[0] - 1
    while blocks > state.counts[FREE]:
        p = state.links[end, 1]
        unlink(state.links, p)
        state.stored[p] = False
        state.counts[IDLE_PREFIXES] -= 1
        state.counts[FREE] += state.unit_blocks
    state.counts[FREE] -= blocks
    state.held[r] += blocks


@compiled
def read_prefix(state: State, p: int) -> None:
    """One more request reads a stored prefix block."""
    if state.readers[p] == 0:
        unlink(state.links, p)
        state.counts[IDLE_PREFIXES] -= 1
    state.readers[p] += 1


@compiled
def release(stream: RequestStream, state: State, r: int) -> None:
    """Frees the blocks of a request; its prefix stays cached, its end to be evicted first."""
    state.counts[FREE] += state.held[r]
    state.held[r] = 0
    for k in range(state.shares[r] - 1, -1, -1):
        p = stream.prefix_ids[stream.prefix_start[r] + k]
        state.readers[p] -= 1
        if state.readers[p] == 0:
            append(state.links, p)
            state.counts[IDLE_PREFIXES] += 1
    state.shares[r] = 0


@compiled
def store_prefix(stream: RequestStream, state: State, r: int) -> None:
    """Prefix blocks that a prompt has just filled can be read by others."""
    while stream.prefix_start[r] + state.shares[r] < stream.prefix_start[r + 1]:
        whole = (state.shares[r] + 1) * stream.prefix_block_tokens
        if whole > state.computed[r] or whole > stream.prompt_tokens[r]:
            return
        p = stream.prefix_ids[stream.prefix_start[r] + state.shares[r]]
        if state.stored[p]:
            # Another request computed the same meanwhile: one copy is kept.
            state.counts[FREE] += state.unit_blocks
            read_prefix(state, p)
        else:
            state.stored[p] = True
            state.readers[p] = 1
        state.shares[r] += 1
        state.held[r] -= state.unit_blocks


@compiled
def wait(state: State, r: int) -> None:
    """Puts a request into the waiting queue."""
    state.counts[WAITING] = push(state.heap, state.keys, state.counts[WAITING], r)
