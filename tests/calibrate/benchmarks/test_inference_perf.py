"""Reports of inference-perf, in the form of 0.1 and 0.7."""

from pathlib import Path

import pytest

from planner.calibrate.benchmarks.complete import Given, benchmark_runs
from planner.calibrate.benchmarks.read import read_benchmarks
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkFacts, BenchmarkRun, BenchmarkTool
from tests.calibrate.benchmarks.made import CONFIG, spread, stage, write


def runs(path: Path, given: Given | None = None) -> tuple[BenchmarkRun, ...]:
    return benchmark_runs(read_benchmarks(path), given or Given())


def folder(tmp_path: Path, kind: str = "poisson") -> Path:
    (tmp_path / "config.yaml").write_text(CONFIG.replace("KIND", kind))
    return tmp_path


def test_a_stage_with_its_configuration(tmp_path: Path) -> None:
    report = stage(send_duration=49.0, requested_rate=4.0, achieved_rate=2.04)
    (run,) = runs(write(folder(tmp_path) / "stage_1_lifecycle_metrics.json", report))
    assert run.source.tool is BenchmarkTool.INFERENCE_PERF
    assert (run.facts.model, run.facts.gpu, run.facts.tp) == ("meta-llama/Llama-3.1-8B", "H100-SXM-80GB", 1)
    assert (run.load.requests_per_s, run.load.arrival, run.load.num_requests) == (4.0, "poisson", 100)
    assert (run.load.input_tokens.mean, run.load.output_tokens.mean) == (256, 64)
    # 6,336 of 25,344 prompt tokens were cached.
    assert run.load.prefix_hit_ratio == pytest.approx(0.25)
    assert run.measures.ttft is not None
    assert run.measures.ttft.percentiles_s == {"50": 0.1, "90": 0.1, "99": 0.2, "99.9": pytest.approx(0.3)}
    assert run.measures.tpot is not None
    assert run.measures.tpot.mean_s == 0.01
    assert run.measures.output_tokens_per_s == 126.7
    assert run.unknown["load_summary.achieved_rate"] == 2.04
    assert run.unknown["config.yaml: server.base_url"] == "http://localhost:8000"


def test_a_closed_loop_says_how_many_are_in_flight(tmp_path: Path) -> None:
    report = stage(requested_rate=1000.0, concurrency=16)
    (run,) = runs(write(folder(tmp_path, "concurrent") / "stage_0_lifecycle_metrics.json", report))
    assert (run.load.concurrency, run.load.requests_per_s) == (16, None)


def test_a_report_of_release_01_names_lengths_otherwise(tmp_path: Path) -> None:
    report = stage(requested_rate=2.0)
    successes = report["successes"]
    del successes["prompt_tokens"], successes["output_tokens"]
    successes |= {"prompt_len": spread(200.0), "output_len": spread(50.0)}
    (run,) = runs(write(folder(tmp_path, "constant") / "stage_0_lifecycle_metrics.json", report))
    assert (run.load.input_tokens.mean, run.load.output_tokens.mean) == (200, 50)
    assert (run.load.arrival, run.load.prefix_hit_ratio) == ("constant", None)


def test_a_summary_stands_for_one_stage_alone(tmp_path: Path) -> None:
    path = write(folder(tmp_path) / "summary_lifecycle_metrics.json", stage())
    with pytest.raises(InputError, match="2 stages in one summary"):
        runs(path)
    config = CONFIG.replace("KIND", "constant").replace(", {rate: 4.0, duration: 50}", "")
    (tmp_path / "config.yaml").write_text(config)
    assert runs(path)[0].load.requests_per_s == 2.0


def test_without_the_configuration_what_is_missing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "stage_0_lifecycle_metrics.json", stage())
    with pytest.raises(
        InputError, match=r"needs --model, --gpu, --tp and --concurrency: the file does not say them"
    ):
        runs(path)
    given = Given(BenchmarkFacts(model="meta-llama/Llama-3.1-8B", gpu="L4", tp=1))
    rated = write(tmp_path / "stage_0_lifecycle_metrics.json", stage(requested_rate=2.0))
    assert runs(rated, given)[0].load.requests_per_s == 2.0


def test_a_replayed_trace_and_a_wrong_unit_are_refused(tmp_path: Path) -> None:
    path = write(
        folder(tmp_path, "trace_replay") / "stage_0_lifecycle_metrics.json", stage(requested_rate=2.0)
    )
    with pytest.raises(InputError, match="replayed trace"):
        runs(path)
    report = stage(requested_rate=2.0)
    report["successes"]["latency"]["time_to_first_token"] = spread(100.0)
    with pytest.raises(InputError, match="which unit"):
        runs(write(folder(tmp_path) / "stage_0_lifecycle_metrics.json", report))


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "stage_0_lifecycle_metrics.json", stage())
    (tmp_path / "config.yaml").write_text("load: [")
    with pytest.raises(InputError, match=r"config\.yaml: not whole YAML"):
        runs(path)
