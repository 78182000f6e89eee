"""A start-up log beside the prediction for what it describes."""

import io
import json
from functools import cache
from pathlib import Path

import pytest

from planner.assemble.log_check import LogCheck, LogRow, check_log
from planner.assemble.logged_deployment import Given
from planner.assemble.question import facts_for
from planner.calibrate.startup_log import read_startup_log
from planner.catalog.table import LARGEST_BYTES
from planner.cli.startup_log import show_log
from planner.domain.base import InputError
from planner.domain.deployment import LoraSlots
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.units import bytes_to_gib, gib_to_bytes
from planner.planning.facts import Facts

LOGS = Path(__file__).parents[1] / "calibrate" / "startup_logs"
MEASURED = {
    "vllm-0.11.0.txt": Given(gpu="H200"),
    "vllm-0.13.0.txt": Given(),
    "vllm-0.16.0.txt": Given(),
    "vllm-0.18.0.txt": Given(gpu="H200"),
    "vllm-0.20.0.txt": Given(gpu="H200"),
}
"""Logs with measured figures."""
ODD = {"vllm-0.11.0.txt"}
"""Another log of the same flags has 3 % more cache."""


@cache
def facts() -> Facts:
    return facts_for()


def log_text(name: str) -> str:
    return (LOGS / name).read_text(encoding="utf-8")


def check(text: str, given: Given) -> LogCheck:
    return check_log(read_startup_log(text), given, facts())


def row(of: LogCheck, what: str) -> LogRow:
    return next(row for row in of.rows if row.what == what)


@pytest.mark.parametrize("name", MEASURED)
def test_measured_logs_are_met(name: str) -> None:
    checked = check(log_text(name), MEASURED[name])
    kv_within = 0.04 if name in ODD else 0.005
    for what, within in (("weights", 0.001), ("KV cache", kv_within), ("KV cache tokens", kv_within)):
        error = row(checked, what).error_ratio
        assert error is not None
        assert abs(error) < within


def test_an_error_is_predicted_over_actual() -> None:
    tokens = row(check(log_text("vllm-0.11.0.txt"), Given(gpu="H200")), "KV cache tokens")
    assert (tokens.actual, tokens.line_number, tokens.unit) == (1_387_664, 14, "tokens")
    assert tokens.predicted is not None
    assert tokens.error_ratio == pytest.approx(tokens.predicted / 1_387_664 - 1)


def test_overhead_is_what_weights_and_cache_leave_of_the_share() -> None:
    checked = check(log_text("vllm-0.18.0.txt"), Given(gpu="H200"))
    # 139.8 GiB x 0.92 - 16.96 - 107.53 = 4.126
    assert row(checked, "all overhead").actual == pytest.approx(4.126, abs=0.001)


def test_the_deployment_is_that_of_the_log() -> None:
    case = check(log_text("vllm-0.33.0.txt"), Given(gpu="H100")).case
    assert (case.model.name, case.parallelism.dp, case.kv_dtype) == ("Qwen/Qwen3-8B", 2, KvDtype.FP8)
    assert case.gpu.memory_bytes == gib_to_bytes(79.18)
    assert case.engine.max_num_seqs == 256
    assert case.engine.gpu_memory_utilization == 0.92
    assert case.engine.lora == LoraSlots(max_loras=2, max_lora_rank=32)
    assert case.engine.speculation is None


def test_what_the_user_gives_counts_before_the_log() -> None:
    given = Given(
        model="meta-llama/Llama-3.1-8B", gpu="L40S", gpu_memory_gib=44.5, tp=2, kv_dtype="fp8", max_num_seqs=7
    )
    checked = check(log_text("vllm-0.20.0.txt"), given)
    case = checked.case
    assert (case.model.name, case.gpu.name, case.parallelism.tp) == ("meta-llama/Llama-3.1-8B", "L40S", 2)
    assert (bytes_to_gib(case.gpu.memory_bytes), case.kv_dtype, case.engine.max_num_seqs) == (
        44.5,
        KvDtype.FP8,
        7,
    )
    assert not any("max_num_seqs" in note for note in checked.notes)


def test_another_card_than_the_log_s_is_doubted() -> None:
    text = "vllm serve llama-3.1-8b\nhas a total capacity of 79.18 GiB"
    assert any("is the GPU right?" in note for note in check(text, Given(gpu="H200")).notes)
    assert not any("is the GPU right?" in note for note in check(text, Given(gpu="H100")).notes)


def test_the_block_of_a_hybrid_is_compared() -> None:
    text = "vllm serve Qwen/Qwen3-Next-80B-A3B-Instruct -tp 4\nSetting attention block size to 544 tokens to ensure"
    block = row(check(text, Given(gpu="H100")), "tokens of a block")
    assert (block.actual, block.line_number) == (544, 2)
    assert block.predicted is not None


