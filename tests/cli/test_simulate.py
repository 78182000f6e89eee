"""`simulate`: a drawn workload and a trace, what is written, and what is refused."""

import csv
from pathlib import Path

import pytest

from planner.export.simulation import REQUEST_COLUMNS
from tests.cli.conftest import Cli
from tests.export.plotted import figures

LLAMA = ("simulate", "--model", "meta-llama/Llama-3.1-70B", "--weight-dtype", "fp8", "--gpu", "H100-SXM-80GB")
CLOSED = (*LLAMA, "--tp", 4, "--concurrency", 8, "--input-tokens", 256, "--output-tokens", 32)
QWEN = ("simulate", "--model", "Qwen/Qwen3-32B", "--gpu", "A100-SXM-80GB", "--tp", 2)
TRACE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.0000000,374,44
2023-11-16 18:15:50.0000000,396,109
2023-11-16 18:15:51.0000000,500,0
2023-11-16 18:15:52.0000000,50000,5
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "conversations.csv"
    path.write_text(TRACE, encoding="utf-8")
    return path


def test_a_closed_loop_as_json(cli: Cli) -> None:
    result = cli(*CLOSED, "--json", "--ttft-p95-ms", 1e6, "--tpot-p95-ms", 1e6)
    assert result.code == 0
    found = result.json
    assert found["fits"]
    assert found["requests"] == 80
    assert found["users"] == 8
    assert found["output_tokens_per_s"] == pytest.approx(80 * 32 / found["duration_s"], rel=1e-4)
    assert found["goodput_requests_per_s"] == found["requests_per_s"]
    # A user sends again before the last reply is read.
    assert found["mean_running"] + found["mean_waiting"] == pytest.approx(8, rel=0.05)
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        figures = found[name]
        assert 0 < figures["p50"] <= figures["p90"] <= figures["p95"] <= figures["p99"], name
    assert len({len(column) for column in found["series"].values()}) == 1


