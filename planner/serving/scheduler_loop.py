"""vLLM V1's scheduler, iteration by iteration, compiled.

RUNNING first, then WAITING, one token budget a step; blocks are taken as tokens appear; where none is left the last
running request is preempted and recomputed (vllm/v1/core/sched/scheduler.py, schedule). Stretches in which nothing
but decoding can happen are jumped in one go to the next event: from the first step to the last their length and the
blocks in use grow evenly.
"""

import numpy as np

from planner.formulas.arrays import FloatArray
from planner.serving.scheduler_cache import NOBODY, available_blocks
from planner.serving.scheduler_compiler import allocating, compiled
from planner.serving.scheduler_jump import NO_LIMIT, steps_alike, steps_undisturbed, stretch
from planner.serving.scheduler_parts import (
    blocks_of,
    count_gap,
    count_growing_gaps,
    decode_attention_s,
    host_chain_s,
    on_curve,
    padded,
    pop,
    prompt_attention_s,
    record,
    reserved_blocks,
    write_down,
)
from planner.serving.scheduler_state import (
    ACTIVE,
    ARRIVED,
    BUDGET,
    DECIDED,
    DECISIONS,
    FINISHED,
    KNOWN,
    LOGGED,
    LONGEST,
    NOW,
    QUEUE_FRONT,
    SCHEDULED,
    WAITING,
    State,
    new_state,
    read_prefix,
    record_arrivals,
    release,
    send,
    store_prefix,
    take_blocks,
    wait,
)
from planner.serving.scheduler_types import BlockPool, Outcome, RequestStream, SchedulerLimits, StepTimes

JUST_BEFORE_S = 1e-9


@allocating
def run(
    stream: RequestStream, limits: SchedulerLimits, pool: BlockPool, times: StepTimes, out: Outcome
) -> None:
    """Serves every request of `stream` and writes what happened into `out`.

    Each request must fit into the pool alone, or it would wait for ever; the caller checks that.
    """
    state = new_state(stream, limits, pool, times, out)
    counts, clock = state.counts, state.clock
    seen = np.zeros(times.scope_tokens.size)
    while counts[FINISHED] < stream.prompt_tokens.size:
        if not _arrive(state):
            continue
        counts[BUDGET] = limits.max_num_batched_tokens
        counts[LONGEST] = _longest_chunk(limits, state)
        counts[SCHEDULED] = 0
        counts[DECISIONS] += 1
        running = counts[ACTIVE]
        preempted = _schedule_running(stream, limits, pool, state, out)
        if not preempted:
            _schedule_waiting(stream, limits, pool, state, out)
        if counts[SCHEDULED] == 0:
            # Whoever could have run was preempted: the engine schedules again at once.
            continue
        decoding, tokens, fixed_s, length_s = _measure(stream, times, state, seen)
        steps, last_s = 1, length_s
        if decoding == counts[ACTIVE] == running and not preempted:
            steps = steps_alike(stream, pool, state)
            steps = min(steps, steps_undisturbed(limits, pool, times, state, length_s))
            steps, last_s = stretch(times, state, steps, (decoding, fixed_s, length_s), seen)
        if out.log.shape[0] > 0:
            _write_step(state, out, steps, running)
        used = pool.blocks - available_blocks(state.cache)
        start_s = clock[NOW]
        stretch_s = steps * (length_s + last_s) * 0.5
        record_arrivals(state, out, start_s + stretch_s)
        clock[NOW] += stretch_s
        # The next step was decided on when this one began, before anything that it brought about.
        clock[DECIDED] = clock[NOW] - last_s - JUST_BEFORE_S if limits.async_scheduling else clock[NOW]
        _advance(stream, pool, state, out, steps, start_s + length_s)
        if steps > 1:
            second_s = length_s + (last_s - length_s) / (steps - 1)
            count_growing_gaps(out.gaps, second_s, last_s, counts[ACTIVE] * (steps - 1))
        grown = pool.blocks - available_blocks(state.cache)
        levels = (1, counts[ACTIVE], counts[WAITING], used, tokens * steps)
        record(out, start_s, stretch_s, levels, grown - used)
        out.totals[0] += steps
        out.totals[1] += stretch_s
        out.totals[2] += tokens * steps
        out.totals[3] = max(out.totals[3], used, grown)
        _answer(stream, limits, pool, times, state, out)
    out.totals[5] = clock[NOW]


