"""`memory`: the parts of a card, and what vLLM would log."""

from pathlib import Path

import pandas as pd
import pytest

from planner.cli.memory_report import BAR_WIDTH
from tests.cli.conftest import Cli

GPT_OSS = (
    "memory",
    "--model",
    "openai/gpt-oss-120b",
    "--gpu",
    "H100-SXM-80GB",
    "--tp",
    2,
    "--max-model-len",
    32768,
)
TOO_LARGE = ("memory", "--model", "meta-llama/Llama-3.1-70B", "--gpu", "H100-SXM-80GB")


def test_the_parts_add_up_to_the_card(cli: Cli) -> None:
    result = cli(*GPT_OSS, "--json")
    assert result.code == 0
    found = result.json
    parts = {part["part"]: part["gib"] for part in found["parts"]}
    card = parts.pop("card")
    assert sum(parts.values()) == pytest.approx(card, abs=1e-5)
    assert found["fits"]
    assert found["shortfall_gib"] == 0
    assert found["max_concurrency"] * 32768 == pytest.approx(found["kv_cache_tokens"], rel=1e-4)


def test_llama_8b_is_as_vllm_builds_it(cli: Cli) -> None:
    """16,060,522,496 bytes of weights and 131,072 KV bytes a token: vLLM 0.32.0's own classes on the meta device.

    Beside them lie the rotary table and seven numbers a layer, each in a block of 512 bytes.
    """
    found = cli("memory", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "A100-SXM-80GB", "--json").json
    assert found["weights_bytes_per_gpu"] == 16_060_522_496 + 131_072 * 128 * 2 + 32 * 7 * 512
    assert found["kv_bytes_per_token"] == 131_072


def test_the_screen_says_what_vllm_logs(cli: Cli) -> None:
    result = cli(*GPT_OSS)
    logged = cli(*GPT_OSS, "--json").json
    assert f"GPU KV cache size: {logged['kv_cache_tokens']:,} tokens" in result.out
    assert (
        f"Maximum concurrency for 32,768 tokens per request: {logged['max_concurrency']:.2f}x" in result.out
    )
    bar = next(line for line in result.out.splitlines() if line.startswith("  ["))
    assert len(bar.strip()) == BAR_WIDTH + 2


def test_what_does_not_fit_says_by_how_much_and_what_would(cli: Cli) -> None:
    result = cli(*TOO_LARGE)
    assert result.code == 1
    assert "GiB per GPU are missing" in result.out
    found = cli(*TOO_LARGE, "--json")
    assert found.code == 1
    assert found.json["shortfall_gib"] > 131.4 - 79.2
    least = found.json["smallest_tp_that_fits"]
    assert f"The smallest TP that fits is {least}." in result.out
    assert cli(*TOO_LARGE, "--tp", least).code == 0
    assert cli(*TOO_LARGE, "--tp", least // 2).code == 1


def test_fewer_gib_than_the_catalog_knows(cli: Cli) -> None:
    less = cli(*GPT_OSS, "--gpu-memory-gib", 60, "--json").json
    assert less["parts"][-1]["gib"] == 60
    assert less["kv_cache_tokens"] < cli(*GPT_OSS, "--json").json["kv_cache_tokens"]


def test_csv_has_the_parts(cli: Cli, tmp_path: Path) -> None:
    assert cli(*GPT_OSS, "--csv", tmp_path / "m.csv").code == 0
    table = pd.read_csv(tmp_path / "m.csv")
    assert list(table.columns) == ["part", "gib", "share_ratio"]
    assert table["part"].iloc[-1] == "card"
    assert table["share_ratio"][:-1].sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--tp", 0), "tp must be"),
        (("--tp", "two"), "--tp"),
        (("--max-model-len", 0), "max_model_len must be"),
        (
            ("--max-model-len", 131_073),
            "max_model_len must be at most 131072 for openai/gpt-oss-120b, got 131073",
        ),
        (("--gpu-memory-utilization", 1.5), "gpu_memory_utilization must be"),
        (("--gpu-memory-utilization", "nan"), "gpu_memory_utilization must be"),
        (("--gpu-memory-gib", 0), "gpu_memory_gib must be from 1"),
        (("--gpu-memory-gib", "nan"), "gpu_memory_gib must be from 1"),
        (("--kv-dtype", "int8"), 'unknown KV dtype "int8"'),
        (("--engine-version", "x"), "not a vLLM version"),
        (("--gpu", "H1000"), 'unknown GPU "H1000"'),
    ],
)
def test_bad_input_is_one_line_and_exit_2(cli: Cli, arguments: tuple[object, ...], wanted: str) -> None:
    assert wanted in cli(*GPT_OSS, *arguments).error


