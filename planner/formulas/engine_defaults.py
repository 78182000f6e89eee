"""What `vllm serve` does where no flag says otherwise, by GPU memory and engine version.

Every rule was read in the source of the releases 0.11.0 to 0.33.0 (0.15 apart, which follows 0.14);
`engine_rules_text.py` says them in words.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from planner.domain.base import Frozen, InputError
from planner.domain.hardware import Gpu
from planner.domain.units import GIB_BYTES

NEWEST_TESTED_VERSION = "0.33.0"
VERSION = re.compile(r"[vV]?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:(?:\.?[a-zA-Z]|[-+]).*)?")
"""A release number and whatever marks a build: `0.26.0rc1`, `0.11.1.dev7+gabc`, `v0.11`."""
DEFAULT_BLOCK_SIZE_TOKENS = 16
LARGE_MEMORY_BYTES = 70 * GIB_BYTES
VERY_LARGE_MEMORY_BYTES = 160 * GIB_BYTES
CAPTURE_CEILING_TOKENS = 512
WIDE_CAPTURE_CEILING_TOKENS = 1024
OLD_WIDE_CAPTURE_CEILING_TOKENS = 992
"""Before 0.12, as far as FlashAttention 3 went."""
WIDE_CAPTURE_ARCHITECTURES = ("GptOssForCausalLM",)
"""vllm/model_executor/models/config.py captures twice as far for these, whatever `max_num_seqs` is, and took every
16th size for them before others did."""
GB10_CAPABILITY = "12.1"
"""DGX Spark: the memory of a large card without its arithmetic."""


class EngineVersion(NamedTuple):
    """A vLLM release; compares in release order."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    def since(self, minor: int) -> bool:
        """True from release 0.`minor`.0 on."""
        return self >= (0, minor, 0)


OLDEST_VERSION = EngineVersion(0, 8, 0)
"""The first with the V1 engine as the default."""
OLDEST_READ_VERSION = EngineVersion(0, 11, 0)
"""Older releases are given the rules of this one."""


class EngineRules(NamedTuple):
    """The rules of one release that change memory or its report."""

    version: EngineVersion
    gpu_memory_utilization: float
    async_scheduling: bool
    chunked_local_hybrid: bool
    """Chunked-local layers keep only their chunk; before, they were cached like full attention."""
    group_ratio: float
    """KV groups take the larger of two layer counts as their size where the two are within this ratio."""
    reserves_in_flight_batches: bool
    """A windowed layer reserves room for every batch in flight, not for one."""
    sparse_mla_caches_fp8: bool
    """`auto` meant an fp8 cache for DeepSeek V3.2."""
    mamba_prefix_caching: bool
    """Prefix caching is on by default for hybrids, so a request holds two states instead of one. Releases 0.26 and
    0.27 could do it, but get_batch_defaults' caller left it off for hybrids."""
    mamba_checkpoints: bool
    """With it, a Mamba-2 layer sets a third block aside for the state that a prefill leaves behind."""
    linear_checkpoints: bool
    """So does a gated delta net where FlashInfer runs its prefill, and its blocks are multiples of 64 tokens."""
    reserves_null_block: bool
    """The engine starts only where a request fits beside the null block."""
    backend_block_size: bool
    """The attention backend that was chosen names the block size; before, the platform guessed the backend."""
    offloads_hybrids: bool
    """KV offloading works beside the hybrid KV cache manager; before, that had to be disabled."""
    logs_concurrency_tokens: bool
    """Logged tokens are concurrency x max_model_len; before, blocks per group x block size."""
    refines_expert_blocks: bool
    """Experts stored in fp8 blocks may be cut within a block."""
    very_large_gpu_row: bool
    """GPUs from 160 GiB batch 16384 tokens, and sm100 captures graphs up to 1024."""
    small_gb10_row: bool
    """GB10 batches like a small card."""
    captures_batched_tokens: bool
    """A `max_num_batched_tokens` within the ceiling is captured itself, off the grid."""
    captures_max_num_seqs: bool
    """So is `max_num_seqs`."""
    shared_experts_stream: bool
    """Shared experts of few tokens are computed beside the routed ones."""
    marlin_mxfp4_on_hopper: bool
    """For time alone: the published runs of mxfp4 experts on Hopper (0.11 to 0.18) went through Marlin, which they
    probably asked for. By itself vLLM has taken OpenAI's Triton kernels there since 0.11.1 (`mxfp4_layout`), and
    the kernel tables (0.24) are of those."""
    coarse_capture_grid: bool
    """Above 256 every 16th size is captured; before, every 8th."""


class CaptureLimit(NamedTuple):
    """How far CUDA graphs are captured."""

    ceiling_tokens: int
    follows_max_num_seqs: bool = True
    """Nothing beyond twice `max_num_seqs` is captured."""


DEFAULT_CAPTURE_LIMIT = CaptureLimit(CAPTURE_CEILING_TOKENS)


class ServerDefaults(Frozen):
    """The flags `vllm serve` chooses by itself."""

    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    block_size: int
    async_scheduling: bool


def parse_version(engine_version: str) -> EngineVersion:
    """The release a version string names; empty means the newest tested.

    >>> str(parse_version("v0.11")), str(parse_version("0.26.0rc1")), str(parse_version(""))
    ('0.11.0', '0.26.0', '0.33.0')

    Raises:
        InputError: not a version, or older than the V1 engine this planner models.
    """
    match = VERSION.fullmatch(engine_version.strip() or NEWEST_TESTED_VERSION)
    if match is None:
        raise InputError(
            f"engine_version {engine_version[:40]!r} is not a vLLM version such as {NEWEST_TESTED_VERSION}"
        )
    version = EngineVersion(int(match[1]), int(match[2]), int(match[3] or 0))
    if version < OLDEST_VERSION:
        raise InputError(
            f"engine_version {engine_version[:40]!r} is older than vLLM {OLDEST_VERSION}, the first modelled"
        )
    return version


