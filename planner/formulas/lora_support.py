"""Which architectures take LoRA adapters in which release of vLLM, and which settings it refuses.

Sources: vllm/config/lora.py, and `SupportsLoRA` and `embedding_modules` of the classes in
vllm/model_executor/models, read in fifteen releases from 0.10.2 to 0.33.0.
"""

from typing import NamedTuple

from planner.domain.deployment import LoraSlots, Parallelism
from planner.domain.model import Model
from planner.formulas.engine_defaults import EngineVersion, parse_version
from planner.formulas.gemms import expert_ranks

LEGAL_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""`MaxLoRARanks` of vllm/config/lora.py; rank 1 since 0.12."""
RANK_ONE_SINCE = EngineVersion(0, 12, 0)
LARGEST_VOCAB = 258_048
LARGEST_VOCAB_BEFORE_0_18 = 257_024
"""vllm/lora/layers/logits_processor.py refuses a larger one where the head takes adapters."""

NEVER = EngineVersion(9999, 0, 0)
ALWAYS = EngineVersion(0, 0, 0)


class _Support(NamedTuple):
    """Releases in which an architecture's class takes adapters, from `since` until before `until`."""

    since: EngineVersion = ALWAYS
    until: EngineVersion = NEVER

    def holds(self, version: EngineVersion) -> bool:
        return self.since <= version < self.until


_SUPPORT = {
    "DeepseekV32ForCausalLM": _Support(until=EngineVersion(0, 30, 0)),
    "FalconForCausalLM": _Support(since=NEVER),
    "GPT2LMHeadModel": _Support(since=NEVER),
    "GPTNeoXForCausalLM": _Support(since=EngineVersion(0, 32, 0)),
    "GlmMoeDsaForCausalLM": _Support(until=EngineVersion(0, 30, 0)),
    "GptOssForCausalLM": _Support(since=EngineVersion(0, 12, 0)),
    "KimiK25ForConditionalGeneration": _Support(since=NEVER),
    "Llama4ForConditionalGeneration": _Support(since=EngineVersion(0, 12, 0)),
    "MiMoV2FlashForCausalLM": _Support(since=NEVER),
    "MiniMaxM2ForCausalLM": _Support(since=EngineVersion(0, 16, 0)),
    "OPTForCausalLM": _Support(since=EngineVersion(0, 12, 0)),
    "OlmoeForCausalLM": _Support(since=EngineVersion(0, 12, 0)),
    "Starcoder2ForCausalLM": _Support(since=EngineVersion(0, 26, 0)),
}
"""SupportsLoRA of the classes in vllm/model_executor/models; the others take adapters in every release read."""

_BROKEN = {
    **dict.fromkeys(
        ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM"),
        _Support(EngineVersion(0, 17, 0), EngineVersion(0, 20, 0)),
    ),
    "GptOssForCausalLM": _Support(EngineVersion(0, 19, 0), EngineVersion(0, 20, 0)),
    "NemotronHForCausalLM": _Support(until=EngineVersion(0, 16, 0)),
}
"""Releases whose adapter manager stops at a layer class of the architecture that it has no wrapper for."""

_PLAIN_ROUTER = {
    "Glm4MoeForCausalLM": _Support(until=EngineVersion(0, 31, 0)),
    "GptOssForCausalLM": _Support(until=EngineVersion(0, 17, 0)),
}
_PLAIN_SHARED_GATE = _Support(until=EngineVersion(0, 14, 0))
"""Routers, and gates of shared experts, that were torch's own layers and took no adapters."""

