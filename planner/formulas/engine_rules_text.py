"""Which of vLLM's memory rules changed between releases, and how they stand for one deployment, in words.

The borders are those of `engine_rules` and `profile_rules`; the sentences name the release that moved each of them.
"""

from collections.abc import Callable
from typing import NamedTuple

from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.hardware import Gpu
from planner.domain.model import (
    LatentAttention,
    LinearAttention,
    MambaMixer,
    Model,
    SoftmaxAttention,
)
from planner.formulas.engine_defaults import (
    GB10_CAPABILITY,
    LARGE_MEMORY_BYTES,
    NEWEST_TESTED_VERSION,
    OLDEST_READ_VERSION,
    VERY_LARGE_MEMORY_BYTES,
    EngineRules,
    engine_rules,
    parse_version,
)
from planner.formulas.kv_cache import resolve_kv_dtype
from planner.formulas.kv_paging import KvPaging, kv_paging
from planner.formulas.profile_rules import (
    FLASHINFER_FUSION_ON_B300_SINCE,
    FLASHINFER_FUSION_SINCE,
    FLASHINFER_FUSION_WITH_STAGES_SINCE,
    SORTING_SAMPLER,
    ProfileRules,
    fuses_all_reduce,
    profile_rules,
    uses_v2_runner,
)

WHOLE = Parallelism()


class Deployed(NamedTuple):
    """What decides whether a rule matters."""

    model: Model
    gpu: Gpu
    engine: EngineSettings
    rules: EngineRules
    paging: KvPaging


class ReleaseRule(NamedTuple):
    """A rule that one release switched on."""

    field: str
    """Of `EngineRules`: true from `since` on, or false from then on where `inverted`."""
    since: str
    after: str
    before: str
    matters: Callable[[Deployed], bool]
    inverted: bool = False

    def sentence(self, rules: EngineRules) -> str:
        """How the rule stands in this release."""
        changed = bool(getattr(rules, self.field)) is not self.inverted
        return f"Since {self.since} {self.after}." if changed else f"Before {self.since} {self.before}."


def named_rules(
    model: Model,
    gpu: Gpu,
    engine: EngineSettings,
    kv_dtype: KvDtype = KvDtype.AUTO,
    *,
    parallelism: Parallelism = WHOLE,
) -> tuple[str, ...]:
    """The rules that changed between vLLM 0.11 and the newest read and matter for this deployment, one sentence each.

    A release outside that range is said first.

    Raises:
        InputError: `engine.engine_version` is not a vLLM version.
    """
    rules = engine_rules(engine.engine_version)
    deployed = Deployed(model, gpu, engine, rules, kv_paging(engine, gpu, model, kv_dtype))
    sentences = [_range_sentence(rules), _utilization_sentence(rules), _grouping_sentence(deployed)]
    profile = profile_rules(model, engine.engine_version, drafts=engine.speculation is not None)
    sentences += [_runner_sentence(deployed, profile), _graphs_sentence(deployed, profile)]
    sentences += [_sampler_sentence(profile), _fusion_sentence(deployed, parallelism)]
    sentences += [rule.sentence(rules) for rule in RELEASE_RULES if rule.matters(deployed)]
    sentences += [_block_size_sentence(deployed), _hybrid_manager_sentence(deployed)]
    if resolve_kv_dtype(model, kv_dtype, engine.engine_version) is KvDtype.FP8:
        sentences.append(_packed_latent_sentence(deployed))
    return tuple(sentence for sentence in sentences if sentence)


def _fusion_sentence(deployed: Deployed, parallelism: Parallelism) -> str:
    """Whether FlashInfer's all-reduce takes memory outside torch, where the newest release would use it."""
    gpu, tp, version = deployed.gpu, parallelism.tp, deployed.rules.version
    alone = parallelism.pp == parallelism.dp == 1
    newest = parse_version(NEWEST_TESTED_VERSION)
    if deployed.engine.enforce_eager or not fuses_all_reduce(gpu, tp, alone=alone, version=newest):
        return ""
    since = next(
        one
        for one in (
            FLASHINFER_FUSION_SINCE,
            FLASHINFER_FUSION_ON_B300_SINCE,
            FLASHINFER_FUSION_WITH_STAGES_SINCE,
        )
        if fuses_all_reduce(gpu, tp, alone=alone, version=one)
    )
    if version < since:
        return f"Before {since.major}.{since.minor} all-reduce takes no buffers of FlashInfer outside torch."
    release = f"{since.major}.{since.minor}"
    return f"Since {release} FlashInfer joins all-reduce and norm, with buffers of its own outside torch."


def _range_sentence(rules: EngineRules) -> str:
    if rules.version < OLDEST_READ_VERSION:
        return (
            f"vLLM {rules.version} is older than {OLDEST_READ_VERSION}, the oldest release read: its rules are "
            f"taken to be those of {OLDEST_READ_VERSION}."
        )
    if rules.version > parse_version(NEWEST_TESTED_VERSION):
        return (
            f"vLLM {rules.version} is newer than {NEWEST_TESTED_VERSION}, the newest release read: its rules are "
            f"taken to be those of {NEWEST_TESTED_VERSION}."
        )
    return ""


