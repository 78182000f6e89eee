"""The `vllm serve` line of a deployment; flag names are those of vllm/engine/arg_utils.py (0.11 to 0.33)."""

import json
import shlex
from pathlib import Path

from planner.domain.deployment import EngineSettings, Layout
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.model import Model
from planner.domain.units import bytes_to_gib
from planner.formulas.engine_defaults import DEFAULT_BLOCK_SIZE_TOKENS, engine_rules

KV_CACHE_DTYPE = {KvDtype.BF16: "bfloat16", KvDtype.FP16: "float16", KvDtype.FP8: "fp8"}
HALF = {WeightDtype.BF16: "bfloat16", WeightDtype.FP16: "half"}
UNQUANTISED = (None, WeightDtype.BF16, WeightDtype.FP16)


def served_reference(model: Model) -> str:
    """What `vllm serve` calls the model: its Hugging Face id, or the folder of a local checkpoint."""
    if "/" in model.name or not model.source:
        return model.name
    path = Path(model.source)
    return str(path.parent) if path.name == "config.json" else str(path)


def missing_checkpoint(checkpoint: Model, weight_dtype: WeightDtype | None) -> str | None:
    """What has to be found first where vLLM cannot quantise this checkpoint to `weight_dtype` when loading it.

    vLLM turns 16-bit weights into fp8 while loading (`--quantization fp8`); every other format has to be stored.
    """
    if checkpoint.quantization is not None:
        if weight_dtype is None or weight_dtype is checkpoint.quantization.dtype:
            return None
        return f"needs a checkpoint of {checkpoint.name} stored as {weight_dtype}"
    if weight_dtype in UNQUANTISED or weight_dtype is WeightDtype.FP8:
        return None
    return f"needs a checkpoint of {checkpoint.name} stored as {weight_dtype}: vLLM quantises to fp8 only"


def serve_command(
    checkpoint: Model, engine: EngineSettings, layout: Layout, *, across_instances: bool = False
) -> str:
    """One shell line that starts a replica of `checkpoint` under these settings.

    A replica across instances is started through Ray. Where the wanted weight format needs another checkpoint,
    `missing_checkpoint` says which.
    """
    parallelism = layout.parallelism
    words = ["vllm", "serve", served_reference(checkpoint)]
    words += ["--tensor-parallel-size", str(parallelism.tp)]
    if parallelism.pp > 1:
        words += ["--pipeline-parallel-size", str(parallelism.pp)]
    if parallelism.dp > 1:
        words += ["--data-parallel-size", str(parallelism.dp)]
    if parallelism.ep:
        words.append("--enable-expert-parallel")
    if across_instances:
        words += ["--distributed-executor-backend", "ray"]
    if checkpoint.quantization is None and layout.weight_dtype is WeightDtype.FP8:
        words += ["--quantization", "fp8"]
    if layout.weight_dtype in HALF and layout.weight_dtype is not checkpoint.activation_dtype:
        words += ["--dtype", HALF[layout.weight_dtype]]
    if layout.kv_dtype in KV_CACHE_DTYPE:
        words += ["--kv-cache-dtype", KV_CACHE_DTYPE[layout.kv_dtype]]
    words += ["--max-model-len", str(engine.max_model_len)]
    words += ["--max-num-seqs", str(engine.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(engine.max_num_batched_tokens)]
    words += ["--gpu-memory-utilization", f"{engine.gpu_memory_utilization:g}"]
    if engine.long_prefill_token_threshold:
        words += ["--long-prefill-token-threshold", str(engine.long_prefill_token_threshold)]
    if engine.enforce_eager:
        words.append("--enforce-eager")
    if engine.async_scheduling != engine_rules(engine.engine_version).async_scheduling:
        words.append("--async-scheduling" if engine.async_scheduling else "--no-async-scheduling")
    words += _cache_flags(engine)
    if checkpoint.vision is not None and not engine.multimodal:
        words += ["--limit-mm-per-prompt", json.dumps({"image": 0, "video": 0})]
    words += _lora_flags(engine)
    words += _speculation_flags(engine)
    return shlex.join(words)


def _cache_flags(engine: EngineSettings) -> list[str]:
    words: list[str] = []
    if engine.block_size != DEFAULT_BLOCK_SIZE_TOKENS:
        words += ["--block-size", str(engine.block_size)]
    if not engine.enable_prefix_caching:
        words.append("--no-enable-prefix-caching")
    if not engine.hybrid_kv_cache_manager:
        words.append("--disable-hybrid-kv-cache-manager")
    if engine.kv_cache_memory_bytes is not None:
        words += ["--kv-cache-memory-bytes", str(engine.kv_cache_memory_bytes)]
    if engine.kv_offload_bytes:
        words += ["--kv-offloading-size", f"{bytes_to_gib(engine.kv_offload_bytes):.6g}"]
    return words


def _lora_flags(engine: EngineSettings) -> list[str]:
    lora = engine.lora
    if lora is None:
        return []
    words = ["--enable-lora", "--max-loras", str(lora.max_loras), "--max-lora-rank", str(lora.max_lora_rank)]
    return [*words, "--fully-sharded-loras"] if lora.fully_sharded else words


def _speculation_flags(engine: EngineSettings) -> list[str]:
    speculation = engine.speculation
    if speculation is None:
        return []
    config = {
        "method": "draft_model",
        "model": served_reference(speculation.draft),
        "num_speculative_tokens": speculation.num_speculative_tokens,
    }
    return ["--speculative-config", json.dumps(config)]
