"""One measured load of another benchmark tool, as it is kept on disk and as a row of a runs table."""

import math
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from planner.domain.base import Frozen
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.units import seconds_to_ms

CONSTANT_VARIATION = 0.01
"""Lengths that vary less count as constant: tokenizers add or lose a token here and there."""
LONGEST_S = 1e6
WIDEST_VARIATION = 0.5
"""Of uniform lengths, whose variation is below 1 / sqrt(3); wider ones are taken for this."""

Seconds = Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Tokens = Annotated[float, Field(ge=1, le=1e7, allow_inf_nan=False)]
Degree = Annotated[int, Field(ge=1, le=16_384)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Cell = str | int | float | bool | None


def _weights(text: str) -> str:
    name = text.strip().lower()
    if name in ("", "auto", "bfloat16", "float16", "none"):
        return ""
    return _one_of(WeightDtype, name)


def _cache(text: str) -> str:
    name = text.strip().lower()
    if not name:
        return ""
    return _one_of(KvDtype, {"bfloat16": "bf16", "float16": "fp16", "fp8_e4m3": "fp8"}.get(name, name))


def _one_of(formats: type[WeightDtype] | type[KvDtype], name: str) -> str:
    known = [one.value for one in formats]
    if name not in known:
        raise ValueError(f"one of {', '.join(known)} is needed")
    return name


def _day(text: str) -> str:
    if text:
        datetime.fromisoformat(text)
    return text


class BenchmarkTool(StrEnum):
    """What measured a load."""

    VLLM_SERVE = "vllm bench serve"
    VLLM_LATENCY = "vllm bench latency"
    VLLM_THROUGHPUT = "vllm bench throughput"
    GUIDELLM = "guidellm"
    INFERENCE_PERF = "inference-perf"

    @property
    def slug(self) -> str:
        """As it stands in a file's name."""
        return self.value.replace(" bench ", "-")


class BenchmarkFacts(Frozen):
    """What a file or a user says of a deployment; None and empty where nothing is said."""

    model: str = ""
    gpu: str = ""
    """Canonical name of `data/gpus.csv`."""
    tp: Degree | None = None
    pp: Degree | None = None
    dp: Degree | None = None
    ep: bool | None = None
    weight_dtype: Annotated[str, AfterValidator(_weights)] = ""
    """Empty as the checkpoint has it."""
    kv_dtype: Annotated[str, AfterValidator(_cache)] = ""
    engine: str = ""
    engine_version: str = ""
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=10**7)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1, le=10**6)] | None = None
    max_model_len: Annotated[int, Field(ge=1, le=10**8)] | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    enforce_eager: bool | None = None
    async_scheduling: bool | None = None


class LoadFacts(Frozen):
    """What a file or a user says of a load; None and empty where nothing is said."""

    input_tokens: Tokens | None = None
    """Mean length."""
    output_tokens: Tokens | None = None
    """Mean length."""
    length_low_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    prefix_hit_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=10**6)] | None = None
    measured_on: Annotated[str, AfterValidator(_day)] = ""
    """ISO date, with or without a time."""


class TokenLengths(Frozen):
    """Lengths of the prompts or of the answers that were served."""

    mean: Tokens
    variation: Annotated[float, Field(ge=0, le=1e3)] | None = None
    """Standard deviation over the mean; None where the file does not say."""


class BenchmarkLoad(Frozen):
    """What was asked of the engine: in a closed loop, in an open one, or in one that both limit."""

    input_tokens: TokenLengths
    output_tokens: TokenLengths
    low_ratio_told: Annotated[float, Field(gt=0, le=1)] | None = None
    """Lengths are uniform from this share of the longest, where somebody said so."""
    concurrency: Annotated[int, Field(ge=1, le=10**6)] | None = None
    requests_per_s: Positive | None = None
    arrival_cv: Annotated[float, Field(ge=0, le=20)] = 1.0
    """Coefficient of variation of the gaps between requests: 0 constant, 1 Poisson."""
    num_requests: Annotated[int, Field(ge=1, le=10**9)]
    prefix_hit_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _is_a_load(self) -> "BenchmarkLoad":
        if self.concurrency is None and self.requests_per_s is None:
            raise ValueError("a load needs a concurrency or a request rate")
        return self

    @property
    def length_low_ratio(self) -> float:
        """Uniform lengths from this share of the longest vary as the measured ones do; 1 where that is not known.

        Uniform lengths in [r L, L] have the variation (1 - r) / (sqrt(3) (1 + r)). Prompts and answers share one r:
        the one of their mean variation.
        """
        if self.low_ratio_told is not None:
            return self.low_ratio_told
        known = [
            one.variation for one in (self.input_tokens, self.output_tokens) if one.variation is not None
        ]
        variation = min(sum(known) / len(known), WIDEST_VARIATION) if known else 0.0
        if variation < CONSTANT_VARIATION:
            return 1.0
        return (1 - math.sqrt(3) * variation) / (1 + math.sqrt(3) * variation)

    def longest(self, lengths: TokenLengths) -> float:
        """L of uniform lengths in [r L, L] whose mean was measured [tokens]."""
        return 2 * lengths.mean / (1 + self.length_low_ratio)

    @property
    def arrival(self) -> str:
        """As a runs table spells it; empty in a closed loop."""
        if self.requests_per_s is None:
            return ""
        return {0.0: "constant", 1.0: "poisson"}.get(self.arrival_cv, f"gamma:{self.arrival_cv:.6g}")


