"""Builds vLLM's own model classes on the meta device: a rank's parameters and cache specs, without memory or weights.

Runs with the interpreter that has vLLM, not with ours: reads one `Case` as JSON a line from standard input and
writes one answer as JSON a line to standard output (a fraction of a second each; the first
of a class some ten). `live.py` is its other side.
"""

import contextlib
import copy
import inspect
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
PARTS = (
    ("experts", re.compile(r"\.experts\.(?!.*shared_expert)")),
    ("embedding", re.compile(r"(^|\.)(embed_tokens|embed_positions|(word_)?embeddings?|wte|wpe|embed_in)\.")),
    ("head", re.compile(r"(^|\.)(lm_head|embed_out)\.")),
    ("final_norm", re.compile(r"^(?!.*\.(layers|h)\.\d+\.).*(norm|ln_f)")),
)


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to: `experts`, `embedding`, `head`, `final_norm` or `layers`."""
    return next((part for part, pattern in PARTS if pattern.search(name)), "layers")


class Oracle:
    """vLLM with its parallel groups faked: one process stands for any rank of any layout."""

    def __init__(self) -> None:
        _allow_every_kernel()
        self._folder = tempfile.TemporaryDirectory()
        self._engine_configs: dict[str, Any] = {}

    def answer(self, case: dict[str, Any]) -> dict[str, Any]:
        """Parameter bytes by dtype and part, and the cache specs with how many layers have each."""
        engine_config = copy.deepcopy(self._engine_config(case["config"], case["hf_quant"]))
        model = self._build(engine_config, case)
        by_dtype: Counter[str] = Counter()
        by_part: Counter[str] = Counter()
        for name, parameter in model.named_parameters():
            size_bytes = parameter.numel() * parameter.element_size()
            by_dtype[str(parameter.dtype).removeprefix("torch.")] += size_bytes
            by_part[part_of(name)] += size_bytes
        answer = {
            "parameter_bytes": sum(by_dtype.values()),
            "bytes_by_dtype": dict(sorted(by_dtype.items())),
            "bytes_by_part": dict(sorted(by_part.items())),
            "kv_specs": list(_kv_specs(engine_config)),
        }
        if case["names"]:
            answer["names"] = [
                (name, list(p.shape), str(p.dtype).removeprefix("torch."))
                for name, p in model.named_parameters()
            ]
        return answer

    def _engine_config(self, config: dict[str, Any], hf_quant: dict[str, Any] | None) -> Any:
        from vllm.engine.arg_utils import EngineArgs

        key = json.dumps([config, hf_quant], sort_keys=True)
        if key not in self._engine_configs:
            folder = Path(tempfile.mkdtemp(dir=self._folder.name))
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            if hf_quant is not None:
                (folder / "hf_quant_config.json").write_text(json.dumps(hf_quant), encoding="utf-8")
            arguments = EngineArgs(
                model=str(folder),
                load_format="dummy",
                skip_tokenizer_init=True,
                max_model_len=2048,
                enforce_eager=True,
            )
            engine_config = arguments.create_engine_config()
            _as_objects(engine_config.model_config.hf_config)
            self._engine_configs[key] = engine_config
        return self._engine_configs[key]

    def _build(self, engine_config: Any, case: dict[str, Any]) -> Any:
        import torch
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.utils import initialize_model

        with set_current_vllm_config(engine_config):
            _fake_groups(engine_config, case)
            with _default_dtype(engine_config.model_config.dtype), torch.device("meta"):
                return initialize_model(vllm_config=engine_config)


def _as_objects(hf_config: Any) -> None:
    """Per-layer blocks as the objects that the checkpoint's own config class would make of them."""
    if hasattr(hf_config, "block_configs"):
        text = json.dumps(hf_config.block_configs)
        hf_config.block_configs = json.loads(text, object_hook=lambda fields: SimpleNamespace(**fields))


