"""The `vllm serve` line has only flags that vLLM has, and pastes into a shell."""

import json
import shlex

import pytest

from planner.catalog.models import load_model
from planner.domain.deployment import EngineSettings, Layout, LoraSlots, Parallelism, Speculation
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.model import Model
from planner.domain.units import GIB_BYTES
from planner.export.vllm import missing_checkpoint, serve_command

VLLM_FLAGS = {
    "--long-prefill-token-threshold",
    "--tensor-parallel-size",
    "--pipeline-parallel-size",
    "--data-parallel-size",
    "--enable-expert-parallel",
    "--distributed-executor-backend",
    "--quantization",
    "--kv-cache-dtype",
    "--max-model-len",
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--gpu-memory-utilization",
    "--enforce-eager",
    "--async-scheduling",
    "--no-async-scheduling",
    "--block-size",
    "--no-enable-prefix-caching",
    "--disable-hybrid-kv-cache-manager",
    "--kv-cache-memory-bytes",
    "--kv-offloading-size",
    "--limit-mm-per-prompt",
    "--enable-lora",
    "--max-loras",
    "--max-lora-rank",
    "--fully-sharded-loras",
    "--speculative-config",
}
"""Of vllm/engine/arg_utils.py, release 0.32.0."""
ENGINE = EngineSettings(
    max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=4096, gpu_memory_utilization=0.92
)


@pytest.fixture(scope="module")
def llama() -> Model:
    return load_model("meta-llama/Llama-3.1-8B")


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def test_the_plain_line_says_what_was_decided_and_nothing_else(llama: Model) -> None:
    assert serve_command(llama, ENGINE, Layout()) == (
        "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 1 --max-model-len 4096 "
        "--max-num-seqs 256 --max-num-batched-tokens 8192 --gpu-memory-utilization 0.92"
    )


def test_every_flag_is_one_of_vllm(llama: Model) -> None:
    layout = Layout(
        weight_dtype=WeightDtype.FP8,
        kv_dtype=KvDtype.FP8,
        parallelism=Parallelism(tp=2, pp=2, dp=2, ep=True),
    )
    engine = ENGINE.model_copy(
        update={
            "long_prefill_token_threshold": 512,
            "enforce_eager": True,
            "async_scheduling": False,
            "block_size": 32,
            "enable_prefix_caching": False,
            "hybrid_kv_cache_manager": False,
            "multimodal": False,
            "kv_cache_memory_bytes": GIB_BYTES,
            "kv_offload_bytes": GIB_BYTES,
            "lora": LoraSlots(fully_sharded=True),
            "speculation": Speculation(draft=llama, num_speculative_tokens=2),
        }
    )
    sighted = llama.model_copy(update={"vision": load_model("google/gemma-3-4b-it").vision})
    found = words(serve_command(sighted, engine, layout, across_instances=True))
    flags = {word for word in found if word.startswith("--")}
    assert flags == VLLM_FLAGS - {"--async-scheduling"}
    assert found[found.index("--quantization") + 1] == "fp8"
    assert found[found.index("--kv-cache-dtype") + 1] == "fp8"
    assert found[found.index("--distributed-executor-backend") + 1] == "ray"


@pytest.mark.parametrize(("kv_dtype", "name"), [(KvDtype.BF16, "bfloat16"), (KvDtype.FP16, "float16")])
def test_kv_formats_have_vllm_names(llama: Model, kv_dtype: KvDtype, name: str) -> None:
    assert f"--kv-cache-dtype {name}" in serve_command(llama, ENGINE, Layout(kv_dtype=kv_dtype))


def test_asynchronous_scheduling_is_named_where_it_is_not_the_default(llama: Model) -> None:
    old = ENGINE.model_copy(update={"engine_version": "0.11.0"})
    assert words(serve_command(llama, old, Layout()))[-1] == "--async-scheduling"
    assert "async" not in serve_command(llama, ENGINE, Layout())


@pytest.mark.parametrize("dtype", [WeightDtype.AWQ, WeightDtype.INT4, WeightDtype.NVFP4, WeightDtype.INT8])
def test_formats_that_must_be_stored_are_told_beside_the_command(llama: Model, dtype: WeightDtype) -> None:
    command = serve_command(llama, ENGINE, Layout(weight_dtype=dtype))
    assert "#" not in command
    assert "--quantization" not in words(command)
    missing = missing_checkpoint(llama, dtype)
    assert missing is not None
    assert missing.startswith(f"needs a checkpoint of meta-llama/Llama-3.1-8B stored as {dtype}")


def test_a_quantised_checkpoint_needs_no_flag() -> None:
    gpt_oss = load_model("openai/gpt-oss-120b")
    assert missing_checkpoint(gpt_oss, WeightDtype.MXFP4) is None
    assert (
        missing_checkpoint(gpt_oss, WeightDtype.BF16)
        == "needs a checkpoint of openai/gpt-oss-120b stored as bf16"
    )
    command = serve_command(gpt_oss, ENGINE, Layout(weight_dtype=WeightDtype.MXFP4))
    assert "--quantization" not in command
    assert "#" not in command


def test_a_local_checkpoint_is_quoted_for_the_shell(llama: Model) -> None:
    local = llama.model_copy(update={"name": "my model", "source": "/data/my model; rm -rf x/config.json"})
    assert words(serve_command(local, ENGINE, Layout()))[2] == "/data/my model; rm -rf x"


def test_adapters(llama: Model) -> None:
    engine = ENGINE.model_copy(update={"lora": LoraSlots(max_loras=4, max_lora_rank=64)})
    assert serve_command(llama, engine, Layout()).endswith(" --enable-lora --max-loras 4 --max-lora-rank 64")


def test_a_draft_model_is_named_as_vllm_finds_it(llama: Model) -> None:
    draft = load_model("meta-llama/Llama-3.2-1B")
    engine = ENGINE.model_copy(update={"speculation": Speculation(draft=draft, num_speculative_tokens=5)})
    found = words(serve_command(llama, engine, Layout()))
    assert found[-2] == "--speculative-config"
    assert json.loads(found[-1]) == {
        "method": "draft_model",
        "model": "meta-llama/Llama-3.2-1B",
        "num_speculative_tokens": 5,
    }


def test_cache_sizes_are_in_the_units_of_their_flags(llama: Model) -> None:
    # --kv-cache-memory-bytes counts bytes a GPU, --kv-offloading-size GiB of all ranks.
    engine = ENGINE.model_copy(
        update={"kv_cache_memory_bytes": 5 * GIB_BYTES, "kv_offload_bytes": 129 * GIB_BYTES // 2}
    )
    assert serve_command(llama, engine, Layout()).endswith(
        " --kv-cache-memory-bytes 5368709120 --kv-offloading-size 64.5"
    )


def test_images_are_turned_off_only_where_the_model_takes_some(llama: Model) -> None:
    engine = ENGINE.model_copy(update={"multimodal": False})
    assert "--limit-mm-per-prompt" not in serve_command(llama, engine, Layout())
    found = words(serve_command(load_model("google/gemma-3-27b-it"), engine, Layout()))
    assert json.loads(found[found.index("--limit-mm-per-prompt") + 1]) == {"image": 0, "video": 0}
