"""A small request-by-request simulation of vLLM's scheduler, as an oracle for the closed form.

FCFS, one token budget a step, running requests first, chunked prefill; a step of `m` tokens takes
`fixed_s + m x per_token_s`. Slow, exact and independent of the code it checks.
"""

from typing import NamedTuple

import numpy as np


class Engine(NamedTuple):
    """The engine and the lengths it is asked for."""

    fixed_s: float
    per_token_s: float
    budget_tokens: int
    input_tokens: int
    output_tokens: int


class Seen(NamedTuple):
    """What clients saw."""

    ttft_mean_s: float
    ttft_p95_s: float
    tpot_mean_s: float
    requests_per_s: float


class _Request:
    def __init__(self, arrived_s: float) -> None:
        self.arrived_s = arrived_s
        self.prompt_done = 0
        self.answered = 0
        self.first_s = 0.0


def simulate(
    engine: Engine,
    requests: int,
    *,
    rate_per_s: float = 0.0,
    gap_cv: float = 1.0,
    users: int = 0,
    seed: int = 1,
) -> Seen:
    """Arrivals at `rate_per_s` with gamma distributed gaps, or `users` who ask again when answered; the first tenth
    is not counted."""
    shape, random = 1.0 / gap_cv**2, np.random.default_rng(seed)
    gaps = random.gamma(shape, 1.0 / (shape * rate_per_s), requests) if rate_per_s else np.zeros(users)
    arrivals = list(np.cumsum(gaps))
    waiting: list[_Request] = []
    running: list[_Request] = []
    finished: list[_Request] = []
    ttft, tpot = [], []
    now, arrived = 0.0, 0
    while len(finished) < requests:
        while arrived < len(arrivals) and arrivals[arrived] <= now:
            waiting.append(_Request(arrivals[arrived]))
            arrived += 1
        if not waiting and not running:
            now = arrivals[arrived]
            continue
        left = engine.budget_tokens
        scheduled: list[tuple[_Request, int]] = []
        for request in [*running, *waiting]:
            missing = engine.input_tokens - request.prompt_done
            tokens = min(left, missing) if missing else min(left, 1)
            if tokens:
                scheduled.append((request, tokens))
                left -= tokens
        now += engine.fixed_s + (engine.budget_tokens - left) * engine.per_token_s
        for request, tokens in scheduled:
            if request in waiting:
                waiting.remove(request)
                running.append(request)
            request.prompt_done = min(request.prompt_done + tokens, engine.input_tokens)
            if request.prompt_done < engine.input_tokens:
                continue
            request.answered += 1
            if request.answered == 1:
                request.first_s = now
                ttft.append(now - request.arrived_s)
            if request.answered == engine.output_tokens:
                running.remove(request)
                finished.append(request)
                if engine.output_tokens > 1:
                    tpot.append((now - request.first_s) / (engine.output_tokens - 1))
                if users and len(arrivals) < requests:
                    arrivals.append(now)
    skip = requests // 10 if rate_per_s else 0
    return Seen(
        ttft_mean_s=float(np.mean(ttft[skip:])),
        ttft_p95_s=float(np.quantile(ttft[skip:], 0.95)),
        tpot_mean_s=float(np.mean(tpot[skip:])) if tpot else 0.0,
        requests_per_s=requests / now,
    )
