"""`explain`: the table, the same as JSON and CSV, and what is refused."""

import csv
from pathlib import Path

import pytest

from planner.export.breakdown import OPERATOR_TITLES, PART_COLUMNS
from planner.formulas.relief import Resource
from tests.cli.conftest import Cli

MODEL, GPU = "openai/gpt-oss-120b", "H100-SXM-80GB"
BASE = ("explain", "--model", MODEL, "--gpu", GPU, "--tp", 2)
STEP = (*BASE, "--batch", 32, "--context-tokens", 2048)
TOLERANCE = 1e-5
"""JSON and CSV are rounded to a millionth of a millisecond."""


def test_the_step_of_the_handbook(cli: Cli) -> None:
    result = cli(*STEP)
    assert result.code == 0
    assert result.err == ""
    assert result.out.startswith(f"{MODEL} on 2 x {GPU}: one step, 32 sequences decoding at 2,048 tokens\n")
    for words in ("18 x window attention + experts", "18 x full attention + experts", "outside the layers"):
        assert words in result.out
    assert "Binds: bandwidth; next: " in result.out
    assert "sequences of 2,048 tokens, the batch is 32." in result.out
    assert "infinitely fast" in result.out


def test_json_adds_up(cli: Cli) -> None:
    found = cli(*STEP, "--json").json
    parts = found["parts"]
    assert found["fits"]
    assert tuple(parts[0]) == PART_COLUMNS
    assert sum(part["time_ms"] for part in parts) == pytest.approx(found["step_ms"], rel=TOLERANCE)
    assert sum(part["share_ratio"] for part in parts) == pytest.approx(1, rel=TOLERANCE)
    rooflines_ms = sum(part["roofline_ms"] or 0 for part in parts)
    assert rooflines_ms == pytest.approx(found["roofline_ms"], rel=TOLERANCE)
    assert [part["time_ms"] for part in parts] == sorted((part["time_ms"] for part in parts), reverse=True)
    assert {part["operator"] for part in parts} <= {operator.value for operator in OPERATOR_TITLES}
    assert {part["layers"] for part in parts} == {18, None}
    (host,) = (part for part in parts if part["operator"] == "host")
    assert (host["roofline_ms"], host["efficiency_ratio"], host["binds"]) == (None, None, "host")
    assert set(found["relieved_step_ms"]) == {what.value for what in Resource}
    assert found["relieved_step_ms"][found["binds"]] == min(found["relieved_step_ms"].values())
    assert found["binds"] == found["step_binds"] != found["next_limit"]
    assert found["kv_sequences_held"] > 32
    assert found["scheduled_tokens"] == found["padded_tokens"] == 32


def test_csv_has_the_parts(cli: Cli, tmp_path: Path) -> None:
    output = tmp_path / "step.csv"
    result = cli(*STEP, "--csv", output, "--json")
    assert result.code == 0
    assert result.err == f"wrote {output}\n"
    with output.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == PART_COLUMNS
    assert len(rows) == len(result.json["parts"])
    for row, part in zip(rows, result.json["parts"], strict=True):
        assert row["operator"] == part["operator"]
        assert float(row["time_ms"]) == part["time_ms"]


def test_a_prompt_in_the_same_step(cli: Cli) -> None:
    mixed = cli(*STEP, "--prompt-tokens", 4000)
    assert "32 sequences decoding at 2,048 tokens and a prompt of 4,000 tokens" in mixed.out
    assert "attention, prompt" in mixed.out
    alone = cli(*BASE, "--prompt-tokens", 4000)
    assert alone.code == 0
    assert "one step, a prompt of 4,000 tokens\n" in alone.out
    assert "attention, decoding" not in alone.out
    assert "KV cache holds" not in alone.out
    as_json = cli(*BASE, "--prompt-tokens", 4000, "--json").json
    assert as_json["context_tokens"] is as_json["kv_sequences_held"] is as_json["ridge_batch"] is None


