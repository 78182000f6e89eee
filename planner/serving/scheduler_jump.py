"""Stretches in which nothing but decoding can happen: how many steps they have, and how long the last one takes."""

from typing import NamedTuple

import numpy as np

from planner.serving.scheduler_cache import available_blocks
from planner.serving.scheduler_compiler import compiled
from planner.serving.scheduler_parts import decode_attention_s, least_step_s
from planner.serving.scheduler_state import ACTIVE, ARRIVED, KNOWN, NOW, WAITING, State
from planner.serving.scheduler_types import BlockPool, RequestStream, SchedulerLimits, StepTimes

NO_LIMIT = 1 << 40
LONGEST_GROWTH_RATIO = 1.25
"""Of the last step of a stretch to its first: blocks in use then grow as evenly in time as from step to step."""


class Step(NamedTuple):
    """A step that was scheduled."""

    decoding: int
    """Sequences that decode."""
    tokens: int
    fixed_s: float
    """Time without attention."""
    length_s: float


@compiled
def steps_alike(stream: RequestStream, pool: BlockPool, state: State) -> int:
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
    spare = available_blocks(state.cache) // (state.counts[ACTIVE] * groups) - 1
    return max(1, min(steps, spare * smallest))


@compiled
def _growth_s(times: StepTimes, state: State) -> float:
    """What a decode step takes longer than the one before: a token more in every scope that is not full."""
    growth_s = 0.0
    for j in range(state.counts[ACTIVE]):
        context = state.computed[state.running[j]]
        for scope in range(times.scope_tokens.size):
            if context < times.scope_tokens[scope]:
                growth_s += times.decode_per_token_s[scope]
    return growth_s


@compiled
def steps_undisturbed(
    limits: SchedulerLimits, pool: BlockPool, times: StepTimes, state: State, step_s: float
) -> int:
    """Decode steps before somebody who waits, or comes meanwhile, may be scheduled."""
    counts = state.counts
    full = counts[ACTIVE] == state.running.size
    if counts[WAITING] > 0 and not full:
        for window in pool.window_tokens:
            if window > 0:
                # Who waits for blocks may get those that go out of sight.
                return 1
    if counts[ARRIVED] == counts[KNOWN] or full or (counts[WAITING] > 0 and not limits.priority_policy):
        return NO_LIMIT
    gap_s = state.visible_s[counts[ARRIVED]] - state.clock[NOW]
    if gap_s <= 0.0:
        return 1
    # A step decided on while the one before runs comes one later.
    late = 1 if limits.async_scheduling else 0
    growth_s = _growth_s(times, state)
    if gap_s <= step_s or growth_s <= 0.0:
        return late + int(np.ceil(gap_s / step_s))
    linear = step_s - 0.5 * growth_s
    return late + int(np.ceil((np.sqrt(linear * linear + 2.0 * growth_s * gap_s) - linear) / growth_s))


@compiled
def stretch(times: StepTimes, state: State, steps: int, first: Step) -> tuple[int, float]:
    """So many decode steps, fewer where the last took much longer than the first, and the time of the last."""
    decoding = first.decoding
    least_s = least_step_s(times, decoding, decoding, False)
    while steps > 1:
        _see(times, state, steps)
        last_s = max(first.fixed_s + decode_attention_s(times, decoding, state.seen), least_s)
        if last_s <= LONGEST_GROWTH_RATIO * first.length_s:
            return steps, last_s
        steps = (steps + 1) // 2
    return 1, first.length_s


@compiled
def _see(times: StepTimes, state: State, steps: int) -> None:
    """Tokens in scope of all running requests in the last of so many decode steps [S]."""
    seen = state.seen
    seen[:] = 0.0
    for j in range(state.counts[ACTIVE]):
        context = float(state.computed[state.running[j]] + steps)
        for scope in range(seen.size):
            seen[scope] += min(context, times.scope_tokens[scope])
