"""vLLM V1's scheduler, iteration by iteration, compiled.

RUNNING first, then WAITING, one token budget a step; blocks are taken as tokens appear; where none is left the last
running request is preempted and recomputed (vllm/v1/core/sched/scheduler.py, schedule). Stretches in which nothing
but decoding can happen are jumped in one go to the next event; their steps take the mean of the first and the last.
"""

import numpy as np
from numba import njit

from planner.formulas.arrays import FloatArray
from planner.serving.scheduler_parts import (
    blocks_of,
    compiled,
    count_gap,
    decode_attention_s,
    on_curve,
    padded,
    pop,
    prompt_attention_s,
    record,
    reserved_blocks,
)
from planner.serving.scheduler_state import (
    ACTIVE,
    ARRIVED,
    BUDGET,
    DECIDED,
    FINISHED,
    FREE,
    KNOWN,
    NOW,
    QUEUE_FRONT,
    SCHEDULED,
    WAITING,
    State,
    available_blocks,
    new_state,
    read_prefix,
    release,
    send,
    store_prefix,
    take_blocks,
    wait,
)
from planner.serving.scheduler_types import BlockPool, Outcome, RequestStream, SchedulerLimits, StepTimes

NO_LIMIT = 1 << 40
JUST_BEFORE_S = 1e-9


@njit(cache=True)
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
        counts[SCHEDULED] = 0
        preempted = _schedule_running(stream, limits, pool, state, out)
        if not preempted:
            _schedule_waiting(stream, limits, pool, state, out)
        if counts[SCHEDULED] == 0:
            # Whoever could have run was preempted: the engine schedules again at once.
            continue
        decoding, tokens, fixed_s, length_s = _measure(stream, times, state, seen)
        steps = 1
        if decoding == counts[ACTIVE] and not preempted:
            steps = _steps_alike(stream, pool, state)
            steps = min(steps, _steps_undisturbed(limits, times, state, length_s))
            if steps > 1:
                _see(times, state, steps, seen)
                last_s = fixed_s + decode_attention_s(times, decoding, seen)
                length_s = steps * (length_s + last_s) * 0.5
        used = pool.blocks - available_blocks(state)
        record(out, clock[NOW], length_s, (counts[ACTIVE], counts[WAITING], used, tokens * steps))
        out.totals[0] += steps
        out.totals[1] += length_s
        out.totals[2] += tokens * steps
        out.totals[3] = max(out.totals[3], used)
        clock[NOW] += length_s
        # The next step was decided on when this one began, before anything that it brought about.
        began_s = clock[NOW] - length_s / steps
        clock[DECIDED] = began_s - JUST_BEFORE_S if limits.async_scheduling else clock[NOW]
        _advance(stream, pool, state, out, steps, length_s / steps)
        _answer(stream, limits, times, state, out)
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
def _wanted(stream: RequestStream, limits: SchedulerLimits, state: State, r: int, computed: int) -> int:
    """Tokens of a request that this step can compute."""
    want = min(stream.prompt_tokens[r] + state.answered[r] - computed, state.counts[BUDGET])
    if limits.long_prefill_token_threshold > 0:
        want = min(want, limits.long_prefill_token_threshold)
    return want


@compiled
def _schedule_running(
    stream: RequestStream, limits: SchedulerLimits, pool: BlockPool, state: State, out: Outcome
) -> bool:
    """Running requests in the order of their admission; True where one had to be preempted."""
    counts = state.counts
    preempted = False
    while counts[SCHEDULED] < counts[ACTIVE] and counts[BUDGET] > 0:
        r = state.running[counts[SCHEDULED]]
        want = _wanted(stream, limits, state, r, state.computed[r])
        need = blocks_of(pool, state.computed[r], state.computed[r] + want)
        need -= state.shares[r] * state.unit_blocks + state.held[r]
        while need > available_blocks(state):
            preempted = True
            if _preempt(stream, limits, state, out) == r:
                return preempted
        take_blocks(state, r, need)
        state.chunk[counts[SCHEDULED]] = want
        counts[BUDGET] -= want
        counts[SCHEDULED] += 1
    return preempted


@compiled
def _preempt(stream: RequestStream, limits: SchedulerLimits, state: State, out: Outcome) -> int:
    """Takes its blocks from the last running request, or the least urgent, and lets it wait again; returns it."""
    counts, keys = state.counts, state.keys
    at = counts[ACTIVE] - 1
    if limits.priority_policy:
        for j in range(counts[ACTIVE]):
            a, b = state.running[j], state.running[at]
            if keys[a, 0] > keys[b, 0] or (keys[a, 0] == keys[b, 0] and a > b):
                at = j
    victim = state.running[at]
    release(stream, state, victim)
    state.computed[victim] = 0
    out.preemptions[victim] += 1
    if not limits.priority_policy:
        state.clock[QUEUE_FRONT] -= 1.0
        keys[victim, 1] = state.clock[QUEUE_FRONT]
    wait(state, victim)
    if at < counts[SCHEDULED]:
        counts[BUDGET] += state.chunk[at]
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
        hits, idle_hits = _prefix_hits(stream, state, r, total)
        found = max(hits * stream.prefix_block_tokens, min(stream.cached_tokens[r], total - 1))
        want = _wanted(stream, limits, state, r, found)
        need = blocks_of(pool, found, found + want) - hits * state.unit_blocks
        whole = need
        if limits.reserve_full_prompt:
            whole = max(need, reserved_blocks(pool, limits, found, total) - hits * state.unit_blocks)
        if whole > available_blocks(state) - idle_hits * state.unit_blocks:
            return
        counts[WAITING] = pop(state.heap, state.keys, counts[WAITING])
        for k in range(hits):
            read_prefix(state, stream.prefix_ids[stream.prefix_start[r] + k])
        state.shares[r] = hits
        state.computed[r] = found
        take_blocks(state, r, need)
        state.running[counts[ACTIVE]] = r
        state.chunk[counts[ACTIVE]] = want
        counts[ACTIVE] += 1
        counts[SCHEDULED] += 1
        counts[BUDGET] -= want
        if out.scheduled_s[r] < 0.0:
            out.scheduled_s[r] = state.clock[NOW]
            out.cached_tokens[r] = found