def test_missing_options_are_named(cli: Cli) -> None:
    assert "--model" in cli("memory").error
    assert "--gpu" in cli("memory", "--model", "x").error


class TestSolve:
    @pytest.mark.parametrize("unknown", ["tp", "max-model-len", "max-num-seqs"])
    def test_the_answer_works_as_a_deployment(self, cli: Cli, unknown: str) -> None:
        base = ("memory", "--model", "Qwen/Qwen3-32B", "--gpu", "L40S", "--tp", 2, "--max-model-len", 8192)
        solved = cli(*base, "--solve", unknown, "--json").json
        assert solved["solve"] == unknown
        flags = {"tp": "--tp", "max-model-len": "--max-model-len", "max-num-seqs": "--max-num-seqs"}
        assert cli(*base, flags[unknown], solved["answer"], "--json").code == 0

    def test_gpu_lists_every_card(self, cli: Cli, tmp_path: Path) -> None:
        result = cli("memory", "--model", "Qwen/Qwen3-32B", "--solve", "gpu", "--csv", tmp_path / "g.csv")
        assert result.out.startswith("The smallest card that holds it at TP 1 is ")
        table = pd.read_csv(tmp_path / "g.csv")
        assert {"H100-SXM-80GB", "B200", "L4"} <= set(table["gpu"])
        assert set(table["fits"]) == {True, False}
        sized = table.dropna(subset="weights_gib_per_gpu")
        assert (sized["shortfall_gib"] > 0).tolist() == (~sized["fits"]).tolist()

    def test_nothing_works(self, cli: Cli) -> None:
        result = cli(
            "memory", "--model", "meta-llama/Llama-3.1-405B", "--gpu", "L4", "--solve", "max-model-len"
        )
        assert result.code == 1
        assert "No max_model_len works: weights" in result.out

    def test_the_gpu_is_open_or_given(self, cli: Cli) -> None:
        assert "leaves the GPU open" in cli(*GPT_OSS, "--solve", "gpu").error
        assert "--gpu is missing" in cli("memory", "--model", "Qwen/Qwen3-32B", "--solve", "tp").error
        assert "--solve" in cli(*GPT_OSS, "--solve", "price").error


def test_batch_and_length_are_told_both_ways(cli: Cli) -> None:
    found = cli(*GPT_OSS, "--batch", 64, "--context-tokens", 8192, "--json").json
    assert found["largest_batch"] > 64
    again = cli(*GPT_OSS, "--context-tokens", found["longest_context_tokens"], "--json").json
    assert again["largest_batch"] >= 64
    assert f"Largest batch at 8,192 tokens a sequence: {found['largest_batch']:,}" in (
        cli(*GPT_OSS, "--context-tokens", 8192).out
    )


def test_what_gives_room_comes_with_its_numbers(cli: Cli) -> None:
    found = {change["change"]: change for change in cli(*TOO_LARGE, "--json").json["changes"]}
    assert found["more GPUs"]["fits"]
    assert found["more GPUs"]["kv_cache_tokens"] > 0
    assert found["fp8 weights"]["shortfall_gib"] > 0
    assert "What would give room" in cli(*TOO_LARGE).out
