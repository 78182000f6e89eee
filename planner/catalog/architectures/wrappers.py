"""Multimodal checkpoints: a text model inside a wrapper, with a vision tower."""

from planner.catalog.architectures.base import Decoder
from planner.catalog.architectures.towers import TOWERS
from planner.catalog.config_fields import Fields

TEXT_CLASS: dict[str, str] = {
    "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    "Gemma4ForConditionalGeneration": "Gemma4ForCausalLM",
    "KimiK25ForConditionalGeneration": "DeepseekV3ForCausalLM",
    "Llama4ForConditionalGeneration": "Llama4ForCausalLM",
    "Mistral3ForConditionalGeneration": "MistralForCausalLM",
    "Qwen2VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen3VLForConditionalGeneration": "Qwen3ForCausalLM",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3MoeForCausalLM",
    "Qwen3_5ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForConditionalGeneration": "Qwen3_5MoeForCausalLM",
}
"""The class of the language model inside each wrapper."""

INHERITED = ("tie_word_embeddings", "torch_dtype", "dtype")
"""Fields the text part takes from the wrapper where it does not say them itself."""


def text_fields(wrapper: Fields) -> Fields:
    """The fields of the language model; older wrappers keep them beside the vision part."""
    text = wrapper.section("text_config")
    if text is None:
        return wrapper
    own = {name: value for name, value in text.values.items() if value is not None}
    return Fields({**{name: wrapper.values.get(name) for name in INHERITED}, **own}, text.where)


def with_vision(decoder: Decoder, wrapper: Fields, architecture: str) -> Decoder:
    """The decoder with the vision tower of its wrapper, where the config describes one."""
    vision = wrapper.section("vision_config")
    if vision is None:
        return decoder
    return decoder._replace(vision=TOWERS[architecture](vision, wrapper, decoder.hidden))
