"""What a file leaves out and the user adds; and the row of a runs table that comes of it."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.calibrate.benchmarks.complete import Given, benchmark_runs
from planner.calibrate.benchmarks.read import read_benchmarks
from planner.cli.run_cases import KNOWN_COLUMNS
from planner.domain.base import InputError
from planner.domain.benchmark import (
    RUNS_COLUMNS,
    BenchmarkFacts,
    BenchmarkLoad,
    BenchmarkRun,
    LoadFacts,
    TokenLengths,
)
from planner.export.predictions import MEASURES
from tests.calibrate.benchmarks.made import RESULTS

CLOSED, OPEN = RESULTS / "serve_closed.json", RESULTS / "serve_open_detailed.json"
L4 = BenchmarkFacts(gpu="L4", tp=1)


def one(path: Path, facts: BenchmarkFacts | None = None, load: LoadFacts | None = None) -> BenchmarkRun:
    return benchmark_runs(read_benchmarks(path), Given(facts or BenchmarkFacts(), load or LoadFacts()))[0]


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (BenchmarkFacts(), "needs --gpu and --tp: the file does not say them"),
        (BenchmarkFacts(gpu="L4"), "needs --tp: the file does not say it"),
    ],
)
def test_what_is_missing_is_named_in_one_line(facts: BenchmarkFacts, wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        one(OPEN, facts)
    assert str(caught.value) == f"{OPEN}: {wanted}"


def test_a_batch_misses_everything_that_vllm_does_not_write() -> None:
    with pytest.raises(
        InputError, match="needs --gpu, --tp, --input-tokens, --output-tokens and --concurrency: "
    ):
        one(RESULTS / "latency.json")


@pytest.mark.parametrize(
    ("facts", "load", "words"),
    [
        (BenchmarkFacts(tp=2), LoadFacts(), "says tp 1, and --tp says 2"),
        (BenchmarkFacts(gpu="L4"), LoadFacts(), "says gpu H100-SXM-80GB, and --gpu says L4"),
        (BenchmarkFacts(engine_version="0.31.0"), LoadFacts(), "--engine-version says 0.31.0"),
        (BenchmarkFacts(), LoadFacts(input_tokens=70), "--input-tokens says 70"),
        (BenchmarkFacts(), LoadFacts(concurrency=5), "--concurrency says 5"),
    ],
)
def test_file_and_user_must_not_contradict_each_other(
    facts: BenchmarkFacts, load: LoadFacts, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        one(CLOSED, facts, load)
    assert words in str(caught.value)


def test_a_release_is_asked_of_vllm_alone() -> None:
    with pytest.raises(InputError, match="is not a vLLM version such as"):
        one(OPEN, L4.model_copy(update={"engine_version": "main"}))
    assert one(OPEN, L4.model_copy(update={"engine_version": "v0.11"})).facts.engine_version == "v0.11"
    with pytest.raises(InputError, match="--engine says sglang"):
        one(OPEN, L4.model_copy(update={"engine": "sglang", "engine_version": "main"}))


def test_a_name_of_a_model_has_an_end() -> None:
    with pytest.raises(InputError, match=r"the model is called x+\.\.\.; at most 200 letters") as caught:
        one(OPEN, L4.model_copy(update={"model": "x" * 100_000}))
    assert len(str(caught.value)) < 400


def test_agreement_is_none_and_a_gpu_has_many_names() -> None:
    run = one(CLOSED, BenchmarkFacts(gpu="h100", tp=1), LoadFacts(input_tokens=64, concurrency=4))
    assert run == one(CLOSED)


def test_the_users_name_of_the_model_counts_and_the_servers_is_kept() -> None:
    run = one(CLOSED, BenchmarkFacts(model="meta-llama/Llama-3.1-8B"))
    assert (run.facts.model, run.served_model) == ("meta-llama/Llama-3.1-8B", "tiny-llama")
    assert one(CLOSED).served_model == ""


def test_the_row_has_columns_that_the_tables_reader_knows() -> None:
    others = {"run_id", "source", "measured_on", "notes", "ttft_ms_p99"}
    assert set(RUNS_COLUMNS) <= {*KNOWN_COLUMNS, *MEASURES, *others}
    row = one(CLOSED).as_runs_row()
    assert tuple(row) == RUNS_COLUMNS
    assert row["run_id"] == "benchmark-2026-11-23-vllm-serve-" + one(CLOSED).source.sha256[:12]
    expected = {"concurrency": 4, "num_requests": 24, "tp": 1, "input_tokens": 64, "output_tokens": 16}
    assert {name: row[name] for name in expected} == expected
    run = one(CLOSED)
    assert run.measures.ttft is not None
    assert row["ttft_ms_mean"] == 1e3 * run.measures.ttft.mean_s
    assert row["measured_on"] == "2026-11-23"
    assert (row["request_rate_per_s"], row["prefix_hit_ratio"]) == (None, None)


def test_a_spread_that_was_told_counts() -> None:
    run = one(OPEN, L4, LoadFacts(length_low_ratio=0.5))
    row = run.as_runs_row()
    assert row["length_low_ratio"] == 0.5
    # Uniform in [L/2, L] has the mean 3/4 L.
    assert row["input_tokens"] == pytest.approx(run.load.input_tokens.mean / 0.75)


@given(low=st.floats(0.1, 0.98), mean=st.floats(10, 10_000))
def test_uniform_lengths_come_back_as_they_were(low: float, mean: float) -> None:
    """Uniform in [r L, L]: mean (1 + r) L / 2, standard deviation (1 - r) L / sqrt(12)."""
    longest = 2 * mean / (1 + low)
    lengths = TokenLengths(mean=mean, variation=(1 - low) * longest / math.sqrt(12) / mean)
    load = BenchmarkLoad(input_tokens=lengths, output_tokens=lengths, concurrency=1, num_requests=1)
    if lengths.variation is not None and lengths.variation < 0.01:
        assert load.length_low_ratio == 1
    else:
        assert load.length_low_ratio == pytest.approx(low)
        assert load.longest(lengths) == pytest.approx(longest)


@given(variation=st.floats(0, 50), mean=st.floats(1, 1e6))
def test_any_spread_keeps_the_mean(variation: float, mean: float) -> None:
    lengths = TokenLengths(mean=mean, variation=variation)
    load = BenchmarkLoad(input_tokens=lengths, output_tokens=lengths, requests_per_s=1.0, num_requests=1)
    assert 0 < load.length_low_ratio <= 1
    assert load.longest(lengths) * (1 + load.length_low_ratio) / 2 == pytest.approx(mean)
