"""One replica serving a stream of requests, simulated iteration by iteration.

The loop itself is compiled at first use and kept (scheduler_compiler.py); later starts read it from there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings
from planner.formulas.arrays import FloatArray
from planner.formulas.engine_defaults import parse_version
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

LONG_REQUESTS = 10_000
"""From so many on a simulation ends at Ctrl-C: it takes long enough for a thread of its own."""


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
    return Replica(
        step_times(step, engine, host, captured), block_pool(kv, kv_cache_bytes, engine), engine, host
    )


def step_times(
    step: StepModel, engine: EngineSettings, host: HostTime, captured: Sequence[int] = ()
) -> StepTimes:
    """The step model with the host's share, as the compiled loop reads it."""
    host_s, per_sequence_s = host.of_step(async_scheduling=engine.async_scheduling)
    chain_s, chain_per_sequence_s = host.beside_step(async_scheduling=engine.async_scheduling)
    launches = step.launches
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
        chain_s=chain_s,
        chain_per_sequence_s=chain_per_sequence_s,
        front_s=host.front_s,
        front_per_token_s=host.front_per_token_s,
        reply_s=0.0,
        larger_launch_s=float(launches.compiled_s if len(captured) else launches.eager_s),
        mixed_launch_s=float(launches.mixed_s),
        decode_launch_s=float(launches.decode_s),
    )


def block_pool(kv: KvLayout, kv_cache_bytes: int, engine: EngineSettings) -> BlockPool:
    """The pool that so much memory makes, without vLLM's null block."""
    groups = kv.groups
    in_flight_tokens = kv.batches_in_flight * engine.max_num_batched_tokens
    return BlockPool(
        blocks=max(0, kv.blocks(kv_cache_bytes) - NULL_BLOCKS),
        block_tokens=np.array([group.block_tokens for group in groups], dtype=np.int64),
        window_tokens=np.array([group.window_tokens or 0 for group in groups], dtype=np.int64),
        chunked=np.array([group.kind is CacheKind.CHUNKED for group in groups], dtype=np.bool_),
        most_blocks=np.array(
            [group.reserved_blocks(engine.max_model_len, in_flight_tokens) for group in groups],
            dtype=np.int64,
        ),
        state_blocks=np.array([group.state_blocks for group in groups], dtype=np.int64),
    )


def simulate(one: Replica, stream: RequestStream, *, users: int = 0, lengths: bool = False) -> Outcome:
    """Serves the stream; `users` above 0 closes the loop: that many in flight, each sent when another ends;
    `lengths`: steps are counted by length.

    Deterministic: equal streams have equal outcomes.

    Raises:
        InputError: a time of arrival is not finite, or a request needs more blocks than the whole cache has.
    """
    if not np.isfinite(stream.sent_s).all():
        raise InputError(
            "requests arrive at times that are no finite numbers: give a rate that is not so low"
        )
    limits = _limits(one.engine, users=users, priority_policy=bool(stream.priority.any()))
    _check_each_fits(one.pool, stream)
    # Imported here: the compiler takes a second to load, and most verbs never need it.
    from planner.serving.scheduler_compiler import interruptible, stoppable
    from planner.serving.scheduler_loop import run

    count = stream.prompt_tokens.size
    out = empty_outcome(count, lengths=lengths)
    times = one.times._replace(reply_s=reply_s(one, users))
    if not count:
        return out
    with interruptible():
        if count < LONG_REQUESTS:
            run(stream, limits, one.pool, times, out, np.array([False]))
        else:
            # Stopped before its first step, it is only compiled: that is for the thread that Ctrl-C reaches.
            run(stream, limits, one.pool, times, out, np.array([True]))
            stoppable(lambda stop: run(stream, limits, one.pool, times, out, stop))
    return out


def compiler_notes() -> list[str]:
    """What a user should know of how the loop is compiled."""
    from planner.serving.scheduler_compiler import FOLDER, UNKEPT

    if FOLDER is not None:
        return [
            f"every start compiles the scheduler: {folder} cannot keep it ({why}); NUMBA_CACHE_DIR names another"
            for folder, why in UNKEPT.items()
        ]
    return [
        "every start compiles the scheduler: no folder to keep it can be written; NUMBA_CACHE_DIR names one"
    ]


def ttft_s(one: Replica, out: Outcome, users: float) -> FloatArray:
    """Time to the first token as clients see it [N]; `users`: requests in flight on average."""
    return np.asarray(out.first_token_s - out.sent_s + reply_s(one, users), dtype=np.float64)


def reply_s(one: Replica, users: float) -> float:
    """From the step that makes a token to the client who reads it."""
    return one.host.reply_s + one.host.reply_per_user_s * users


def tpot_s(out: Outcome, stream: RequestStream) -> FloatArray:
    """Time per output token after the first, of requests with two tokens or more."""
    several = stream.output_tokens > 1
    spans = out.finished_s[several] - out.first_token_s[several]
    return np.asarray(spans / (stream.output_tokens[several] - 1), dtype=np.float64)


def _limits(engine: EngineSettings, *, users: int, priority_policy: bool) -> SchedulerLimits:
    """The flags as the scheduler of their release follows them (vllm/v1/core/sched/scheduler.py, schedule).

    Admission by whole prompts came with 0.19, sparse windows with 0.29 (prefix_cache_retention_interval of 0,
    vllm/config/cache.py), the exemption of a lone request from the threshold with 0.31.
    """
    version = parse_version(engine.engine_version)
    return SchedulerLimits(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        long_prefill_token_threshold=engine.long_prefill_token_threshold,
        lone_prompt_whole=version.since(31),
        users=users,
        priority_policy=priority_policy,
        reserve_full_prompt=version.since(19),
        prefix_caching=engine.enable_prefix_caching,
        sparse_windows=version.since(29),
        async_scheduling=engine.async_scheduling,
    )


def _check_each_fits(pool: BlockPool, stream: RequestStream) -> None:
    """Every request at its longest, alone in the cache."""
    if not stream.prompt_tokens.size:
        return
    longest = stream.prompt_tokens + stream.output_tokens
    at = int(np.argmax(longest))
    total = int(longest[at])
    need = 0
    for size, window, most, states in zip(
        pool.block_tokens.tolist(),
        pool.window_tokens.tolist(),
        pool.most_blocks.tolist(),
        pool.state_blocks.tolist(),
        strict=True,
    ):
        blocks = -(-total // size)
        need += states or (min(blocks, most) if window else blocks)
    if need > pool.blocks:
        raise InputError(
            f"request {at} of {total} tokens needs {need} KV blocks, the cache has {pool.blocks}: "
            "give a shorter one or a larger cache"
        )
