"""What decides how a KV cache is paged: flags, release, and the attention backend that a GPU runs.

Sources, release by release: vllm/platforms/{cuda,interface}.py (check_and_update_config,
update_block_size_for_backend, _align_hybrid_block_size, _get_backend_priorities), the block sizes and dtypes in
vllm/v1/attention/backends, HybridAttentionMambaModelConfig in vllm/model_executor/models/config.py, and
vllm/config/vllm.py (hybrid KV cache manager).
"""

from collections.abc import Iterator
from math import lcm
from typing import NamedTuple

from planner.domain.deployment import EngineSettings
from planner.domain.dtypes import KvDtype
from planner.domain.hardware import Gpu
from planner.domain.model import (
    Attention,
    LatentAttention,
    LinearAttention,
    MambaMixer,
    Model,
    SoftmaxAttention,
)
from planner.formulas.engine_defaults import (
    DEFAULT_BLOCK_SIZE_TOKENS,
    EngineRules,
    engine_rules,
)

LATENT_BLOCK_TOKENS = 64
"""FlashMLA, and the kernels of sparse MLA and its indexer."""
CUTLASS_BLOCK_TOKENS = 128
FLASHINFER_LATENT_BLOCK_TOKENS = 32
"""FlashInfer MLA takes 32 or 64: the smaller where it is asked, the larger where the platform guessed (0.16, 0.17)."""
HYBRID_LATENT_STEP_TOKENS = 128
HYBRID_LATENT_OLD_STEP_TOKENS = 64
WIDE_HEAD_DIM = 256
WIDE_HEAD_STEP_TOKENS = 32
"""FlashInfer did not page heads of 256 by 16 tokens on Blackwell."""
CHECKPOINT_STEP_TOKENS = 64
"""FlashInfer's gated delta net leaves states at multiples of these tokens."""
CHECKPOINT_KEY_HEAD_DIM = 128


class KvPaging(NamedTuple):
    """What decides paging beside the model and its spread; `kv_paging` makes it.

    The defaults are those of the newest release where no kernel asks for another block size.
    """

    engine_version: str = ""
    async_scheduling: bool = True
    block_size: int = DEFAULT_BLOCK_SIZE_TOKENS
    """Tokens of a block before pages are made equal."""
    state_step_tokens: int = DEFAULT_BLOCK_SIZE_TOKENS
    """Steps in which the block of a hybrid grows until its page holds a state."""
    enable_prefix_caching: bool = True
    hybrid_kv_cache_manager: bool = True
    checkpoint_states: int = 0
    """States set aside for what a prefill leaves to the prefix cache."""
    packs_fp8_latent: bool = True
    """An fp8 cache of sparse MLA is packed with its scales (fp8_ds_mla, 656 bytes a token of DeepSeek V3.2)."""
    draft: Model | None = None
    num_speculative_tokens: int = 0


def kv_paging(engine: EngineSettings, gpu: Gpu, model: Model, kv_dtype: KvDtype = KvDtype.AUTO) -> KvPaging:
    """How these flags page the model's cache on a GPU.

    `block_size` 16 stands for vLLM's own choice. KV offloading turns the hybrid KV cache manager off in releases
    that do not start otherwise.

    Raises:
        InputError: `engine.engine_version` is not a vLLM version.
    """
    rules = engine_rules(engine.engine_version)
    caching = engine.enable_prefix_caching
    block_size = _block_size(engine.block_size, rules, gpu, model, kv_dtype)
    checkpoints = _leaves_checkpoints(rules, gpu, model) if caching else False
    speculation = engine.speculation
    return KvPaging(
        engine_version=engine.engine_version,
        async_scheduling=engine.async_scheduling,
        block_size=block_size,
        state_step_tokens=_state_step(block_size, rules, gpu, model, checkpoints=checkpoints),
        enable_prefix_caching=caching,
        hybrid_kv_cache_manager=(
            engine.hybrid_kv_cache_manager and (rules.offloads_hybrids or engine.kv_offload_bytes == 0)
        ),
        checkpoint_states=int(checkpoints),
        packs_fp8_latent=not (gpu.is_datacenter_blackwell and rules.version.since(19)),
        draft=None if speculation is None else speculation.draft,
        num_speculative_tokens=0 if speculation is None else speculation.num_speculative_tokens,
    )


def default_paging(
    gpu: Gpu, model: Model, kv_dtype: KvDtype = KvDtype.AUTO, engine_version: str = ""
) -> KvPaging:
    """How a release pages the model's cache on a GPU where no flag says otherwise.

    Raises:
        InputError: `engine_version` is not a vLLM version.
    """
    rules = engine_rules(engine_version)
    # Flags that paging does not read are as small as their ranges allow.
    flags = EngineSettings(
        max_num_seqs=1,
        max_num_batched_tokens=1,
        max_model_len=1,
        gpu_memory_utilization=rules.gpu_memory_utilization,
        async_scheduling=rules.async_scheduling,
        engine_version=engine_version,
    )
    return kv_paging(flags, gpu, model, kv_dtype)


