"""What vLLM's model classes build on every pipeline stage, though only the first or the last one uses it."""

from planner.domain.model import OuterTensor

_EMBEDDING = frozenset({OuterTensor.EMBEDDING})
_NO_HEAD = _EMBEDDING | {OuterTensor.FINAL_NORM}
_NO_NORM = _EMBEDDING | {OuterTensor.HEAD}
_ALL = frozenset(OuterTensor)

EVERY_STAGE: dict[str, frozenset[OuterTensor]] = {
    "Cohere2ForCausalLM": _NO_HEAD,
    "CohereForCausalLM": _NO_HEAD,
    "FalconForCausalLM": _ALL,
    "GPT2LMHeadModel": _ALL,
    "Gemma2ForCausalLM": _NO_HEAD,
    "Gemma3ForCausalLM": _NO_HEAD,
    "Gemma4ForCausalLM": _NO_HEAD,
    "GemmaForCausalLM": _NO_HEAD,
    "GptOssForCausalLM": _ALL,
    "GraniteMoeForCausalLM": _ALL,
    "MixtralForCausalLM": _ALL,
    "NemotronHForCausalLM": _ALL,
    "OPTForCausalLM": _ALL,
    "OlmoeForCausalLM": _ALL,
    "PhiMoEForCausalLM": _ALL,
    "Qwen2MoeForCausalLM": _ALL,
    "Qwen3MoeForCausalLM": _ALL,
    "Qwen3NextForCausalLM": _NO_NORM,
    "Qwen3_5ForCausalLM": _EMBEDDING,
    "Qwen3_5MoeForCausalLM": _EMBEDDING,
}
"""By class of the language model, in vllm/model_executor/models of 0.32.0; a class that is not here builds each
where it is used."""
