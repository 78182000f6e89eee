"""What clients and operators see of a simulated run: latencies, throughput, use of engine and cache.

Definitions follow `vllm bench serve` (vllm/benchmarks/serve.py, calculate_metrics): TPOT is (end - first token) /
(tokens - 1) of each request with two tokens or more, gaps between tokens (ITL) are pooled over all requests, rates
count from the first request sent to the last answer. Nothing is dropped as warm-up, as that tool drops nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.workload import Slo
from planner.formulas.arrays import FloatArray, IntArray
from planner.serving.scheduler_types import GAP_LOW_S, GAP_RATIO, Outcome, RequestStream
from planner.serving.simulation import Replica, ttft_s

QUANTILES = (0.5, 0.9, 0.95, 0.99)


class Share(NamedTuple):
    """What one engine of a deployment served, with the places of its requests in the whole stream."""

    one: Replica
    stream: RequestStream
    rows: IntArray
    outcome: Outcome


class Requests(NamedTuple):
    """Each request as its client saw it, in the order of the stream [N]."""

    sent_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    cached_tokens: IntArray
    queue_s: FloatArray
    """From sending to first admission."""
    ttft_s: FloatArray
    tpot_s: FloatArray
    """NaN where the answer is one token."""
    e2e_s: FloatArray
    preemptions: IntArray


class Spread(NamedTuple):
    """Mean and percentiles [s]; NaN where there is nothing to measure."""

    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float


class TimeSeries(NamedTuple):
    """Means over bins of equal width [B]; the last ends with the run."""

    start_s: FloatArray
    running: FloatArray
    waiting: FloatArray
    """In the engine's queue when a step begins."""
    kv_used_ratio: FloatArray
    tokens_per_s: FloatArray
    """Scheduled, prompts included."""


