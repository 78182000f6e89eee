"""Serving runs of a calibration through the simulated scheduler: the same requests, in the engine's own process."""

from typing import NamedTuple

import numpy as np

from planner.calibrate.step_deployment import measured_gpu
from planner.calibrate.step_unknowns import StepDeployment
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, EngineSetup, ServingPoint
from planner.domain.deployment import EngineSettings
from planner.formulas.gpu_fit import NewSizes
from planner.formulas.host_time import HostTime
from planner.formulas.kv_cache import kv_layout
from planner.formulas.kv_paging import kv_paging
from planner.formulas.step import StepModel
from planner.serving.arrivals import NO_PREFIX_BLOCK_TOKENS
from planner.serving.scheduler_types import RequestStream
from planner.serving.simulation import replica, simulate, tpot_s, ttft_s

ROOM_RATIO = 1.001
"""So that a cache measured in tokens holds them all once it is counted in blocks again."""
LONGEST_STEP_S = 1e6


class ServedMeans(NamedTuple):
    """Means of a serving run [s]."""

    ttft_s: float
    tpot_s: float


def served_means(
    run: CalibrationRun, point: ServingPoint, deployment: StepDeployment, step: StepModel, host: HostTime
) -> ServedMeans:
    """TTFT and TPOT of a serving run as they are predicted; its requests came from the engine's own process.

    Nothing is sent over a network there, so neither front end nor reply takes time; handing requests over does, one
    after the other.

    Raises:
        InputError: steps have no finite time, or a request is larger than the cache.
    """
    assert run.engine is not None
    if not (step.body_s < LONGEST_STEP_S).all():
        raise InputError(f"{run.run_id}: its steps cannot be predicted; the datasheet in it cannot be right")
    engine = settings_of(run.engine, async_scheduling=point.async_scheduling)
    paging = kv_paging(engine, measured_gpu(run.machine), deployment.model, deployment.kv_dtype)
    layout = kv_layout(deployment.model, deployment.parallelism, deployment.kv_dtype, paging)
    tokens = run.memory.kv_cache_tokens if run.memory is not None else None
    held = tokens or engine.max_model_len * engine.max_num_seqs
    in_process = host.model_copy(
        update={
            "front_s": 0.0,
            "front_per_token_s": 0.0,
            "reply_s": 0.0,
            "reply_per_user_s": 0.0,
        }
    )
    cache_bytes = int(ROOM_RATIO * layout.request_bytes(float(held)))
    one = replica(step, layout, cache_bytes, engine, in_process, deployment.captured_tokens)
    stream = _stream(point)
    out = simulate(one, stream, users=point.load.concurrency)
    per_token_s = tpot_s(out, stream)
    return ServedMeans(
        ttft_s=float(ttft_s(one, out, point.load.concurrency).mean()) + point.submit_s,
        tpot_s=float(per_token_s.mean()) if per_token_s.size else 0.0,
    )


def serving_step(step: StepModel, sizes: NewSizes) -> StepModel:
    """The step model of an engine that serves prompts of ever new sizes."""
    return step._replace(
        context_constant_s=step.context_constant_s + sizes.step_s,
        context_per_token_s=step.context_per_token_s + sizes.per_token_s,
    )


def settings_of(engine: EngineSetup, *, async_scheduling: bool) -> EngineSettings:
    """The flags that the engine ran with."""
    return EngineSettings(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_model_len=engine.max_model_len,
        gpu_memory_utilization=1.0,
        enforce_eager=engine.enforce_eager,
        async_scheduling=async_scheduling,
        block_size=max(engine.block_size, 1),
        engine_version=engine.engine_version,
        enable_prefix_caching=False,
    )


def _stream(point: ServingPoint) -> RequestStream:
    """The requests in the order they were sent; in a closed loop their times follow from the answers."""
    requests = sorted(point.requests, key=lambda one: one.sent_s)
    count = len(requests)
    return RequestStream(
        sent_s=np.zeros(count),
        prompt_tokens=np.array([one.input_tokens for one in requests], dtype=np.int64),
        output_tokens=np.array([one.output_tokens for one in requests], dtype=np.int64),
        cached_tokens=np.zeros(count, dtype=np.int64),
        priority=np.zeros(count, dtype=np.int64),
        prefix_start=np.zeros(count + 1, dtype=np.int64),
        prefix_ids=np.zeros(0, dtype=np.int64),
        prefix_block_tokens=NO_PREFIX_BLOCK_TOKENS,
    )