def test_padding_is_said(cli: Cli) -> None:
    assert "at 2,048 tokens, padded to 40\n" in cli(*BASE, "--batch", 33, "--context-tokens", 2048).out
    assert "padded" not in cli(*BASE, "--batch", 33, "--context-tokens", 2048, "--enforce-eager").out


def test_a_batch_beyond_the_cache_is_answered_with_a_note(cli: Cli) -> None:
    result = cli(*BASE, "--batch", 500, "--context-tokens", 100_000)
    assert result.code == 0
    assert result.err.startswith("note: the KV cache holds ")
    assert "Binds: KV cache; next: bandwidth." in result.out
    assert ": it is full." in result.out


def test_flags_of_the_deployment_count(cli: Cli) -> None:
    def step_ms(*options: object) -> float:
        return float(cli(*STEP, "--json", *options).json["step_ms"])

    usual = step_ms()
    assert step_ms("--no-async-scheduling") > usual
    assert step_ms("--tp", 4) < usual
    assert step_ms("--ep") != usual
    assert step_ms("--kv-dtype", "fp8") < usual
    assert step_ms("--pp", 2) > usual


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--tp", 3), "tensor parallel size 3 does not divide"),
        (("--gpu", "L4"), "need"),
        (("--model", "meta-llama/Llama-3.1-405B"), "need"),
    ],
)
def test_what_does_not_start_says_why(
    cli: Cli, tmp_path: Path, options: tuple[object, ...], reason: str
) -> None:
    output = tmp_path / "step.csv"
    result = cli(*STEP, *options, "--csv", output)
    assert result.code == 1
    assert result.out.startswith("Does not start: ")
    assert reason in result.out
    assert output.read_text(encoding="utf-8").splitlines() == [",".join(PART_COLUMNS)]
    as_json = cli(*STEP, *options, "--json")
    assert as_json.code == 1
    assert not as_json.json["fits"]
    assert "parts" not in as_json.json


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), "batch and prompt_tokens are both 0"),
        (("--batch", 0, "--context-tokens", 100), "batch and prompt_tokens are both 0"),
        (("--batch", 4), "--context-tokens is missing"),
        (("--batch", -1, "--context-tokens", 100), "batch must be from 0"),
        (("--batch", 10**30, "--context-tokens", 100), "batch must be from 0"),
        (("--batch", "many", "--context-tokens", 100), "--batch"),
        (("--batch", 1.5, "--context-tokens", 100), "--batch"),
        (("--batch", 1, "--context-tokens", 0), "context_tokens must be from 1"),
        (("--batch", 1, "--context-tokens", -1), "context_tokens must be from 1"),
        (("--batch", 1, "--context-tokens", 10**30), "context_tokens must be from 1"),
        (("--batch", 1, "--context-tokens", 200_000), "max_model_len, 131072, got 200000"),
        (("--batch", 1, "--context-tokens", 9000, "--max-model-len", 8000), "max_model_len, 8000"),
        (("--batch", 1, "--context-tokens", 9, "--prompt-tokens", -1), "prompt_tokens must be from 0"),
        (("--batch", 1, "--context-tokens", 9, "--prompt-tokens", 8192), "at most max_num_batched_tokens"),
        (("--batch", 1, "--context-tokens", 9, "--tp", 0), "tp"),
        (("--batch", 1, "--context-tokens", 9, "--gpu", "abacus"), "abacus"),
        (("--batch", 1, "--context-tokens", 9, "--model", "no-such-model"), "no-such-model"),
        (("--batch", 1, "--context-tokens", 9, "--engine-version", "1999"), "engine_version"),
        (("--batch", 1, "--context-tokens", 9, "--csv", "nowhere/step.csv"), "there is no folder"),
        (("--batch", 1, "--context-tokens", 9, "--calibration-dir", "nowhere"), "calibration folder nowhere"),
    ],
)
def test_hostile_input_is_one_line(cli: Cli, options: tuple[object, ...], wanted: str) -> None:
    assert wanted in cli(*BASE, *options).error