def test_figures_as_a_page(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    result = cli(*CLOSED, "--json", "--ttft-p95-ms", 500, "--plot", page)
    assert result.code == 0
    assert f"wrote {page}" in result.err
    curves, over_time = figures(page.read_text(encoding="utf-8"))
    ttft = next(trace for trace in curves if trace["name"] == "TTFT")
    assert ttft["x"][ttft["y"].index(95.0)] == pytest.approx(result.json["ttft_ms"]["p95"], rel=1e-4)
    running = next(trace for trace in over_time if trace["name"] == "running")
    assert running["y"] == pytest.approx(result.json["series"]["running"], abs=1e-5)


def test_a_seed_decides(cli: Cli) -> None:
    options = (*LLAMA, "--tp", 4, "--requests-per-s", 5, "--num-requests", 50)
    options = (*options, "--input-tokens", 256, "--output-tokens", 32, "--length-low-ratio", 0.2, "--json")
    first, again, other = (cli(*options, "--seed", seed).out for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_trace_with_every_request_written(cli: Cli, trace: Path, tmp_path: Path) -> None:
    output = tmp_path / "requests.csv"
    result = cli(*QWEN, "--trace", trace, "--rate-scale", 0.5, "--csv", output)
    assert result.code == 0
    assert "requests without a prompt or an answer, taken for one token: 1\n" in result.err
    assert "left out, longer than max_model_len, 40960 tokens: 1 of 4 requests" in result.err
    with output.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == REQUEST_COLUMNS
    assert [float(row["sent_s"]) for row in rows] == [0.0, 8.0, 10.0]
    assert [row["output_tokens"] for row in rows] == ["44", "109", "1"]
    assert rows[2]["tpot_ms"] == ""
    # Alone on the engine: the whole answer is the first token and 43 equal steps.
    first = {name: float(value) for name, value in rows[0].items()}
    assert first["e2e_ms"] == pytest.approx(first["ttft_ms"] + 43 * first["tpot_ms"], rel=1e-6)
    assert "open loop" in result.out
    assert "time to first token" in result.out


def test_the_first_requests_of_a_trace(cli: Cli, trace: Path) -> None:
    assert cli(*QWEN, "--trace", trace, "--num-requests", 2, "--json").json["requests"] == 2


def test_a_trace_of_prefixes(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "turns.jsonl"
    line = '{"timestamp": %d, "input_length": 1100, "output_length": 4, "hash_ids": [3, 1, %d]}\n'
    path.write_text("".join(line % (turn * 9000, 10 + turn) for turn in range(4)), encoding="utf-8")
    assert cli(*QWEN, "--trace", path, "--json").json["prefix_hit_ratio"] == pytest.approx(
        3 * 1024 / 4400, abs=1e-5
    )
    off = cli(*QWEN, "--trace", path, "--json", "--no-prefix-caching")
    assert off.json["prefix_hit_ratio"] == 0
    assert "prefix caching is off" in off.err


def test_a_threshold_cuts_prompts(cli: Cli) -> None:
    options = (*LLAMA, "--tp", 4, "--concurrency", 2, "--num-requests", 2)
    options = (*options, "--input-tokens", 1000, "--output-tokens", 10, "--json")
    whole, cut = (cli(*options, "--long-prefill-token-threshold", tokens).json for tokens in (0, 100))
    assert cut["ttft_ms"]["p50"] > whole["ttft_ms"]["p50"]


def test_what_does_not_fit_says_why(cli: Cli, tmp_path: Path) -> None:
    options = ("simulate", "--model", "meta-llama/Llama-3.1-70B", "--gpu", "H100-SXM-80GB")
    options = (*options, "--concurrency", "8", "--input-tokens", "256", "--output-tokens", "32")
    output, page = tmp_path / "requests.csv", tmp_path / "run.html"
    result = cli(*options, "--csv", output, "--plot", page)
    assert result.code == 1
    assert "does not start: weights 131" in page.read_text(encoding="utf-8")
    assert result.out.startswith("Does not start: weights 131")
    assert output.read_text(encoding="utf-8").splitlines() == [",".join(REQUEST_COLUMNS)]
    as_json = cli(*options, "--json")
    assert as_json.code == 1
    assert not as_json.json["fits"]
    assert as_json.json["reason"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), "give one of --concurrency"),
        (("--concurrency", 1, "--requests-per-s", 1), "not --concurrency and --requests-per-s"),
        (("--concurrency", 1), "--input-tokens is missing"),
        (("--concurrency", 1, "--input-tokens", 9), "--output-tokens is missing"),
        (("--concurrency", 0, "--input-tokens", 9, "--output-tokens", 9), "concurrency"),
        (("--concurrency", 1, "--input-tokens", 0, "--output-tokens", 9), "input_tokens"),
        (("--concurrency", 1, "--input-tokens", "nan", "--output-tokens", 9), "input_tokens"),
        (("--concurrency", 1, "--input-tokens", 1e6, "--output-tokens", 9), "every request"),
        (("--concurrency", 1, "--arrival-cv", 2), "--arrival-cv does not go with --concurrency"),
        (("--concurrency", 1, "--long-prefill-token-threshold", -1), "long_prefill_token_threshold"),
        (("--concurrency", 1, "--long-prefill-token-threshold", 10**7), "above max_model_len"),
        (("--requests-per-s", 1, "--rate-scale", 2), "--rate-scale does not go with --requests-per-s"),
        (("--requests-per-s", "inf", "--input-tokens", 9, "--output-tokens", 9), "requests_per_s"),
        (("--requests-per-s", -1, "--input-tokens", 9, "--output-tokens", 9), "requests_per_s"),
        (("--requests-per-s", 5e-324, "--input-tokens", 9, "--output-tokens", 9), "requests_per_s"),
        (("--trace", "TRACE", "--input-tokens", 9), "--input-tokens does not go with --trace"),
        (("--trace", "TRACE", "--rate-scale", 0), "--rate-scale must be"),
        (("--trace", "TRACE", "--rate-scale", "nan"), "--rate-scale must be"),
        (("--trace", "TRACE", "--num-requests", 0), "num-requests"),
        (("--trace", "TRACE", "--csv", "TRACE"), "this command reads it"),
        (("--trace", "TRACE", "--plot", "TRACE"), "this command reads it"),
        (("--trace", "TRACE", "--plot", "."), "it is a folder"),
        (("--trace", "TRACE", "--csv", "x.csv", "--plot", "x.csv"), "twice"),
        (("--trace", "nowhere.csv"), "nowhere.csv: cannot be read"),
        (("--trace", "."), "cannot be read"),
        (("--concurrency", 1, "--ttft-p95-ms", "nan"), "--ttft-p95-ms must be"),
        (("--concurrency", 1, "--tpot-p95-ms", 0), "--tpot-p95-ms must be"),
        (("--concurrency", 1, "--seed", -1), "--seed"),
        (("--concurrency", 1, "--calibration-dir", "nowhere"), "calibration folder nowhere"),
    ],
)
def test_hostile_input_is_one_line(cli: Cli, trace: Path, options: tuple[object, ...], wanted: str) -> None:
    assert wanted in cli(*QWEN, *(trace if option == "TRACE" else option for option in options)).error


def test_a_bad_row_of_a_trace_is_named(cli: Cli, trace: Path) -> None:
    trace.write_text(TRACE + "2023-11-16 18:15:53,x,1\n", encoding="utf-8")
    assert f'{trace}:6: column ContextTokens is "x"' in cli(*QWEN, "--trace", trace).error
