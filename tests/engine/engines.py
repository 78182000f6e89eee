"""Small engines that vLLM starts on the CPU, and what the planner says of their KV cache."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.catalog.model_config import parse_model
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.units import GIB_BYTES
from planner.formulas.kv_cache import kv_layout
from planner.formulas.kv_paging import KvPaging
from tests.engine.live import HERE, run_in_engine

BLOCKS_CSV = Path(HERE).parent / "formulas" / "vllm_blocks.csv"
CPU_BLOCK_TOKENS = 128
AVAILABLE_BYTES = GIB_BYTES
"""VLLM_CPU_KVCACHE_SPACE of oracle.ENVIRONMENT."""
VERSION = "0.32.0"


@lru_cache(maxsize=1)
def engines() -> dict[str, dict[str, Any]]:
    """Configs and settings by name."""
    found: dict[str, dict[str, Any]] = json.loads((HERE / "small_engines.json").read_text(encoding="utf-8"))
    return found


def start(name: str) -> dict[str, Any]:
    """What vLLM says of its KV cache once the engine runs."""
    answer: dict[str, Any] = json.loads(run_in_engine("real_engine.py", json.dumps(engines()[name])))
    return answer


def planned(name: str) -> dict[str, Any]:
    """The same figures by the planner; the CPU has pages of 128 tokens and runs one step at a time."""
    config, settings = engines()[name]["config"], engines()[name]["settings"]
    paging = KvPaging(
        engine_version=VERSION,
        async_scheduling=False,
        block_size=CPU_BLOCK_TOKENS,
        state_step_tokens=CPU_BLOCK_TOKENS,
        hybrid_kv_cache_manager=not settings.get("disable_hybrid_kv_cache_manager", False),
        **engines()[name].get("paging", {}),
    )
    kv_dtype = KvDtype(settings.get("kv_cache_dtype", "auto"))
    layout = kv_layout(parse_model(config, name=name), Parallelism(), kv_dtype, paging)
    longest, batched = settings["max_model_len"], settings["max_num_batched_tokens"]
    return {
        "num_gpu_blocks": layout.blocks(AVAILABLE_BYTES),
        "kv_cache_size_tokens": layout.tokens(AVAILABLE_BYTES, longest, batched),
        "kv_cache_max_concurrency": layout.max_concurrency(AVAILABLE_BYTES, longest, batched),
        "group_layers": sorted(group.layers for group in layout.groups),
        "max_in_flight_tokens": layout.batches_in_flight * batched,
    }
