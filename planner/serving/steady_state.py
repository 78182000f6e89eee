"""Closed-form steady state of one replica: a mean-field picture of continuous batching.

A request stays for its own prompt, for the steps of its answer, and for the prompts of those who come meanwhile;
what these cost follows from `planner.formulas.step`, how many pass from Little's law. All functions work on arrays
of any common shape, one element a (layout, settings, load), so thousands of candidates cost one pass.

Approximations, to be replaced by the scheduler simulation:

* prompts wait for the engine as in GI/G/1, requests for a slot as in GI/G/c, both in the approximation of
  Allen-Cunneen with Sakasegawa's waiting probability, `W = P_w (ca^2 + cs^2) / 2 * S / (c (1 - rho))`,
  `P_w = rho^(sqrt(2 (c+1)) - 1)` (Sakasegawa 1977, Ann. Inst. Stat. Math. 29), with an exponential tail;
  a percentile of the sum is the sum of the percentiles, which errs on the long side;
* prompts that arrive during one step share the next;
* gaps more variable than Poisson's come in bursts of (ca^2 + 1) / 2 requests, whose prompts go one after another;
* the number of neighbours a request sees over its own stay has variance `2/3 n ca^2` (M/D/infinity, averaged over
  one service time), which with the number of prompts it meets gives the TPOT percentiles;
* recomputation after preemption is not modelled: sequences beyond the KV cache queue.
"""

from typing import NamedTuple

import numpy as np

from planner.domain.plan import Latency
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


class _Flow(NamedTuple):
    """What passes through one pipeline batch while `n` requests are in service."""

    requests_per_s: FloatArray
    prompt_s: FloatArray
    """What one prompt adds to the steps of those who decode."""
    packed_prompt_s: FloatArray
    """The engine's time for one prompt where prompts fill every step."""
    own_s: FloatArray
    """The steps a request's own prompt takes."""
    decode_s: FloatArray
    """A step without prompts."""
    tpot_s: FloatArray
    tpot_noise_s: FloatArray
    stay_s: FloatArray
    decode_time_ratio: FloatArray
    """Share of time in which the engine decodes and nothing else."""


def _flow(table: StepTable, load: Load, running: FloatArray, others: FloatArray, mates: FloatArray) -> _Flow:
    """What passes through while `running` requests are in service, [any shape] like the load.

    A request stays for its own prompt w, for O - 1 steps d, and for the prompts e of the others who come meanwhile:

        stay = w + (O - 1) d + (others - mates) e,    rate = n / stay,

    with `others` the requests that come during a stay (n in an open loop, n - 1 in a closed one) and `mates` those
    whose prompts share the steps of its own. Decoding never waits longer than a full step, and prompts never come
    faster than full steps take them.
    """
    n = np.maximum(running / table.pp[load.layout], 1e-9)
    gaps = load.output_tokens - 1.0
    most_decoding = load.batched_tokens * gaps / (load.input_tokens + gaps)
    room = np.maximum(load.batched_tokens - np.minimum(n, most_decoding), 1.0)
    prefill_steps = np.maximum(1.0, load.input_tokens / room)
    chunk = np.minimum(load.input_tokens, room)
    own_chunk = np.minimum(room, chunk + mates * load.input_tokens)
    context = load.cached_tokens + load.input_tokens + load.output_tokens / 2.0
    decoding = np.minimum(n, most_decoding)
    for _ in range(2):
        decode_s = decode_step_s(table, load.layout, np.maximum(decoding, 1.0), context)
        prompt_s = prefill_steps * (mixed_step_s(table, load, decoding, context, chunk) - decode_s)
        prompt_s = np.maximum(prompt_s, 0.0)
        full_step_s = mixed_step_s(table, load, decoding, context, room)
        own_s = prefill_steps * mixed_step_s(table, load, decoding, context, own_chunk)
        packed_prompt_s = full_step_s * load.input_tokens / room
        seen = np.maximum(others - mates, 0.0)
        answer_s = np.minimum(gaps * decode_s + seen * prompt_s, gaps * full_step_s)
        rate = np.minimum(n / (own_s + answer_s), 1.0 / packed_prompt_s)
        decoding = np.minimum(rate * answer_s, most_decoding)
    answers = np.where(gaps > 0.0, gaps, 1.0)
    return _Flow(
        requests_per_s=rate,
        prompt_s=prompt_s,
        packed_prompt_s=packed_prompt_s,
        own_s=own_s,
        decode_s=decode_s,
        tpot_s=np.where(gaps > 0, answer_s / answers, 0.0),
        tpot_noise_s=np.where(gaps > 0, prompt_s * np.sqrt(rate * answer_s) / answers, 0.0),
        stay_s=own_s + answer_s,
        decode_time_ratio=np.clip(np.minimum(rate * gaps * decode_s, 1.0 - rate * prompt_s), 0.0, 1.0),
    )


