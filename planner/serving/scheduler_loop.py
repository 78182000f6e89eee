"""vLLM V1's scheduler, iteration by iteration, compiled.

Each step is decided on (scheduler_decide.py), measured and computed. Stretches in which nothing but decoding can happen
are jumped in one go to the next event: from the first step to the last their length and the blocks in use grow evenly.
"""

import numpy as np

from planner.formulas.arrays import BoolArray
from planner.serving.scheduler_cache import available_blocks
from planner.serving.scheduler_compiler import compiled, entry
from planner.serving.scheduler_decide import decide
from planner.serving.scheduler_jump import Step, steps_alike, steps_undisturbed, stretch
from planner.serving.scheduler_parts import (
    blocks_of,
    count_gap,
    count_growing_gaps,
    decode_attention_s,
    least_step_s,
    on_curve,
    padded,
    prompt_attention_s,
    record,
    write_down,
)
from planner.serving.scheduler_state import (
    ACTIVE,
    ARRIVED,
    DECIDED,
    DECISIONS,
    ENDING,
    FINISHED,
    KNOWN,
    LOGGED,
    NOW,
    SCHEDULED,
    WAITING,
    State,
    forget_ended,
    hide,
    new_state,
    record_arrivals,
    send,
    send_first,
    take_blocks,
    wait,
)
from planner.serving.scheduler_types import BlockPool, Outcome, RequestStream, SchedulerLimits, StepTimes

JUST_BEFORE_S = 1e-9


def run(
    stream: RequestStream,
    limits: SchedulerLimits,
    pool: BlockPool,
    times: StepTimes,
    out: Outcome,
    stop: BoolArray,
) -> None:
    """Serves every request of `stream` and writes what happened into `out`; ends after the step in which another thread
    sets `stop` [1].

    Each request must fit into the pool alone, or it would wait for ever; the caller checks that.
    """
    _serve(stream, limits, pool, times, new_state(stream, limits, pool, times, stop), out)


@entry
def _serve(
    stream: RequestStream,
    limits: SchedulerLimits,
    pool: BlockPool,
    times: StepTimes,
    state: State,
    out: Outcome,
) -> None:
    counts, clock = state.counts, state.clock
    send_first(stream, limits, times, state, out)
    while counts[FINISHED] < stream.prompt_tokens.size and not state.stop[0]:
        if not _arrive(state):
            continue
        running = counts[ACTIVE]
        preempted = decide(stream, limits, pool, state, out)
        ended = counts[ENDING] > 0
        if ended:
            # They ended with the step before; that was known only now that this one is scheduled.
            running -= forget_ended(stream, pool, state)
        if counts[SCHEDULED] == 0:
            # Whoever could have run was preempted or had ended: the engine schedules again at once.
            clock[DECIDED] = clock[NOW]
            continue
        step = _measure(stream, times, state)
        steps, last_s = 1, step.length_s
        if step.decoding == counts[ACTIVE] == running and not preempted:
            steps = steps_alike(stream, pool, state)
            steps = min(steps, steps_undisturbed(limits, pool, times, state, step.length_s))
            if ended and counts[WAITING] > 0:
                steps = 1
            steps, last_s = stretch(times, state, steps, step)
        if out.log.shape[0] > 0:
            _write_step(state, out, steps, running)
        _compute(stream, limits, pool, state, out, (step, steps, last_s))
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
def _write_step(state: State, out: Outcome, steps: int, running: int) -> None:
    """Writes down who got what in this step, and who is new among those that run."""
    counts = state.counts
    for j in range(counts[SCHEDULED]):
        new = int(j >= running)
        entry = (counts[DECISIONS], steps, state.running[j], state.chunk[j], new)
        counts[LOGGED] = write_down(out, counts[LOGGED], entry)


@compiled
def _measure(stream: RequestStream, times: StepTimes, state: State) -> Step:
    """The step that was scheduled."""
    decoding, tokens, rows, prompts_s = _count(stream, times, state)
    scheduled = state.counts[SCHEDULED]
    fixed_s = on_curve(times.grid_tokens, times.body_s, padded(times, tokens))
    fixed_s += on_curve(times.grid_tokens, times.head_s, float(rows))
    fixed_s += times.host_s + scheduled * times.host_per_sequence_s
    length_s = fixed_s + prompts_s
    if decoding < scheduled:
        length_s += times.context_constant_s
    if decoding > 0:
        length_s += decode_attention_s(times, decoding, state.seen)
    least_s = least_step_s(times, scheduled, tokens, decoding < scheduled)
    return Step(decoding, tokens, fixed_s, max(length_s, least_s))


