"""Data-parallel ranks of an MoE model, which step together: every step lasts as long as the longest of any rank.

vLLM's ranks exchange tokens in each MoE layer, and one without requests runs along with an empty batch
(vllm/v1/engine/core.py, DPEngineCoreProc.run_busy_loop). Here each rank is simulated alone, and waits in every step
as long as it would on average if the others were, independently, at any point of their own schedules; steps with
prompts and steps without each have their mean wait, found by repetition. Against ranks that really step together
(tests/serving/test_lockstep.py: two to sixteen, open and closed loops) mean TPOT is within 12 % and mean TTFT within
20 %, too short in an open loop, where a request that comes to an idle rank waits for the others' step; alone, TPOT
comes out down to a third of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import FloatArray
from planner.serving.scheduler_types import GAP_BINS, GAP_LOW_S, GAP_RATIO, Outcome, RequestStream, StepTimes
from planner.serving.simulation import Replica, simulate

ROUNDS = 10
SETTLED_RATIO = 0.01
"""Waits that change by less of a mean step are kept."""
EDGES_S = np.concatenate([[0.0], GAP_LOW_S * GAP_RATIO ** np.arange(1, GAP_BINS + 1)])


class Load(NamedTuple):
    """What one rank is sent."""

    stream: RequestStream
    users: int = 0
    """Closed loop: requests in flight; 0: open loop."""


class Waits(NamedTuple):
    """How long a rank waits for the others on average [s]."""

    plain_s: float
    """In a step without prompts."""
    prompt_s: float


def simulate_in_step(one: Replica, loads: Sequence[Load], ranks: int) -> list[Outcome]:
    """Serves each load on a rank of its own, `ranks` of which step together; those not given are like these."""
    waits = Waits(0.0, 0.0)
    for _ in range(ROUNDS):
        outs = [_simulate(one, load, waits) for load in loads]
        found = waits_of(outs, ranks, waits)
        mean_s = sum(out.totals[1] for out in outs) / max(sum(out.totals[0] for out in outs), 1.0)
        change_s = max(abs(found.plain_s - waits.plain_s), abs(found.prompt_s - waits.prompt_s))
        if change_s <= SETTLED_RATIO * mean_s:
            return outs
        waits = Waits(0.5 * (waits.plain_s + found.plain_s), 0.5 * (waits.prompt_s + found.prompt_s))
    return outs


def _simulate(one: Replica, load: Load, waits: Waits) -> Outcome:
    slower = one._replace(times=slowed(one.times, waits))
    return simulate(slower, load.stream, users=load.users, lengths=True)


def slowed(times: StepTimes, waits: Waits) -> StepTimes:
    """Step times with the wait for other ranks in every step."""
    return times._replace(
        body_s=times.body_s + waits.plain_s,
        chain_s=times.chain_s + waits.plain_s,
        context_constant_s=times.context_constant_s + waits.prompt_s - waits.plain_s,
    )


def waits_of(outs: Sequence[Outcome], ranks: int, waited: Waits) -> Waits:
    """Mean waits of ranks whose steps, with those waits in them, are as counted.

    A rank that is idle holds nobody up. Mean wait of a step of length L: the integral from L on of the probability that
    one of the other ranks takes longer.
    """
    counts = np.sum([out.lengths for out in outs], axis=0)
    busy_ratio = sum(float(out.totals[1]) for out in outs) / (len(outs) * max(out.totals[5] for out in outs))
    own_s = [np.maximum(EDGES_S - wait_s, 0.0) for wait_s in waited]
    below = [np.concatenate([[0.0], np.cumsum(kind)]) for kind in counts]
    shorter = sum(np.interp(EDGES_S, edges_s, count) for edges_s, count in zip(own_s, below, strict=True))
    shorter_ratio = 1.0 - busy_ratio * (1.0 - shorter / counts.sum())
    longest_ratio = 1.0 - shorter_ratio ** (ranks - 1)
    areas = np.diff(EDGES_S) * 0.5 * (longest_ratio[1:] + longest_ratio[:-1])
    beyond_s = np.concatenate([np.cumsum(areas[::-1])[::-1], [0.0]])
    means = [
        _mean(np.interp(edges_s, EDGES_S, beyond_s), kind)
        for edges_s, kind in zip(own_s, counts, strict=True)
    ]
    return Waits(*means)


def _mean(at_edges: FloatArray, counts: FloatArray) -> float:
    """Mean over bins of something known at their edges; 0 where nothing was counted."""
    total = float(counts.sum())
    return float((0.5 * (at_edges[1:] + at_edges[:-1]) * counts).sum()) / total if total else 0.0
