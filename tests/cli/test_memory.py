"""`memory`: the parts of a card, and what vLLM would log."""

import json
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


LOGS = Path(__file__).parents[1] / "calibrate" / "startup_logs"
LLAMA_8B = ("memory", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "H100-SXM-80GB", "--max-model-len", 8192)


class TestDetail:
    def test_tensors_add_up_to_the_budget(self, cli: Cli, tmp_path: Path) -> None:
        result = cli(*GPT_OSS, "--detail", "--csv", tmp_path / "d.csv", "--json")
        found = result.json
        table = pd.read_csv(tmp_path / "d.csv")
        sums = table.groupby("part")["bytes_per_gpu"].sum()
        assert sums["weights"] == found["weights_bytes_per_gpu"]
        pool_bytes = found["kv_cache_gib_per_gpu"] * 2**30
        assert pool_bytes - 2**20 * 2 < sums["KV cache"] <= pool_bytes + 2**12
        assert len(found["tensors"]) == len(table)
        assert {group["kind"] for group in found["kv_groups"]} == {"sliding_window", "full"}
        assert sum(group["layers"] for group in found["kv_groups"]) == 36

    def test_a_projection_by_hand(self, cli: Cli) -> None:
        # Llama-3.1-8B at TP 2: QKV is (32 + 2 x 8) heads x 128 / 2 = 3072 rows of 4096 inputs in each of 32 layers
        tensors = cli(*LLAMA_8B, "--tp", 2, "--detail", "--json").json["tensors"]
        qkv = next(tensor for tensor in tensors if tensor["name"] == "qkv")
        assert qkv == {
            "part": "weights",
            "group": "attention",
            "name": "qkv",
            "shape_per_rank": "3072 x 4096",
            "copies": 32,
            "dtype": "bf16",
            "bytes_per_gpu": 3072 * 4096 * 2 * 32,
        }
        shown = cli(*LLAMA_8B, "--detail").out
        assert "By group" in shown
        assert "KV groups" in shown

    def test_draft_and_adapters_are_listed(self, cli: Cli) -> None:
        extras = ("--enable-lora", "--draft-model", "meta-llama/Llama-3.2-1B", "--num-speculative-tokens", 3)
        found = cli(*LLAMA_8B, *extras, "--detail", "--json").json
        by_part = {part["part"]: part["gib"] * 2**30 for part in found["parts"]}
        for part in ("draft model", "LoRA slots"):
            listed = sum(tensor["bytes_per_gpu"] for tensor in found["tensors"] if tensor["part"] == part)
            assert listed == pytest.approx(by_part[part], abs=1024)


class TestExtras:
    def parts(self, cli: Cli, *flags: object) -> dict[str, float]:
        return {part["part"]: part["gib"] for part in cli(*LLAMA_8B, *flags, "--json").json["parts"]}

    def test_each_takes_its_share_of_the_cache(self, cli: Cli) -> None:
        plain = self.parts(cli)
        lora = self.parts(cli, "--enable-lora", "--max-loras", 4, "--max-lora-rank", 64)
        # 92,356,608 bytes a slot of rank 16
        assert lora["LoRA slots"] * 2**30 == pytest.approx(92_356_608 * 16, rel=0.01)
        assert lora["KV cache"] < plain["KV cache"]
        eager = self.parts(cli, "--enforce-eager")
        assert eager["CUDA graphs"] == 0 < plain["CUDA graphs"]
        assert self.parts(cli, "--kv-cache-memory-gib", 10)["KV cache"] == 10

    def test_offloaded_blocks_are_told(self, cli: Cli) -> None:
        # 2 MiB a block of 16 tokens: 16 GiB hold 8,192 blocks
        found = cli(*LLAMA_8B, "--kv-offloading-gib", 16, "--json").json
        assert found["offloaded_blocks"] == 8192
        assert found["offloaded_tokens"] == 8192 * 16
        assert (
            "Offloaded to the host: 131,072 tokens in 8,192 blocks"
            in cli(*LLAMA_8B, "--kv-offloading-gib", 16).out
        )

    def test_a_tower_without_images_is_not_loaded(self, cli: Cli) -> None:
        model = ("memory", "--model", "google/gemma-3-4b-it", "--gpu", "L40S", "--json")
        with_tower, without = cli(*model).json, cli(*model, "--no-multimodal").json
        assert without["weights_bytes_per_gpu"] < with_tower["weights_bytes_per_gpu"]
        assert without["kv_cache_tokens"] > with_tower["kv_cache_tokens"]

    def test_expert_parallel_keeps_the_sum_of_experts(self, cli: Cli) -> None:
        model = ("memory", "--model", "Qwen/Qwen3-30B-A3B", "--gpu", "H100", "--tp", 4, "--json")
        sliced, dealt = (cli(*model, *flag).json["weights_bytes_per_gpu"] for flag in ((), ("--ep",)))
        assert dealt == pytest.approx(sliced, rel=0.01)

    @pytest.mark.parametrize(
        ("flags", "wanted"),
        [
            (("--max-loras", 2), "need enable_lora"),
            (("--draft-model", "Qwen/Qwen3-0.6B"), "given together"),
            (("--draft-model", "Qwen/Qwen3-0.6B", "--num-speculative-tokens", 2), "vocabulary"),
            (("--kv-cache-memory-gib", 0), "kv_cache_memory_gib must be above 0"),
            (("--enable-lora", "--max-lora-rank", 17), "rank"),
        ],
    )
    def test_what_does_not_go_together_is_one_line(
        self, cli: Cli, flags: tuple[object, ...], wanted: str
    ) -> None:
        assert wanted in cli(*LLAMA_8B, *flags).error