class Measures(NamedTuple):
    """A run as a whole."""

    requests: int
    duration_s: float
    ttft: Spread
    tpot: Spread
    itl: Spread
    e2e: Spread
    queue: Spread
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Prompts and answers."""
    goodput_requests_per_s: float
    """Requests that kept every latency promised; all of them where none is."""
    utilization_ratio: float
    """Share of the time in which a step runs, mean over engines."""
    mean_kv_used_ratio: float
    peak_kv_used_ratio: float
    """Of the engine that came closest to full."""
    preemptions: int
    mean_running: float
    mean_waiting: float
    """Requests sent that do not run: before admission, or preempted."""
    prefix_hit_ratio: float
    """Prompt tokens found in the prefix cache."""
    series: TimeSeries


def requests_of(shares: Sequence[Share]) -> Requests:
    """The requests of all engines together, each in its place."""
    order = np.argsort(np.concatenate([share.rows for share in shares]), kind="stable")

    def joined(columns: Sequence[FloatArray]) -> FloatArray:
        return np.asarray(np.concatenate(columns)[order], dtype=np.float64)

    def counted(columns: Sequence[IntArray]) -> IntArray:
        return np.asarray(np.concatenate(columns)[order], dtype=np.int64)

    outs = [share.outcome for share in shares]
    sent_s = joined([out.sent_s for out in outs])
    first_s, finished_s = (
        joined([out.first_token_s for out in outs]),
        joined([out.finished_s for out in outs]),
    )
    outputs = counted([share.stream.output_tokens for share in shares])
    users = (finished_s - sent_s).sum() / max(finished_s.max() - sent_s.min(), 1e-12)
    first = joined([ttft_s(share.one, share.outcome, users) for share in shares])
    answers_s = finished_s - first_s
    return Requests(
        sent_s=sent_s,
        prompt_tokens=counted([share.stream.prompt_tokens for share in shares]),
        output_tokens=outputs,
        cached_tokens=counted([out.cached_tokens for out in outs]),
        queue_s=joined([out.scheduled_s for out in outs]) - sent_s,
        ttft_s=first,
        tpot_s=np.where(outputs > 1, answers_s / np.maximum(outputs - 1, 1), np.nan),
        e2e_s=first + answers_s,
        preemptions=counted([out.preemptions for out in outs]),
    )


def measures_of(requests: Requests, shares: Sequence[Share], slo: Slo, *, engines: int) -> Measures:
    """The run in figures; `engines` counts those too that had nothing to do."""
    count = requests.sent_s.size
    duration_s = max(float((requests.sent_s + requests.e2e_s).max() - requests.sent_s.min()), 1e-12)
    outputs, prompts = int(requests.output_tokens.sum()), int(requests.prompt_tokens.sum())
    outs = [share.outcome for share in shares]
    sums = np.sum([out.series.sum(axis=0) for out in outs], axis=0)
    blocks = sum(share.one.pool.blocks for share in shares)
    several = requests.output_tokens > 1
    return Measures(
        requests=count,
        duration_s=duration_s,
        ttft=spread(requests.ttft_s),
        tpot=spread(requests.tpot_s[several]),
        itl=_gap_spread(requests, np.sum([out.gaps for out in outs], axis=0)),
        e2e=spread(requests.e2e_s),
        queue=spread(requests.queue_s),
        requests_per_s=count / duration_s,
        output_tokens_per_s=outputs / duration_s,
        total_tokens_per_s=(prompts + outputs) / duration_s,
        goodput_requests_per_s=int(np.count_nonzero(_kept(requests, slo))) / duration_s,
        utilization_ratio=sum(float(out.totals[1]) for out in outs) / engines / duration_s,
        mean_kv_used_ratio=float(sums[3]) / blocks / duration_s,
        peak_kv_used_ratio=max(float(share.outcome.totals[3]) / share.one.pool.blocks for share in shares),
        preemptions=int(requests.preemptions.sum()),
        mean_running=float(sums[1]) / duration_s,
        mean_waiting=max(0.0, float(requests.e2e_s.sum() - sums[1])) / duration_s,
        prefix_hit_ratio=int(requests.cached_tokens.sum()) / prompts,
        series=_series(outs, blocks),
    )


def spread(values_s: FloatArray) -> Spread:
    """Mean and percentiles, linear between neighbours."""
    if not values_s.size:
        return Spread(*(float("nan"),) * (1 + len(QUANTILES)))
    # numpy.quantile of few values takes ten times as long.
    places = np.array(QUANTILES) * (values_s.size - 1)
    percentiles_s = np.interp(places, np.arange(values_s.size), np.sort(values_s))
    return Spread(float(values_s.mean()), *percentiles_s.tolist())


def _gap_spread(requests: Requests, gaps: FloatArray) -> Spread:
    """Gaps between tokens: their mean is exact, percentiles are the middle of the bin they fall into."""
    total = gaps.sum()
    if total <= 0:
        return spread(np.zeros(0))
    spans_s = (requests.e2e_s - requests.ttft_s).sum()
    at = np.searchsorted(np.cumsum(gaps), np.array(QUANTILES) * total)
    middles_s = GAP_LOW_S * GAP_RATIO ** (at + 0.5)
    return Spread(float(spans_s / (requests.output_tokens - 1).sum()), *(float(gap) for gap in middles_s))


def _kept(requests: Requests, slo: Slo) -> FloatArray:
    """Which requests were as quick as promised; an answer of one token has no TPOT to miss."""
    ttft_limit_s = float("inf") if slo.ttft_p95_s is None else slo.ttft_p95_s
    tpot_limit_s = float("inf") if slo.tpot_p95_s is None else slo.tpot_p95_s
    in_time = requests.ttft_s <= ttft_limit_s
    return np.asarray(in_time & (np.nan_to_num(requests.tpot_s) <= tpot_limit_s), dtype=np.float64)


def _series(outs: Sequence[Outcome], blocks: int) -> TimeSeries:
    """The engines' series on the coarsest of their grids, added up."""
    width_s = max(float(out.totals[4]) for out in outs)
    end_s = max(float(out.totals[5]) for out in outs)
    summed = np.zeros_like(outs[0].series)
    for out in outs:
        fold = round(width_s / float(out.totals[4]))
        np.add.at(summed, np.arange(summed.shape[0]) // fold, out.series)
    start_s = np.arange(summed.shape[0], dtype=np.float64) * width_s
    start_s = start_s[start_s < end_s]
    means = summed[: start_s.size] / np.minimum(width_s, end_s - start_s)[:, None]
    return TimeSeries(start_s, means[:, 1], means[:, 2], means[:, 3] / blocks, means[:, 4])