def test_what_nobody_says_is_named_as_assumed() -> None:
    checked = check("Model loading took 14.99 GiB\nmodel=", Given(model="llama-3.1-8b", gpu="H100"))
    assumed = next(note for note in checked.notes if note.startswith("assumed"))
    for part in ("tp 1", "max_model_len 131072", "max_num_seqs 1024", "gpu_memory_utilization 0.92"):
        assert part in assumed


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("nothing of use", Given(model="llama-3.1-8b", gpu="H100"), "no line of a vLLM start-up log"),
        ("Model loading took 1.0 GiB", Given(gpu="H100"), "does not say which model: add --model"),
        ("Model loading took 1.0 GiB", Given(model="llama-3.1-8b"), "does not say which GPU: add --gpu"),
        (
            "vllm serve llama-3.1-8b\nhas a total capacity of 79.18 GiB",
            Given(),
            "79.18 GiB have A100-SXM-80GB, A100-PCIe-80GB, H100-SXM-80GB",
        ),
        ("vllm serve /data/mine", Given(gpu="H100"), '"/data/mine" is not on this machine'),
        ("vllm serve a/b/c/mine", Given(gpu="H100"), "add --model"),
        (
            "LLM engine (v0.6.3) KV cache size: 9 tokens",
            Given(model="llama-3.1-8b", gpu="H100"),
            "older than",
        ),
        ("vllm serve llama-3.1-8b -tp 65", Given(gpu="H100"), "tp must be less than or equal to 64"),
        ("vllm serve llama-3.1-8b", Given(gpu="H100", gpu_memory_gib=0.5), "gpu_memory_gib must be"),
        ("vllm serve llama-3.1-8b", Given(gpu="H1000"), "unknown GPU"),
    ],
)
def test_what_is_missing_is_said_in_one_line(text: str, given: Given, message: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        check(text, given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("/models/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("/models/llama-3.1-8b-instruct/", "meta-llama/Llama-3.1-8B-Instruct"),
        ("s3://bucket/weights/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/hub/models--Qwen--Qwen3-8B/snapshots/0123abc", "Qwen/Qwen3-8B"),
        ("./Qwen3-8B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
    ],
)
def test_a_path_of_another_machine_means_the_bundled_model(written: str, name: str) -> None:
    checked = check(f"vllm serve {written}", Given(gpu="H100"))
    assert checked.case.model.name == name
    assert any("is not on this machine" in note for note in checked.notes) is (written != name)


def test_a_path_that_is_here_is_read(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 32_000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    assert check(f"vllm serve {folder}", Given(gpu="H100")).case.model.hidden == 256


def test_quantisation_while_loading_is_followed() -> None:
    fp8 = check("vllm serve llama-3.1-8b --quantization fp8", Given(gpu="H100"))
    assert fp8.case.model.weight_dtype is WeightDtype.FP8
    awq = check("vllm serve llama-3.1-8b --quantization awq", Given(gpu="H100"))
    assert any("quantization=awq" in note for note in awq.notes)


def test_an_unknown_cache_format_is_said() -> None:
    checked = check("vllm serve llama-3.1-8b --kv-cache-dtype turbo3", Given(gpu="H100"))
    assert checked.case.kv_dtype is KvDtype.AUTO
    assert any("kv_cache_dtype=turbo3" in note for note in checked.notes)


def test_a_draft_that_is_not_predicted_is_said() -> None:
    text = 'vllm serve llama-3.1-8b --speculative-config \'{"method": "eagle3", "model": "a/b"}\''
    assert any("eagle3" in note for note in check(text, Given(gpu="H100")).notes)


def test_a_draft_model_is_loaded() -> None:
    config = '{"method": "draft_model", "model": "Qwen/Qwen3-0.6B", "num_speculative_tokens": 4}'
    case = check(f"vllm serve Qwen/Qwen3-8B --speculative-config '{config}'", Given(gpu="H100")).case
    assert case.engine.speculation is not None
    assert case.engine.speculation.draft.name == "Qwen/Qwen3-0.6B"
    assert case.engine.speculation.num_speculative_tokens == 4


def test_a_refusal_is_explained_from_both_sides() -> None:
    checked = check(log_text("vllm-0.26.0-refused.txt"), Given())
    request = row(checked, "KV cache of one request")
    # 131,072 tokens x 128 KiB (32 layers, 8 heads, 128 wide, keys and values, 2 bytes) = 16 GiB
    assert (request.actual, request.predicted) == (16.0, 16.0)
    assert any(
        "11.95 GiB are missing; vLLM estimates that 33168 tokens fit" in note for note in checked.notes
    )
    assert any(note.startswith("by our count: ") and "L4" in note for note in checked.notes)


def test_a_refusal_that_we_do_not_share_is_said() -> None:
    text = "vllm serve llama-3.1-8b\nValueError: No available memory for the cache blocks."
    notes = check(text, Given(gpu="H100")).notes
    assert any(note == "line 2: nothing is left for the KV cache" for note in notes)
    assert any(note.startswith("by our count it starts: ") for note in notes)


def test_a_start_that_we_would_refuse_is_said() -> None:
    text = "vllm serve meta-llama/Llama-3.1-70B\nKV cache size: 9 tokens"
    assert any("by our count it does not start" in note for note in check(text, Given(gpu="H100")).notes)


def test_what_torch_could_not_have_is_said() -> None:
    text = "vllm serve llama-3.1-8b -dcp 2\nCUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has"
    notes = check(text, Given(gpu="H100")).notes
    assert "line 2: torch ran out of memory when it wanted 448.00 MiB more" in notes
    assert any("(dcp), which is not in the prediction" in note for note in notes)


def test_memory_taken_by_others_is_said() -> None:
    text = (
        "vllm serve llama-3.1-8b\nFree memory on device cuda:0 (9.51/79.18 GiB) on startup is less than desired GPU "
        "memory utilization (0.92, 72.85 GiB)."
    )
    notes = check(text, Given(gpu="H100")).notes
    assert "69.7 GiB of the card were taken before the engine started" in notes
    assert any("only 9.51 of 79.18 GiB were free" in note for note in notes)


def test_graphs_are_compared_where_they_are_charged() -> None:
    before = check(log_text("vllm-0.18.0.txt"), Given(gpu="H200"))
    assert row(before, "CUDA graphs").predicted is None
    assert any("vLLM 0.18.0 does not charge CUDA graphs" in note for note in before.notes)
    second_runner = check(log_text("vllm-0.18.0.txt").replace("0.18.0", "0.24.0"), Given(gpu="H200"))
    assert row(second_runner, "CUDA graphs").predicted is None
    assert any("vLLM 0.24.0 on Model Runner V2 does not charge" in note for note in second_runner.notes)
    since = row(check(log_text("vllm-0.20.0.txt"), Given(gpu="H200")), "CUDA graphs")
    assert since.actual == 0.94
    assert since.predicted is not None


def test_an_engine_on_a_cpu_has_its_cache_given() -> None:
    checked = check(log_text("vllm-0.32.0-cpu.txt"), Given(gpu="H100"))
    assert checked.case.engine.kv_cache_memory_bytes == 2**30
    assert "all overhead" not in [row.what for row in checked.rows]
    assert any("ran on a CPU" in note for note in checked.notes)


def test_a_cache_of_a_given_size_is_followed() -> None:
    text = "vllm serve llama-3.1-8b\nreserved 20.5 GiB memory for KV Cache as specified by kv_cache_memory_bytes config"
    assert check(text, Given(gpu="H100")).case.engine.kv_cache_memory_bytes == 20.5 * 2**30
    asked = check(f"vllm serve llama-3.1-8b --kv-cache-memory-bytes 123456789\n{text}", Given(gpu="H100"))
    assert asked.case.engine.kv_cache_memory_bytes == 123_456_789


def test_a_table_on_screen(capsys: pytest.CaptureFixture[str]) -> None:
    show_log(LOGS / "vllm-0.11.0.txt", Given(gpu="H200"), facts=facts(), csv=None, as_json=False)
    out, err = capsys.readouterr()
    assert "105.87 GiB" in out
    assert "169.39x" in out
    assert "4 ranks are in the log" in err


def test_json_and_csv_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "log.csv"
    show_log(LOGS / "vllm-0.11.0.txt", Given(gpu="H200"), facts=facts(), csv=table, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["model"], document["tp"]) == ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 4)
    cache_row = next(row for row in document["rows"] if row["what"] == "KV cache")
    assert (cache_row["actual"], cache_row["unit"], cache_row["line_number"]) == (105.87, "GiB", 10)
    lines = table.read_text().splitlines()
    assert lines[0] == "what,predicted,actual,unit,error_ratio,line_number"
    assert len(lines) == 1 + len(document["rows"])


class Stdin:
    """Standard input that holds these bytes."""

    def __init__(self, raw: bytes) -> None:
        self.buffer = io.BytesIO(raw)


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", Stdin((LOGS / "vllm-0.13.0.txt").read_bytes()))
    show_log(Path("-"), Given(), facts=facts(), csv=None, as_json=False)
    assert "Qwen/Qwen3-VL-30B-A3B-Instruct on H200-SXM-141GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff\xfe" + "Model loading took".encode("utf-16-le"), "not UTF-8 text (byte 0)"),
        (b"KV\0cache", "binary, not a start-up log"),
        (b"x" * (LARGEST_BYTES + 1), "larger than 20 MB, not a start-up log"),
    ],
)
def test_no_log_at_all(raw: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes(raw)
    monkeypatch.setattr("sys.stdin", Stdin(raw))
    for path in (file, Path("-")):
        with pytest.raises(InputError) as error:
            show_log(path, Given(), facts=facts(), csv=None, as_json=False)
        assert str(error.value) == f"{path}: {message}"


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        show_log(tmp_path / "none.txt", Given(), facts=facts(), csv=None, as_json=False)
