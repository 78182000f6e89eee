"""What placed replicas can carry within the promise, thousands of settings in one pass."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, MemoryBudget
from planner.domain.plan import Bottleneck, Latency, Question
from planner.domain.units import seconds_to_ms
from planner.domain.workload import Slo, Workload
from planner.formulas.arrays import FloatArray, IntArray
from planner.formulas.engine_defaults import engine_rules
from planner.formulas.host_time import HostTime
from planner.formulas.step import StepTable
from planner.planning.loads import (
    Loaded,
    as_column,
    largest_captured,
    load_of,
    resident_tokens,
    row_of,
)
from planner.planning.sizing import Placed, Refusal, Sizer, check_length, memory_refusal
from planner.serving.mean_step import Load
from planner.serving.steady_state import (
    FULLEST,
    ServingState,
    open_loop,
    running_at_rate,
)

BATCHED_TOKENS = (2048, 4096, 8192, 16384)
GPU_MEMORY_UTILIZATION = (0.90, 0.92, 0.95)
MAX_NUM_SEQS = (8, 16, 32, 64, 128, 256, 512, 1024)
RUNNING_POINTS = 26
PROMISED = (0.95,)
"""Percentiles that a promise is about."""
LEAST_RUNNING = 0.05
NEARLY_AS_GOOD = 0.99
CROWD_DEVIATIONS = 3.0
CACHE_BOUND_RATIO = 0.8


class Choice(NamedTuple):
    """One placed replica with one set of engine flags and the memory that leaves."""

    replica: int
    """Index into the placed replicas."""
    engine: EngineSettings
    budget: MemoryBudget
    kv_requests: float
    captured_tokens: float


class Capability(NamedTuple):
    """What one replica can do under its best flags."""

    engine: EngineSettings
    budget: MemoryBudget
    requests_per_s: float
    binding: Bottleneck
    row: int
    """Of the step table."""
    kv_requests: float
    captured_tokens: float
    running_requests: float
    """Mean requests running at once at that rate."""


class Service(NamedTuple):
    """One replica at the load it will carry."""

    latency: Latency
    running_requests: float
    prompt_time_ratio: float


def default_max_model_len(question: Question) -> int:
    """Room for twice the prompt and answer, as far as the model goes; the user's own figure wins.

    Raises `InputError` where the figure, or the model, is too short for the workload.
    """
    model = question.variants[0]
    longest = question.workload.input_tokens + question.workload.output_tokens
    limit = question.max_model_len if question.max_model_len is not None else model.max_position
    check_length(limit, model)
    if longest > limit:
        raise InputError(
            f"a prompt and its answer take {longest:g} tokens, more than the {limit} of "
            f"{model.name if question.max_model_len is None else 'max_model_len'}"
        )
    if question.max_model_len is not None:
        return question.max_model_len
    roomy = int(2 ** math.ceil(math.log2(2.0 * longest)))
    return min(model.max_position, max(4096, roomy))


def choices(
    replica: int, placed: Placed, question: Question, sizer: Sizer, max_model_len: int
) -> list[Choice] | Refusal:
    """Every set of flags under which the replica starts, or why it never does."""
    found = []
    refusals = []
    workload = question.workload
    asynchronous = engine_rules(question.engine_version).async_scheduling
    request_bytes = float(placed.kv.request_bytes(resident_tokens(workload)))
    for tokens in BATCHED_TOKENS:
        for utilization in GPU_MEMORY_UTILIZATION:
            engine = EngineSettings(
                max_num_seqs=MAX_NUM_SEQS[-1],
                max_num_batched_tokens=tokens,
                max_model_len=max_model_len,
                gpu_memory_utilization=utilization,
                async_scheduling=asynchronous,
                engine_version=question.engine_version,
            )
            budget = sizer.budget(placed, engine)
            if budget.fits:
                held = placed.kv.usable_bytes(budget.kv_cache_bytes) / request_bytes
                found.append(Choice(replica, engine, budget, held, largest_captured(placed, engine)))
            else:
                refusals.append(memory_refusal(placed, budget, engine))
    return found or min(refusals, key=lambda refusal: refusal.need / refusal.have)


def thinned_cv(arrival_cv: float, replicas: float) -> float:
    """Coefficient of variation of one replica's gaps where requests are dealt out at random over `replicas`.

    `c_i^2 = 1 + (c^2 - 1) / R` (Whitt 1983, The Queueing Network Analyzer, splitting).

    >>> thinned_cv(3.0, 8)
    1.4142135623730951
    """
    return math.sqrt(1.0 + (arrival_cv**2 - 1.0) / max(replicas, 1.0))


def capabilities(
    table: StepTable,
    options: Sequence[Choice],
    question: Question,
    arrival_cvs: Mapping[int, float],
    hosts: Sequence[HostTime],
) -> dict[int, Capability | Refusal]:
    """The best flags of every placed replica and the rate it then carries within the SLO, by replica index.

    `arrival_cvs` is the variability of arrivals at each replica, `hosts` its machine's host time.
    """
    workload = question.workload
    rows = [
        Loaded(
            row=o.replica,
            engine=o.engine,
            kv_requests=o.kv_requests,
            arrival_cv=arrival_cvs[o.replica],
            workload=workload,
            host=hosts[o.replica],
            captured_tokens=o.captured_tokens,
        )
        for o in options
    ]
    load = as_column(load_of(rows))
    fullest = np.maximum(FULLEST * load.running_limit, LEAST_RUNNING)
    carried = _carried(table, load, question.slo, np.full_like(fullest, LEAST_RUNNING), fullest)
    best: dict[int, int] = {}
    for index, option in enumerate(options):
        held = best.get(option.replica)
        if held is None or carried.requests_per_s[index] * NEARLY_AS_GOOD > carried.requests_per_s[held]:
            best[option.replica] = index
    kept = np.array(list(best.values()))
    closer = _carried(
        table, row_of(load, kept), question.slo, carried.below[kept][:, None], carried.above[kept][:, None]
    )
    return {
        replica: _capability(options[index], closer, row, question)
        for row, (replica, index) in enumerate(best.items())
    }


def _strain(state: ServingState, slo: Slo) -> FloatArray:
    """The worst ratio of a promised percentile to its SLO [R, N]; above 1 the promise is broken."""
    strain = np.zeros_like(state.requests_per_s)
    if slo.ttft_p95_s is not None:
        strain = np.maximum(strain, state.ttft.p95_s / slo.ttft_p95_s)
    if slo.tpot_p95_s is not None:
        strain = np.maximum(strain, state.tpot.p95_s / slo.tpot_p95_s)
    return strain


class _Carried(NamedTuple):
    """The highest rate within the promise, of R settings tried at N loads."""

    requests_per_s: FloatArray
    """[R]"""
    first: IntArray
    """First load beyond it [R]; N where none is."""
    below: FloatArray
    """Mean running requests at the last load within it [R]."""
    above: FloatArray
    """And at the first beyond, or the last tried [R]."""
    state: ServingState
    """At all loads [R, N]."""
    crowds: FloatArray
    """Running requests in busy moments [R, N]."""


def _carried(table: StepTable, load: Load, slo: Slo, least: FloatArray, most: FloatArray) -> _Carried:
    """The promise along a row of loads from `least` to `most` mean running requests [R, 1]."""
    running = least * (most / least) ** np.linspace(0.0, 1.0, RUNNING_POINTS)
    state = open_loop(table, load, running, quantiles=PROMISED)
    strain, rates = _strain(state, slo), state.requests_per_s
    rows = np.arange(rates.shape[0])
    broken = strain > 1.0
    first = np.where(broken.any(axis=1), broken.argmax(axis=1), rates.shape[1])
    above = np.minimum(first, rates.shape[1] - 1)
    below = np.maximum(above - 1, 0)
    low, high = strain[rows, below], strain[rows, above]
    share = np.clip((1.0 - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    between = rates[rows, below] + share * (rates[rows, above] - rates[rows, below])
    return _Carried(
        np.where(first == 0, 0.0, np.where(first == rates.shape[1], rates[:, -1], between)),
        first,
        running[rows, below],
        running[rows, above],
        state,
        running + CROWD_DEVIATIONS * load.arrival_cv * np.sqrt(running),
    )


def _capability(option: Choice, carried: _Carried, row: int, question: Question) -> Capability | Refusal:
    """The chosen flags of one replica, or which promise it breaks even when almost idle."""
    state, slo = carried.state, question.slo
    if carried.first[row] == 0 and carried.below[row] <= LEAST_RUNNING:
        return idle_refusal(slo, state.latency_at((row, 0)))
    at = min(int(carried.first[row]), carried.crowds.shape[1] - 1)
    slots = next((size for size in MAX_NUM_SEQS if size >= carried.crowds[row, at]), MAX_NUM_SEQS[-1])
    return Capability(
        engine=option.engine.model_copy(update={"max_num_seqs": slots}),
        budget=option.budget,
        requests_per_s=float(carried.requests_per_s[row]),
        binding=_binding(option, state, (row, at), question),
        row=option.replica,
        kv_requests=option.kv_requests,
        captured_tokens=option.captured_tokens,
        running_requests=float(state.running_requests[row, at]),
    )


def idle_refusal(slo: Slo, idle: Latency) -> Refusal:
    """The promise that an almost idle replica misses the most."""
    missed = [
        _missed(bottleneck, promised_s, seconds_to_ms(best_s))
        for bottleneck, promised_s, best_s in (
            (Bottleneck.TPOT, slo.tpot_p95_s, idle.tpot_p95_s),
            (Bottleneck.TTFT, slo.ttft_p95_s, idle.ttft_p95_s),
        )
        if promised_s is not None
    ]
    return max(missed, key=lambda refusal: refusal.have / refusal.need)


def _missed(bottleneck: Bottleneck, promised_s: float, best_ms: float) -> Refusal:
    need_ms = seconds_to_ms(promised_s)
    return Refusal(
        bottleneck,
        need_ms,
        best_ms,
        "ms",
        f"{bottleneck.value.upper()} p95 is {three_digits(best_ms)} ms on an almost idle replica, "
        f"promised {three_digits(need_ms)} ms",
    )


def three_digits(value: float) -> str:
    """A number for a sentence: three significant digits, thousands separated.

    >>> three_digits(3649.2)
    '3,650'
    """
    return f"{float(f'{value:.3g}'):,g}"


def _binding(option: Choice, state: ServingState, point: tuple[int, int], question: Question) -> Bottleneck:
    """What stops the replica from carrying more."""
    slo = question.slo
    near_full = float(state.running_requests[point]) > CACHE_BOUND_RATIO * option.kv_requests
    if near_full and option.kv_requests < option.engine.max_num_seqs:
        return Bottleneck.KV_CACHE
    if slo.tpot_p95_s is not None and float(state.tpot.p95_s[point]) > slo.tpot_p95_s:
        return Bottleneck.TPOT
    if slo.ttft_p95_s is not None and float(state.ttft.p95_s[point]) > slo.ttft_p95_s:
        return Bottleneck.TTFT
    return Bottleneck.THROUGHPUT


class Share(NamedTuple):
    """The part of the traffic that one replica gets."""

    capability: Capability
    requests_per_s: float
    arrival_cv: float


def serve(
    table: StepTable, loaded: Sequence[Share], workload: Workload, hosts: Sequence[HostTime]
) -> list[Service]:
    """Every capability under the load it is given: latency percentiles and occupancy."""
    if not loaded:
        return []
    rows = [
        Loaded(c.row, c.engine, c.kv_requests, arrival_cv, workload, hosts[c.row], c.captured_tokens)
        for c, _, arrival_cv in loaded
    ]
    load = as_column(load_of(rows))
    rates = np.array([share.requests_per_s for share in loaded])[:, None]
    state = open_loop(table, load, running_at_rate(table, load, rates))
    return [
        Service(
            state.latency_at((index, 0)),
            running_requests=float(state.running_requests[index, 0]),
            prompt_time_ratio=float(state.prompt_time_ratio[index, 0]),
        )
        for index in range(len(loaded))
    ]
