"""Reports of guidellm: 0.8 as it wrote them, 0.2 in its form."""

from pathlib import Path
from typing import Any

import pytest

from planner.calibrate.benchmarks.complete import Given, benchmark_runs
from planner.calibrate.benchmarks.read import read_benchmarks
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkFacts, BenchmarkRun, BenchmarkTool
from tests.calibrate.benchmarks.made import RESULTS, guidellm_02, stored, write

CARD = Given(BenchmarkFacts(gpu="L4", tp=1))


def runs(path: Path, given: Given = CARD) -> tuple[BenchmarkRun, ...]:
    return benchmark_runs(read_benchmarks(path), given)


def test_a_closed_loop_of_release_08() -> None:
    (run,) = runs(RESULTS / "guidellm_concurrent.json")
    raw = stored("guidellm_concurrent.json")["benchmarks"][0]
    assert (run.source.tool, run.source.tool_version) == (BenchmarkTool.GUIDELLM, "0.8.1")
    assert run.facts.model == "tiny-llama"
    assert (run.load.concurrency, run.load.requests_per_s, run.load.num_requests) == (2, None, 40)
    assert (run.load.input_tokens.mean, run.load.output_tokens.mean) == (60, 16)
    metrics = raw["metrics"]
    assert run.measures.tpot is not None
    assert run.measures.tpot.mean_s == pytest.approx(
        metrics["inter_token_latency_ms"]["successful"]["mean"] / 1e3
    )
    assert run.measures.ttft is not None
    percentiles = metrics["time_to_first_token_ms"]["successful"]["percentiles"]
    assert run.measures.ttft.percentiles_s["99"] == pytest.approx(percentiles["p99"] / 1e3)
    assert run.measures.duration_s == pytest.approx(raw["duration"])
    # 40 answers of 16 tokens in the window; the tool's own rate, not recomputed.
    assert run.measures.output_tokens_per_s == pytest.approx(40 * 16 / raw["duration"], rel=1e-3)
    assert run.source.measured_on.startswith("2026-11-23T")
    assert run.unknown["metadata.platform"] == "Linux"
    assert "config.strategy.streams" not in run.unknown


def test_yaml_is_read_too_and_the_clients_own_limit_is_no_load() -> None:
    (run,) = runs(RESULTS / "guidellm_poisson.yaml")
    assert (run.load.concurrency, run.load.requests_per_s, run.load.arrival) == (None, 6, "poisson")


def test_every_strategy_of_release_02_is_a_load(tmp_path: Path) -> None:
    report = guidellm_02(
        {"type_": "synchronous"},
        {"type_": "concurrent", "streams": 8},
        {"type_": "throughput", "max_concurrency": None},
        {"type_": "throughput", "max_concurrency": 16},
        {"type_": "constant", "rate": 2.0},
        {"type_": "poisson", "rate": 2.0, "max_concurrency": 5},
    )
    found = runs(write(tmp_path / "benchmarks.json", report), Given())
    assert [(run.load.concurrency, run.load.requests_per_s, run.load.arrival) for run in found] == [
        (1, None, ""),
        (8, None, ""),
        (41, None, ""),
        (16, None, ""),
        (None, 2.0, "constant"),
        (5, 2.0, "poisson"),
    ]
    assert len({run.run_id for run in found}) == 6
    first = found[0]
    assert (first.facts.gpu, first.facts.tp, first.facts.engine_version) == ("H100-SXM-80GB", 2, "0.10.2")
    assert first.facts.model == "meta-llama/Llama-3.1-8B"
    assert first.unknown["extras.rack"] == "b7"
    assert first.measures.tpot is not None
    assert first.measures.tpot.mean_s == pytest.approx(0.010)
    assert first.load.output_tokens.variation == pytest.approx(0.1)
    assert "1 requests failed" in first.notes


def _without_streams(report: dict[str, Any]) -> None:
    report["benchmarks"][0]["args"]["strategy"] = {"type_": "concurrent"}


def _replayed(report: dict[str, Any]) -> None:
    report["benchmarks"][0]["args"]["strategy"] = {"type_": "trace", "time_scale": 1.0}


def _unanswered(report: dict[str, Any]) -> None:
    report["benchmarks"][0]["run_stats"]["requests_made"]["successful"] = 0


def _wrong_unit(report: dict[str, Any]) -> None:
    report["benchmarks"][0]["metrics"]["request_latency"]["successful"]["mean"] = 0.00073


def _negative(report: dict[str, Any]) -> None:
    report["benchmarks"][0]["metrics"]["time_to_first_token_ms"]["successful"]["mean"] = -3


def _flat(report: dict[str, Any]) -> None:
    report["benchmarks"][0]["metrics"]["time_to_first_token_ms"] = "fast"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_flat, "metrics.time_to_first_token_ms is fast; an object with successful in it is needed"),
        (_without_streams, "strategy.streams is missing"),
        (_replayed, 'strategy "trace" is no single load'),
        (_unanswered, "no request was answered"),
        (_wrong_unit, "which unit"),
        (_negative, "time_to_first_token_ms.successful.mean is -3"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, damage: Any, words: str) -> None:
    report = guidellm_02({"type_": "synchronous"})
    damage(report)
    with pytest.raises(InputError) as caught:
        runs(write(tmp_path / "benchmarks.json", report))
    assert words in str(caught.value)


def test_a_report_without_benchmarks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no benchmark"):
        runs(write(tmp_path / "benchmarks.json", {"benchmarks": []}))
