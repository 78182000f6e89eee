"""Results of `vllm bench serve --save-result` (benchmarks/serve.py, main_async and calculate_metrics).

Read in releases 0.10.2 to 0.33.0; the fields used here have been the same in all of them. `--save-detailed` adds
lists with an entry a request, `--metadata` its keys beside the others.
"""

import math
import re
from collections.abc import Mapping
from datetime import datetime

from pydantic import JsonValue

from planner.calibrate.benchmarks.fields import MS, Fields, summary
from planner.calibrate.benchmarks.reading import LoadSaid, Reading, noted_facts
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkMeasures, BenchmarkTool, LatencySummary, TokenLengths

ENGINES = {"sglang": "sglang", "sglang-native": "sglang", "tgi": "tgi", "tensorrt-llm": "tensorrt-llm"}
"""Backends that name an engine; the others name a protocol, and vLLM is meant."""
_PERCENTILE = re.compile(r"p(\d+(?:\.\d+)?)_(ttft|tpot|itl|e2el)_ms")
SHORTEST_ANSWER = 2
"""Tokens, from which on there is a TPOT."""
AGREEMENT_RATIO = 0.02
"""Of figures that the file has twice."""
MOST_BUSY_RATIO = 3.0
"""Time that requests were in flight, over what can have been: mean TPOT times mean length overstates it where short
answers are slow."""
LEAST_BUSY, LEAST_BUSY_RATIO = 0.2, 0.01
"""Requests in flight on average in a closed loop, at least; and over those that may be: a few long ones end alone."""


def is_serve(document: Mapping[str, JsonValue]) -> bool:
    """Whether an object is such a result."""
    return {"duration", "completed", "total_input_tokens"} <= set(document)


def read_serve(document: Mapping[str, JsonValue], where: str) -> Reading:
    """One load.

    Raises:
        InputError: a field is missing or is no figure, no request was answered, or the load has no single rate.
    """
    fields = Fields(document, where)
    if "total_output_tokens" not in document:
        raise InputError(f"{where}: a pooling model's result: no tokens were generated")
    if "ramp_up_strategy" in document:
        raise InputError(f"{where}: the request rate ramps up during the run: it is no single load")
    completed = int(fields.needed("completed", high=1e9))
    duration_s = fields.needed("duration", high=1e6)
    if not completed or not duration_s:
        raise InputError(f"{where}: no request was answered")
    outputs = fields.needed("total_output_tokens")
    if outputs < completed:
        raise InputError(
            f"{where}: {outputs:g} output tokens for {completed} requests: nothing was generated"
        )
    failed = fields.number("failed", high=1e9)
    facts, load_facts = noted_facts(fields)
    engine = ENGINES.get((fields.text("backend") or fields.text("endpoint_type")).lower(), "vllm")
    measures = BenchmarkMeasures(
        ttft=_latency(fields, "ttft"),
        tpot=_latency(fields, "tpot"),
        itl=_latency(fields, "itl"),
        e2e=_latency(fields, "e2el") or _detailed_e2e(fields),
        output_tokens_per_s=_throughput(fields, "output_throughput", outputs / duration_s),
        requests_per_s=_throughput(fields, "request_throughput", completed / duration_s),
        duration_s=duration_s,
        completed=completed,
        failed=None if failed is None else int(failed),
    )
    load = _load(fields, completed, outputs)
    _check_times(where, load, measures, outputs / completed)
    return Reading(
        BenchmarkTool.VLLM_SERVE,
        where,
        fields.text("model_id"),
        facts if facts.engine else facts.model_copy(update={"engine": engine}),
        load_facts,
        load,
        measures,
        fields.unread(),
        measured_on=_date(fields),
        notes=(f"{int(failed)} requests failed",) if failed else (),
    )


def _load(fields: Fields, completed: int, outputs: float) -> LoadSaid:
    sent = int(fields.number("num_prompts", high=1e9) or completed)
    users = fields.number("max_concurrency", low=1, high=1e6)
    rate = _rate(fields, "request_rate")
    closed = min(int(users), sent) if users is not None else None
    return LoadSaid(
        input_tokens=_lengths(fields, "input_lens", fields.needed("total_input_tokens") / completed),
        output_tokens=_lengths(fields, "output_lens", outputs / completed),
        concurrency=min(sent, 10**6) if closed is None and math.isinf(rate) else closed,
        requests_per_s=None if math.isinf(rate) else rate,
        arrival_cv=_arrival_cv(_rate(fields, "burstiness", default=1.0)),
        num_requests=sent,
    )


