"""Results of `vllm bench`, as vLLM 0.32 wrote them, and with a field changed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from planner.calibrate.benchmarks.complete import Given, benchmark_runs
from planner.calibrate.benchmarks.read import read_benchmarks
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkFacts, BenchmarkRun, BenchmarkTool, LoadFacts
from tests.calibrate.benchmarks.made import RESULTS, stored, write

CARD = BenchmarkFacts(gpu="L4", tp=2)


def runs(path: Path, load: LoadFacts | None = None, facts: BenchmarkFacts = CARD) -> tuple[BenchmarkRun, ...]:
    return benchmark_runs(read_benchmarks(path), Given(facts, load or LoadFacts()))


def changed(tmp_path: Path, name: str = "serve_closed.json", drop: str = "", **fields: Any) -> Path:
    document = stored(name) | fields
    document.pop(drop, None)
    return write(tmp_path / name, document)


def test_a_closed_loop_is_read_with_what_was_noted_beside_it() -> None:
    (run,) = runs(RESULTS / "serve_closed.json", facts=BenchmarkFacts())
    assert run.source.tool is BenchmarkTool.VLLM_SERVE
    assert run.source.measured_on == "2026-11-23T19:47:34"
    facts = run.facts
    assert (facts.model, facts.gpu, facts.tp) == ("tiny-llama", "H100-SXM-80GB", 1)
    assert (facts.engine, facts.engine_version) == ("vllm", "0.32.0")
    assert (run.load.concurrency, run.load.requests_per_s, run.load.num_requests) == (4, None, 24)
    # 1,536 and 384 tokens in 24 requests.
    assert (run.load.input_tokens.mean, run.load.output_tokens.mean) == (64, 16)
    raw = stored("serve_closed.json")
    assert run.measures.ttft is not None
    assert run.measures.tpot is not None
    assert run.measures.ttft.mean_s == pytest.approx(raw["mean_ttft_ms"] / 1000)
    assert run.measures.tpot.percentiles_s["99"] == pytest.approx(raw["p99_tpot_ms"] / 1000)
    assert run.measures.ttft.percentiles_s["50"] == pytest.approx(raw["median_ttft_ms"] / 1000)
    assert run.measures.output_tokens_per_s == pytest.approx(384 / raw["duration"])
    assert run.measures.e2e is not None
    assert run.measures.e2e.mean_s == pytest.approx(sum(raw["latencies"]) / 24)
    assert run.notes == ()


def test_fields_that_nobody_reads_are_kept_and_those_that_are_read_are_not() -> None:
    (run,) = runs(RESULTS / "serve_closed.json", facts=BenchmarkFacts())
    raw = stored("serve_closed.json")
    assert run.unknown["note"] == "cpu"
    assert run.unknown["std_ttft_ms"] == raw["std_ttft_ms"]
    assert run.unknown["max_concurrent_requests"] == raw["max_concurrent_requests"]
    assert not {"tp", "gpu", "version", "mean_ttft_ms", "duration", "latencies"} & set(run.unknown)


def test_details_tell_the_spread_of_lengths_and_burstiness_that_of_arrivals() -> None:
    (run,) = runs(RESULTS / "serve_open_detailed.json")
    raw = stored("serve_open_detailed.json")
    lengths = raw["input_lens"]
    mean = sum(lengths) / len(lengths)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in lengths) / len(lengths))
    assert run.load.input_tokens.mean == pytest.approx(mean)
    assert run.load.input_tokens.variation == pytest.approx(deviation / mean)
    assert run.load.requests_per_s == 8
    # Gamma of shape 0.5: 1 / sqrt(0.5).
    assert run.load.arrival == "gamma:1.41421"
    assert run.load.concurrency is None
    assert run.measures.e2e is not None
    assert set(run.measures.e2e.percentiles_s) == {"50", "95", "99"}


def test_appended_results_and_lists_of_results_are_a_load_each(tmp_path: Path) -> None:
    text = (RESULTS / "serve_appended.json").read_text()
    assert len(text.splitlines()) == 2
    listed = write(tmp_path / "summary.json", [json.loads(line) for line in text.splitlines()])
    for path in (RESULTS / "serve_appended.json", listed):
        first, second = runs(path)
        assert (first.load.concurrency, second.load.concurrency) == (1, 2)
        assert first.run_id != second.run_id


def test_all_at_once_is_a_closed_loop_of_every_request(tmp_path: Path) -> None:
    document = {"max_concurrency": None, "num_prompts": 24}
    (run,) = runs(changed(tmp_path, **document, gpu="L4", tp="2", mean_ttft_ms=900.0))
    assert (run.load.concurrency, run.load.requests_per_s) == (24, None)


def test_a_limit_that_cannot_be_met_is_none_and_one_that_can_stays(tmp_path: Path) -> None:
    name = "serve_open_detailed.json"
    (free,) = runs(changed(tmp_path, name, max_concurrency=12))
    (limited,) = runs(changed(tmp_path, name, max_concurrency=3))
    assert (free.load.concurrency, limited.load.concurrency) == (None, 3)
    assert limited.load.requests_per_s == 8


def test_constant_arrivals_are_told_as_such(tmp_path: Path) -> None:
    path = changed(tmp_path, "serve_open_detailed.json")
    path.write_text(path.read_text().replace('"burstiness": 0.5', '"burstiness": Infinity'))
    assert runs(path)[0].load.arrival == "constant"


def test_a_batch_gives_its_latency_and_throughput_and_no_ttft() -> None:
    told = LoadFacts(input_tokens=64, output_tokens=16, concurrency=4)
    (run,) = runs(RESULTS / "latency.json", told)
    raw = stored("latency.json")
    assert run.measures.e2e is not None
    assert run.measures.e2e.mean_s == pytest.approx(raw["avg_latency"])
    assert run.measures.e2e.percentiles_s["90"] == raw["percentiles"]["90"]
    # Four answers of 16 tokens in one batch.
    assert run.measures.output_tokens_per_s == pytest.approx(64 / raw["avg_latency"])
    assert (run.measures.ttft, run.measures.tpot) == (None, None)
    assert any("TTFT" in note for note in run.notes)
    assert (run.load.concurrency, run.load.num_requests) == (4, 4)


def test_offline_throughput_needs_one_length_and_finds_the_other() -> None:
    raw = stored("throughput.json")
    # 960 tokens in 12 requests: 80 each.
    for told in (
        LoadFacts(input_tokens=64),
        LoadFacts(output_tokens=16),
        LoadFacts(input_tokens=64, output_tokens=16),
    ):
        (run,) = runs(RESULTS / "throughput.json", told)
        assert (run.load.input_tokens.mean, run.load.output_tokens.mean) == (64, 16)
        assert run.measures.output_tokens_per_s == pytest.approx(12 * 16 / raw["elapsed_time"])
        assert run.load.concurrency == 12
    with pytest.raises(InputError, match="80 tokens together"):
        runs(RESULTS / "throughput.json", LoadFacts(input_tokens=64, output_tokens=64))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mean_ttft_ms": -1.0}, "mean_ttft_ms is -1.0; a number from 0"),
        ({"mean_ttft_ms": "fast"}, "mean_ttft_ms is fast"),
        ({"mean_ttft_ms": True}, "mean_ttft_ms is True"),
        ({"mean_tpot_ms": 1e12}, "mean_tpot_ms is 1000000000000.0"),
        ({"mean_tpot_ms": 10**400}, "mean_tpot_ms is 1000"),
        ({"mean_tpot_ms": 1e-9}, "which unit"),
        # Seconds where milliseconds belong, and the other way round.
        ({"mean_ttft_ms": 0.1, "mean_tpot_ms": 0.009}, "which unit"),
        ({"mean_ttft_ms": 1e5, "mean_tpot_ms": 9e3}, "which unit"),
        ({"duration": 1402.0}, "output_throughput is"),
        ({"completed": 0}, "no request was answered"),
        ({"total_output_tokens": 3}, "nothing was generated"),
        ({"ramp_up_strategy": "linear"}, "ramps up"),
        ({"request_rate": "slow"}, "request_rate is slow"),
        ({"max_concurrency": 0}, "max_concurrency is 0"),
        ({"tp": "two"}, "tp is two"),
        ({"tp": "1", "tensor_parallel_size": "2"}, "tp is noted as 1 and as 2"),
        ({"gpu": "H999"}, 'unknown GPU "H999"'),
        ({"quantization": "fp3"}, "weight_dtype is fp3"),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    path = changed(tmp_path, **fields)
    with pytest.raises(InputError) as caught:
        runs(
            path,
            facts=BenchmarkFacts(gpu="H100", tp=1) if not fields.keys() & {"tp", "gpu"} else BenchmarkFacts(),
        )
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["NaN", "Infinity", "1e999"])
def test_no_figure_is_refused_where_it_is_read_and_kept_where_it_is_not(tmp_path: Path, name: str) -> None:
    text = (RESULTS / "serve_closed.json").read_text()
    raw = stored("serve_closed.json")
    path = tmp_path / "bench.json"
    path.write_text(text.replace(f'"std_ttft_ms": {raw["std_ttft_ms"]}', f'"std_ttft_ms": {name}'))
    (run,) = runs(path, facts=BenchmarkFacts())
    assert run.unknown["std_ttft_ms"] == name
    assert BenchmarkRun.model_validate_json(run.model_dump_json()) == run
    path.write_text(text.replace(f'"mean_ttft_ms": {raw["mean_ttft_ms"]}', f'"mean_ttft_ms": {name}'))
    with pytest.raises(InputError, match=f"mean_ttft_ms is {name}"):
        runs(path)


@pytest.mark.parametrize("field", ["total_output_tokens"])
def test_a_pooling_result_is_none_of_a_generation(tmp_path: Path, field: str) -> None:
    with pytest.raises(InputError, match="pooling"):
        runs(changed(tmp_path, drop=field))


def test_without_streaming_nothing_is_known_of_first_tokens(tmp_path: Path) -> None:
    zero = {f"{kind}_{name}_ms": 0.0 for kind in ("mean", "median", "p99") for name in ("ttft", "itl")}
    (run,) = runs(changed(tmp_path, **zero), facts=BenchmarkFacts())
    assert (run.measures.ttft, run.measures.itl) == (None, None)
    assert run.measures.tpot is not None


def test_a_result_with_ttft_alone_is_read(tmp_path: Path) -> None:
    """`--percentile-metrics ttft`: how long requests stayed is not known then."""
    document = {name: value for name, value in stored("serve_closed.json").items() if "tpot" not in name}
    (run,) = runs(write(tmp_path / "a.json", document), facts=BenchmarkFacts())
    assert run.measures.tpot is None
    assert run.measures.ttft is not None


def test_failed_requests_are_noted(tmp_path: Path) -> None:
    (run,) = runs(changed(tmp_path, failed=2), facts=BenchmarkFacts())
    assert "2 requests failed" in run.notes
    assert run.measures.failed == 2


def test_a_result_of_an_old_release_has_no_backend_and_no_failures(tmp_path: Path) -> None:
    """0.10.2 wrote `endpoint_type` alone, and neither `failed` nor `latencies`."""
    document = stored("serve_closed.json") | {"endpoint_type": "sglang"}
    for name in ("backend", "failed", "latencies", "queue_times", "max_output_tokens_per_s", "rtfx"):
        document.pop(name, None)
    (run,) = runs(write(tmp_path / "old.json", document), facts=BenchmarkFacts())
    assert run.facts.engine == "sglang"
    assert (run.measures.failed, run.measures.e2e) == (None, None)
