"""Closed-form steady state of one replica: a mean-field picture of continuous batching.

A request stays for its own prompt, for the steps of its answer, and for the prompts of those who come meanwhile;
what these cost follows from `planner.serving.mean_step`, how many pass from Little's law. All functions work on
arrays of any common shape, one element a (layout, settings, load), so thousands of candidates cost one pass.

It screens; the simulated scheduler decides. What it takes for granted, beside what `planner.serving.flow` and
`planner.serving.first_token` do:

* a request sees as many others as are in service on average (n), c more where gaps are more variable than Poisson's
  and the variance of their number is n + c n, fewer where gaps are less so and few are in service;
* the number in service swings the less, the more stays differ (peakedness, Eckberg 1983);
* the time per token is the settled one and, shared out over the answer, what those cost who came during one's own
  prompt: short answers bear them alone;
* with all slots taken each of the others is met once, so that no request meets more;
* percentiles of TPOT follow from three cumulants (Cornish-Fisher), from neighbours that come and go and from prompts
  that are met, of which each brings more by lengthening the stay;
* a request that ended under asynchronous scheduling holds its slot for one more step: that is left out;
* recomputation after preemption is not modelled: sequences beyond the KV cache queue.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.plan import Latency
from planner.formulas.arrays import FloatArray
from planner.formulas.step import StepTable
from planner.serving.first_token import Pass, behind_front, first_token
from planner.serving.flow import MOST_STRETCHED, Crowd, Flow, flow_of
from planner.serving.mean_step import Load, MeanStep, mean_step, padded, padded_on_average
from planner.serving.waiting import (
    FEW,
    QUANTILES,
    Z_SCORES,
    Latencies,
    Spread,
    few_quantile,
    latencies,
)

SETTLING = 1.36
"""Stays in which a deviation of n dies out, so chosen that equal stays leave 2/3 of its variance."""
HALVINGS = 22
"""Of the logarithm of the running requests: they are found within 1e-5 of themselves."""
FULLEST = 0.95
"""Mean running requests stay below this share of what fits."""


class ServingState(NamedTuple):
    """One replica in its steady state, arrays of the load's shape."""

    requests_per_s: FloatArray
    running_requests: FloatArray
    ttft: Latencies
    tpot: Latencies
    prompt_time_ratio: FloatArray
    """Share of the engine's time that prompts take."""
    output_tokens_per_s: FloatArray

    def latency_at(self, element: tuple[int, ...]) -> Latency:
        """The latency of one element of the pass."""
        ttft, tpot = self.ttft, self.tpot
        return Latency(
            ttft_mean_s=float(ttft.mean_s[element]),
            ttft_p50_s=float(ttft.p50_s[element]),
            ttft_p95_s=float(ttft.p95_s[element]),
            ttft_p99_s=float(ttft.p99_s[element]),
            tpot_mean_s=float(tpot.mean_s[element]),
            tpot_p95_s=float(tpot.p95_s[element]),
            tpot_p99_s=float(tpot.p99_s[element]),
        )


def _prompt_time_ratio(flow: Flow) -> FloatArray:
    """Share of the engine's busy time that prompts take."""
    prompts = flow.requests_per_s * flow.prompt_s
    return np.asarray(prompts / np.maximum(prompts + flow.decode_time_ratio, 1e-12), dtype=np.float64)


def _open_crowd(load: Load, running: FloatArray) -> Crowd:
    """Whom a request meets where `running` are in service on average: as many, and more where arrivals are bursty.

    A number whose variance is c times its mean n is seen from within as n + c (one of them the observer). Where gaps
    are evener than Poisson's, arrivals after one's own come to m(x) = x - b (1 - exp(-x / b)) within x mean gaps,
    b = (1 - ca^2) / 2: who is there is averaged over the stay.
    """
    more = np.maximum(load.arrival_cv**2 - 1.0, 0.0) * running / (running + 1.0)
    fewer = np.clip((1.0 - load.arrival_cv**2) / 2.0, 1e-6, None)
    alone = 2.0 * fewer * (1.0 + fewer / running * np.expm1(-running / fewer))
    return Crowd(running, running + more - np.where(load.arrival_cv < 1.0, alone, 0.0))


def _dealt(load: Load, pipeline: FloatArray) -> Load:
    """The load as one batch of a pipeline gets it: every so-manieth request, which evens out the gaps."""
    return load._replace(arrival_cv=load.arrival_cv / np.sqrt(pipeline))