def _rate(fields: Fields, name: str, default: float = math.inf) -> float:
    """A rate or a shape; vLLM writes an infinite one as a text."""
    value = fields.value(name)
    if value is None:
        return default
    if isinstance(value, str) and value.strip().lower() in ("inf", "infinity"):
        return math.inf
    return fields.needed(name, low=1e-6, high=1e6)


def _arrival_cv(burstiness: float) -> float:
    """Gaps are gamma distributed with the burstiness as shape: their variation is 1 / sqrt(shape).

    Source: `get_request`.
    """
    return 1.0 if burstiness == 1.0 else 1.0 / math.sqrt(burstiness)


def _lengths(fields: Fields, name: str, mean: float) -> TokenLengths:
    """Lengths of answered requests; their spread is known where each was saved."""
    values = [value for value in fields.figures(name) if value]
    if mean < 1:
        raise InputError(f"{fields.where}: {mean:g} tokens a request ({name}): nothing was sent or generated")
    if len(values) < 2:
        return TokenLengths(mean=mean)
    middle = math.fsum(values) / len(values)
    variance = math.fsum((value - middle) ** 2 for value in values) / len(values)
    return TokenLengths(mean=mean, variation=math.sqrt(variance) / middle)


def _latency(fields: Fields, name: str) -> LatencySummary | None:
    percentiles = {"50": fields.latency_s(f"median_{name}_ms", unit_s=MS)}
    for key in fields.whole:
        found = _PERCENTILE.fullmatch(key)
        if found and found[2] == name:
            percentiles[found[1]] = fields.latency_s(key, unit_s=MS)
    return summary(fields.latency_s(f"mean_{name}_ms", unit_s=MS), percentiles)


def _detailed_e2e(fields: Fields) -> LatencySummary | None:
    """Mean of each request's latency, where releases from 0.33 on (or details) save it and all were answered."""
    values = fields.figures("latencies")
    if not values or fields.number("failed"):
        return None
    return summary(math.fsum(values) / len(values) or None, {})


def _throughput(fields: Fields, name: str, expected: float) -> float:
    """A throughput that the totals and the duration confirm."""
    found = fields.number(name)
    if found is not None and abs(found - expected) > AGREEMENT_RATIO * expected:
        raise InputError(
            f"{fields.where}: {name} is {found:g}, but total and duration give {expected:g}: was it edited, or is "
            "the duration in another unit?"
        )
    return expected


def _check_times(where: str, load: LoadSaid, measures: BenchmarkMeasures, output_tokens: float) -> None:
    """Latencies in another unit show against the duration, which holds every request and is never idle."""
    if measures.ttft is None or measures.duration_s is None or measures.completed is None:
        return
    if measures.tpot is None and output_tokens >= SHORTEST_ANSWER:
        return
    decode_s = 0.0 if measures.tpot is None else measures.tpot.mean_s * (output_tokens - 1)
    stay_s = measures.ttft.mean_s + decode_s
    busy = measures.completed * stay_s / measures.duration_s
    most = min(load.concurrency or measures.completed, measures.completed)
    is_closed = load.concurrency is not None and load.requests_per_s is None and not measures.failed
    is_idle = is_closed and busy < max(LEAST_BUSY, LEAST_BUSY_RATIO * most)
    if stay_s > MOST_BUSY_RATIO * measures.duration_s or busy > MOST_BUSY_RATIO * most or is_idle:
        raise InputError(
            f"{where}: requests of {stay_s:.4g} s (mean TTFT and TPOT) do not fit {measures.completed} of them, at "
            f"most {most} at once, into a duration of {measures.duration_s:.4g} s: which unit is it?"
        )


def _date(fields: Fields) -> str:
    """Local time, as vLLM writes it; empty where there is none."""
    try:
        return datetime.strptime(fields.text("date"), "%Y%m%d-%H%M%S").isoformat()
    except ValueError:
        return ""
