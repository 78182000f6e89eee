"""`export vllm`: a command that starts."""

from pathlib import Path

import pandas as pd
import pytest

from tests.cli.conftest import Cli

LLAMA = ("export", "vllm", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "A100-SXM-80GB", "--tp", 1)
DRAFT = ("--draft-model", "meta-llama/Llama-3.2-1B", "--num-speculative-tokens")


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


def test_adapters_take_memory_and_are_in_the_command(cli: Cli) -> None:
    slots = ("--enable-lora", "--max-loras", 2, "--max-lora-rank", 32)
    assert "--enable-lora --max-loras 2 --max-lora-rank 32" in cli(*LLAMA, *slots).out
    # 512 slots of rank 512 would take 1.4 TiB.
    found = cli(*LLAMA, "--enable-lora", "--max-loras", 512, "--max-lora-rank", 512)
    assert found.code == 1
    assert "weights + adapters" in found.err


def test_a_draft_model_and_the_cache_flags_are_in_the_command(cli: Cli) -> None:
    found = cli(
        *(*LLAMA, *DRAFT, 3, "--kv-offloading-gib", 64, "--kv-cache-memory-gib", 40, "--block-size", 32),
        *("--no-prefix-caching", "--disable-hybrid-kv-cache-manager", "--enforce-eager", "--dp", 2),
    )
    assert found.code == 0
    for flag in (
        *(
            "--kv-offloading-size 64",
            "--kv-cache-memory-bytes 42949672960",
            "--block-size 32",
            "--enforce-eager",
        ),
        *("--no-enable-prefix-caching", "--disable-hybrid-kv-cache-manager", "--data-parallel-size 2"),
        '"num_speculative_tokens": 3',
    ):
        assert flag in found.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--enable-lora", "--max-lora-rank", 24), "max_lora_rank must be one of 1, 8, 16"),
        (("--enable-lora", "--max-loras", 0), "max_loras must be greater than or equal to 1"),
        (("--max-loras", 2), "need enable_lora"),
        (("--fully-sharded-loras",), "need enable_lora"),
        (("--draft-model", "meta-llama/Llama-3.2-1B"), "must be given together"),
        (("--num-speculative-tokens", 2), "must be given together"),
        ((*DRAFT, 65), "num_speculative_tokens must be less than or equal to 64"),
        ((*DRAFT, 2, "--engine-version", "0.11.0"), "takes no draft models"),
        (("--draft-model", "Qwen/Qwen3-0.6B", *DRAFT[2:], 2), "needs the vocabulary of its target"),
        (("--kv-offloading-gib", 8, "--engine-version", "0.11.0"), "does not offload KV blocks"),
        (("--kv-offloading-gib", "nan"), "kv_offloading_gib must be above 0"),
        (("--kv-cache-memory-gib", -1), "kv_cache_memory_gib must be above 0"),
        (("--block-size", 0), "block_size must be greater than or equal to 1"),
        (("--ep",), "expert parallelism needs a mixture of experts"),
    ],
)
def test_extras_that_vllm_refuses(cli: Cli, flags: tuple[object, ...], words: str) -> None:
    found = cli(*LLAMA, *flags)
    assert found.code in {1, 2}
    assert words in found.err


def test_images_can_be_turned_off(cli: Cli) -> None:
    found = cli("export", "vllm", "--model", "google/gemma-3-4b-it", "--gpu", "H100", "--no-multimodal")
    assert """--limit-mm-per-prompt '{"image": 0, "video": 0}'""" in found.out