@compiled
def _count(stream: RequestStream, times: StepTimes, state: State) -> tuple[int, int, int, float]:
    """Decoding requests, tokens, rows of the output layer, and the prompts' attention."""
    tokens = rows = decoding = 0
    prompts_s = 0.0
    seen = state.seen
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
    return decoding, tokens, rows, prompts_s


@compiled
def _compute(
    stream: RequestStream,
    limits: SchedulerLimits,
    pool: BlockPool,
    state: State,
    out: Outcome,
    stretched: tuple[Step, int, float],
) -> None:
    """Time goes on by a stretch: its first step, how many they are, how long the last one takes."""
    counts, clock = state.counts, state.clock
    step, steps, last_s = stretched
    used = pool.blocks - available_blocks(state.cache)
    start_s = clock[NOW]
    stretch_s = steps * (step.length_s + last_s) * 0.5
    record_arrivals(state, out, start_s + stretch_s)
    clock[NOW] += stretch_s
    # The next step was decided on when this one began, before anything that it brought about.
    clock[DECIDED] = clock[NOW] - last_s - JUST_BEFORE_S if limits.async_scheduling else clock[NOW]
    _advance(stream, pool, state, out, steps, start_s + step.length_s)
    if steps > 1 or out.lengths.shape[0] > 0:
        _count_lengths(state, out, steps, step.decoding, (step.length_s, last_s))
    grown = pool.blocks - available_blocks(state.cache)
    levels = (np.int64(1), counts[ACTIVE], counts[WAITING], used, step.tokens * steps, grown - used)
    record(out, start_s, stretch_s, levels)
    out.totals[0] += steps
    out.totals[1] += stretch_s
    out.totals[2] += step.tokens * steps
    out.totals[3] = max(out.totals[3], used, grown)


@compiled
def _count_lengths(
    state: State, out: Outcome, steps: int, decoding: int, ends_s: tuple[float, float]
) -> None:
    """Counts the steps of a stretch by their length, first and last, and the gaps that end in it after its first."""
    first_s, last_s = ends_s
    counted = out.lengths.shape[0] > 0
    prompts = int(decoding < state.counts[SCHEDULED])
    if counted:
        count_gap(out.lengths[prompts], first_s, 1)
    if steps > 1:
        second_s = first_s + (last_s - first_s) / (steps - 1)
        count_growing_gaps(out.gaps, second_s, last_s, state.counts[ACTIVE] * (steps - 1))
        if counted:
            count_growing_gaps(out.lengths[prompts], second_s, last_s, steps - 1)


@compiled
def _advance(
    stream: RequestStream, pool: BlockPool, state: State, out: Outcome, steps: int, first_end_s: float
) -> None:
    """What so many steps computed, and the tokens they made; the first of them ended then."""
    for j in range(state.counts[SCHEDULED]):
        r = state.running[j]
        state.computed[r] += state.chunk[j] + steps - 1
        if steps > 1:
            before = state.computed[r] - 1
            hide(stream, pool, state, state.cache.windows, r, before)
            need = blocks_of(pool, before, state.computed[r])
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
    """Notes who has all tokens; in a closed loop their users send the next.

    Their slots and blocks are free at once, or where scheduling is asynchronous after the next step is scheduled
    (vllm/v1/engine/core.py, step_with_batch_queue).
    """
    counts = state.counts
    for j in range(counts[ACTIVE]):
        r = state.running[j]
        if state.answered[r] < stream.output_tokens[r]:
            continue
        out.finished_s[r] = state.clock[NOW]
        counts[FINISHED] += 1
        counts[ENDING] += 1
        if limits.users > 0 and counts[KNOWN] < stream.prompt_tokens.size:
            send(stream, times, state, out, state.clock[NOW] + times.reply_s)
    if counts[ENDING] > 0 and not limits.async_scheduling:
        forget_ended(stream, pool, state)
