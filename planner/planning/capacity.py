"""The highest request rate a simulated replica sustains within the latency promised."""

from collections.abc import Callable
from math import ceil, log, sqrt
from typing import NamedTuple

import numpy as np

from planner.domain.plan import Bottleneck, Latency
from planner.domain.workload import Slo, Workload
from planner.formulas.arrays import FloatArray
from planner.serving.arrivals import drawn_stream
from planner.serving.scheduler_types import Outcome, RequestStream
from planner.serving.simulation import Replica, simulate, ttft_s

QUANTILE = 0.95
"""Of TTFT and TPOT, as promised."""
BEYOND_QUANTILE = 150
"""Requests counted that are slower than the promised percentile allows: so many tell where it lies."""
WARM_UP_STAYS, COUNTED_STAYS = 3.0, 6.0
"""Requests left out at the start, and counted at least, in multiples of those in flight."""
MOST_REQUESTS = 20_000
STEP_RATIO = 1.01
"""Rates are tried on a fixed grid of such steps, so that where the search begins does not show."""
FIRST_STRIDE = 4
IDLE_RUNNING = 0.05
"""Mean requests in service on a replica called almost idle."""
GROWTH_RATIO = 0.02
"""A replica that keeps a larger share of what arrives, or of the time that passes, does not keep up."""
CHANCE_DEVIATIONS = 5.0
"""By which the number in flight may differ between two times by chance alone, of a Poisson number."""
FULL_CACHE_RATIO = 0.95
SEED = 0


class Trial(NamedTuple):
    """A replica at one request rate."""

    requests_per_s: float
    latency: Latency
    running_requests: float
    strain: float
    """The worst ratio of a promised percentile to its SLO; infinite where the queue grows without bound."""
    binding: Bottleneck
    """What would break first."""


class Capacity(NamedTuple):
    """What the search found."""

    within: Trial | None
    """At the highest rate within the promise; None where even an almost idle replica breaks it."""
    beyond: Trial
    """One step further; the almost idle replica where that breaks the promise."""

    @property
    def requests_per_s(self) -> float:
        """The highest rate within the promise; 0 for none."""
        return 0.0 if self.within is None else self.within.requests_per_s


class Draw(NamedTuple):
    """Requests that arrive at one a second, common to every rate that is tried."""

    stream: RequestStream
    warm_up: int
    """Requests at the start that are not counted."""
    counted: int
    arrival_cv: float


def draw(workload: Workload, running_requests: float, *, stages: int = 1, seed: int = SEED) -> Draw:
    """Requests enough for the promised percentile with so many in flight, and for these to come and go.

    `workload.arrival_cv` is the variability at the replica; a pipeline deals its arrivals to `stages` batches in turn.
    Arrivals are stretched to the stated rate exactly, so that of the chance in them only their order is left.
    """
    in_flight = running_requests / stages
    warm_up = ceil(WARM_UP_STAYS * in_flight)
    counted = ceil(max(BEYOND_QUANTILE / (1.0 - QUANTILE), COUNTED_STAYS * in_flight))
    total = min(warm_up + counted + ceil(in_flight), MOST_REQUESTS)
    unit = workload.model_copy(update={"requests_per_s": float(stages), "concurrency": None})
    drawn = drawn_stream(unit, total * stages, seed)
    every = slice(stages - 1, None, stages)
    sent_s = drawn.sent_s[every] * (total / drawn.sent_s[-1])
    stream = RequestStream(
        sent_s=sent_s,
        prompt_tokens=drawn.prompt_tokens[every],
        output_tokens=drawn.output_tokens[every],
        cached_tokens=drawn.cached_tokens[every],
        priority=drawn.priority[every],
        prefix_start=drawn.prefix_start[: total + 1],
        prefix_ids=drawn.prefix_ids,
        prefix_block_tokens=drawn.prefix_block_tokens,
    )
    return Draw(stream, warm_up, min(counted, total - warm_up), workload.arrival_cv)


