"""Reports of inference-perf: `stage_N_lifecycle_metrics.json`, or the summary of a run of one stage.

Read in reportgen/base.py (summarize_requests) and config of 0.1 and 0.7. The configuration lies beside the reports as
`config.yaml`: the reports say neither the model nor, before 0.5, how many requests were in flight.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from planner.calibrate.benchmarks.documents import read_beside
from planner.calibrate.benchmarks.fields import Fields, summary
from planner.calibrate.benchmarks.reading import LoadSaid, Reading, noted_facts
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkMeasures, BenchmarkTool, LatencySummary, TokenLengths

CONFIG_FILE = "config.yaml"
_STAGE = re.compile(r"stage_(\d+)_lifecycle_metrics")
_PERCENTILE = re.compile(r"p(\d+(?:\.\d+)?)")
ENGINES = ("vllm", "sglang", "tgi")


def is_inference_perf(document: Mapping[str, JsonValue]) -> bool:
    """Whether an object is such a report."""
    return {"load_summary", "successes"} <= set(document)


def read_inference_perf(document: Mapping[str, JsonValue], path: Path) -> Reading:
    """One stage.

    Raises:
        InputError: a field is missing or is no figure, no request was answered, or the stages of a run are mixed.
    """
    fields = Fields(document, str(path))
    config = Fields(read_beside(path, CONFIG_FILE), str(path.with_name(CONFIG_FILE)))
    completed = int(fields.needed("successes", "count", high=1e9))
    if not completed:
        raise InputError(f"{path}: no request was answered")
    failed = fields.number("failures", "count", high=1e9)
    server = config.text("server", "type").lower()
    facts, load_facts = noted_facts(config, "metadata")
    engine = server if server in ENGINES else "vllm"
    measures = BenchmarkMeasures(
        ttft=_latency(fields, "time_to_first_token"),
        tpot=_latency(fields, "time_per_output_token"),
        itl=_latency(fields, "inter_token_latency"),
        e2e=_latency(fields, "request_latency"),
        output_tokens_per_s=fields.number("successes", "throughput", "output_tokens_per_sec") or None,
        requests_per_s=fields.number("successes", "throughput", "requests_per_sec") or None,
        duration_s=fields.number("benchmark_time_seconds", high=1e6),
        completed=completed,
        failed=None if failed is None else int(failed),
    )
    if measures.ttft and measures.e2e and measures.ttft.mean_s > measures.e2e.mean_s:
        raise InputError(f"{path}: the mean TTFT is longer than the mean request: which unit is it?")
    return Reading(
        BenchmarkTool.INFERENCE_PERF,
        str(path),
        config.text("server", "model_name"),
        facts if facts.engine else facts.model_copy(update={"engine": engine}),
        load_facts,
        _load(fields, config, _stage(path, config)),
        measures,
        fields.unread() | {f"{CONFIG_FILE}: {name}": value for name, value in config.unread().items()},
        notes=(f"{int(failed)} requests failed",) if failed else (),
    )


def _stage(path: Path, config: Fields) -> Fields:
    """The configured stage that a report is about; one without fields where no configuration is there."""
    stages = config.value("load", "stages")
    found = [one for one in stages if isinstance(one, dict)] if isinstance(stages, list) else []
    named = _STAGE.search(path.name)
    if named is None and len(found) > 1:
        raise InputError(
            f"{path}: {len(found)} stages in one summary: name the stage_N_lifecycle_metrics.json files"
        )
    at = int(named[1]) if named else 0
    return Fields(found[at] if at < len(found) else {}, f"{config.where}: load.stages {at}")


def _load(fields: Fields, config: Fields, stage: Fields) -> LoadSaid:
    kind = config.text("load", "type").lower()
    if kind in ("trace_replay", "trace_session_replay"):
        raise InputError(f"{fields.where}: a replayed trace is no single load")
    users = fields.number("load_summary", "concurrency", low=1, high=1e6)
    if users is None:
        users = stage.number("concurrency_level", low=1, high=1e6)
    rate = fields.number("load_summary", "requested_rate", low=1e-6, high=1e6) if users is None else None
    if rate is None and users is None:
        rate = stage.number("rate", low=1e-6, high=1e6)
    cached = fields.number("successes", "prompt_tokens", "cached") or None
    total = fields.number("successes", "prompt_tokens", "total")
    return LoadSaid(
        input_tokens=_lengths(fields, "prompt_tokens") or _lengths(fields, "prompt_len"),
        output_tokens=_lengths(fields, "output_tokens") or _lengths(fields, "output_len"),
        concurrency=None if users is None else int(users),
        requests_per_s=rate,
        arrival_cv=1.0 if kind == "poisson" else 0.0,
        num_requests=int(fields.needed("load_summary", "count", low=1, high=1e9)),
        prefix_hit_ratio=cached / total if cached and total and cached < total else None,
    )


def _lengths(fields: Fields, name: str) -> TokenLengths | None:
    """The mean; of the spread the report has percentiles only."""
    mean = fields.number("successes", name, "mean", high=1e7)
    if mean is None or mean < 1:
        return None
    ends = [fields.number("successes", name, end, high=1e7) for end in ("min", "max")]
    return TokenLengths(mean=mean, variation=0.0 if ends[0] == ends[1] is not None else None)


def _latency(fields: Fields, name: str) -> LatencySummary | None:
    place = ("successes", "latency", name)
    found = fields.value(*place)
    percentiles = {"50": fields.latency_s(*place, "median")}
    for key in found if isinstance(found, dict) else ():
        named = _PERCENTILE.fullmatch(key)
        if named:
            percentiles[named[1]] = fields.latency_s(*place, key)
    return summary(fields.latency_s(*place, "mean"), percentiles)