def _utilization_sentence(rules: EngineRules) -> str:
    if rules.gpu_memory_utilization > 0.9:
        return "Since 0.20 gpu_memory_utilization is 0.92 where no flag says otherwise."
    return "Before 0.20 gpu_memory_utilization is 0.90 where no flag says otherwise."


def _grouping_sentence(deployed: Deployed) -> str:
    if not _mixed(deployed):
        return ""
    ratio = deployed.rules.group_ratio
    if ratio == 1.0:
        return "Before 0.12 every KV group has as many layers as the rarest kind of layer."
    since, more = ("0.18", "50 %") if ratio == 1.5 else ("0.12", "25 %")
    return (
        f"Since {since} KV groups take the size of the commonest kind of layer where it has less than {more} more "
        "layers than the rarest."
    )


def _block_size_sentence(deployed: Deployed) -> str:
    if not _latent(deployed):
        return ""
    tokens = deployed.paging.block_size
    if deployed.rules.backend_block_size:
        return f"Since 0.18 the attention backend that is chosen names the block size for MLA, here {tokens} tokens."
    return f"Before 0.18 the platform sets the block size for MLA, here {tokens} tokens."


def _packed_latent_sentence(deployed: Deployed) -> str:
    if not _sparse(deployed) or not deployed.gpu.is_datacenter_blackwell:
        return ""
    if deployed.paging.packs_fp8_latent:
        return "Before 0.19 an fp8 cache of sparse MLA is packed with its scales (fp8_ds_mla)."
    return "Since 0.19 an fp8 cache of sparse MLA is plain fp8 on this GPU, without scales of its own."


def _hybrid_manager_sentence(deployed: Deployed) -> str:
    if not deployed.engine.kv_offload_bytes or deployed.rules.offloads_hybrids:
        return ""
    return (
        "Before 0.21 the connector of --kv-offloading-size refuses the hybrid KV cache manager: the engine starts "
        "only with --disable-hybrid-kv-cache-manager, which is assumed."
    )


def _runner_sentence(deployed: Deployed, profile: ProfileRules) -> str:
    if profile.v2_runner or not uses_v2_runner(deployed.model, profile.version):
        return ""
    return "Before 0.31 a draft model keeps the model on the V1 model runner."


def _graphs_sentence(deployed: Deployed, profile: ProfileRules) -> str:
    if not _captures(deployed):
        return ""
    estimator = "Model Runner V2" if profile.v2_runner else "the engine"
    since = "0.29" if profile.v2_runner else "0.20"
    if profile.charges_cuda_graphs:
        return (
            f"Since {since} {estimator} estimates its CUDA graphs, and their memory comes off the KV cache."
        )
    return (
        f"Before {since} {estimator} charges nothing for CUDA graphs: they are captured in what "
        "gpu_memory_utilization leaves free."
    )


def _sampler_sentence(profile: ProfileRules) -> str:
    """What of the profiling run's sampling changed with the release and the model runner."""
    if profile.sorts_logits:
        return "From 0.11.1 until 0.17 top-k and top-p sort all logits, which raises the peak of the profiling run."
    if profile.filters_logits:
        return (
            "From 0.17 until 0.21 a Triton kernel filters the logits by top-k and top-p in place, so the profiling "
            "run peaks lower."
        )
    if not profile.v2_runner:
        span = "Before 0.11.1" if profile.version < SORTING_SAMPLER[0] else "Since 0.21"
        return f"{span} FlashInfer filters the logits by top-k and top-p on the V1 model runner, without sorting them."
    if profile.draws_filtered:
        return "Since 0.33 Model Runner V2 profiles top-k and top-p too, on an fp32 copy of the logits."
    if profile.copies_logits:
        return "Before 0.26 Model Runner V2 samples from an fp32 copy of the logits."
    return "From 0.26 until 0.33 Model Runner V2 profiles sampling from the 16-bit logits as they are."


def _captures(deployed: Deployed) -> bool:
    return not deployed.engine.enforce_eager


def _chunked(deployed: Deployed) -> bool:
    return any(attention.chunk_tokens is not None for attention in _softmax(deployed))


def _windowed(deployed: Deployed) -> bool:
    return any(attention.window_tokens or attention.chunk_tokens for attention in _softmax(deployed))


def _mixed(deployed: Deployed) -> bool:
    """More than one group: full, windowed and recurrent layers beside each other."""
    if not deployed.paging.hybrid_kv_cache_manager:
        return False
    if _chunked(deployed) and not deployed.rules.chunked_local_hybrid:
        return False
    scopes = {attention.window_tokens or attention.chunk_tokens or 0 for attention in _softmax(deployed)}
    if _latent(deployed):
        scopes.add(0)
    return len(scopes) + int(_recurrent(deployed)) > 1


