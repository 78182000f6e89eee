"""Recorded scenarios through our schedulers, written as they were recorded: every step takes one second."""

from itertools import groupby

import numpy as np

from planner.serving.arrivals import plain_stream, with_prefixes
from planner.serving.scheduler_loop import run
from planner.serving.scheduler_types import UNWRITTEN, BlockPool, Outcome, SchedulerLimits, empty_outcome
from tests.engine.schedules import Recorded, Scenario
from tests.serving.reference_scheduler import Request, Setting, schedule, times_of, written

LOG_ROWS = 100_000
MAX_MODEL_LEN = 2048
NULL_BLOCKS = 1
STEP_S = 1.0
NEVER = np.zeros(1, dtype=np.bool_)
"""Nothing stops the run."""


def simulated_steps(recorded: Recorded) -> list[str]:
    """What the compiled loop decides."""
    scenario = recorded.scenario
    requests = scenario.requests
    stream = plain_stream(
        np.array([STEP_S * load.arrival for load in requests]),
        np.array([load.prompt for load in requests]),
        np.array([load.output for load in requests]),
    )._replace(priority=np.array([load.priority for load in requests], dtype=np.int64))
    block_tokens = recorded.groups[0]["block_tokens"]
    stream = with_prefixes(stream, [load.prefix for load in requests], block_tokens)
    out = empty_outcome(len(requests), LOG_ROWS)
    run(stream, limits_of(scenario), _pool(recorded), times_of(_setting(scenario, block_tokens)), out, NEVER)
    return steps_of(out)


def steps_of(out: Outcome) -> list[str]:
    """The log of an outcome, written as schedules are recorded."""
    rows = out.log[out.log[:, 0] != UNWRITTEN].tolist()
    assert len(rows) < len(out.log)
    steps = []
    for _, decision in groupby(rows, key=lambda row: row[0]):
        lines = list(decision)
        steps += [_step(lines)] * lines[-1][1]
    return steps


def _step(lines: list[list[int]]) -> str:
    got = [f"{'+' * admitted}{number}:{tokens}" for _, _, number, tokens, admitted in lines if tokens]
    return " ".join([*got, *sorted(f"-{number}" for _, _, number, tokens, _ in lines if not tokens)])


def plain_steps(recorded: Recorded) -> list[str]:
    """What the scheduler in plain Python decides; it knows no windows."""
    scenario = recorded.scenario
    requests = [
        Request(number, STEP_S * load.arrival, load.prompt, load.output, load.priority, load.prefix)
        for number, load in enumerate(scenario.requests)
    ]
    return written(schedule(_setting(scenario, recorded.groups[0]["block_tokens"]), requests))


def limits_of(scenario: Scenario) -> SchedulerLimits:
    """The engine's limits, with the rules of the release that was recorded (0.32)."""
    return SchedulerLimits(
        max_num_seqs=scenario.max_num_seqs,
        max_num_batched_tokens=scenario.max_num_batched_tokens,
        long_prefill_token_threshold=scenario.long_prefill_token_threshold,
        lone_prompt_whole=True,
        users=0,
        priority_policy=scenario.policy == "priority",
        reserve_full_prompt=True,
        prefix_caching=scenario.prefix_caching,
        sparse_windows=True,
        async_scheduling=False,
    )


def _setting(scenario: Scenario, block_tokens: int) -> Setting:
    return Setting(
        fixed_s=STEP_S,
        per_token_s=0.0,
        blocks=scenario.blocks - NULL_BLOCKS,
        block_tokens=block_tokens,
        max_num_seqs=scenario.max_num_seqs,
        max_num_batched_tokens=scenario.max_num_batched_tokens,
        long_prefill_token_threshold=scenario.long_prefill_token_threshold,
        priority_policy=scenario.policy == "priority",
        prefix_caching=scenario.prefix_caching,
    )


def _pool(recorded: Recorded) -> BlockPool:
    """The groups of the engine; a window is reserved with one step beside it, in whole blocks and one more."""
    sizes = np.array([group["block_tokens"] for group in recorded.groups])
    windows = np.array([group["window_tokens"] for group in recorded.groups])
    seen = np.minimum(windows - 1 + recorded.scenario.max_num_batched_tokens, MAX_MODEL_LEN)
    return BlockPool(
        blocks=recorded.scenario.blocks - NULL_BLOCKS,
        block_tokens=sizes,
        window_tokens=windows,
        chunked=np.zeros(sizes.size, dtype=np.bool_),
        most_blocks=-(-seen // sizes) + 1,
        state_blocks=np.zeros(sizes.size, dtype=np.int64),
    )