@lru_cache(maxsize=256)
def engine_rules(engine_version: str = "") -> EngineRules:
    """The rules of a release; a newer one than was tested follows the newest tested.

    Sources: vllm/config/{cache,model,scheduler,vllm}.py, vllm/envs.py, vllm/engine/arg_utils.py,
    vllm/platforms/interface.py, vllm/v1/core/kv_cache_utils.py (kv_cache_planning.py in 0.33) and
    vllm/v1/kv_cache_interface.py of each release.

    >>> engine_rules("0.19.1").gpu_memory_utilization, engine_rules("0.20.0").gpu_memory_utilization
    (0.9, 0.92)
    """
    version = parse_version(engine_version)
    since = version.since
    return EngineRules(
        version=version,
        gpu_memory_utilization=0.92 if since(20) else 0.9,
        async_scheduling=since(14),
        chunked_local_hybrid=since(14),
        group_ratio=1.5 if since(18) else 1.25 if since(12) else 1.0,
        reserves_in_flight_batches=since(26),
        sparse_mla_caches_fp8=not since(18),
        mamba_prefix_caching=since(28),
        mamba_checkpoints=since(32),
        linear_checkpoints=since(33),
        reserves_null_block=since(29),
        backend_block_size=since(18),
        offloads_hybrids=since(21),
        logs_concurrency_tokens=since(21),
        refines_expert_blocks=since(30),
        very_large_gpu_row=since(28),
        small_gb10_row=since(33),
        captures_batched_tokens=since(21),
        captures_max_num_seqs=since(31),
        shared_experts_stream=since(12),
        marlin_mxfp4_on_hopper=not since(19),
        coarse_capture_grid=since(12),
    )


def server_defaults(gpu: Gpu, engine_version: str = "") -> ServerDefaults:
    """Flags chosen by the OpenAI server on this GPU (vllm/engine/arg_utils.py, get_batch_defaults).

    From 70 GiB of reported memory (A100 excepted, since 0.33 GB10 too) 8192 tokens and 1024 sequences a step,
    from 160 GiB 16384 tokens since 0.28, else 2048 and 256.
    """
    rules = engine_rules(engine_version)
    weak = "a100" in gpu.name.lower() or (rules.small_gb10_row and gpu.compute_capability == GB10_CAPABILITY)
    if rules.very_large_gpu_row and gpu.memory_bytes >= VERY_LARGE_MEMORY_BYTES:
        tokens, seqs = 16384, 1024
    elif gpu.memory_bytes >= LARGE_MEMORY_BYTES and not weak:
        tokens, seqs = 8192, 1024
    else:
        tokens, seqs = 2048, 256
    return ServerDefaults(
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        gpu_memory_utilization=rules.gpu_memory_utilization,
        block_size=DEFAULT_BLOCK_SIZE_TOKENS,
        async_scheduling=rules.async_scheduling,
    )


def capture_limit(gpu: Gpu, architecture: str = "", engine_version: str = "") -> CaptureLimit:
    """How far CUDA graphs are captured for a model on a GPU."""
    if architecture in WIDE_CAPTURE_ARCHITECTURES:
        newer = engine_rules(engine_version).coarse_capture_grid
        ceiling_tokens = WIDE_CAPTURE_CEILING_TOKENS if newer else OLD_WIDE_CAPTURE_CEILING_TOKENS
        return CaptureLimit(ceiling_tokens, follows_max_num_seqs=False)
    if gpu.is_datacenter_blackwell and engine_rules(engine_version).very_large_gpu_row:
        return CaptureLimit(WIDE_CAPTURE_CEILING_TOKENS)
    return DEFAULT_CAPTURE_LIMIT


@lru_cache(maxsize=4096)
def capture_sizes(
    max_num_seqs: int,
    max_num_batched_tokens: int,
    *,
    limit: CaptureLimit = DEFAULT_CAPTURE_LIMIT,
    engine_version: str = "",
) -> tuple[int, ...]:
    """Step sizes captured as CUDA graphs, ascending [tokens]; a smaller step is padded up to the next one.

    1, 2, 4, then every 8 below 256, then every 16, up to twice `max_num_seqs`, the limit and
    `max_num_batched_tokens` (vllm/config/vllm.py, _set_cudagraph_sizes).

    >>> len(capture_sizes(1024, 8192)), capture_sizes(5, 2048)
    (51, (1, 2, 4, 5, 8))
    """
    rules = engine_rules(engine_version)
    wanted = (
        min(limit.ceiling_tokens, 2 * max_num_seqs) if limit.follows_max_num_seqs else limit.ceiling_tokens
    )
    largest = min(wanted, max_num_batched_tokens)
    sizes = {size for size in (1, 2, 4) if size <= largest}
    sizes |= set(range(8, min(largest + 1, 256), 8))
    coarse = rules.coarse_capture_grid or not limit.follows_max_num_seqs
    sizes |= set(range(256, largest + 1, 16 if coarse else 8))
    if rules.captures_batched_tokens and max_num_batched_tokens <= largest:
        sizes.add(max_num_batched_tokens)
    if rules.captures_max_num_seqs and limit.follows_max_num_seqs and max_num_seqs <= largest:
        sizes.add(max_num_seqs)
    return tuple(sorted(sizes))
