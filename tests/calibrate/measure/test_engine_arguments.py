import json
from pathlib import Path

import pytest

from planner.calibrate.measure.engine_arguments import arguments, set_environment
from planner.calibrate.measure.engine_failures import StartError, failure_kind, reason
from planner.calibrate.measure.engine_log import memory_from_log, reason_in_log
from planner.calibrate.measure.engine_protocol import FailureKind, Start, encode, one_line, read_question
from planner.domain.calibration import Device, MemoryFacts
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.units import GIB_BYTES


def start(folder: Path, **given: object) -> Start:
    settings: dict[str, object] = {
        "config_dir": str(folder),
        "stored_dtype": "bf16",
        "weight_dtype": "bf16",
        "device": "cuda",
        "max_model_len": 64,
        "max_num_seqs": 2,
        "max_num_batched_tokens": 64,
    }
    return Start.model_validate(settings | given)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        ("bf16", "bf16", {"dtype": "bfloat16"}),
        ("bf16", "fp16", {"dtype": "float16"}),
        ("bf16", "fp8", {"dtype": "bfloat16", "quantization": "fp8"}),
        ("fp8", "fp8", {}),
        ("mxfp4", "mxfp4", {}),
    ],
)
def test_weights_run_as_stored_or_as_the_engine_can_make_them(
    folder: Path, stored: str, wanted: str, expected: dict[str, str]
) -> None:
    asked = arguments(start(folder, stored_dtype=stored, weight_dtype=wanted))
    assert {name: asked[name] for name in ("dtype", "quantization") if name in asked} == expected


@pytest.mark.parametrize(
    ("stored", "wanted"), [("bf16", "awq"), ("fp8", "bf16"), ("awq", "gptq"), ("bf16", "int8")]
)
def test_other_formats_need_another_config(folder: Path, stored: str, wanted: str) -> None:
    with pytest.raises(
        StartError, match=f"cannot make {wanted} weights of a checkpoint stored in {stored}"
    ) as refused:
        arguments(start(folder, stored_dtype=stored, weight_dtype=wanted))
    assert refused.value.kind == FailureKind.UNSUPPORTED


@pytest.mark.parametrize(
    ("weights", "kv", "expected"),
    [
        (WeightDtype.BF16, KvDtype.BF16, "auto"),
        (WeightDtype.BF16, KvDtype.AUTO, "auto"),
        (WeightDtype.BF16, KvDtype.FP8, "fp8"),
        (WeightDtype.BF16, KvDtype.FP16, "float16"),
        (WeightDtype.FP8, KvDtype.BF16, "bfloat16"),
    ],
)
def test_the_kv_format_that_is_the_models_own_needs_no_name(
    folder: Path, weights: WeightDtype, kv: KvDtype, expected: str
) -> None:
    assert arguments(start(folder, weight_dtype=weights, kv_dtype=kv))["kv_cache_dtype"] == expected


def test_remote_code_is_never_run_and_made_up_weights_are_not_loaded(folder: Path) -> None:
    asked = arguments(start(folder))
    assert asked["trust_remote_code"] is False
    assert asked["load_format"] == "dummy"
    assert asked["enable_prefix_caching"] is False
    assert asked["kv_transfer_config"]["kv_connector"] == "SyntheticContext"
    assert "kv_transfer_config" not in arguments(start(folder, made_up_context=False))
    assert arguments(start(folder, tp=2))["distributed_executor_backend"] == "mp"


def test_a_whole_checkpoint_is_loaded_from_its_own_folder(folder: Path) -> None:
    asked = arguments(start(Path("elsewhere"), weights=str(folder)))
    assert (asked["model"], asked["load_format"]) == (str(folder), "auto")


def test_towers_for_pictures_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {}}), encoding="utf-8")
    assert arguments(start(tmp_path))["language_model_only"] is True


@pytest.mark.parametrize(("text", "words"), [(None, "cannot be read"), ("{", "is not JSON")])
def test_a_config_that_is_none_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(StartError, match=words) as refused:
        arguments(start(tmp_path))
    assert refused.value.kind == FailureKind.CONFIG


def test_what_the_user_set_in_the_environment_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"VLLM_CPU_KVCACHE_SPACE": "7", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    monkeypatch.setattr("os.environ", environment)
    set_environment(start(folder, device=Device.CPU, threads=3))
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["OMP_NUM_THREADS"] == "3"
    # Without this one there is no engine in the process whose steps could be timed.
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_messages_survive_the_line(folder: Path) -> None:
    asked = start(folder, config_dir="a\nb", kv_dtype="fp8")
    assert encode(asked).count(b"\n") == 1
    assert read_question(encode(asked)) == asked
    assert len(one_line("x " * 999)) == 400


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", FailureKind.OUT_OF_MEMORY, "CUDA out of memory"),
        ("No available memory for the cache blocks.", FailureKind.OUT_OF_MEMORY, "No available memory"),
        (
            "Encoder-decoder models are not currently supported with KV connectors",
            FailureKind.CONTEXT,
            "Encoder",
        ),
        (
            "1 validation error for ModelConfig\n  Value error, Model architectures ['X'] are not supported for now. "
            "Supported architectures: dict_keys(['A', 'B']) [type=value_error, input_value=...]",
            FailureKind.ENGINE,
            "Model architectures ['X'] are not supported for now.",
        ),
        ("", FailureKind.ENGINE, "ValueError"),
    ],
)
def test_failures_are_sorted_and_told_in_a_line(text: str, kind: FailureKind, said: str) -> None:
    error = ValueError(text)
    assert failure_kind(error) == kind
    assert reason(error).startswith(said)
    assert "Supported architectures" not in reason(error)


LOG = """\
(EngineCore pid=12) INFO 11-23 19:59:37 [gpu_model_runner.py:9] Model loading took 14.99 GiB memory and 3.2 seconds
(EngineCore pid=12) INFO 11-23 19:59:38 [gpu_worker.py:5] Available KV cache memory: 50.00 GiB
(EngineCore pid=12) INFO 11-23 19:59:38 [kv_cache_utils.py:5] GPU KV cache size: 409,600 tokens
(EngineCore pid=12) INFO 11-23 19:59:39 [x.py:6] Graph capturing finished in 7 secs, took 0.50 GiB
ValueError: first
  File "x.py", line 3
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_log_says_what_the_engine_does_not_know() -> None:
    found = memory_from_log(LOG, MemoryFacts(weights_bytes=5))
    assert found.weights_bytes == 5
    assert found.kv_cache_bytes == 50 * GIB_BYTES
    assert found.cuda_graph_bytes == GIB_BYTES // 2
    assert found.kv_cache_tokens == 409_600
    assert found.activation_peak_bytes is None
    assert len(found.log_lines) == 4
    assert found.log_lines[0] == "Model loading took 14.99 GiB memory and 3.2 seconds"


def test_the_reason_is_the_last_error_that_is_one() -> None:
    assert reason_in_log(LOG) == "ValueError: first"
    assert reason_in_log("all is well") == ""
