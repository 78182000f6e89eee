"""Regenerates vllm_encoder_peaks.csv: what the forward pass of vLLM's encoders holds at once, on the meta device.

The classes of vLLM run as they are, on the largest dummy items of an 8192-token budget, and every tensor they
make is followed until it is freed. Three kinds of call are replaced by their results alone, as the CUDA kernels
leave them: attention, rotary positions where vLLM has a kernel for them, and fused activations. Needs what
record_vllm_vision.py needs; about 15 s a row:

    python tests/formulas/record_vllm_encoder.py > tests/formulas/vllm_encoder_peaks.csv
"""

import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record_vllm_vision import HERE, MODELS, prepare

CASES = (
    ("Qwen/Qwen3-VL-30B-A3B-Instruct", 1),
    ("Qwen/Qwen3-VL-30B-A3B-Instruct", 4),
    ("Qwen/Qwen3.5-35B-A3B", 1),
    ("google/gemma-3-4b-it", 1),
    ("google/gemma-3-4b-it", 4),
    ("google/gemma-4-26B-A4B", 1),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 1),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 8),
    ("nvidia/Kimi-K2.5-NVFP4", 1),
    ("small:mistral3", 1),
    ("small:qwen2_5_vl", 1),
    ("small:qwen2_vl", 1),
)
SOURCE = "vLLM {version} encoder on the meta device, tensors followed"


def config_of(name: str) -> dict[str, Any]:
    """The config of a bundled or a small model, without its quantisation."""
    if name.startswith("small:"):
        configs = json.loads((HERE / "small_vision_configs.json").read_text(encoding="utf-8"))
        config: dict[str, Any] = configs[name.removeprefix("small:")]
    else:
        config = json.loads((MODELS / f"{name.replace('/', '--')}.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {})):
        part.pop("quantization_config", None)
    config.pop("auto_map", None)
    return config


def forward_pass(name: str, model: Any, empty: Callable[..., Any]) -> Any:
    """The encoder's output on the items an 8192-token budget takes."""
    import torch

    def grid(*sizes: int) -> Any:
        return torch.tensor([sizes], device="cpu")

    if "Qwen3" in name or "qwen2" in name:
        width = 1536 if "Qwen3" in name else 1176
        return model.visual(empty(65536, width), grid_thw=[[1, 256, 256]])
    if "gemma-3" in name:
        return model.multi_modal_projector(model.vision_tower(empty(32, 3, 896, 896)))
    if "gemma-4" in name:
        places = torch.empty(96, 630, 2, dtype=torch.long, device="meta")
        padding = torch.empty(96, 630, dtype=torch.bool, device="meta")
        pixels = empty(96, 630, 768)
        embedded = model.vision_tower.patch_embedder(pixels, places, padding)
        return model.vision_tower.encoder(
            inputs_embeds=embedded.to(torch.bfloat16), attention_mask=None, pixel_position_ids=places
        )
    if "Llama-4" in name:
        return model.multi_modal_projector(model.vision_model(empty(51, 3, 336, 336)).flatten(0, 1))
    if "Kimi" in name:
        features = model.vision_tower(empty(16900, 3, 14, 14), grid(1, 130, 130))
        return model.mm_projector(torch.cat(list(features)))
    images = empty(2, 3, 1540, 1540)
    features = model.vision_tower([images[0], images[1]])
    return [model.multi_modal_projector(one, grid(1540, 1540)) for one in features]


def keep_results_only() -> None:
    """Attention, rotary positions and fused activations allocate their result and nothing else."""
    import torch
    from vllm.distributed import get_tensor_model_parallel_world_size
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.activation import QuickGELU, SiluAndMul
    from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention
    from vllm.model_executor.layers.rotary_embedding.common import ApplyRotaryEmb

    def same(_layer: Any, x: Any, *_args: Any, **_kwargs: Any) -> Any:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)

    def attention(_layer: Any, query: Any, key: Any, value: Any, **_kwargs: Any) -> Any:
        return same(_layer, query)

    def halved(_layer: Any, x: Any) -> Any:
        return torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype, device=x.device)

    def gathered(x: Any) -> Any:
        ranks = get_tensor_model_parallel_world_size()
        return torch.empty(*x.shape[:-1], x.shape[-1] * ranks, dtype=x.dtype, device=x.device)

    MMEncoderAttention.forward_cpu = MMEncoderAttention.forward_native = attention
    ApplyRotaryEmb.forward_cpu = ApplyRotaryEmb.forward_native = same
    QuickGELU.forward_cpu = QuickGELU.forward_native = same
    SiluAndMul.forward_cpu = SiluAndMul.forward_native = halved
    linear.tensor_model_parallel_all_reduce = torch.empty_like
    linear.tensor_model_parallel_all_gather = gathered


def build(config: dict[str, Any], tp: int) -> tuple[Any, Any]:
    """vLLM's settings and the model of one rank."""
    import torch
    import vllm.distributed.parallel_state as parallel
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.model_loader.utils import initialize_model

    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arguments = EngineArgs(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=512,
        enforce_eager=True,
    )
    settings = arguments.create_engine_config()
    with set_current_vllm_config(settings):
        parallel.init_distributed_environment(1, 0, f"file://{tempfile.mktemp()}", 0, "gloo")
        parallel.initialize_model_parallel(1, 1)
        group = parallel.get_tp_group()
        group.world_size, group.rank_in_group = tp, 0
        settings.parallel_config.tensor_parallel_size = tp
        torch.set_default_dtype(settings.model_config.dtype)
        with torch.device("meta"):
            model = initialize_model(vllm_config=settings)
        torch.set_default_dtype(torch.float32)
    for module in model.modules():
        if isinstance(module, LinearBase):
            module.cpu_linear = torch.nn.functional.linear
    return settings, model


def record(name: str, tp: int) -> None:
    """Prints the most bytes alive at once during the encoder's forward pass on one rank."""
    import torch
    import vllm
    from torch.utils._python_dispatch import TorchDispatchMode
    from vllm.config import set_current_vllm_config

    prepare()
    keep_results_only()
    settings, model = build(config_of(name), tp)
    alive: dict[int, int] = {}
    peak = 0

    class Follow(TorchDispatchMode):
        """Adds what each call allocates and subtracts it when the last tensor on it is gone."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                    storage = tensor.untyped_storage()
                    key = storage._cdata
                    if key not in alive:
                        alive[key] = storage.nbytes()
                        weakref.finalize(storage, alive.pop, key, None)
            peak = max(peak, sum(alive.values()))
            return result

    for tensor in [*model.parameters(), *model.buffers()]:
        alive[tensor.untyped_storage()._cdata] = 0
    with Follow(), set_current_vllm_config(settings), torch.inference_mode():
        forward_pass(name, model, lambda *shape: torch.empty(*shape, dtype=torch.bfloat16, device="meta"))
    print(f'{name},{tp},{peak},"{SOURCE.format(version=vllm.__version__)}"', flush=True)


def main() -> None:
    """Prints the table, each row from a process of its own."""
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_STREAM="ext://sys.stderr")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if len(sys.argv) == 3:
        record(sys.argv[1], int(sys.argv[2]))
        return
    print("model,tp,peak_bytes,source", flush=True)
    for name, tp in CASES:
        subprocess.run([sys.executable, __file__, name, str(tp)], check=True)


if __name__ == "__main__":
    main()