def _prompt_time_ratio(flow: _Flow) -> FloatArray:
    """Share of the engine's busy time that prompts take."""
    prompts = flow.requests_per_s * flow.prompt_s
    return np.asarray(prompts / np.maximum(prompts + flow.decode_time_ratio, 1e-12), dtype=np.float64)


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
    is turned into `running` by bisection (`running_at_rate`).
    """
    pipeline = table.pp[load.layout]
    alone = np.zeros_like(running)
    now = _flow(table, load, running, running / pipeline, alone)
    arrivals_squared = load.arrival_cv**2
    busy = np.minimum(running / pipeline, 1.0)
    prompt_load = now.requests_per_s * now.packed_prompt_s
    queued = _queue_wait(prompt_load, np.ones_like(running), now.packed_prompt_s, arrivals_squared / 2.0)
    burst = np.maximum((arrivals_squared + 1.0) / 2.0, 1.0)
    behind_burst = _Wait(1.0 - 1.0 / burst, (burst - 1.0) * now.packed_prompt_s)
    for_slot = _queue_wait(
        running / load.running_limit,
        load.running_limit,
        now.stay_s,
        (arrivals_squared + _length_cv_squared(load.length_low_ratio)) / 2.0,
    )
    waits = (queued, behind_burst, for_slot)
    residual_s = (1.0 - np.minimum(prompt_load, 1.0)) * busy * now.decode_s / 2.0
    step_s = np.maximum(now.tpot_s, now.decode_s)
    sharing = np.minimum(
        now.requests_per_s * step_s, np.maximum(load.batched_tokens / load.input_tokens - 1.0, 0.0)
    )
    fixed_s = now.own_s + sharing * now.prompt_s + load.async_scheduling * busy * now.decode_s
    swing = load.arrival_cv * np.sqrt(2.0 / 3.0 * running)

    def ttft(quantile: float) -> FloatArray:
        tails_s = sum((wait.quantile_s(quantile) for wait in waits), np.zeros_like(fixed_s))
        return np.asarray(fixed_s + 2.0 * quantile * residual_s + tails_s, dtype=np.float64)

    def tpot(quantile: float) -> FloatArray:
        z = Z_SCORES[quantile]
        if z == 0.0:
            return now.tpot_s
        crowded = np.minimum(running + z * swing, np.maximum(load.running_limit, running))
        then = _flow(table, load, crowded, crowded / pipeline, alone)
        return then.tpot_s + z * then.tpot_noise_s

    return _state(
        load,
        now,
        running=running,
        pipeline=pipeline,
        ttft=Latencies(
            fixed_s + residual_s + sum(wait.mean_s for wait in waits), *(ttft(q) for q in QUANTILES)
        ),
        tpot=Latencies(now.tpot_s, *(tpot(q) for q in QUANTILES)),
    )


def _state(
    load: Load,
    flow: _Flow,
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
    now = _flow(table, load, running, batch - 1.0, together / 2.0)

    queue_s = np.maximum(users - running, 0.0) / (pipeline * now.requests_per_s)
    mean_step_s = np.maximum(now.tpot_s, now.decode_s)
    accompanied = np.minimum(batch - 1.0, 1.0)
    steady_s = now.own_s + accompanied * (1.0 + load.async_scheduling) * mean_step_s
    context = load.cached_tokens + load.input_tokens
    full_step_s = mixed_step_s(table, load, batch / 2.0, context, np.minimum(batch * load.input_tokens, room))
    burst_s = burst_steps * full_step_s
    burst_mean_s = (burst_steps + 1.0) / 2.0 * full_step_s
    first_wave = np.clip(running / num_requests, 0.0, 1.0)

    def ttft(quantile: float) -> FloatArray:
        steady = steady_s + queue_s + accompanied * (quantile - 0.5) * mean_step_s
        in_burst = burst_s * (1.0 - (1.0 - quantile) / np.maximum(first_wave, 1e-12))
        return np.asarray(np.where(quantile > 1.0 - first_wave, np.maximum(steady, in_burst), steady))

    def tpot(quantile: float) -> FloatArray:
        return now.tpot_s + Z_SCORES[quantile] * now.tpot_noise_s

    ttft_mean = first_wave * np.maximum(burst_mean_s, now.own_s) + (1.0 - first_wave) * (steady_s + queue_s)
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
    low = np.full_like(requests_per_s, 1e-6)
    high = np.maximum(FULLEST * load.running_limit, 2e-6) * np.ones_like(low)
    for _ in range(32):
        middle = np.sqrt(low * high)
        enough = open_loop(table, load, middle).requests_per_s >= requests_per_s
        high = np.where(enough, middle, high)
        low = np.where(enough, low, middle)
    return np.asarray(high, dtype=np.float64)