@compiled
def _prefix_hits(stream: RequestStream, state: State, r: int, total: int) -> tuple[int, int]:
    """Stored blocks that the prompt begins with, and those of them that nobody reads; one token is left to compute."""
    hits = idle = 0
    for k in range(stream.prefix_start[r], stream.prefix_start[r + 1]):
        p = stream.prefix_ids[k]
        if not state.stored[p] or (hits + 1) * stream.prefix_block_tokens >= total:
            break
        idle += state.readers[p] == 0
        hits += 1
    return hits, idle


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
    return decoding, tokens, fixed_s, length_s


@compiled
def _see(times: StepTimes, state: State, steps: int, seen: FloatArray) -> None:
    """Tokens in scope of all running requests in the last of so many decode steps [S]."""
    seen[:] = 0.0
    for j in range(state.counts[ACTIVE]):
        context = float(state.computed[state.running[j]] + steps)
        for scope in range(seen.size):
            seen[scope] += min(context, times.scope_tokens[scope])


@compiled
def _steps_alike(stream: RequestStream, pool: BlockPool, state: State) -> int:
    """Decode steps that all running requests take together before one finishes or blocks may run short."""
    steps = NO_LIMIT
    for r in state.running[: state.counts[ACTIVE]]:
        steps = min(steps, stream.output_tokens[r] - state.answered[r])
    groups = 0
    smallest = NO_LIMIT
    for group in range(pool.block_tokens.size):
        if pool.state_blocks[group] == 0:
            groups += 1
            smallest = min(smallest, pool.block_tokens[group])
    if groups == 0:
        return steps
    # In `smallest` steps a sequence takes at most one block of each group, and one more for where it stands.
    spare = state.counts[FREE] // (state.counts[ACTIVE] * groups) - 1
    return max(1, min(steps, spare * smallest))


@compiled
def _steps_undisturbed(limits: SchedulerLimits, times: StepTimes, state: State, step_s: float) -> int:
    """Decode steps before somebody who comes meanwhile is scheduled."""
    counts = state.counts
    full = counts[ACTIVE] == state.running.size
    if counts[ARRIVED] == counts[KNOWN] or full or (counts[WAITING] > 0 and not limits.priority_policy):
        return NO_LIMIT
    gap_s = state.visible_s[counts[ARRIVED]] - state.clock[NOW]
    if gap_s <= 0.0:
        return 1
    # A step decided on while the one before runs comes one later.
    late = 1 if limits.async_scheduling else 0
    growth_s = counts[ACTIVE] * times.decode_per_token_s[0]
    if gap_s <= step_s or growth_s <= 0.0:
        return late + int(np.ceil(gap_s / step_s))
    linear = step_s - 0.5 * growth_s
    return late + int(np.ceil((np.sqrt(linear * linear + 2.0 * growth_s * gap_s) - linear) / growth_s))


@compiled
def _advance(
    stream: RequestStream, pool: BlockPool, state: State, out: Outcome, steps: int, step_s: float
) -> None:
    """What so many equal steps computed, and the tokens they made."""
    now = state.clock[NOW]
    for j in range(state.counts[SCHEDULED]):
        r = state.running[j]
        state.computed[r] += state.chunk[j] + steps - 1
        if steps > 1:
            need = blocks_of(pool, state.computed[r] - 1, state.computed[r])
            take_blocks(state, r, need - state.shares[r] * state.unit_blocks - state.held[r])
        store_prefix(stream, state, r)
        if state.computed[r] < stream.prompt_tokens[r] + state.answered[r] + steps - 1:
            continue
        if state.answered[r] == 0:
            out.first_token_s[r] = now
        else:
            count_gap(out.gaps, now - (steps - 1) * step_s - state.last_token_s[r], 1)
            if steps > 1:
                count_gap(out.gaps, step_s, steps - 1)
        state.last_token_s[r] = now
        state.answered[r] += steps


@compiled
def _answer(
    stream: RequestStream, limits: SchedulerLimits, times: StepTimes, state: State, out: Outcome
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
        release(stream, state, r)
        if limits.users > 0 and counts[KNOWN] < stream.prompt_tokens.size:
            send(stream, times, state, out, state.clock[NOW])
    counts[ACTIVE] = kept