def paging_problem(model: Model, paging: KvPaging) -> str | None:
    """Why vLLM does not start with this cache, or None (unify_hybrid_kv_cache_specs)."""
    if all(kind.attention is None for kind in model.layer_kinds):
        return f"no layer of {model.name} keeps anything of a sequence: there is no cache to plan"
    if paging.hybrid_kv_cache_manager:
        return None
    kinds = set(_attentions(model))
    if paging.draft is not None:
        kinds.update(_attentions(paging.draft))
    caches = [kind for kind in kinds if isinstance(kind, SoftmaxAttention | LatentAttention)]
    if caches and len(caches) < len(kinds):
        return f"{model.name} keeps states beside keys and values: it needs the hybrid KV cache manager"
    softmax = [kind for kind in caches if isinstance(kind, SoftmaxAttention)]
    windows = {kind.window_tokens or kind.chunk_tokens for kind in softmax} - {None}
    if len(windows) > 1:
        return f"windows of {len(windows)} sizes, as layers here have, need the hybrid KV cache manager"
    return None


def _block_size(given: int, rules: EngineRules, gpu: Gpu, model: Model, kv_dtype: KvDtype) -> int:
    """Tokens of a block: what the kernels that this GPU runs want, unless they take what was given."""
    wanted = _wanted_block_size(rules, gpu, model, kv_dtype)
    if rules.backend_block_size:
        return wanted if given == DEFAULT_BLOCK_SIZE_TOKENS else given
    return given if given % wanted == 0 else wanted


def _wanted_block_size(rules: EngineRules, gpu: Gpu, model: Model, kv_dtype: KvDtype) -> int:
    latent = next((kind for kind in _attentions(model) if isinstance(kind, LatentAttention)), None)
    if latent is None or gpu.vllm_backend != "cuda":
        return DEFAULT_BLOCK_SIZE_TOKENS
    if latent.indexer_heads or latent.indexer_topk:
        return LATENT_BLOCK_TOKENS
    if gpu.is_datacenter_blackwell:
        return _blackwell_latent_block_size(rules, gpu, latent)
    if gpu.is_hopper and (not rules.backend_block_size or _is_fp8(model, kv_dtype)):
        return LATENT_BLOCK_TOKENS
    return DEFAULT_BLOCK_SIZE_TOKENS


def _blackwell_latent_block_size(rules: EngineRules, gpu: Gpu, latent: LatentAttention) -> int:
    """CUTLASS MLA until 0.15, then FlashInfer's where its kernel has the head width."""
    if not rules.version.since(13) and gpu.compute_capability != "10.0":
        return DEFAULT_BLOCK_SIZE_TOKENS
    widths = (64, 128, 192) if rules.version.since(19) else (64, 128) if rules.version.since(18) else (128,)
    if not rules.version.since(16) or latent.qk_nope_head_dim not in widths:
        return CUTLASS_BLOCK_TOKENS
    return FLASHINFER_LATENT_BLOCK_TOKENS if rules.backend_block_size else LATENT_BLOCK_TOKENS


def _state_step(block_size: int, rules: EngineRules, gpu: Gpu, model: Model, *, checkpoints: bool) -> int:
    step = block_size if rules.version.since(20) else DEFAULT_BLOCK_SIZE_TOKENS
    kinds = set(_attentions(model))
    linear = any(isinstance(kind, LinearAttention) for kind in kinds)
    if not linear and not any(isinstance(kind, MambaMixer) for kind in kinds):
        return step
    if any(isinstance(kind, LatentAttention) for kind in kinds):
        if rules.version.since(27):
            return max(step, HYBRID_LATENT_STEP_TOKENS)
        return step if rules.version.since(20) else HYBRID_LATENT_OLD_STEP_TOKENS
    wide = any(isinstance(kind, SoftmaxAttention) and kind.head_dim == WIDE_HEAD_DIM for kind in kinds)
    if wide and gpu.is_datacenter_blackwell and rules.version.since(12) and not rules.version.since(18):
        return WIDE_HEAD_STEP_TOKENS
    return lcm(step, CHECKPOINT_STEP_TOKENS) if linear and checkpoints else step


def _leaves_checkpoints(rules: EngineRules, gpu: Gpu, model: Model) -> bool:
    """A prefill exports the state at a block's end: Mamba-2 everywhere, gated delta nets through FlashInfer."""
    kinds = set(_attentions(model))
    if any(isinstance(kind, MambaMixer) for kind in kinds):
        return rules.mamba_checkpoints
    linear = [kind for kind in kinds if isinstance(kind, LinearAttention)]
    if not linear or not rules.linear_checkpoints:
        return False
    blackwell = gpu.compute_capability.startswith(("10.", "12."))
    wide = all(kind.key_head_dim == CHECKPOINT_KEY_HEAD_DIM for kind in linear)
    return gpu.is_hopper or (blackwell and wide)


def _attentions(model: Model) -> Iterator[Attention]:
    return (kind.attention for kind in model.layer_kinds if kind.attention is not None)


def _is_fp8(model: Model, kv_dtype: KvDtype) -> bool:
    asked = model.quantization is not None and model.quantization.kv_fp8
    return kv_dtype is KvDtype.FP8 or (kv_dtype is KvDtype.AUTO and asked)