_EMBEDDING_AND_HEAD = {
    **dict.fromkeys(
        (
            "DeciLMForCausalLM",
            "Ernie4_5ForCausalLM",
            "Exaone4ForCausalLM",
            "GraniteForCausalLM",
            "GraniteMoeForCausalLM",
            "InternLM3ForCausalLM",
            "LLaMAForCausalLM",
            "Llama4ForCausalLM",
            "Llama4ForConditionalGeneration",
            "LlamaForCausalLM",
            "MixtralForCausalLM",
            "NemotronForCausalLM",
            "NemotronHForCausalLM",
            "Phi3ForCausalLM",
            "PhiMoEForCausalLM",
        ),
        _Support(),
    ),
    "GlmForCausalLM": _Support(until=EngineVersion(0, 32, 0)),
    "Mistral3ForConditionalGeneration": _Support(until=EngineVersion(0, 16, 0)),
    "MistralForCausalLM": _Support(until=EngineVersion(0, 16, 0)),
    "Qwen3ForCausalLM": _Support(since=EngineVersion(0, 16, 0)),
    "Qwen3MoeForCausalLM": _Support(since=EngineVersion(0, 16, 0)),
    "Qwen3VLForConditionalGeneration": _Support(since=EngineVersion(0, 16, 0)),
    "Qwen3VLMoeForConditionalGeneration": _Support(since=EngineVersion(0, 16, 0)),
    "Qwen3_5ForCausalLM": _Support(since=EngineVersion(0, 30, 0)),
    "Qwen3_5ForConditionalGeneration": _Support(since=EngineVersion(0, 30, 0)),
    "Qwen3_5MoeForCausalLM": _Support(since=EngineVersion(0, 30, 0)),
    "Qwen3_5MoeForConditionalGeneration": _Support(since=EngineVersion(0, 30, 0)),
}
"""Architectures whose `embedding_modules` name the embedding and the head."""

_EMBEDDING_ALONE = {
    "Cohere2ForCausalLM": _Support(),
    "CohereForCausalLM": _Support(),
    "GlmForCausalLM": _Support(since=EngineVersion(0, 32, 0)),
    "HunYuanDenseV1ForCausalLM": _Support(since=EngineVersion(0, 30, 0)),
    "Olmo2ForCausalLM": _Support(since=EngineVersion(0, 26, 0)),
    "Olmo3ForCausalLM": _Support(since=EngineVersion(0, 30, 0)),
    "SeedOssForCausalLM": _Support(since=EngineVersion(0, 32, 0)),
    "SmolLM3ForCausalLM": _Support(),
    "Starcoder2ForCausalLM": _Support(since=EngineVersion(0, 26, 0)),
}
"""Those that name the embedding only: most of them run as Transformers' own classes."""


def lora_problem(
    model: Model, parallelism: Parallelism, lora: LoraSlots, *, engine_version: str = ""
) -> str | None:
    """Why vLLM would not start with these adapter slots, None where it would.

    Raises `InputError` where `engine_version` is not a vLLM version.
    """
    version = parse_version(engine_version)
    legal = LEGAL_RANKS if version >= RANK_ONE_SINCE else LEGAL_RANKS[1:]
    if lora.max_lora_rank not in legal:
        return f"max_lora_rank must be one of {', '.join(map(str, legal))}, got {lora.max_lora_rank}"
    supported = _SUPPORT.get(model.architecture, _Support()).holds(version)
    broken = model.architecture in _BROKEN and _BROKEN[model.architecture].holds(version)
    if broken or not supported:
        return f"vLLM {version} takes no adapters for {model.architecture}"
    largest = LARGEST_VOCAB if version >= EngineVersion(0, 18, 0) else LARGEST_VOCAB_BEFORE_0_18
    if head_takes_adapters(model, version) and model.vocab > largest:
        return f"vLLM {version} takes adapters for a vocabulary of at most {largest}, {model.name} has {model.vocab}"
    if lora.fully_sharded and model.has_moe and parallelism.ep and expert_ranks(parallelism) > 1:
        return "fully sharded adapters do not work with expert parallelism"
    ranks = expert_ranks(parallelism) if model.has_moe else parallelism.tp
    if lora.fully_sharded and lora.max_lora_rank % ranks:
        return f"fully sharded adapters need a rank that {ranks} GPUs divide, got {lora.max_lora_rank}"
    return None


def head_takes_adapters(model: Model, version: EngineVersion) -> bool:
    """True where vLLM keeps room for adapters of the output projection."""
    return model.architecture in _EMBEDDING_AND_HEAD and _EMBEDDING_AND_HEAD[model.architecture].holds(
        version
    )


def embedding_takes_adapters(model: Model, version: EngineVersion) -> bool:
    """True where vLLM keeps room for adapters of the token embedding."""
    alone = _EMBEDDING_ALONE.get(model.architecture)
    return head_takes_adapters(model, version) or (alone is not None and alone.holds(version))


def router_takes_adapters(model: Model, outputs: int, version: EngineVersion) -> bool:
    """True where vLLM keeps room for adapters of a router, or of the gate of shared experts with its one output."""
    if outputs == 1:
        return not _PLAIN_SHARED_GATE.holds(version)
    plain = _PLAIN_ROUTER.get(model.architecture)
    return plain is None or not plain.holds(version)
