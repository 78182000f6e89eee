"""Runs a closed loop on an engine, request by request, in the engine's own process."""

import random
import time
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from planner.calibrate.measure.engine_protocol import Failed, FailureKind, Serve, Served
from planner.calibrate.measure.engine_steps import Clock, Prompt, SteppedEngine
from planner.domain.calibration import ServedRequest, ServingLoad

IDLE_STEPS = 100_000
"""Steps in a row without any progress before the engine is given up."""


class _Sent(NamedTuple):
    order: int
    prompt: Prompt
    sent_s: float
    first_s: float | None = None


def lengths(load: ServingLoad) -> Iterator[Prompt]:
    """Every request's tokens: uniform between the load's low ratio of the stated lengths and those, from its seed.

    >>> list(lengths(ServingLoad(concurrency=1, input_tokens=8, output_tokens=4, num_requests=1)))
    [Prompt(tokens=8, output_tokens=4, context_tokens=0)]
    """
    drawn = random.Random(load.seed)
    low_input = max(round(load.input_tokens * load.length_low_ratio), 1)
    low_output = max(round(load.output_tokens * load.length_low_ratio), 1)
    for _ in range(load.num_requests):
        yield Prompt(
            drawn.randint(low_input, load.input_tokens), drawn.randint(low_output, load.output_tokens)
        )


def serve(engine: SteppedEngine, asked: Serve, clock: Clock = time.perf_counter) -> Served | Failed:
    """Runs the load: all users send at once, each the next request when the last ended. The engine is empty afterwards.

    Times are as whoever steps the engine sees them: a token counts when the step that returns it has ended.
    """
    load, limits = asked.load, engine.limits
    if load.input_tokens + load.output_tokens > limits.max_model_len:
        return Failed(
            kind=FailureKind.UNSUPPORTED,
            message=f"requests of {load.input_tokens + load.output_tokens:,} tokens are longer than max_model_len "
            f"{limits.max_model_len:,}",
        )
    try:
        return _run(engine, asked, clock)
    finally:
        engine.clear()


def _run(engine: SteppedEngine, asked: Serve, clock: Clock) -> Served | Failed:
    waiting = list(lengths(asked.load))[::-1]
    running: dict[str, _Sent] = {}
    submits: list[float] = []
    done: dict[int, ServedRequest] = {}
    steps = idle = 0
    begin = now = clock()
    while running or (waiting and now - begin <= asked.most_seconds):
        while waiting and len(running) < asked.load.concurrency and now - begin <= asked.most_seconds:
            sent = clock()
            prompt = waiting.pop()
            running[engine.submit(prompt)] = _Sent(len(submits), prompt, sent - begin)
            submits.append(clock() - sent)
        if now - begin > 2 * asked.most_seconds:
            break
        step = engine.step()
        now = clock()
        steps += bool(step.label)
        idle = 0 if step.label or step.progress else idle + 1
        if idle > IDLE_STEPS:
            return Failed(
                kind=FailureKind.ENGINE, message=f"{len(running):,} requests wait and the engine runs none"
            )
        for one in step.progress:
            request = running[one.request_id]
            if one.new_tokens and request.first_s is None:
                request = running[one.request_id] = request._replace(first_s=now - begin)
            if one.finished:
                del running[one.request_id]
                done[request.order] = _served(request, now - begin)
    return Served(
        submit_s=median(submits) if submits else 0.0,
        requests=tuple(done[order] for order in sorted(done)),
        steps=steps,
    )


def _served(request: _Sent, end_s: float) -> ServedRequest:
    first = end_s if request.first_s is None else request.first_s
    return ServedRequest(
        input_tokens=request.prompt.tokens,
        output_tokens=request.prompt.output_tokens,
        sent_s=request.sent_s,
        ttft_s=first - request.sent_s,
        e2e_s=end_s - request.sent_s,
    )
