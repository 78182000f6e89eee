"""Closed-form steady state of one replica: a mean-field picture of continuous batching.

Every running sequence alternates between prefill and decode; what the average engine step contains follows from
conservation of tokens, what it costs from `planner.formulas.step`. All functions work on arrays of any common
shape, one element a (layout, settings, load), so thousands of candidates cost one pass.

Queueing approximations, to be replaced by the scheduler simulation:

* waiting for a slot and waiting for token budget are GI/G/c queues in the approximation of Allen-Cunneen with
  Sakasegawa's waiting probability, `W = P_w (ca^2 + cs^2) / 2 * S / (c (1 - rho))`, `P_w = rho^(sqrt(2 (c+1)) - 1)`
  (Sakasegawa 1977, Ann. Inst. Stat. Math. 29), with an exponential tail;
* gaps more variable than Poisson's come in bursts of (ca^2 + 1) / 2 requests, whose prompts go one after another;
* the number of neighbours a request sees over its own stay has variance `2/3 n ca^2` (M/D/infinity, averaged over
  one service time), which gives the TPOT percentiles;
* recomputation after preemption is not modelled: sequences beyond the KV cache queue.
"""

from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import FloatArray, IntArray
from planner.formulas.step import StepTable, decode_step_s, mixed_step_s

Z_SCORES = {0.5: 0.0, 0.95: 1.6449, 0.99: 2.3263}
QUANTILES = (0.5, 0.95, 0.99)
MAX_UTILIZATION = 0.995
FULLEST = 0.95
"""Mean running requests stay below this share of what fits."""


class Load(NamedTuple):
    """What each element of a pass is asked to serve, and with what; arrays of one shape (or broadcastable)."""

    layout: IntArray
    """Row of the step table."""
    input_tokens: FloatArray
    """Prompt tokens computed (prefix-cache hits excluded)."""
    cached_tokens: FloatArray
    """Prompt tokens found in the prefix cache."""
    output_tokens: FloatArray
    length_low_ratio: FloatArray
    """Lengths are uniform in [r L, L] over the means given here."""
    batched_tokens: FloatArray
    """`max_num_batched_tokens`."""
    slots: FloatArray
    """`max_num_seqs`."""
    kv_requests: FloatArray
    """Requests of mean length the KV cache holds."""
    arrival_cv: FloatArray
    async_scheduling: FloatArray
    """1 where one step is already queued behind the running one, else 0."""

    @property
    def running_limit(self) -> FloatArray:
        """Requests that can run at once."""
        return np.minimum(self.slots, self.kv_requests)


class Latencies(NamedTuple):
    """A figure's mean and percentiles [s], arrays of the load's shape."""

    mean_s: FloatArray
    p50_s: FloatArray
    p95_s: FloatArray
    p99_s: FloatArray


class ServingState(NamedTuple):
    """One replica in its steady state, arrays of the load's shape."""

    requests_per_s: FloatArray
    running_requests: FloatArray
    ttft: Latencies
    tpot: Latencies
    step_s: FloatArray
    """Mean engine step."""
    prompt_time_ratio: FloatArray
    """Share of the engine's time that prompts take."""
    output_tokens_per_s: FloatArray


class _Round(NamedTuple):
    """The average engine step while `n` sequences run."""

    requests_per_s: FloatArray
    steps: FloatArray
    step_s: FloatArray
    residual_s: FloatArray
    tpot_s: FloatArray
    tpot_noise_s: FloatArray
    prefill_s: FloatArray
    prompt_time_ratio: FloatArray
    prompt_s: FloatArray
    """What one prompt adds to the steps that carry it."""
    budget_use: FloatArray
    prompts_per_step: FloatArray


class _Company(NamedTuple):
    """How the requests in a replica meet each other, arrays of the load's shape."""

    others_ratio: FloatArray
    """Share of prompt work that a request sees from others: 1 in an open loop, (n-1)/n closed."""
    spread_steps: FloatArray
    """Steps over which the prompts of one generation are strewn, beyond those they fill; inf: over the whole stay."""


