"""Who gets what in one step, and who must wait for it: RUNNING first, then WAITING, one token budget; blocks are taken
as tokens appear; where none is left the last running request is preempted and recomputed
(vllm/v1/core/sched/scheduler.py, schedule)."""

import numpy as np

from planner.serving.scheduler_cache import NOBODY, Windows, available_blocks
from planner.serving.scheduler_compiler import compiled
from planner.serving.scheduler_jump import NO_LIMIT
from planner.serving.scheduler_parts import blocks_of, pop, reserved_blocks, write_down
from planner.serving.scheduler_state import (
    ACTIVE,
    BUDGET,
    DECISIONS,
    ENDING,
    LOGGED,
    LONGEST,
    NOW,
    QUEUE_FRONT,
    SCHEDULED,
    WAITING,
    State,
    hide,
    read_prefix,
    release,
    store_prefix,
    take_blocks,
    wait,
)
from planner.serving.scheduler_types import BlockPool, Outcome, RequestStream, SchedulerLimits
from planner.serving.scheduler_windows import windowed_prefix


@compiled
def decide(
    stream: RequestStream, limits: SchedulerLimits, pool: BlockPool, state: State, out: Outcome
) -> bool:
    """Schedules one step; True where somebody was preempted for it, so that nobody was admitted."""
    counts = state.counts
    counts[BUDGET] = limits.max_num_batched_tokens
    counts[LONGEST] = _longest_chunk(limits, state)
    counts[SCHEDULED] = 0
    counts[DECISIONS] += 1
    preempted = _schedule_running(stream, limits, pool, state, out)
    if not preempted:
        _schedule_waiting(stream, limits, pool, state, out)
    return preempted


@compiled
def _longest_chunk(limits: SchedulerLimits, state: State) -> int:
    """Tokens that one request may have in this step, the budget apart."""
    alone = state.counts[ACTIVE] + state.counts[WAITING] == 1
    if limits.long_prefill_token_threshold == 0 or (alone and limits.lone_prompt_whole):
        return NO_LIMIT
    return limits.long_prefill_token_threshold


@compiled
def _wanted(stream: RequestStream, state: State, r: int, computed: int) -> int:
    """Tokens of a request that this step can compute."""
    want = min(stream.prompt_tokens[r] + state.answered[r] - computed, state.counts[BUDGET])
    return min(want, state.counts[LONGEST])


@compiled
def _schedule_running(
    stream: RequestStream, limits: SchedulerLimits, pool: BlockPool, state: State, out: Outcome
) -> bool:
    """Running requests in the order of their admission; True where one had to be preempted.

    Those that have ended get nothing, as vLLM counts the tokens that are on their way
    (vllm/v1/core/sched/scheduler.py, schedule), but still have their slot and their blocks.
    """
    counts, windows = state.counts, state.cache.windows
    some_ended = counts[ENDING] > 0
    preempted = False
    while counts[SCHEDULED] < counts[ACTIVE] and counts[BUDGET] > 0:
        r = state.running[counts[SCHEDULED]]
        if some_ended and state.answered[r] == stream.output_tokens[r]:
            state.chunk[counts[SCHEDULED]] = 0
            counts[SCHEDULED] += 1
            continue
        want = _wanted(stream, state, r, state.computed[r])
        hide(stream, pool, state, windows, r, state.computed[r])
        need = blocks_of(pool, state.computed[r], state.computed[r] + want)
        need -= state.shares[r] * state.cache.unit_blocks + state.held[r]
        while need > available_blocks(state.cache):
            preempted = True
            if _preempt(stream, limits, pool, state, out) == r:
                return preempted
        take_blocks(state, r, need)
        store_prefix(stream, state, windows, r, state.computed[r] + want)
        state.chunk[counts[SCHEDULED]] = want
        counts[BUDGET] -= want
        counts[SCHEDULED] += 1
    return preempted


