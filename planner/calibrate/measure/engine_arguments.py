"""What vLLM is told: its environment and its engine arguments; imports no vllm."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.calibrate.measure.engine_failures import StartError
from planner.calibrate.measure.engine_protocol import FailureKind, Start
from planner.domain.calibration import Device
from planner.domain.dtypes import KvDtype, WeightDtype

CONNECTOR = "SyntheticContext"
CONNECTOR_MODULE = "planner.calibrate.measure.synthetic_context"
OPTIONAL_ARGUMENTS = frozenset({"language_model_only", "limit_mm_per_prompt"})
"""That an engine may not know."""
_DTYPE_NAMES = {WeightDtype.BF16: "bfloat16", WeightDtype.FP16: "float16"}
_KV_NAMES = {KvDtype.AUTO: "auto", KvDtype.BF16: "bfloat16", KvDtype.FP16: "float16", KvDtype.FP8: "fp8"}


def set_environment(start: Start) -> None:
    """Sets what vLLM reads from the environment; what the user set stays. To be called before vLLM is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if start.device == Device.CPU:
        defaults |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(start.cpu_cache_gib),
        }
    if start.threads:
        os.environ["OMP_NUM_THREADS"] = str(start.threads)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def arguments(start: Start) -> dict[str, Any]:
    """vLLM's engine arguments, by the names of its command line.

    Raises:
        StartError: there is no config, or its weights cannot run in the format asked for.
    """
    asked: dict[str, Any] = {
        "model": start.weights or start.config_dir,
        "load_format": "auto" if start.weights else "dummy",
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "tensor_parallel_size": start.tp,
        "max_model_len": start.max_model_len,
        "max_num_seqs": start.max_num_seqs,
        "max_num_batched_tokens": start.max_num_batched_tokens,
        "gpu_memory_utilization": start.gpu_memory_utilization,
        "enforce_eager": start.enforce_eager,
        "enable_prefix_caching": False,
        "async_scheduling": start.async_scheduling,
        "seed": start.seed,
        "kv_cache_dtype": _kv_name(start),
        **weight_arguments(start),
    }
    if start.tp > 1:
        asked["distributed_executor_backend"] = "mp"
    if start.made_up_context:
        asked["kv_transfer_config"] = {
            "kv_connector": CONNECTOR,
            "kv_role": "kv_both",
            "kv_connector_module_path": CONNECTOR_MODULE,
        }
    return asked | _text_only(Path(start.weights or start.config_dir))


def weight_arguments(start: Start) -> dict[str, Any]:
    """Of the engine, for the weights' format. Raises `StartError` where vLLM cannot make it of the checkpoint's."""
    stored, wanted = start.stored_dtype, start.weight_dtype
    if wanted == stored:
        return {"dtype": _DTYPE_NAMES[stored]} if stored in _DTYPE_NAMES else {}
    if stored in _DTYPE_NAMES and wanted in _DTYPE_NAMES:
        return {"dtype": _DTYPE_NAMES[wanted]}
    if stored in _DTYPE_NAMES and wanted == WeightDtype.FP8:
        return {"dtype": _DTYPE_NAMES[stored], "quantization": "fp8"}
    raise StartError(
        FailureKind.UNSUPPORTED,
        f"vLLM cannot make {wanted} weights of a checkpoint stored in {stored}: "
        f"name a config whose quantization_config says {wanted}",
    )


def _kv_name(start: Start) -> str:
    """What vLLM calls the KV format; the model's own is `auto`, which every release knows."""
    own = {WeightDtype.BF16: KvDtype.BF16, WeightDtype.FP16: KvDtype.FP16}.get(start.weight_dtype)
    return _KV_NAMES[KvDtype.AUTO if start.kv_dtype == own else start.kv_dtype]


def _text_only(folder: Path) -> dict[str, Any]:
    """Arguments that leave out towers for pictures and sound, which need files that a config alone has not.

    Releases since 0.17 have a flag of its own for that; of the two, those an engine does not know are left out.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(
            FailureKind.CONFIG, f"{folder}/config.json cannot be read: {error.strerror}"
        ) from error
    except ValueError as error:
        raise StartError(FailureKind.CONFIG, f"{folder}/config.json is not JSON: {error}") from error
    if not isinstance(config, Mapping) or not config.keys() & {"vision_config", "audio_config"}:
        return {}
    none = dict.fromkeys(("image", "video", "audio"), 0)
    return {"language_model_only": True, "limit_mm_per_prompt": none}
