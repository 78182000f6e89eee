"""Each benchmark on tiny input: it runs, and its ratio is right; no time is asserted."""

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks import aiconfigurator, compilation, inputs, planning, predictions, simulator
from benchmarks.inputs import ANSWERS, PROMPTS, REQUESTS_PER_S, Inputs
from benchmarks.measure import Row, Timing, has_peak
from planner.assemble import serving_errors
from planner.assemble.fit_serving import ServingFit
from planner.assemble.question import Ask
from planner.assemble.served import Means
from planner.domain.base import InputError
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.tuning import NO_TUNING
from planner.serving.simulation import simulate


def test_drawn_requests_are_like_the_trace() -> None:
    stream = inputs.like_trace(20_000).stream
    for tokens, lengths in ((stream.prompt_tokens, PROMPTS), (stream.output_tokens, ANSWERS)):
        assert tokens.mean() == pytest.approx(lengths.mean, rel=0.05)
        assert tokens.std() == pytest.approx(lengths.deviation, rel=0.1)
        assert tokens.min() >= 1
        assert tokens.max() <= lengths.longest
    assert stream.sent_s.size / stream.sent_s[-1] == pytest.approx(REQUESTS_PER_S, rel=0.05)


@pytest.mark.skipif(not inputs.TRACE.is_file(), reason="no published traces beside this checkout")
def test_what_drawn_requests_are_like_is_the_trace() -> None:
    stream = inputs.trace_or_like_it(inputs.TRACE)[0].stream
    assert stream.prompt_tokens.size == inputs.REQUESTS
    for tokens, lengths in ((stream.prompt_tokens, PROMPTS), (stream.output_tokens, ANSWERS)):
        found = tokens.mean(), tokens.std(), tokens.max()
        assert found == pytest.approx(lengths, rel=1e-3)
    assert (stream.sent_s.size - 1) / stream.sent_s[-1] == pytest.approx(REQUESTS_PER_S, rel=1e-3)


def test_times_vidur() -> None:
    # 2000 requests in 1 ms each for Vidur, 1 ms altogether for us.
    row = simulator.times_vidur("x", 2000, Timing(1e-3, 2e-3), 1e-3, "peer")
    assert row == Row("x", "2,000,000 requests/s", "peer", pytest.approx(2000.0), True)
    assert simulator.times_vidur("x", 2000, Timing(3e-3, 4e-3), 1e-3, "peer").ok is False


def test_without_vidur_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    (row,) = simulator.vidur_rows(Inputs(), simulator.served_by())
    assert (row.measured, row.ratio, row.ok) == ("not measured", None, None)
    assert "pip install vidur" in row.against


def test_vidur_gets_the_requests_and_the_step_time(tmp_path: Path) -> None:
    """An interpreter that adds up what it is given stands in for Vidur."""
    stand_in = tmp_path / "python"
    stand_in.write_text(
        "#!/bin/sh\n"
        """awk -F, -v s="$3" 'NR > 1 { n += 1; p += $3; o += $4 } END { print n * 1e6 + p * 1e3 + o + s }' "$2"\n"""
    )
    stand_in.chmod(0o755)
    traffic = inputs.like_trace(3)
    prompts, answers = int(traffic.stream.prompt_tokens.sum()), int(traffic.stream.output_tokens.sum())
    timing = simulator.vidur_run(str(stand_in), traffic, step_s=0.5)
    assert timing.best_s == pytest.approx(3e6 + prompts * 1e3 + answers + 0.5, rel=1e-5)


def test_longer_answers_are_more_steps() -> None:
    one = simulator.served_by()
    stream = inputs.like_trace(50).stream
    assert simulator.drawn_run(50, 1) == simulate(one, stream).totals[0]
    assert simulator.drawn_run(50, 4) > 3 * simulator.drawn_run(50, 1)