@compiled
def _arrive(state: State) -> bool:
    """Moves on to the next arrival where nothing is to do, and lets in who had come by then; False for nobody."""
    counts, clock = state.counts, state.clock
    idle = counts[ACTIVE] == 0 and counts[WAITING] == 0
    if idle and state.visible_s[counts[ARRIVED]] > clock[NOW]:
        clock[NOW] = clock[DECIDED] = state.visible_s[counts[ARRIVED]]
    while counts[ARRIVED] < counts[KNOWN] and state.visible_s[counts[ARRIVED]] <= clock[DECIDED]:
        wait(state, counts[ARRIVED])
        counts[ARRIVED] += 1
    if idle and counts[WAITING] == 0:
        clock[DECIDED] = clock[NOW]
        return False
    return True


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
    """Running requests in the order of their admission; True where one had to be preempted."""
    counts = state.counts
    preempted = False
    while counts[SCHEDULED] < counts[ACTIVE] and counts[BUDGET] > 0:
        r = state.running[counts[SCHEDULED]]
        want = _wanted(stream, state, r, state.computed[r])
        need = blocks_of(pool, state.computed[r], state.computed[r] + want)
        need -= state.shares[r] * state.cache.unit_blocks + state.held[r]
        while need > available_blocks(state.cache):
            preempted = True
            if _preempt(stream, limits, pool, state, out) == r:
                return preempted
        take_blocks(state, r, need)
        store_prefix(stream, state, r, state.computed[r] + want)
        state.chunk[counts[SCHEDULED]] = want
        counts[BUDGET] -= want
        counts[SCHEDULED] += 1
    return preempted


@compiled
def _preempt(
    stream: RequestStream, limits: SchedulerLimits, pool: BlockPool, state: State, out: Outcome
) -> int:
    """Takes its blocks from the last running request, or the least urgent, and lets it wait again; returns it."""
    counts, keys = state.counts, state.keys
    at = counts[ACTIVE] - 1
    if limits.priority_policy:
        for j in range(counts[ACTIVE]):
            a, b = state.running[j], state.running[at]
            if keys[a, 0] > keys[b, 0] or (keys[a, 0] == keys[b, 0] and a > b):
                at = j
    victim = state.running[at]
    scheduled = state.chunk[at] if at < counts[SCHEDULED] else 0
    release(stream, pool, state, victim, state.computed[victim] + scheduled, True)
    state.computed[victim] = 0
    out.preemptions[victim] += 1
    if not limits.priority_policy:
        state.clock[QUEUE_FRONT] -= 1.0
        keys[victim, 1] = state.clock[QUEUE_FRONT]
    wait(state, victim)
    if out.log.shape[0] > 0:
        counts[LOGGED] = write_down(out, counts[LOGGED], (counts[DECISIONS], 1, victim, 0, 0))
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
    counts = state.counts
    slots = state.running.size
    while counts[WAITING] > 0 and counts[BUDGET] > 0 and counts[ACTIVE] < slots:
        if counts[SCHEDULED] < counts[ACTIVE]:
            return
        r = state.heap[0]
        total = stream.prompt_tokens[r] + state.answered[r]
        hits, own, idle = _prefix_hits(stream, state, r, total)
        found = hits * stream.prefix_block_tokens + own * state.cache.own_block_tokens
        found = max(found, min(stream.cached_tokens[r], total - 1))
        want = _wanted(stream, state, r, found)
        known = hits * state.cache.unit_blocks + own
        need = blocks_of(pool, found, found + want) - known
        whole = need
        if limits.reserve_full_prompt:
            whole = max(need, reserved_blocks(pool, found, total) - known)
        if whole > available_blocks(state.cache) - idle:
            return
        counts[WAITING] = pop(state.heap, state.keys, counts[WAITING])
        read_prefix(stream, state, r, hits, own)
        state.computed[r] = found
        take_blocks(state, r, need)
        store_prefix(stream, state, r, found + want)
        state.running[counts[ACTIVE]] = r
        state.chunk[counts[ACTIVE]] = want
        counts[ACTIVE] += 1
        counts[SCHEDULED] += 1
        counts[BUDGET] -= want
        if out.scheduled_s[r] < 0.0:
            out.scheduled_s[r] = state.clock[NOW]
            out.cached_tokens[r] = found