class LatencySummary(Frozen):
    """Mean and percentiles of one latency over the requests of a load."""

    mean_s: Seconds
    percentiles_s: dict[str, Seconds] = Field(default_factory=dict)
    """By percentage: "50", "99", "99.9"."""


class BenchmarkMeasures(Frozen):
    """What was measured; None where the tool does not say."""

    ttft: LatencySummary | None = None
    tpot: LatencySummary | None = None
    """(end - first token) / (output tokens - 1) of each request."""
    itl: LatencySummary | None = None
    """Gaps between tokens, all requests together."""
    e2e: LatencySummary | None = None
    output_tokens_per_s: Positive | None = None
    requests_per_s: Positive | None = None
    duration_s: Seconds | None = None
    completed: Count | None = None
    failed: Count | None = None


class BenchmarkSource(Frozen):
    """Where a measurement comes from."""

    tool: BenchmarkTool
    tool_version: str = ""
    file: str
    """Its name, without folders."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    index: Count = 0
    """Which of the loads in the file."""
    measured_on: str = ""


class BenchmarkRun(Frozen):
    """One measured load; a file of its own."""

    kind: Literal["benchmark"] = "benchmark"
    format: Literal[1] = 1
    """Raised whenever a field changes meaning, so that an older program refuses a newer file."""
    source: BenchmarkSource
    facts: BenchmarkFacts
    served_model: str = ""
    """The model's name in the file, where it is another than the user's."""
    load: BenchmarkLoad
    measures: BenchmarkMeasures
    notes: tuple[str, ...] = ()
    """What cannot be concluded from it, in words."""
    unknown: dict[str, JsonValue] = Field(default_factory=dict)
    """Every other figure and text of the file, by its path in it."""

    @property
    def run_id(self) -> str:
        """The same whenever the same file is read: day, tool, and where it stands in which content."""
        day = self.source.measured_on[:10] or "undated"
        suffix = f"-{self.source.index}" if self.source.index else ""
        return f"benchmark-{day}-{self.source.tool.slug}-{self.source.sha256[:12]}{suffix}"

    def as_runs_row(self) -> dict[str, Cell]:
        """The columns of a runs table that it fills; empty cells are None."""
        facts, load, measures = self.facts, self.load, self.measures
        row: dict[str, Cell] = {
            "run_id": self.run_id,
            "source": f"{self.source.tool.value} {self.source.tool_version}".strip(),
            "measured_on": self.source.measured_on[:10],
            "input_tokens": load.longest(load.input_tokens),
            "output_tokens": load.longest(load.output_tokens),
            "length_low_ratio": load.length_low_ratio,
            "concurrency": load.concurrency,
            "request_rate_per_s": load.requests_per_s,
            "arrival": load.arrival,
            "num_requests": load.num_requests,
            "prefix_hit_ratio": load.prefix_hit_ratio,
            "ttft_ms_mean": _mean_ms(measures.ttft),
            "ttft_ms_p99": _percentile_ms(measures.ttft, "99"),
            "tpot_ms_mean": _mean_ms(measures.tpot),
            "output_tokens_per_s": measures.output_tokens_per_s,
            "notes": "; ".join(self.notes),
        }
        row |= {name: value for name, value in facts.model_dump().items() if name not in row}
        return {name: row[name] for name in RUNS_COLUMNS}


RUNS_COLUMNS = (
    *("run_id", "source", "measured_on", "engine", "engine_version", "model", "gpu", "tp", "pp", "dp", "ep"),
    *("weight_dtype", "kv_dtype", "input_tokens", "output_tokens", "length_low_ratio", "concurrency"),
    *(
        "request_rate_per_s",
        "arrival",
        "num_requests",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_model_len",
    ),
    *("gpu_memory_utilization", "enforce_eager", "async_scheduling", "prefix_hit_ratio", "ttft_ms_mean"),
    *("ttft_ms_p99", "tpot_ms_mean", "output_tokens_per_s", "notes"),
)
"""Of the table that imported benchmarks make."""


def _mean_ms(latency: LatencySummary | None) -> float | None:
    return None if latency is None else seconds_to_ms(latency.mean_s)


def _percentile_ms(latency: LatencySummary | None, percentage: str) -> float | None:
    value = None if latency is None else latency.percentiles_s.get(percentage)
    return None if value is None else seconds_to_ms(value)