def test_memory_ratios() -> None:
    assert simulator.memory_row("x", 210.0, 200.0, 1.05).ok
    assert simulator.memory_row("x", 211.0, 200.0, 1.05).ok is False
    assert simulator.memory_row("x", 150.0, 200.0, 1.05).ok is False
    assert simulator.memory_row("x", 300.0, 200.0, None)[-2:] == (1.5, None)


@pytest.mark.skipif(not has_peak(), reason="this system does not tell a process its peak")
def test_memory_is_measured_in_processes_of_their_own() -> None:
    steps, requests = simulator.memory_rows(20)
    assert steps.ratio is not None
    assert 0.8 < steps.ratio < 1.2
    assert requests.ok is None


def test_a_start_that_compiles_again_is_no_start_from_the_cache() -> None:
    assert compilation.later_row(Timing(10.0, 10.0), Timing(1.0, 2.0))[-2:] == (0.1, True)
    assert compilation.later_row(Timing(10.0, 10.0), Timing(9.0, 9.0)).ok is False


def test_screening_counts_settings_times_loads() -> None:
    ask = Ask(model="meta-llama/Llama-3.1-8B", preset="chat", gpu=("H100-SXM-80GB",))
    whole, screened = planning.in_process(1, ask)
    assert whole.against == "0.5 s"
    assert screened.ratio is not None
    assert screened.ratio > 0.0