def open_loop(
    table: StepTable, load: Load, running: FloatArray, *, quantiles: Sequence[float] = QUANTILES
) -> ServingState:
    """The replica while `running` sequences are in service on average, under arrivals that do not wait for it.

    Percentiles that are not asked for are NaN: each takes time.

    The request rate that keeps it there is part of the answer (Little's law); it rises with `running`, so a rate
    is turned into `running` by bisection (`running_at_rate`).
    """
    pipeline = table.pp[load.layout]
    load = _dealt(load, pipeline)
    steps = mean_step(table, load)
    crowd = running / pipeline
    now = flow_of(load, steps, _open_crowd(load, crowd))
    ttft = first_token(Pass(table, load, steps, now, crowd, pipeline), quantiles)
    tpot = _open_tpot(load, steps, now, crowd, load.running_limit / pipeline, quantiles)
    return _state(load, now, running=running, pipeline=pipeline, ttft=ttft, tpot=tpot)


def _open_tpot(
    load: Load,
    steps: MeanStep,
    now: Flow,
    crowd: FloatArray,
    limit: FloatArray,
    quantiles: Sequence[float],
) -> Latencies:
    """Time per token, and how it differs between requests for the neighbours and the prompts that each one meets.

    A neighbour makes every step d' longer for as long as it stays, a prompt makes one step e longer; who comes
    during a request's stay does both. Steps that grow longer keep neighbours longer: deviations of n grow by
    1 / (1 - elasticity of the stay). Over its own stay a request averages them, which leaves `kept` of their variance
    (2/3 for equal stays, M/D/infinity).
    """
    gaps = np.maximum(load.output_tokens - 1.0, 1.0)
    rate, tpot_s = now.requests_per_s, now.tpot_s
    arrivals_squared = behind_front(load, rate)
    crowd = np.minimum(crowd, rate * now.stay_s)
    more = 1.0 + np.sqrt(arrivals_squared * crowd)
    size = padded_on_average(now.decoding + more, load.captured_tokens)
    neighbour_s = np.maximum(steps.decode_s(now.decoding + more, size) - now.decode_s, 0.0) / more
    utilization = np.minimum(rate * now.prompt_s, MOST_STRETCHED)
    stretch = 1.0 / (1.0 - utilization)
    neighbour_s = neighbour_s * stretch
    prompt_s = now.prompt_s * stretch
    elasticity = np.minimum(crowd * gaps * neighbour_s / now.stay_s, MOST_STRETCHED)
    turnover = SETTLING * (1.0 - elasticity)
    kept = 2.0 * (turnover + np.expm1(-turnover)) / turnover**2
    peaked = 1.0 + (arrivals_squared - 1.0) / (1.0 + load.length_cv_squared)
    swing = stretch * np.sqrt(peaked * crowd * kept / (1.0 - elasticity))
    swing = np.minimum(swing, np.maximum(limit - crowd, 0.0) / Z_SCORES[0.95])
    settled_s = np.minimum(now.decode_s * stretch, tpot_s)
    tpot_s = settled_s + (tpot_s - settled_s) * gaps * load.mean_inverse_gaps
    bursts = (arrivals_squared + load.length_cv_squared) * gaps * load.mean_inverse_gaps
    prompt_s, lone_s = prompt_s / gaps, now.prompt_s / gaps
    variance = (swing * neighbour_s) ** 2 + bursts * now.met * prompt_s * (prompt_s + neighbour_s)
    spread = Spread(tpot_s, variance, arrivals_squared * bursts * now.met * prompt_s**3)

    others = np.maximum(limit - 1.0, 0.0)
    full = flow_of(load, steps, Crowd(limit, others, fixed=True))
    full_s = np.minimum(full.decode_s, full.tpot_s)
    full_s = full_s + (full.tpot_s - full_s) * gaps * load.mean_inverse_gaps
    scattered = full.met * full.prompt_s / gaps
    scattered = scattered * np.sqrt(
        load.length_cv_squared * gaps * load.mean_inverse_gaps / np.maximum(limit, 1.0)
    )

    def at(quantile: float) -> FloatArray:
        few_s = tpot_s + (few_quantile(now.met, utilization, quantile) - now.met) * lone_s
        few_s = few_s + Z_SCORES[quantile] * swing * neighbour_s
        many_s = spread.quantile_s(Z_SCORES[quantile])
        most_s = np.minimum(now.full_step_s, full_s + Z_SCORES[quantile] * scattered)
        return np.asarray(np.minimum(np.where(now.met < FEW, few_s, many_s), most_s), dtype=np.float64)

    answered = load.output_tokens > 1.0
    mean_s = np.minimum(tpot_s, np.minimum(now.full_step_s, full_s))
    alone = np.ones_like(mean_s)
    alone_s = np.minimum(steps.decode_s(alone, padded_on_average(alone, load.captured_tokens)), mean_s)
    return latencies(
        mean_s, {each: np.where(answered, np.maximum(at(each), alone_s), 0.0) for each in quantiles}
    )