@compiled
def _preempt(
    stream: RequestStream, limits: SchedulerLimits, pool: BlockPool, state: State, out: Outcome
) -> int:
    """Takes its blocks from the last running request, or the least urgent, and lets it wait again; returns it.

    One that has ended does not come back. Where scheduling is asynchronous a full block cannot be found again while
    its last token is computed (vllm/v1/core/sched/async_scheduler.py, _update_request_with_output).
    """
    counts, keys = state.counts, state.keys
    at = counts[ACTIVE] - 1
    if limits.priority_policy:
        for j in range(counts[ACTIVE]):
            a, b = state.running[j], state.running[at]
            if keys[a, 0] > keys[b, 0] or (keys[a, 0] == keys[b, 0] and a > b):
                at = j
    victim = state.running[at]
    scheduled = state.chunk[at] if at < counts[SCHEDULED] else 0
    ended = state.answered[victim] == stream.output_tokens[victim]
    tokens = state.computed[victim] + scheduled
    known = tokens - int(limits.async_scheduling and tokens > state.admitted[victim])
    release(stream, pool, state, state.cache.windows, victim, (tokens, known))
    state.computed[victim] = 0
    out.preemptions[victim] += 1
    if ended:
        counts[ENDING] -= 1
    else:
        if not limits.priority_policy:
            state.clock[QUEUE_FRONT] -= 1.0
            keys[victim, 1] = state.clock[QUEUE_FRONT]
        wait(state, victim)
    if out.log.shape[0] > 0:
        none = np.int64(0)
        counts[LOGGED] = write_down(out, counts[LOGGED], (counts[DECISIONS], np.int64(1), victim, none, none))
    if at < counts[SCHEDULED]:
        counts[BUDGET] += scheduled
        counts[SCHEDULED] -= 1
    for j in range(at, counts[ACTIVE] - 1):
        state.running[j] = state.running[j + 1]
        state.chunk[j] = state.chunk[j + 1]
    counts[ACTIVE] -= 1
    return victim


@compiled
def _schedule_waiting(
    stream: RequestStream, limits: SchedulerLimits, pool: BlockPool, state: State, out: Outcome
) -> None:
    """Admits who waits, in order, while there are tokens, slots and blocks."""
    counts, windows = state.counts, state.cache.windows
    slots = state.running.size
    while counts[WAITING] > 0 and counts[BUDGET] > 0 and counts[ACTIVE] < slots:
        if counts[SCHEDULED] < counts[ACTIVE]:
            return
        r = state.heap[0]
        total = stream.prompt_tokens[r] + state.answered[r]
        hits, own, known, idle = _prefix_hits(stream, state, windows, r, total)
        found = hits * stream.prefix_block_tokens + own * state.cache.own_block_tokens
        found = max(found, min(stream.cached_tokens[r], total - 1))
        want = _wanted(stream, state, r, found)
        need = blocks_of(pool, found, found + want) - known
        whole = need
        if limits.reserve_full_prompt:
            whole = max(need, reserved_blocks(pool, found, total) - known)
        if whole > available_blocks(state.cache) - idle:
            return
        counts[WAITING] = pop(state.heap, state.keys, counts[WAITING])
        read_prefix(stream, state, windows, r, hits, own)
        state.computed[r] = found
        state.admitted[r] = total
        take_blocks(state, r, need)
        store_prefix(stream, state, windows, r, found + want)
        state.running[counts[ACTIVE]] = r
        state.chunk[counts[ACTIVE]] = want
        counts[ACTIVE] += 1
        counts[SCHEDULED] += 1
        counts[BUDGET] -= want
        if out.scheduled_s[r] < 0.0:
            out.scheduled_s[r] = state.clock[NOW]
            out.cached_tokens[r] = found


@compiled
def _prefix_hits(
    stream: RequestStream, state: State, windows: Windows | None, r: int, total: int
) -> tuple[int, int, int, int]:
    """Stored prefix blocks that the prompt begins with, blocks behind them that the request left when it was
    preempted, how many KV blocks both are, and how many of these nobody reads; one token is left to compute."""
    cache = state.cache
    if windows is not None:
        hits, known, idle = windowed_prefix(stream, (cache, windows), r, total)
        return hits, 0, known, idle
    hits = idle = own = 0
    for k in range(stream.prefix_start[r], stream.prefix_start[r + 1]):
        copy = cache.first[stream.prefix_ids[k]]
        if copy == NOBODY or (hits + 1) * stream.prefix_block_tokens >= total:
            return hits, own, hits * cache.unit_blocks, idle
        idle += cache.unit_blocks * (cache.readers[copy] == 0)
        hits += 1
    if cache.left[r] > 0:
        own = (total - 1 - hits * stream.prefix_block_tokens) // cache.own_block_tokens
        own = min(cache.left[r], own)
    return hits, own, hits * cache.unit_blocks + own, idle + own
