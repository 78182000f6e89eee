"""Reports of guidellm (`benchmarks.json`, `benchmarks.yaml`), releases 0.2 to 0.8: one load a benchmark.

Read in benchmark/output.py and benchmark/benchmark.py of 0.2 and 0.3, benchmark/schemas of 0.4 and later. Its
`inter_token_latency_ms` is a request's time after the first token over its tokens but one, which is TPOT here;
its `time_per_output_token_ms` counts the first token too. Both are weighted by tokens.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import JsonValue

from planner.calibrate.benchmarks.fields import MS, Fields, summary
from planner.calibrate.benchmarks.reading import LoadSaid, Reading, noted_facts
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkMeasures, BenchmarkTool, LatencySummary, LoadFacts, TokenLengths

PERCENTILES = {"p01": "1", "p05": "5", "p10": "10", "p25": "25", "p50": "50", "p75": "75"} | {
    "p90": "90",
    "p95": "95",
    "p99": "99",
    "p999": "99.9",
}
EARLIEST_S = 1_500_000_000.0
"""July 2017; seconds since 1970."""
LATEST_S = 10_000_000_000.0


def is_guidellm(document: Mapping[str, JsonValue]) -> bool:
    """Whether an object is such a report."""
    found = document.get("benchmarks")
    return isinstance(found, list) and all(isinstance(one, dict) and "metrics" in one for one in found)


def read_guidellm(document: Mapping[str, JsonValue], where: str) -> Iterator[Reading]:
    """The loads of a report.

    Raises:
        InputError: there is none; a field is missing or is no figure; a strategy that is no single load.
    """
    benchmarks = document.get("benchmarks")
    found = [one for one in benchmarks if isinstance(one, dict)] if isinstance(benchmarks, list) else []
    if not found:
        raise InputError(f"{where}: the report has no benchmark: none was completed")
    shared = Fields({key: value for key, value in document.items() if key != "benchmarks"}, where)
    for index, benchmark in enumerate(found):
        name = f"{where}: benchmark {index + 1}" if len(found) > 1 else where
        yield _reading(shared, Fields(benchmark, name))


def _reading(shared: Fields, fields: Fields) -> Reading:
    strategy = _strategy(fields)
    completed = _requests(fields, "successful")
    failed = _requests(fields, "errored")
    if not completed:
        raise InputError(f"{fields.where}: no request was answered")
    model = (
        fields.text("worker", "backend_model")
        or fields.text("config", "backend", "model")
        or shared.text("config", "spec", "backend", "model")
        or shared.text("args", "model")
    )
    facts, load_facts = noted_facts(shared, "config", "metadata", "labels")
    for place in (("extras",), ("config", "metadata", "labels")):
        own, own_load = noted_facts(fields, *place)
        facts = facts.model_copy(update=own.model_dump(exclude_defaults=True))
        load_facts = load_facts.model_copy(update=own_load.model_dump(exclude_defaults=True))
    start_s = fields.number("start_time", low=EARLIEST_S, high=LATEST_S)
    end_s = fields.number("end_time", low=start_s or EARLIEST_S, high=LATEST_S)
    duration_s = end_s - start_s if start_s and end_s else None
    measures = BenchmarkMeasures(
        ttft=_latency(fields, "time_to_first_token_ms", MS),
        tpot=_latency(fields, "inter_token_latency_ms", MS),
        e2e=_latency(fields, "request_latency", 1.0),
        output_tokens_per_s=_rate(fields, "output_tokens_per_second"),
        requests_per_s=_rate(fields, "requests_per_second"),
        duration_s=duration_s,
        completed=completed,
        failed=failed,
    )
    _check_times(fields.where, measures)
    sent = completed + (failed or 0) + (_requests(fields, "incomplete") or 0)
    load = LoadSaid(
        input_tokens=_lengths(fields, "prompt_token_count"),
        output_tokens=_lengths(fields, "output_token_count"),
        concurrency=min(sent, strategy.concurrency or 10**6)
        if strategy.all_at_once
        else strategy.concurrency,
        requests_per_s=strategy.requests_per_s,
        arrival_cv=strategy.arrival_cv,
        num_requests=sent,
    )
    return Reading(
        BenchmarkTool.GUIDELLM,
        fields.where,
        model,
        facts if facts.engine else facts.model_copy(update={"engine": "vllm"}),
        LoadFacts.model_validate(load_facts.model_dump()),
        load,
        measures,
        shared.unread() | fields.unread(),
        tool_version=shared.text("metadata", "guidellm_version"),
        measured_on=datetime.fromtimestamp(start_s, UTC).isoformat(timespec="seconds") if start_s else "",
        notes=(
            "guidellm weights TPOT by tokens",
            *((f"{failed} requests failed",) if failed else ()),
        ),
    )


class _Strategy(NamedTuple):
    """How requests were sent."""

    concurrency: int | None = None
    requests_per_s: float | None = None
    arrival_cv: float = 1.0
    all_at_once: bool = False


def _strategy(fields: Fields) -> _Strategy:
    """Of `args` up to 0.3, of `config` from 0.4 on."""
    place = next((key for key in ("config", "args") if isinstance(fields.value(key, "strategy"), dict)), "")
    kind = fields.text(place, "strategy", "type_")
    most = fields.number(place, "strategy", "max_concurrency", low=1, high=1e6)
    limit = None if most is None else int(most)
    if kind == "synchronous":
        return _Strategy(concurrency=1)
    if kind == "concurrent":
        return _Strategy(concurrency=int(fields.needed(place, "strategy", "streams", low=1, high=1e6)))
    if kind == "throughput":
        return _Strategy(concurrency=limit, all_at_once=True)
    if kind in ("constant", "poisson"):
        rate = fields.needed(place, "strategy", "rate", low=1e-6, high=1e6)
        return _Strategy(limit, rate, 1.0 if kind == "poisson" else 0.0)
    raise InputError(
        f'{fields.where}: strategy "{kind[:40]}" is no single load; synchronous, concurrent, throughput, constant and '
        "poisson are"
    )


def _requests(fields: Fields, status: str) -> int | None:
    """Requests of a status, of the measured window where the report tells."""
    for place in (("metrics", "request_totals"), ("request_totals",), ("run_stats", "requests_made")):
        found = fields.number(*place, status, high=1e9)
        if found is not None:
            return int(found)
    return None


def _latency(fields: Fields, name: str, unit_s: float) -> LatencySummary | None:
    place = ("metrics", name, "successful")
    percentiles = {
        shown: fields.latency_s(*place, "percentiles", key, unit_s=unit_s)
        for key, shown in PERCENTILES.items()
    }
    if percentiles["50"] is None:
        percentiles["50"] = fields.latency_s(*place, "median", unit_s=unit_s)
    return summary(fields.latency_s(*place, "mean", unit_s=unit_s), percentiles)


def _rate(fields: Fields, name: str) -> float | None:
    """Over all requests, since the engine served the unfinished ones as well."""
    total = fields.number("metrics", name, "total", "mean")
    return total or fields.number("metrics", name, "successful", "mean") or None


def _lengths(fields: Fields, name: str) -> TokenLengths | None:
    place = ("metrics", name, "successful")
    mean = fields.number(*place, "mean", high=1e7)
    if mean is None or mean < 1:
        return None
    deviation = fields.number(*place, "std_dev", high=1e7)
    return TokenLengths(mean=mean, variation=None if deviation is None else deviation / mean)


def _check_times(where: str, measures: BenchmarkMeasures) -> None:
    """The first token comes before the last."""
    if measures.ttft and measures.e2e and measures.ttft.mean_s > measures.e2e.mean_s:
        raise InputError(
            f"{where}: a mean TTFT of {measures.ttft.mean_s:.4g} s, after the mean end of a request at "
            f"{measures.e2e.mean_s:.4g} s: which unit is it?"
        )
