"""What host memory holds of the KV cache (--kv-offloading-size, vLLM's native backend).

Blocks are copied to pinned host memory when they are full; the card gives nothing up for it but copy streams.
Sources: vllm/v1/kv_offload/cpu/spec.py, vllm/distributed/kv_transfer/kv_connector/v1/offloading/config.py and
vllm/config/vllm.py (_post_init_kv_transfer_config) of 0.14 to 0.32.
"""

from math import ceil
from typing import NamedTuple

from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.model import LatentAttention, Model
from planner.formulas.engine_defaults import EngineVersion, parse_version
from planner.formulas.kv_cache import KvLayout

OFFLOADING_SINCE = EngineVersion(0, 14, 0)
"""0.12 and 0.13 have the flag, but their native backend asks for a number of blocks and does not start."""
PAGE_ALIGNED_SINCE = EngineVersion(0, 27, 0)
ONE_COPY_SINCE = EngineVersion(0, 28, 0)
HOST_PAGE_BYTES = 4096


class HostCache(NamedTuple):
    """Blocks kept in host memory, all ranks of one replica together."""

    blocks: int
    block_bytes: int
    """Of one block on all ranks, padding included [bytes]."""
    tokens: int
    """Counted as vLLM counts the tokens of a card's cache."""
    bytes_per_rank: int
    """Host memory that one rank's share of the blocks takes [bytes]."""


def offloading_problem(engine_version: str = "") -> str | None:
    """Why this release cannot offload by --kv-offloading-size, None where it can.

    Raises `InputError` where `engine_version` is not a vLLM version.
    """
    version = parse_version(engine_version)
    if version >= OFFLOADING_SINCE:
        return None
    return f"vLLM {version} does not offload KV blocks by a size; it works since {OFFLOADING_SINCE}"


def host_cache(model: Model, layout: KvLayout, parallelism: Parallelism, engine: EngineSettings) -> HostCache:
    """What `engine.kv_offload_bytes` of host memory holds for one engine of `tp x pp` ranks.

    Data-parallel engines take as much again each. Raises `InputError` where the engine version is not one of vLLM.
    """
    version = parse_version(engine.engine_version)
    copies = 1 if _keeps_one_copy(model, parallelism, version) else parallelism.tp * parallelism.pp
    block_bytes = layout.block_bytes * copies
    if version >= PAGE_ALIGNED_SINCE:
        block_bytes = ceil(block_bytes / HOST_PAGE_BYTES) * HOST_PAGE_BYTES
    blocks = engine.kv_offload_bytes // block_bytes
    tokens = layout.tokens(blocks * layout.block_bytes, engine.max_model_len, engine.max_num_batched_tokens)
    return HostCache(blocks, block_bytes, tokens, blocks * block_bytes // copies)


def _keeps_one_copy(model: Model, parallelism: Parallelism, version: EngineVersion) -> bool:
    """Latent caches are the same on every tensor-parallel rank, so newer releases store them once."""
    latent = all(isinstance(kind.attention, LatentAttention) for kind in model.layer_kinds)
    return latent and version >= ONE_COPY_SINCE and parallelism.tp > 1 and parallelism.pp == 1
