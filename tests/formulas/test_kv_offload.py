"""What host memory holds of the KV cache: by hand, and by version."""

import pytest

from planner.catalog.models import load_model
from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.units import GIB_BYTES
from planner.formulas.kv_cache import KvLayout, kv_layout
from planner.formulas.kv_offload import host_cache, offloading_problem

LLAMA = "meta-llama/Llama-3.1-8B"
DEEPSEEK = "deepseek-ai/DeepSeek-V2-Lite"


def engine(version: str = "0.32.0", gib: int = 64) -> EngineSettings:
    return EngineSettings(
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        max_model_len=8192,
        gpu_memory_utilization=0.9,
        engine_version=version,
        kv_offload_bytes=gib * GIB_BYTES,
    )


def layout_of(name: str, parallelism: Parallelism) -> KvLayout:
    return kv_layout(load_model(name), parallelism)


def test_dense_by_hand() -> None:
    # Llama 3.1 8B at TP 4: on each rank 32 layers x 16 tokens x 2 x 2 heads x 128 x 2 bytes = 524,288 bytes a block;
    # four ranks keep 2 MiB, so 64 GiB hold 32,768 blocks of 16 tokens.
    parallelism = Parallelism(tp=4)
    held = host_cache(load_model(LLAMA), layout_of(LLAMA, parallelism), parallelism, engine())
    assert held.block_bytes == 4 * 32 * 16 * 2 * 2 * 128 * 2
    assert held.blocks == 32_768
    assert held.tokens == 32_768 * 16
    assert held.bytes_per_rank == 16 * GIB_BYTES


def test_stages_share_the_host_memory() -> None:
    parallelism = Parallelism(tp=2, pp=2)
    held = host_cache(load_model(LLAMA), layout_of(LLAMA, parallelism), parallelism, engine())
    assert held.block_bytes == 2 * 2 * (16 * 16 * 2 * 4 * 128 * 2)
    assert held.bytes_per_rank == 16 * GIB_BYTES


def test_latent_caches_are_kept_once_since_0_28() -> None:
    # DeepSeek V2 Lite: 27 layers x 16 tokens x 576 x 2 bytes on every rank, padded to whole 4 KiB pages: 122.
    parallelism = Parallelism(tp=4)
    model, layout = load_model(DEEPSEEK), layout_of(DEEPSEEK, parallelism)
    assert layout.block_bytes == 27 * 16 * 576 * 2
    assert host_cache(model, layout, parallelism, engine("0.26.0")).block_bytes == 4 * layout.block_bytes
    assert host_cache(model, layout, parallelism, engine("0.28.0")).block_bytes == 122 * 4096
    stages = Parallelism(tp=4, pp=2)
    held = host_cache(model, layout_of(DEEPSEEK, stages), stages, engine("0.28.0"))
    assert held.block_bytes == 8 * layout_of(DEEPSEEK, stages).block_bytes


def test_less_than_a_block_holds_nothing() -> None:
    settings = engine().model_copy(update={"kv_offload_bytes": 4096})
    held = host_cache(load_model(LLAMA), layout_of(LLAMA, Parallelism()), Parallelism(), settings)
    assert held.blocks == held.tokens == held.bytes_per_rank == 0


@pytest.mark.parametrize(
    ("version", "works"), [("0.11.0", False), ("0.13.0", False), ("0.14.1", True), ("", True)]
)
def test_releases_that_offload(version: str, works: bool) -> None:
    problem = offloading_problem(version)
    assert (problem is None) is works
    assert works or "since 0.14.0" in str(problem)