def _allow_every_kernel() -> None:
    """Lets formats be built that the CPU build has no kernels for: nothing is computed here."""
    import torch
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.layers.attention import mla_attention
    from vllm.model_executor.layers.fused_moe import config as moe_config
    from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
    from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEExperts
    from vllm.model_executor.layers.fused_moe.router import gate_linear
    from vllm.model_executor.layers.quantization.utils.quant_utils import kMxfp4Static
    from vllm.platforms import current_platform

    torch.cpu._is_amx_tile_supported = lambda: True
    # Or recurrent states would be fp32 on CPUs that have it.
    torch.cpu._is_avx512_bf16_supported = lambda: False
    # Only logged, and not to be had from a tensor without values.
    ExpertMapManager.get_compressed_map_string = lambda self: ""
    supports = FusedMoEExperts.is_supported_config

    def supports_but_mxfp4(kernel: Any, config: Any, weight_key: Any, *rest: Any) -> tuple[bool, str | None]:
        # Kernels for mxfp4 pad the weights while they are made, each its own way.
        return supports(kernel, config, weight_key, *rest) if weight_key == kMxfp4Static else (True, None)

    FusedMoEExperts.is_supported_config = staticmethod(supports_but_mxfp4)
    moe_config.current_platform = gate_linear.current_platform = _Hopper(current_platform)
    choose = type(current_platform).get_attn_backend_cls

    def choose_dense(cls: type, backend: Any, attn_selector_config: Any, num_heads: int | None = None) -> Any:
        return choose(backend, attn_selector_config._replace(use_sparse=False), num_heads)

    type(current_platform).get_attn_backend_cls = classmethod(choose_dense)
    build = mla_attention.MLACommonImpl.__init__
    known = set(inspect.signature(build).parameters)

    def build_dense(self: Any, *given: Any, **named: Any) -> None:
        build(self, *given, **{name: value for name, value in named.items() if name in known})

    mla_attention.MLACommonImpl.__init__ = build_dense
    linear._POSSIBLE_NVFP4_KERNELS[current_platform._enum] = [linear.EmulationNvFp4LinearKernel]


class _Hopper:
    """A platform that claims to be an H100 where experts and routers ask, and is itself otherwise."""

    def __init__(self, platform: Any) -> None:
        self._platform = platform

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)

    def is_cuda(self) -> bool:
        return True

    is_cuda_alike = is_cuda

    def is_device_capability(self, capability: tuple[int, int]) -> bool:
        return capability == (9, 0)


def _fake_groups(engine_config: Any, case: dict[str, Any]) -> None:
    """This process as rank (`pp_rank`, 0) of `pp` stages of `tp` ranks."""
    import torch
    import vllm.distributed.parallel_state as state

    if not torch.distributed.is_initialized():
        store = Path(tempfile.mkdtemp()) / "store"
        state.init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
    state.destroy_model_parallel()
    state.initialize_model_parallel(1, 1)
    tensor, pipeline = state.get_tp_group(), state.get_pp_group()
    tensor.world_size, tensor.rank_in_group = case["tp"], 0
    pipeline.world_size, pipeline.rank_in_group = case["pp"], case["pp_rank"]
    pipeline.ranks, pipeline.rank = list(range(case["pp"])), case["pp_rank"]
    parallel = engine_config.parallel_config
    parallel.tensor_parallel_size, parallel.pipeline_parallel_size = case["tp"], case["pp"]
    parallel.enable_expert_parallel = case["ep"]
    if case["ep"]:
        experts = state.get_ep_group()
        experts.world_size, experts.rank_in_group = case["tp"], 0


@contextlib.contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    import torch

    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _kv_specs(engine_config: Any) -> Iterator[dict[str, Any]]:
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    counted: Counter[tuple[str, int, int, int | None]] = Counter()
    for layer in engine_config.compilation_config.static_forward_context.values():
        if isinstance(layer, AttentionLayerBase):
            spec = layer.get_kv_cache_spec(engine_config)
            if spec is not None:
                window = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
                counted[type(spec).__name__, spec.block_size, spec.page_size_bytes, window] += 1
    for (kind, block_size, page_bytes, window), layers in counted.items():
        yield {
            "kind": kind,
            "block_size": block_size,
            "page_bytes": page_bytes,
            "window_tokens": window,
            "layers": layers,
        }


def main() -> None:
    """Answers every case of standard input; a case that vLLM refuses is answered with its `error`."""
    os.environ.update(ENVIRONMENT)
    oracle = Oracle()
    for line in sys.stdin:
        try:
            answer = oracle.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:400]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