def test_rules_of_the_release_are_named(cli: Cli) -> None:
    old, new = (cli(*GPT_OSS, "--engine-version", version) for version in ("0.11.0", "0.32.0"))
    assert "Rules of vLLM 0.11.0:" in old.out
    assert "Before 0.20" in old.out
    assert "Since 0.20" in new.out
    rules = cli(*GPT_OSS, "--engine-version", "0.11.0", "--json").json["engine_rules"]
    assert all(rule in old.out for rule in rules)


class TestLog:
    def test_predicted_stands_beside_what_was_logged(self, cli: Cli, tmp_path: Path) -> None:
        log = LOGS / "vllm-0.18.0.txt"
        result = cli("memory", "--log", log, "--gpu", "H200", "--csv", tmp_path / "l.csv")
        assert result.code == 0
        table = pd.read_csv(tmp_path / "l.csv").set_index("what")
        assert table.loc["weights", "predicted"] == pytest.approx(table.loc["weights", "actual"], rel=0.005)
        assert table.loc["KV cache", "predicted"] == pytest.approx(table.loc["KV cache", "actual"], rel=0.01)
        logged = log.read_text(encoding="utf-8").splitlines()[int(table.loc["weights", "line_number"]) - 1]
        assert "GiB" in logged

    def test_what_the_log_lacks_is_asked_for(self, cli: Cli) -> None:
        assert "add --gpu" in cli("memory", "--log", LOGS / "vllm-0.18.0.txt").error

    def test_a_log_is_not_solved(self, cli: Cli) -> None:
        assert "--log stands alone" in cli("memory", "--log", LOGS / "vllm-0.18.0.txt", "--detail").error

    def test_no_log_is_one_line(self, cli: Cli, tmp_path: Path) -> None:
        assert "nothing.txt" in cli("memory", "--log", tmp_path / "nothing.txt", "--gpu", "H200").error


class TestGivenCache:
    def test_too_large_and_too_small_say_so(self, cli: Cli) -> None:
        large = cli(*LLAMA_8B, "--kv-cache-memory-gib", 500)
        assert large.code == 1
        assert "500.0 GiB of KV cache as given and" in large.out
        small = cli(*LLAMA_8B, "--kv-cache-memory-gib", 0.5, "--json")
        assert small.code == 1
        assert small.json["reason"] == (
            "one request of 8192 tokens needs 1.0 GiB of the 0.5 GiB of KV cache that are given"
        )
        assert small.json["changes"][0]["fits"]
        assert not [change for change in small.json["changes"] if "utilization" in change["flags"]]


def test_vllm_names_of_flags_are_taken(cli: Cli) -> None:
    ours = cli(*LLAMA_8B, "--tp", 2, "--weight-dtype", "fp8", "--kv-dtype", "fp8", "--json").json
    theirs = ("--tensor-parallel-size", 2, "--quantization", "fp8", "--kv-cache-dtype", "fp8")
    assert cli(*LLAMA_8B, *theirs, "--json").json == ours


def test_what_is_not_memory_gets_no_memory_advice(cli: Cli) -> None:
    wrong_tp = cli(*LLAMA_8B, "--tp", 3, "--json")
    assert wrong_tp.code == 1
    assert "does not divide" in wrong_tp.json["reason"]
    assert wrong_tp.json["changes"] == []
    assert "block_size must be a multiple of 16" in cli(*LLAMA_8B, "--block-size", 7).error


def test_fp8_blocks_are_cut_since_they_are_refined(cli: Cli) -> None:
    # 1536 wide experts on 8 ranks are 192 wide: one and a half blocks of 128
    model = ("memory", "--model", "Qwen/Qwen3-235B-A22B-FP8", "--gpu", "H100", "--tp", 8, "--json")
    old = cli(*model, "--engine-version", "0.29.0")
    assert old.code == 1
    assert "192, is not a multiple of the fp8 block 128" in old.json["reason"]
    assert cli(*model, "--engine-version", "0.30.0").code == 0


