"""`export vllm`: a command that starts."""

from pathlib import Path

import pandas as pd

from tests.cli.conftest import Cli

LLAMA = ("export", "vllm", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "A100-SXM-80GB", "--tp", 1)


def test_the_command_has_the_server_defaults_of_the_gpu(cli: Cli) -> None:
    result = cli(*LLAMA)
    assert result.code == 0
    assert result.out == (
        "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 1 --max-model-len 131072 --max-num-seqs 256 "
        "--max-num-batched-tokens 2048 --gpu-memory-utilization 0.92\n"
    )


def test_flags_that_are_given_are_kept(cli: Cli) -> None:
    result = cli(
        *(*LLAMA, "--weight-dtype", "fp8", "--kv-dtype", "fp8", "--max-model-len", 4096, "--max-num-seqs", 8),
        *("--max-num-batched-tokens", 4096, "--gpu-memory-utilization", 0.5, "--json"),
    )
    command = result.json["engine_command"]
    for flag in (
        *("--quantization fp8", "--kv-cache-dtype fp8", "--max-model-len 4096", "--max-num-seqs 8"),
        *("--max-num-batched-tokens 4096", "--gpu-memory-utilization 0.5"),
    ):
        assert flag in command
    assert result.json["fits"]


def test_what_does_not_fit_is_no_command(cli: Cli) -> None:
    result = cli(*LLAMA[:2], "--model", "meta-llama/Llama-3.1-70B", "--gpu", "A100-SXM-80GB")
    assert result.code == 1
    assert result.out == ""
    assert "GiB per GPU are missing" in result.err


def test_a_format_that_must_be_stored_is_warned_of(cli: Cli) -> None:
    result = cli(*LLAMA, "--weight-dtype", "awq")
    assert result.code == 0
    assert "warning: needs a checkpoint of meta-llama/Llama-3.1-8B stored as awq" in result.err


def test_a_length_that_vllm_refuses_is_refused(cli: Cli) -> None:
    assert "max_model_len must be at most 131072" in cli(*LLAMA, "--max-model-len", 131_073).error


def test_the_warning_of_a_stored_format_is_no_part_of_the_command(cli: Cli) -> None:
    found = cli(*LLAMA, "--weight-dtype", "awq", "--json").json
    assert "#" not in found["engine_command"]
    assert found["warnings"].startswith("needs a checkpoint")
    assert found["reason"] is None


def test_csv(cli: Cli, tmp_path: Path) -> None:
    assert cli(*LLAMA, "--csv", tmp_path / "c.csv").code == 0
    assert pd.read_csv(tmp_path / "c.csv")["engine_command"][0].startswith("vllm serve ")


def test_bad_input_is_one_line_and_exit_2(cli: Cli) -> None:
    assert 'unknown GPU "A1000"' in cli(*LLAMA, "--gpu", "A1000").error
    assert "No such command" in cli("export", "helm").error


def test_half_precision_of_a_bf16_checkpoint_is_asked_for(cli: Cli) -> None:
    assert "--dtype half" in cli(*LLAMA, "--weight-dtype", "fp16").out
    assert "--dtype" not in cli(*LLAMA).out


def test_a_format_the_checkpoint_has_not_is_warned_of(cli: Cli) -> None:
    found = cli("export", "vllm", "--model", "openai/gpt-oss-20b", "--gpu", "H200", "--weight-dtype", "bf16")
    assert "needs a checkpoint of openai/gpt-oss-20b stored as bf16" in found.err
