"""How a vLLM release profiles its memory: which model runner, which sampler, and what of it is charged."""

from functools import lru_cache
from typing import NamedTuple

from planner.domain.hardware import Gpu
from planner.domain.model import LinearAttention, MambaMixer, Model
from planner.formulas.engine_defaults import EngineVersion, parse_version

V2_ALWAYS_SINCE = EngineVersion(0, 29, 0)
V2_DENSE_SINCE = EngineVersion(0, 25, 0)
V2_FIRST_ARCHITECTURES = {
    EngineVersion(0, 22, 0): frozenset({"Qwen3ForCausalLM"}),
    EngineVersion(0, 23, 0): frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"}),
}
"""Only unquantised."""
V2_ARCHITECTURES = frozenset({"DeepseekV2ForCausalLM", "GraniteMoeForCausalLM", "Qwen2MoeForCausalLM"})
"""Since 0.24, however they are quantised."""
V1_GRAPHS_SINCE = EngineVersion(0, 20, 0)
V2_GRAPHS_SINCE = EngineVersion(0, 29, 0)
"""Before, the V2 runner estimated its CUDA graphs at nothing."""
LOGITS_COPIED_BY_V2 = (EngineVersion(0, 22, 0), EngineVersion(0, 26, 0))
"""From the one until the other the V2 sampler made an fp32 copy of all logits."""
V2_FILTERS_SINCE = EngineVersion(0, 33, 0)
"""The V2 runner profiles top-k and top-p too, on an fp32 copy of the logits (_dummy_sampler_run)."""
V2_DRAFT_MODELS_SINCE = EngineVersion(0, 31, 0)
"""Before, speculation by a draft model kept the V1 runner."""
FREE_MEMORY_SINCE = EngineVersion(0, 27, 0)
FLASHINFER_FUSION_SINCE = EngineVersion(0, 17, 0)
FLASHINFER_FUSION_ON_B300_SINCE = EngineVersion(0, 19, 0)
FLASHINFER_FUSION_WITH_STAGES_SINCE = EngineVersion(0, 24, 0)
SORTING_SAMPLER = (EngineVersion(0, 11, 1), EngineVersion(0, 17, 0))
TRITON_SAMPLER = (EngineVersion(0, 17, 0), EngineVersion(0, 21, 0))
FUSION_RANKS = (2, 4, 8)


class ProfileRules(NamedTuple):
    """What of the profiling run depends on the release and the model's kind."""

    version: EngineVersion
    v2_runner: bool
    sorts_logits: bool
    """Top-k and top-p sort all logits (PyTorch); FlashInfer before, a Triton kernel and FlashInfer again after."""
    filters_logits: bool
    """The Triton kernel, which keeps a row of fp32 logits for each multiprocessor."""
    copies_logits: bool
    """An fp32 copy of the logits is made; the V1 runner always does."""
    draws_filtered: bool
    """Tokens are drawn by top-k and top-p, from probabilities; the V2 runner drew them from the logits at first."""
    charges_free_memory: bool
    """What left the card's free memory is charged, buffers of the runner included; before, weights, peak and
    growth outside torch were added up."""
    charges_cuda_graphs: bool

    def has_filter_buffer(self, *, verifies: bool) -> bool:
        """True where the Triton kernel runs: to draw, or to verify drafted tokens (`verifies`), which FlashInfer
        never does."""
        return self.filters_logits or (verifies and self.version >= TRITON_SAMPLER[0])


@lru_cache(maxsize=4096)
def profile_rules(model: Model, engine_version: str = "", *, drafts: bool = False) -> ProfileRules:
    """The rules of a release for a model, beside a draft model or not; one between two that were read follows the
    older one.

    Sources: vllm/v1/worker/gpu_worker.py (determine_available_memory), vllm/utils/mem_utils.py
    (memory_profiling), vllm/v1/sample/ops/topk_topp_sampler.py, vllm/v1/worker/gpu/sample/sampler.py and
    vllm/v1/worker/gpu/model_runner.py (_dummy_sampler_run) of 0.10.2 to 0.33.0. That 0.11.1 took FlashInfer's
    sampler off the default, not 0.12.0, is inferred from start-up logs of 0.11.2.

    Raises:
        InputError: not a vLLM version.
    """
    version = parse_version(engine_version)
    v2 = uses_v2_runner(model, version, drafts=drafts)
    v2_filters = version >= V2_FILTERS_SINCE
    return ProfileRules(
        version=version,
        v2_runner=v2,
        sorts_logits=not v2 and _within(version, SORTING_SAMPLER),
        filters_logits=not v2 and _within(version, TRITON_SAMPLER),
        copies_logits=not v2 or v2_filters or _within(version, LOGITS_COPIED_BY_V2),
        draws_filtered=not v2 or v2_filters,
        charges_free_memory=version >= FREE_MEMORY_SINCE,
        charges_cuda_graphs=version >= (V2_GRAPHS_SINCE if v2 else V1_GRAPHS_SINCE),
    )


def uses_v2_runner(model: Model, version: EngineVersion, *, drafts: bool = False) -> bool:
    """True where vLLM runs the model on Model Runner V2 by default, beside a draft model (`drafts`) or not.

    Sources: vllm/config/vllm.py, use_v2_model_runner, _is_default_v2_model_runner_model and
    _get_v2_model_runner_unsupported_features of 0.22 to 0.33.
    """
    if drafts and version < V2_DRAFT_MODELS_SINCE:
        return False
    if version >= V2_ALWAYS_SINCE:
        return True
    recurrent = any(isinstance(kind.attention, LinearAttention | MambaMixer) for kind in model.layer_kinds)
    if version >= V2_DENSE_SINCE:
        return not recurrent and (not model.has_moe or model.architecture in V2_ARCHITECTURES)
    first = V2_FIRST_ARCHITECTURES.get(version._replace(patch=0), frozenset())
    if version >= EngineVersion(0, 24, 0):
        newest = V2_FIRST_ARCHITECTURES[EngineVersion(0, 23, 0)]
        return model.architecture in newest | V2_ARCHITECTURES
    return model.architecture in first and model.quantization is None


def fuses_all_reduce(gpu: Gpu, tp: int, *, alone: bool, version: EngineVersion) -> bool:
    """True where all-reduce and norm are one FlashInfer kernel, which needs buffers of its own.

    `alone`: the tensor-parallel ranks are the whole replica. Hopper and B200, since 0.19 B300 too, 2, 4 or 8
    ranks (vllm/config/vllm.py, enable_allreduce_rms_fusion; compilation/passes/fusion/allreduce_rms_fusion.py).
    The buffers need an NVLink switch: where bridges join the GPUs vLLM warns, and neither makes them nor fuses.
    """
    if version < FLASHINFER_FUSION_SINCE or tp not in FUSION_RANKS:
        return False
    if not gpu.nvlink_bytes_per_s or gpu.has_nvlink_bridges:
        return False
    if not alone and version < FLASHINFER_FUSION_WITH_STAGES_SINCE:
        return False
    if gpu.is_datacenter_blackwell and version >= FLASHINFER_FUSION_ON_B300_SINCE:
        return True
    return gpu.compute_capability in {"9.0", "10.0"}


def _within(version: EngineVersion, span: tuple[EngineVersion, EngineVersion]) -> bool:
    return span[0] <= version < span[1]