def _prefill_in_steps(
    prompts_per_step: FloatArray, active_ratio: FloatArray, tokens: FloatArray, room: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Share of steps that carry prompts of `tokens`, and prompt tokens in these; Poisson arrivals while active."""
    crowd = prompts_per_step / active_ratio
    busy = np.minimum(np.maximum(-np.expm1(-crowd), crowd * tokens / room), 1.0)
    share = np.maximum(active_ratio * busy, 1e-12)
    return share, np.minimum(prompts_per_step * tokens / share, room)


def _round(table: StepTable, load: Load, running: FloatArray, company: _Company) -> _Round:
    """The average step while `running` sequences are in the replica, [any shape] like the load.

    Where prompts bind, at most B (O-1) / (I + O-1) sequences decode: the budget then splits like the tokens do.
    """
    pipeline = table.pp[load.layout]
    n = np.maximum(running / pipeline, 1e-9)
    answer_steps = load.output_tokens - 1.0
    most_decoding = load.batched_tokens * answer_steps / (load.input_tokens + answer_steps)
    room = np.maximum(load.batched_tokens - np.minimum(n, most_decoding), 1.0)
    prefill_steps = np.maximum(1.0, load.input_tokens / room)
    steps = np.maximum(answer_steps + prefill_steps, n * load.input_tokens / room)
    decoding = n * answer_steps / steps
    context = load.cached_tokens + load.input_tokens + load.output_tokens / 2.0
    arrivals = n / steps
    prompt_tokens = arrivals * load.input_tokens
    filled_steps = np.maximum(1.0, n * load.input_tokens / room)
    active = np.minimum((company.spread_steps + filled_steps) / steps, 1.0)

    decode_s = decode_step_s(table, load.layout, decoding, context)
    share, chunk = _prefill_in_steps(arrivals, active, load.input_tokens, room)
    mixed_s = mixed_step_s(table, load, decoding, context, chunk)
    step_s = (1.0 - share) * decode_s + share * mixed_s

    others = arrivals * company.others_ratio
    seen_share, seen_chunk = _prefill_in_steps(others, active, load.input_tokens, room)
    seen_s = mixed_step_s(table, load, decoding, context, seen_chunk)
    tpot_s = (1.0 - seen_share) * decode_s + seen_share * seen_s
    gaps = np.maximum(answer_steps, 1.0)
    tpot_noise_s = (seen_s - decode_s) * np.sqrt(seen_share * (1.0 - seen_share) / gaps)

    own_chunk = np.minimum(room, load.input_tokens * (1.0 / prefill_steps + others / active))
    prefill_s = prefill_steps * mixed_step_s(table, load, decoding, context, own_chunk)
    second_moment = (1.0 - share) * decode_s**2 + share * mixed_s**2
    return _Round(
        requests_per_s=pipeline * arrivals / step_s,
        steps=steps,
        step_s=step_s,
        residual_s=second_moment / (2.0 * step_s),
        tpot_s=tpot_s,
        tpot_noise_s=tpot_noise_s,
        prefill_s=prefill_s,
        prompt_time_ratio=share * (mixed_s - decode_s) / step_s,
        prompt_s=(mixed_s - decode_s) * load.input_tokens / np.maximum(chunk, 1e-12),
        budget_use=prompt_tokens / room,
        prompts_per_step=np.maximum(1.0, room / load.input_tokens),
    )


class _Wait(NamedTuple):
    """A waiting time with an atom at zero and an exponential tail."""

    probability: FloatArray
    mean_s: FloatArray

    def quantile_s(self, quantile: float) -> FloatArray:
        """The waiting time not exceeded with probability `quantile`."""
        scale = self.mean_s / np.maximum(self.probability, 1e-12)
        return np.asarray(
            scale * np.log(np.maximum(self.probability / (1.0 - quantile), 1.0)), dtype=np.float64
        )


def _queue_wait(
    utilization: FloatArray, servers: FloatArray, service_s: FloatArray, variability: FloatArray
) -> _Wait:
    """GI/G/c waiting time; `variability` is (ca^2 + cs^2) / 2. Source: module docstring."""
    rho = np.clip(utilization, 0.0, MAX_UTILIZATION)
    probability = rho ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0)
    return _Wait(probability, probability * variability * service_s / (servers * (1.0 - rho)))


def _length_cv_squared(low_ratio: FloatArray) -> FloatArray:
    """Squared coefficient of variation of a uniform length in [r L, L]."""
    return ((1.0 - low_ratio) / (1.0 + low_ratio)) ** 2 / 3.0


def open_loop(table: StepTable, load: Load, running: FloatArray) -> ServingState:
    """The replica while `running` sequences are in service on average, under arrivals that do not wait for it.

    The request rate that keeps it there is part of the answer (Little's law); it rises with `running`, so a rate
    is turned into `running` by interpolation (`running_at_rate`).
    """
    everyone = _Company(np.ones_like(running), np.full_like(running, np.inf))
    now = _round(table, load, running, everyone)
    stay_s = now.steps * now.step_s
    arrivals_squared = load.arrival_cv**2
    budget_wait = _queue_wait(now.budget_use, now.prompts_per_step, now.prefill_s, arrivals_squared / 2.0)
    slot_wait = _queue_wait(
        running / load.running_limit,
        load.running_limit,
        stay_s,
        (arrivals_squared + _length_cv_squared(load.length_low_ratio)) / 2.0,
    )
    burst = np.maximum((arrivals_squared + 1.0) / 2.0, 1.0)
    burst_wait = _Wait(1.0 - 1.0 / burst, (burst - 1.0) * now.prompt_s)
    waits = (burst_wait, budget_wait, slot_wait)
    fixed_s = now.prefill_s + load.async_scheduling * now.step_s
    swing = load.arrival_cv * np.sqrt(2.0 / 3.0 * running)

    def ttft(quantile: float) -> FloatArray:
        tails_s = sum((wait.quantile_s(quantile) for wait in waits), np.zeros_like(fixed_s))
        return np.asarray(fixed_s + 2.0 * quantile * now.residual_s + tails_s, dtype=np.float64)

    def tpot(quantile: float) -> FloatArray:
        z = Z_SCORES[quantile]
        if z == 0.0:
            return now.tpot_s
        crowded = np.minimum(running + z * swing, np.maximum(load.running_limit, running))
        busy = _round(table, load, crowded, everyone)
        return busy.tpot_s + z * busy.tpot_noise_s

    return ServingState(
        requests_per_s=now.requests_per_s,
        running_requests=running,
        ttft=Latencies(
            fixed_s + now.residual_s + sum(wait.mean_s for wait in waits), *(ttft(q) for q in QUANTILES)
        ),
        tpot=Latencies(now.tpot_s, *(tpot(q) for q in QUANTILES)),
        step_s=now.step_s,
        prompt_time_ratio=now.prompt_time_ratio,
        output_tokens_per_s=now.requests_per_s * load.output_tokens,
    )


def closed_loop(
    table: StepTable, load: Load, concurrency: FloatArray, num_requests: FloatArray
) -> ServingState:
    """`concurrency` users who send the next request when the last is answered; all start at once.

    The first wave's prompts queue behind each other; its share of all requests is concurrency / num_requests.
    Answers of equal length keep users in step, so that their prompts go on arriving together; unequal ones strew
    the arrivals of generation g over sqrt(g) times the spread of the lengths.
    Users beyond what can run at once wait for a slot.
    """
    running = np.minimum(concurrency, np.maximum(load.running_limit, 1.0))
    generation = np.maximum(num_requests / running, 1.0) / 2.0
    shortest = 2.0 * load.length_low_ratio / (1.0 + load.length_low_ratio)
    spread_steps = 2.0 * (1.0 - shortest) * load.output_tokens * np.sqrt(generation)
    company = _Company(np.maximum(running - 1.0, 0.0) / running, spread_steps)
    now = _round(table, load, running, company)
    queue_s = np.maximum(concurrency - running, 0.0) / now.requests_per_s
    steady_s = now.prefill_s + (1.0 + load.async_scheduling) * now.step_s

    room = np.maximum(load.batched_tokens - 1.0, 1.0)
    burst_tokens = running / table.pp[load.layout] * load.input_tokens
    burst_steps = np.maximum(1.0, burst_tokens / room)
    full_step_s = mixed_step_s(
        table,
        load,
        running / 2.0 / table.pp[load.layout],
        load.cached_tokens + load.input_tokens,
        np.minimum(burst_tokens, room),
    )
    burst_s = burst_steps * full_step_s
    burst_mean_s = (burst_steps + 1.0) / 2.0 * full_step_s
    first_wave = np.clip(running / np.maximum(num_requests, running), 0.0, 1.0)

    def ttft(quantile: float) -> FloatArray:
        steady = steady_s + queue_s + (2.0 * quantile - 1.0) * np.minimum(now.residual_s, steady_s)
        in_burst = burst_s * (1.0 - (1.0 - quantile) / np.maximum(first_wave, 1e-12))
        return np.asarray(np.where(quantile > 1.0 - first_wave, np.maximum(steady, in_burst), steady))

    def tpot(quantile: float) -> FloatArray:
        return now.tpot_s + Z_SCORES[quantile] * now.tpot_noise_s

    ttft_mean = first_wave * np.maximum(burst_mean_s, now.prefill_s) + (1.0 - first_wave) * (
        steady_s + queue_s
    )
    return ServingState(
        requests_per_s=now.requests_per_s,
        running_requests=running,
        ttft=Latencies(ttft_mean, *(ttft(q) for q in QUANTILES)),
        tpot=Latencies(now.tpot_s, *(tpot(q) for q in QUANTILES)),
        step_s=now.step_s,
        prompt_time_ratio=now.prompt_time_ratio,
        output_tokens_per_s=now.requests_per_s * load.output_tokens,
    )


def running_at_rate(table: StepTable, load: Load, requests_per_s: FloatArray) -> FloatArray:
    """Mean running requests at a request rate [R, 1], by bisection on Little's law; the limit if it saturates."""
    low = np.full_like(requests_per_s, 1e-6)
    high = np.maximum(FULLEST * load.running_limit, 2e-6) * np.ones_like(low)
    for _ in range(32):
        middle = np.sqrt(low * high)
        enough = open_loop(table, load, middle).requests_per_s >= requests_per_s
        high = np.where(enough, middle, high)
        low = np.where(enough, low, middle)
    return np.asarray(high, dtype=np.float64)