def test_tables_that_predict_answers(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    predictions.write_table(table, predictions.timed_runs(12))
    with table.open(newline="") as source:
        lines = list(csv.DictReader(source))
    assert len({(line["gpu"], line["tp"], line["concurrency"]) for line in lines}) == 12
    assert len({row["model"] for row in predictions.memory_runs(1000)}) > 50
    assert predictions.slowest_memory_s(["Qwen/Qwen3-8B"]) > 0.0


def test_speed_against_nine_milliseconds() -> None:
    # 100 in 0.45 s are 4.5 ms each: twice as fast.
    row = aiconfigurator.speed_row("x", 100, Timing(0.45, 0.9))
    assert row.ratio == pytest.approx(2.0)
    assert row.ok
    assert aiconfigurator.speed_row("x", 100, Timing(1.0, 1.0)).ok is False


def test_predictions_of_tiny_tables() -> None:
    steady, simulated = aiconfigurator.speed_rows(1, 6, 2)
    assert steady.ratio is not None
    assert simulated.ratio is not None


PEER = """run_id,ttft_ms_mean,tpot_ms_mean,aic_a_tpot_ms,aic_a_ttft_ms,aic_b_tpot_ms,aic_b_ttft_ms
r1,100,10,12,150,11,100
r2,100,10,,,8,50
r3,100,10,16,50,10,150
"""


def test_errors_are_compared_on_the_runs_that_both_answer(tmp_path: Path) -> None:
    peer = tmp_path / "peer.csv"
    peer.write_text(PEER, encoding="utf-8")
    ours = {"TPOT": {"r1": 0.1, "r2": 9.0, "r3": -0.3}, "TTFT": {"r1": 0.1, "r2": 9.0, "r3": 0.3}}
    rows = {row.what: row for row in aiconfigurator.compared(ours, peer, "here")}
    # Naming a: they are off by 20 % and 60 % in TPOT (median 40), 50 % in TTFT; r2 is not theirs.
    assert rows["rows answered (here, naming a)"][1:] == ("3 rows", "aiconfigurator: 2 rows", 1.5, True)
    assert rows["TPOT error, 2 runs (here, naming a), median"].ratio == pytest.approx(0.2 / 0.4)
    assert rows["TTFT error, 2 runs (here, naming a), median"].ratio == pytest.approx(0.2 / 0.5)
    # Naming b: 10, 20 and 0 % (median 10) against our 10, 900 and 30 % (median 30).
    assert rows["TPOT error, 3 runs (here, naming b), median"].ratio == pytest.approx(3.0)
    assert rows["TPOT error, 3 runs (here, naming b), median"].ok is False
    # 90th percentile of 0, 50, 50 is 50; of 10, 30, 900 it is 30 + 0.8 * 870 = 726.
    assert rows["TTFT error, 3 runs (here, naming b), p90"].ratio == pytest.approx(726 / 50)


def test_no_run_in_common_is_said(tmp_path: Path) -> None:
    peer = tmp_path / "peer.csv"
    peer.write_text(PEER, encoding="utf-8")
    rows = list(aiconfigurator.compared({"TPOT": {"x": 0.1}, "TTFT": {"x": 0.1}}, peer, "here"))
    assert [row.measured for row in rows].count("not measured") == 4


MEASURED = "run_id,model,gpu,tp,input_tokens,output_tokens,concurrency,ttft_ms_mean,tpot_ms_mean\n"


def test_our_errors_in_sample_are_by_run(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    lines = (f"r{users},Qwen/Qwen3-8B,H100-SXM-80GB,1,256,16,{users},100,9\n" for users in (1, 2))
    table.write_text(MEASURED + "".join(lines), encoding="utf-8")
    errors = aiconfigurator.errors_in_sample(table)
    assert {name: set(found) for name, found in errors.items()} == {
        "TPOT": {"r1", "r2"},
        "TTFT": {"r1", "r2"},
    }
    assert all(error > -1.0 for found in errors.values() for error in found.values())


def left_out_table(folder: Path, last: str = "") -> Path:
    """Three runs of one model, one of them at TP 2, and one of another between them."""
    table = folder / "runs.csv"
    models = (
        ("Qwen/Qwen3-8B", 1),
        ("meta-llama/Llama-3.1-8B", 1),
        ("Qwen/Qwen3-8B", 2),
        ("Qwen/Qwen3-8B", 1),
    )
    lines = (f"r{row},{model},H100-SXM-80GB,{tp},64,8,1,100,9\n" for row, (model, tp) in enumerate(models))
    table.write_text(MEASURED + "".join(lines) + last, encoding="utf-8")
    return table


def test_left_out_errors_are_of_a_fit_without_the_model_or_the_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit only counts the runs it is given, and an error is that count: 3 without Llama, 1 without Qwen."""
    monkeypatch.setattr(serving_errors, "FEWEST_RUNS", 1)
    monkeypatch.setattr(
        serving_errors,
        "fit_serving",
        lambda runs: ServingFit(NO_HOST_TIME.model_copy(update={"reply_s": len(runs)}), NO_TUNING),
    )
    monkeypatch.setattr(
        serving_errors,
        "relative_errors",
        lambda runs, host, _tuning: Means(*np.full((2, len(runs)), float(host.reply_s))),
    )
    errors = aiconfigurator.errors_left_out(left_out_table(tmp_path))
    assert set(errors) == {"model left out", "deployment left out"}
    for measure in ("TPOT", "TTFT"):
        assert errors["model left out"][measure] == {"r0": 1.0, "r1": 3.0, "r2": 1.0, "r3": 1.0}
        assert errors["deployment left out"][measure] == {"r0": 2.0, "r1": 3.0, "r2": 3.0, "r3": 2.0}
    # Three runs are left without Llama or TP 2, and fewer without any other part.
    monkeypatch.setattr(serving_errors, "FEWEST_RUNS", 3)
    errors = aiconfigurator.errors_left_out(left_out_table(tmp_path))
    assert {how: set(found["TPOT"]) for how, found in errors.items()} == {
        "model left out": {"r1"},
        "deployment left out": {"r1", "r2"},
    }


def test_a_row_that_cannot_be_simulated_is_refused(tmp_path: Path) -> None:
    table = left_out_table(tmp_path, "r9,Qwen/Qwen3-8B,H100-SXM-80GB,1,64,8,1,,9\n")
    with pytest.raises(InputError, match="1 rows cannot be simulated"):
        aiconfigurator.errors_left_out(table)