def _sparse(deployed: Deployed) -> bool:
    return any(attention.indexer_heads or attention.indexer_topk for attention in _latent(deployed))


def _mamba(deployed: Deployed) -> bool:
    return any(isinstance(kind.attention, MambaMixer) for kind in deployed.model.layer_kinds)


def _linear(deployed: Deployed) -> bool:
    return any(isinstance(kind.attention, LinearAttention) for kind in deployed.model.layer_kinds)


def _recurrent(deployed: Deployed) -> bool:
    return _mamba(deployed) or _linear(deployed)


def _softmax(deployed: Deployed) -> list[SoftmaxAttention]:
    kinds = [kind.attention for kind in deployed.model.layer_kinds]
    return [attention for attention in kinds if isinstance(attention, SoftmaxAttention)]


def _latent(deployed: Deployed) -> list[LatentAttention]:
    kinds = [kind.attention for kind in deployed.model.layer_kinds]
    return [attention for attention in kinds if isinstance(attention, LatentAttention)]


RELEASE_RULES = (
    ReleaseRule(
        "async_scheduling",
        "0.14",
        "asynchronous scheduling is on by default",
        "asynchronous scheduling is off by default",
        lambda _: True,
    ),
    ReleaseRule(
        "very_large_gpu_row",
        "0.28",
        "a GPU from 160 GiB batches 16,384 tokens by default",
        "a GPU from 160 GiB batches 8,192 tokens by default",
        lambda deployed: deployed.gpu.memory_bytes >= VERY_LARGE_MEMORY_BYTES,
    ),
    ReleaseRule(
        "small_gb10_row",
        "0.33",
        "GB10 batches 2,048 tokens and 256 sequences by default, like a small card",
        "GB10 batches 8,192 tokens and 1,024 sequences by default, like a large card",
        lambda deployed: (
            deployed.gpu.compute_capability == GB10_CAPABILITY
            and deployed.gpu.memory_bytes >= LARGE_MEMORY_BYTES
        ),
    ),
    ReleaseRule(
        "very_large_gpu_row",
        "0.28",
        "CUDA graphs are captured up to 1,024 tokens on this GPU",
        "CUDA graphs are captured up to 512 tokens on this GPU",
        lambda deployed: _captures(deployed) and deployed.gpu.is_datacenter_blackwell,
    ),
    ReleaseRule(
        "coarse_capture_grid",
        "0.12",
        "CUDA graphs are captured for every 16th size above 256 tokens",
        "CUDA graphs are captured for every 8th size",
        _captures,
    ),
    ReleaseRule(
        "chunked_local_hybrid",
        "0.14",
        "chunked-local layers keep only their chunk",
        "chunked-local layers keep every token, like full attention",
        lambda deployed: _chunked(deployed) and deployed.paging.hybrid_kv_cache_manager,
    ),
    ReleaseRule(
        "reserves_in_flight_batches",
        "0.26",
        "a windowed layer sets blocks aside for every batch in flight",
        "a windowed layer sets blocks aside for one batch in flight",
        lambda deployed: _windowed(deployed) and deployed.paging.hybrid_kv_cache_manager,
    ),
    ReleaseRule(
        "sparse_mla_caches_fp8",
        "0.18",
        "a KV cache of dtype auto is 16 bits wide for sparse MLA",
        "a KV cache of dtype auto is fp8 (fp8_ds_mla) for sparse MLA",
        _sparse,
        inverted=True,
    ),
    ReleaseRule(
        "mamba_prefix_caching",
        "0.28",
        "prefix caching is on by default for layers with a state, and a request then holds two states instead of one",
        "prefix caching is off for layers with a state, and a request holds one state",
        lambda deployed: _recurrent(deployed) and deployed.engine.enable_prefix_caching,
    ),
    ReleaseRule(
        "mamba_checkpoints",
        "0.32",
        "prefix caching sets one more block aside for each group of Mamba-2 layers",
        "prefix caching sets no block aside for what a prefill leaves of a Mamba-2 state",
        lambda deployed: _mamba(deployed) and deployed.engine.enable_prefix_caching,
    ),
    ReleaseRule(
        "linear_checkpoints",
        "0.33",
        "prefix caching sets one more block aside for each group of gated delta nets where FlashInfer runs their "
        "prefill, and blocks are multiples of 64 tokens there",
        "prefix caching sets no block aside for what a prefill leaves of a gated delta net's state",
        lambda deployed: _linear(deployed) and deployed.engine.enable_prefix_caching,
    ),
    ReleaseRule(
        "reserves_null_block",
        "0.29",
        "the engine starts only where one request of max_model_len fits beside the null block",
        "the null block counts as room for the one request of max_model_len that must fit",
        lambda _: True,
    ),
    ReleaseRule(
        "logs_concurrency_tokens",
        "0.21",
        "the log's KV cache size is maximum concurrency x max_model_len",
        "the log's KV cache size is the blocks of one group x block size",
        lambda _: True,
    ),
)
"""In the order in which they are said."""