def trial(one: Replica, drawn: Draw, requests_per_s: float, slo: Slo, *, stages: int = 1) -> Trial:
    """Serves the requests at a rate; `one` is a replica, or one of a pipeline's `stages` batches."""
    stream = drawn.stream._replace(sent_s=drawn.stream.sent_s * (stages / requests_per_s))
    out = simulate(one, stream)
    kept = slice(drawn.warm_up, drawn.warm_up + drawn.counted)
    in_flight = _in_flight(stream, out, kept)
    first_s = ttft_s(one, out, stages * in_flight)[kept]
    gaps = (stream.output_tokens - 1)[kept]
    several = gaps > 0
    per_token_s = ((out.finished_s - out.first_token_s)[kept][several]) / gaps[several]
    ttft, tpot = _spread(first_s), _spread(per_token_s)
    strains = {
        bottleneck: found_s / promised_s
        for bottleneck, found_s, promised_s in (
            (Bottleneck.TTFT, ttft[2], slo.ttft_p95_s),
            (Bottleneck.TPOT, tpot[2], slo.tpot_p95_s),
        )
        if promised_s is not None
    }
    binding = max(strains, key=lambda name: strains[name], default=Bottleneck.THROUGHPUT)
    strain = strains.get(binding, 0.0)
    if _grows(drawn, stream, out):
        strain = float("inf")
        full = out.totals[3] > FULL_CACHE_RATIO * one.pool.blocks
        binding = Bottleneck.KV_CACHE if full else Bottleneck.THROUGHPUT
    latency = Latency(
        ttft_mean_s=ttft[0],
        ttft_p50_s=ttft[1],
        ttft_p95_s=ttft[2],
        ttft_p99_s=ttft[3],
        tpot_mean_s=tpot[0],
        tpot_p95_s=tpot[2],
        tpot_p99_s=tpot[3],
    )
    return Trial(requests_per_s, latency, stages * in_flight, strain, binding)


def capacity(
    at_rate: Callable[[float], Trial], start_requests_per_s: float, idle_requests_per_s: float
) -> Capacity:
    """The highest rate within the promise, by bisection on a grid of 1 % steps.

    The bracket opens around the first rate and doubles until it holds; below `idle_requests_per_s` nothing is tried.
    """
    seen: dict[int, Trial] = {}

    def at(step: int) -> Trial:
        if step not in seen:
            seen[step] = at_rate(STEP_RATIO**step)
        return seen[step]

    start = round(log(start_requests_per_s) / log(STEP_RATIO))
    least = min(ceil(log(idle_requests_per_s) / log(STEP_RATIO)), start)
    kept, broken = _bracket(at, start, least)
    if kept is None:
        return Capacity(None, at(broken))
    while broken - kept > 1:
        middle = (kept + broken) // 2
        if at(middle).strain <= 1.0:
            kept = middle
        else:
            broken = middle
    return Capacity(at(kept), at(broken))


def _bracket(at: Callable[[int], Trial], start: int, least: int) -> tuple[int | None, int]:
    """A step that keeps the promise and one above that breaks it; None where the least breaks it."""
    stride = FIRST_STRIDE
    if at(start).strain <= 1.0:
        kept = start
        while at(kept + stride).strain <= 1.0:
            kept += stride
            stride *= 2
        return kept, kept + stride
    broken = start
    while broken > least:
        lower = max(broken - stride, least)
        if at(lower).strain <= 1.0:
            return lower, broken
        broken = lower
        stride *= 2
    return None, broken


def _in_flight(stream: RequestStream, out: Outcome, kept: slice) -> float:
    """Mean requests sent and not answered while the counted ones are sent (Little's law)."""
    stays_s = out.finished_s[kept] - out.sent_s[kept]
    span_s = float(stream.sent_s[kept][-1] - stream.sent_s[kept][0])
    return float(stays_s.mean()) * (stays_s.size - 1) / max(span_s, 1e-12)


def _grows(drawn: Draw, stream: RequestStream, out: Outcome) -> bool:
    """True where more is sent than is answered while the counted requests are sent.

    A queue has formed for good where everybody in the last quarter of them waited longer than most in the second
    quarter; a replica still fills up where more are in flight in the last quarter than in the second, beyond chance.
    """
    first, quarter = drawn.warm_up, drawn.counted // 4
    waits_s = out.scheduled_s - out.sent_s
    early = slice(first + quarter, first + 2 * quarter)
    late = slice(first + 3 * quarter, first + 4 * quarter)
    between_s = float(stream.sent_s[late.start] - stream.sent_s[early.start])
    longer_s = float(waits_s[late].min()) - float(np.median(waits_s[early]))
    finished_s = np.sort(out.finished_s)
    before, after = (
        float(
            (np.arange(span.start, span.stop) + 1 - np.searchsorted(finished_s, stream.sent_s[span])).mean()
        )
        for span in (early, late)
    )
    chance = CHANCE_DEVIATIONS * max(drawn.arrival_cv, 1.0) * sqrt(max(before, 1.0))
    fills = after - before > max(GROWTH_RATIO * 2 * quarter, chance)
    return longer_s > GROWTH_RATIO * between_s or fills


def _spread(values_s: FloatArray) -> tuple[float, float, float, float]:
    """Mean, p50, p95 and p99; zeros where nothing is measured."""
    if not values_s.size:
        return 0.0, 0.0, 0.0, 0.0
    p50, p95, p99 = np.quantile(values_s, (0.5, QUANTILE, 0.99))
    return float(values_s.mean()), float(p50), float(p95), float(p99)