class TestLogAgainstAnotherCard:
    def test_it_is_asked_whether_the_gpu_is_right(self, cli: Cli) -> None:
        result = cli("memory", "--log", LOGS / "vllm-0.20.0.txt", "--gpu", "H100")
        assert "is the GPU right?" in result.err
        named = cli("memory", "--log", LOGS / "vllm-0.26.0-refused.txt", "--gpu", "H100")
        assert "names another GPU, L4" in named.err

    def test_options_count_before_the_log(self, cli: Cli) -> None:
        log = ("memory", "--log", LOGS / "vllm-0.20.0.txt", "--gpu", "H200", "--json")
        eager = {row["what"]: row["predicted"] for row in cli(*log, "--enforce-eager").json["rows"]}
        assert eager["CUDA graphs"] is None
        assert (
            eager["KV cache"] > {row["what"]: row["predicted"] for row in cli(*log).json["rows"]}["KV cache"]
        )
        assert "read from it" in cli(*log, "--enable-lora").error
        assert "kv_cache_memory_gib must be above 0" in cli(*log, "--kv-cache-memory-gib", "nan").error


class TestAttacks:
    @pytest.mark.parametrize(
        ("flags", "wanted"),
        [
            (("--max-num-seqs", 10**18), "max_num_seqs must be"),
            (("--max-num-batched-tokens", 10**400), "max_num_batched_tokens must be"),
            (("--block-size", 10**9), "block_size must be"),
            (("--context-tokens", 10**400), "--context-tokens"),
            (("--context-tokens", 8193), "--context-tokens must be at most max_model_len, 8192, got 8193"),
            (
                ("--max-num-seqs", 5000, "--max-num-batched-tokens", 2048),
                "at most max_num_batched_tokens, 2048",
            ),
            (("--solve", "max-model-len", "--context-tokens", 100), "give no --context-tokens"),
            (("--solve", "max-num-seqs", "--batch", 100), "give no --batch"),
        ],
    )
    def test_bounds_are_told(self, cli: Cli, flags: tuple[object, ...], wanted: str) -> None:
        assert wanted in cli(*LLAMA_8B, *flags).error

    def test_the_bar_has_an_end(self, cli: Cli) -> None:
        shown = cli(*LLAMA_8B, "--max-num-seqs", 10**6, "--max-num-batched-tokens", 10**7)
        assert shown.code == 1
        assert max(map(len, shown.out.splitlines())) < 300

    def test_a_degree_that_adapters_refuse_is_no_answer(self, cli: Cli) -> None:
        model = ("memory", "--model", "meta-llama/Meta-Llama-3-70B", "--gpu", "L40S", "--enable-lora")
        sharded = (*model, "--max-lora-rank", 8, "--fully-sharded-loras")
        solved = cli(*sharded, "--solve", "tp", "--json").json
        assert cli(*sharded, "--tp", solved["answer"]).code == 0
        assert [option["tp"] for option in solved["options"]] == [1, 2, 4, 8]

    def test_the_load_asked_for_is_held(self, cli: Cli) -> None:
        load = ("--batch", 100, "--context-tokens", 8192)
        model = ("memory", "--model", "meta-llama/Llama-3.1-8B")
        least = cli(*model, "--gpu", "H100", "--solve", "tp", *load, "--json").json["answer"]
        assert least > 1
        assert cli(*model, "--gpu", "H100", "--tp", least, *load, "--json").json["largest_batch"] >= 100
        assert cli(*model, "--gpu", "H100", "--tp", least // 2, *load, "--json").json["largest_batch"] < 100
        card = cli(*model, "--solve", "gpu", *load, "--json").json["answer"]
        assert cli(*model, "--gpu", card, *load, "--json").json["largest_batch"] >= 100

    def test_what_is_read_is_not_written(self, cli: Cli, tmp_path: Path) -> None:
        config = tmp_path / "config.json"
        config.write_text(
            (Path("data/models/Qwen--Qwen3-0.6B.json")).read_text(encoding="utf-8"), encoding="utf-8"
        )
        beside = tmp_path / "hf_quant_config.json"
        beside.write_text("{}", encoding="utf-8")
        model = ("memory", "--model", config, "--gpu", "H100")
        assert "hf_quant_config.json" in cli(*model, "--csv", beside).error
        assert beside.read_text(encoding="utf-8") == "{}"
        bundled = Path("data/models/Qwen--Qwen3-0.6B.json")
        before = bundled.read_bytes()
        assert cli("memory", "--model", "Qwen/Qwen3-0.6B", "--gpu", "H100", "--csv", bundled).code == 2
        assert bundled.read_bytes() == before

    def test_a_model_that_caches_nothing_is_refused(self, cli: Cli, tmp_path: Path) -> None:
        name = "data/models/nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.json"
        fields = json.loads(Path(name).read_text(encoding="utf-8"))
        fields["hybrid_override_pattern"] = "E" * len(fields["hybrid_override_pattern"])
        config = tmp_path / "experts.json"
        config.write_text(json.dumps(fields), encoding="utf-8")
        result = cli("memory", "--model", config, "--gpu", "H100")
        assert result.code == 1
        assert "there is no cache to plan" in result.out