def _state(
    load: Load,
    flow: Flow,
    *,
    running: FloatArray,
    pipeline: FloatArray,
    ttft: Latencies,
    tpot: Latencies,
) -> ServingState:
    requests_per_s = pipeline * flow.requests_per_s
    return ServingState(
        requests_per_s=requests_per_s,
        running_requests=running,
        ttft=ttft,
        tpot=tpot,
        prompt_time_ratio=_prompt_time_ratio(flow),
        output_tokens_per_s=requests_per_s * load.output_tokens,
    )


def closed_loop(
    table: StepTable, load: Load, concurrency: FloatArray, num_requests: FloatArray
) -> ServingState:
    """`concurrency` users who send the next request when the last is answered; all start at once.

    The first wave's prompts queue behind each other; its share of all requests is concurrency / num_requests.
    Answers of equal length keep users in step, so that their prompts go on arriving one behind the other: half of
    these mates are ahead of a prompt, the other half interrupt its answer. Unequal lengths strew the arrivals of
    generation g over sqrt(g) times their spread.
    Users beyond what can run at once wait for a slot.
    """
    pipeline = table.pp[load.layout]
    users = np.minimum(concurrency, num_requests)
    running = np.minimum(users, np.maximum(load.running_limit, 1.0))
    batch = np.maximum(running / pipeline, 1.0)
    room = np.maximum(load.batched_tokens - 1.0, 1.0)
    burst_steps = np.maximum(1.0, batch * load.input_tokens / room)
    generation = np.maximum(num_requests / running, 1.0) / 2.0
    shortest = 2.0 * load.length_low_ratio / (1.0 + load.length_low_ratio)
    spread_steps = 2.0 * (1.0 - shortest) * load.output_tokens * np.sqrt(generation)
    together = np.minimum((batch - 1.0) / (spread_steps + burst_steps), room / load.input_tokens)
    steps = mean_step(table, load)
    now = flow_of(
        load,
        steps,
        Crowd(batch, batch - 1.0, together / 2.0, load.reply_s + load.reply_per_user_s * users, closed=True),
    )

    queue_s = np.maximum(users - running, 0.0) / (pipeline * now.requests_per_s)
    mean_step_s = np.maximum(now.tpot_s, now.decode_s)
    accompanied = np.minimum(batch - 1.0, 1.0)
    outside_s = load.front_s + load.reply_s + load.reply_per_user_s * users
    steady_s = now.own_s + accompanied * (1.0 + load.async_scheduling) * mean_step_s + outside_s
    wave_tokens = np.minimum(batch * load.input_tokens, room)
    full_step_s = steps.mixed_s(
        batch / 2.0, wave_tokens, padded(batch / 2.0 + wave_tokens, load.captured_tokens)
    )
    burst_s = np.maximum(burst_steps * full_step_s, batch * load.front_s) + outside_s
    burst_mean_s = (
        np.maximum((burst_steps + 1.0) * full_step_s, (batch + 1.0) * load.front_s) / 2.0 + outside_s
    )
    first_wave = np.clip(running / num_requests, 0.0, 1.0)

    def ttft(quantile: float) -> FloatArray:
        steady = steady_s + queue_s + accompanied * (quantile - 0.5) * mean_step_s
        in_burst = burst_s * (1.0 - (1.0 - quantile) / np.maximum(first_wave, 1e-12))
        return np.asarray(np.where(quantile > 1.0 - first_wave, np.maximum(steady, in_burst), steady))

    gaps = np.maximum(load.output_tokens - 1.0, 1.0)
    noise_s = now.prompt_s * np.sqrt(now.requests_per_s * now.tpot_s / gaps)

    def tpot(quantile: float) -> FloatArray:
        return now.tpot_s + Z_SCORES[quantile] * noise_s

    ttft_mean = first_wave * np.maximum(burst_mean_s, now.own_s + outside_s) + (1.0 - first_wave) * (
        steady_s + queue_s
    )
    return _state(
        load,
        now,
        running=running,
        pipeline=pipeline,
        ttft=Latencies(ttft_mean, *(ttft(q) for q in QUANTILES)),
        tpot=Latencies(now.tpot_s, *(tpot(q) for q in QUANTILES)),
    )


def running_at_rate(table: StepTable, load: Load, requests_per_s: FloatArray) -> FloatArray:
    """Mean running requests at a request rate [R, 1], by bisection on Little's law; the limit if it saturates."""
    pipeline = table.pp[load.layout]
    load = _dealt(load, pipeline)
    steps = mean_step(table, load)
    low = np.full_like(requests_per_s, 1e-6)
    high = np.maximum(FULLEST * load.running_limit, 2e-6) * np.ones_like(low)
    for _ in range(HALVINGS):
        middle = np.sqrt(low * high)
        crowd = middle / pipeline
        enough = pipeline * flow_of(load, steps, _open_crowd(load, crowd)).requests_per_s >= requests_per_s
        high = np.where(enough, middle, high)
        low = np.where(enough, low, middle)
    return np.asarray(high, dtype=np.float64)