@compiled
def _prefix_hits(stream: RequestStream, state: State, r: int, total: int) -> tuple[int, int, int]:
    """Stored prefix blocks that the prompt begins with, blocks behind them that the request left when it was
    preempted, and how many KV blocks of both nobody reads; one token is left to compute."""
    cache = state.cache
    hits = idle = own = 0
    for k in range(stream.prefix_start[r], stream.prefix_start[r + 1]):
        copy = cache.first[stream.prefix_ids[k]]
        if copy == NOBODY or (hits + 1) * stream.prefix_block_tokens >= total:
            return hits, own, idle
        idle += cache.unit_blocks * (cache.readers[copy] == 0)
        hits += 1
    if cache.left[r] > 0:
        own = (total - 1 - hits * stream.prefix_block_tokens) // cache.own_block_tokens
        own = min(cache.left[r], own)
    return hits, own, idle + own


@compiled
def _write_step(state: State, out: Outcome, steps: int, running: int) -> None:
    """Writes down who got what in this step, and who is new among those that run."""
    counts = state.counts
    for j in range(counts[SCHEDULED]):
        new = int(j >= running)
        entry = (counts[DECISIONS], steps, state.running[j], state.chunk[j], new)
        counts[LOGGED] = write_down(out, counts[LOGGED], entry)


@compiled
def _measure(
    stream: RequestStream, times: StepTimes, state: State, seen: FloatArray
) -> tuple[int, int, float, float]:
    """Decoding requests, tokens, time without attention, and time of the step that was scheduled."""
    tokens = rows = decoding = 0
    prompts_s = 0.0
    seen[:] = 0.0
    for j in range(state.counts[SCHEDULED]):
        r = state.running[j]
        tokens += state.chunk[j]
        known = stream.prompt_tokens[r] + state.answered[r]
        rows += state.computed[r] + state.chunk[j] == known
        if state.answered[r] > 0 and state.computed[r] + 1 == known:
            decoding += 1
            for scope in range(seen.size):
                seen[scope] += min(float(known), times.scope_tokens[scope])
        else:
            prompts_s += prompt_attention_s(times, state.computed[r], state.chunk[j])
    fixed_s = on_curve(times.grid_tokens, times.body_s, padded(times, tokens))
    fixed_s += on_curve(times.grid_tokens, times.head_s, rows)
    fixed_s += times.host_s + state.counts[SCHEDULED] * times.host_per_sequence_s
    length_s = fixed_s + prompts_s
    if decoding < state.counts[SCHEDULED]:
        length_s += times.context_constant_s
    if decoding > 0:
        length_s += decode_attention_s(times, decoding, seen)
    return decoding, tokens, fixed_s, max(length_s, host_chain_s(times, state.counts[SCHEDULED]))


@compiled
def _advance(
    stream: RequestStream, pool: BlockPool, state: State, out: Outcome, steps: int, first_end_s: float
) -> None:
    """What so many steps computed, and the tokens they made; the first of them ended then."""
    for j in range(state.counts[SCHEDULED]):
        r = state.running[j]
        state.computed[r] += state.chunk[j] + steps - 1
        if steps > 1:
            need = blocks_of(pool, state.computed[r] - 1, state.computed[r])
            take_blocks(state, r, need - state.shares[r] * state.cache.unit_blocks - state.held[r])
        if state.computed[r] < stream.prompt_tokens[r] + state.answered[r] + steps - 1:
            continue
        if state.answered[r] == 0:
            out.first_token_s[r] = first_end_s
        else:
            count_gap(out.gaps, first_end_s - state.last_token_s[r], 1)
        state.last_token_s[r] = state.clock[NOW]
        state.answered[r] += steps


@compiled
def _answer(
    stream: RequestStream,
    limits: SchedulerLimits,
    pool: BlockPool,
    times: StepTimes,
    state: State,
    out: Outcome,
) -> None:
    """Lets go of requests that have all their tokens; in a closed loop their users send the next."""
    counts = state.counts
    kept = 0
    for j in range(counts[ACTIVE]):
        r = state.running[j]
        if state.answered[r] < stream.output_tokens[r]:
            state.running[kept] = r
            kept += 1
            continue
        out.finished_s[r] = state.clock[NOW]
        counts[FINISHED] += 1
        release(stream, pool, state, r, state.computed[r], False)
        if limits.users > 0 and counts[KNOWN] < stream.prompt_tokens.size:
            send(stream, times, state, out, state.clock[NOW] + times.reply_s)
    counts[ACTIVE] = kept
