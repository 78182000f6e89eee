"""One replica serving a stream of requests, simulated iteration by iteration.

The loop itself is compiled at first use and kept beside the program; later starts read it from there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings
from planner.formulas.arrays import FloatArray
from planner.formulas.host_time import HostTime
from planner.formulas.kv_cache import NULL_BLOCKS, KvLayout
from planner.formulas.kv_layers import CacheKind
from planner.formulas.step import GRID_TOKENS, StepModel
from planner.serving.scheduler_types import (
    BlockPool,
    Outcome,
    RequestStream,
    SchedulerLimits,
    StepTimes,
    empty_outcome,
)


class Replica(NamedTuple):
    """An engine that can be simulated: its times, its cache and its limits."""

    times: StepTimes
    pool: BlockPool
    engine: EngineSettings
    host: HostTime


def replica(
    step: StepModel,
    kv: KvLayout,
    kv_cache_bytes: int,
    engine: EngineSettings,
    host: HostTime,
    captured: Sequence[int],
) -> Replica:
    """What the simulation knows of a deployment; `captured` are its CUDA-graph sizes, ascending."""
    return Replica(step_times(step, engine, host, captured), block_pool(kv, kv_cache_bytes), engine, host)


def step_times(
    step: StepModel, engine: EngineSettings, host: HostTime, captured: Sequence[int] = ()
) -> StepTimes:
    """The step model with the host's share, as the compiled loop reads it."""
    host_s, per_sequence_s = host.of_step(async_scheduling=engine.async_scheduling)
    return StepTimes(
        grid_tokens=GRID_TOKENS,
        body_s=step.body_s,
        head_s=step.head_s,
        decode_constant_s=float(step.decode_constant_s),
        decode_per_sequence_s=float(step.decode_per_sequence_s),
        scope_tokens=step.scope_tokens.astype(np.float64),
        decode_per_token_s=step.decode_per_token_s,
        context_constant_s=float(step.context_constant_s),
        context_per_token_s=float(step.context_per_token_s),
        context_per_pair_s=step.context_per_pair_s,
        context_per_past_s=step.context_per_past_s,
        captured_tokens=np.array(captured, dtype=np.float64),
        host_s=host_s,
        host_per_sequence_s=per_sequence_s,
        front_s=host.front_s,
        front_per_token_s=host.front_per_token_s,
    )


def block_pool(kv: KvLayout, kv_cache_bytes: int) -> BlockPool:
    """The pool that so much memory makes, without vLLM's null block."""
    groups = kv.groups
    return BlockPool(
        blocks=max(0, kv.blocks(kv_cache_bytes) - NULL_BLOCKS),
        block_tokens=np.array([group.block_tokens for group in groups], dtype=np.int64),
        window_tokens=np.array([group.window_tokens or 0 for group in groups], dtype=np.int64),
        chunked=np.array([group.kind is CacheKind.CHUNKED for group in groups], dtype=np.bool_),
        state_blocks=np.array([group.state_blocks for group in groups], dtype=np.int64),
    )


def simulate(one: Replica, stream: RequestStream, *, users: int = 0) -> Outcome:
    """Serves the stream; `users` above 0 closes the loop: that many in flight, each sent when another ends.

    The reply's way to the client delays no next request: with it the runs of constant lengths fit worse.

    Deterministic: equal streams have equal outcomes.

    Raises:
        InputError: a request needs more blocks than the whole cache has.
    """
    limits = SchedulerLimits(
        max_num_seqs=one.engine.max_num_seqs,
        max_num_batched_tokens=one.engine.max_num_batched_tokens,
        long_prefill_token_threshold=0,
        users=users,
        priority_policy=bool(stream.priority.any()),
        reserve_full_prompt=True,
        async_scheduling=one.engine.async_scheduling,
    )
    _check_each_fits(one.pool, limits, stream)
    # Imported here: the compiler takes a second to load, and most verbs never need it.
    from planner.serving.scheduler_loop import run

    out = empty_outcome(stream.prompt_tokens.size)
    if stream.prompt_tokens.size:
        run(stream, limits, one.pool, one.times, out)
    return out


def ttft_s(one: Replica, out: Outcome, users: float) -> FloatArray:
    """Time to the first token as clients see it [N]; `users`: requests in flight on average."""
    reply_s = one.host.reply_s + one.host.reply_per_user_s * users
    return np.asarray(out.first_token_s - out.sent_s + reply_s, dtype=np.float64)


def tpot_s(out: Outcome, stream: RequestStream) -> FloatArray:
    """Time per output token after the first, of requests with two tokens or more."""
    several = stream.output_tokens > 1
    spans = out.finished_s[several] - out.first_token_s[several]
    return np.asarray(spans / (stream.output_tokens[several] - 1), dtype=np.float64)


def _check_each_fits(pool: BlockPool, limits: SchedulerLimits, stream: RequestStream) -> None:
    """Every request at its longest, alone in the cache."""
    if not stream.prompt_tokens.size:
        return
    longest = stream.prompt_tokens + stream.output_tokens
    at = int(np.argmax(longest))
    total = int(longest[at])
    need = 0
    for size, window, states in zip(
        pool.block_tokens.tolist(), pool.window_tokens.tolist(), pool.state_blocks.tolist(), strict=True
    ):
        blocks = -(-total // size)
        if window:
            blocks = min(blocks, -(-(window + limits.max_num_batched_tokens) // size) + 1)
        need += states or blocks
    if need > pool.blocks:
        raise InputError(
            f"request {at} of {total} tokens needs {need} KV blocks, the cache has {pool.blocks}: "
            "give a shorter one or a larger cache"
        )
