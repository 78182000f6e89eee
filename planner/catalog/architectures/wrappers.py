"""Multimodal checkpoints: a text model inside a wrapper, with a vision tower that only costs memory."""

from collections.abc import Callable

from planner.catalog.architectures.base import Decoder
from planner.catalog.config_fields import LAYERS_MAX, Fields
from planner.domain.model import VisionTower

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

IMAGE_CHANNELS = 3


def text_fields(wrapper: Fields) -> Fields:
    """The fields of the language model; older wrappers keep them beside the vision part."""
    text = wrapper.section("text_config")
    if text is None:
        return wrapper
    own = {name: value for name, value in text.values.items() if value is not None}
    return Fields({**{name: wrapper.values.get(name) for name in INHERITED}, **own}, text.where)


def with_vision(decoder: Decoder, wrapper: Fields, architecture: str) -> Decoder:
    """The decoder with the vision tower of its wrapper, where the config describes one.

    Parameters are counted to about 1 %: projections, embeddings and projector, without biases and norms.
    """
    vision = wrapper.section("vision_config")
    if vision is None:
        return decoder
    # Vision projections are split over the ranks, except where vLLM takes the tower from transformers.
    sharded = architecture != "Gemma4ForConditionalGeneration"
    parameters = _TOWERS[architecture](vision, decoder.hidden)
    return decoder._replace(vision=VisionTower(parameters=parameters, sharded=sharded))


def _encoder(vision: Fields, hidden: int, *, layers: int, intermediate: int, gated: bool = False) -> int:
    """Parameters of the transformer blocks and of the patch embedding."""
    patch = vision.whole("patch_size", high=1024)
    frames = vision.whole("temporal_patch_size", default=1, high=64)
    blocks = layers * (4 * hidden**2 + (3 if gated else 2) * hidden * intermediate)
    return blocks + IMAGE_CHANNELS * frames * patch**2 * hidden


def _qwen_merger(vision: Fields, hidden: int, out: int) -> int:
    width = hidden * vision.whole("spatial_merge_size", default=2, high=64) ** 2
    return width * (width + out)


def _qwen2_vl(vision: Fields, text_hidden: int) -> int:
    hidden = vision.whole("embed_dim")
    ratio = vision.whole("mlp_ratio", default=4, high=64)
    layers = vision.whole("depth", high=LAYERS_MAX)
    encoder = _encoder(vision, hidden, layers=layers, intermediate=ratio * hidden)
    return encoder + _qwen_merger(vision, hidden, text_hidden)


def _qwen2_5_vl(vision: Fields, text_hidden: int) -> int:
    hidden = vision.whole("hidden_size")
    layers = vision.whole("depth", high=LAYERS_MAX)
    width = vision.whole("intermediate_size")
    encoder = _encoder(vision, hidden, layers=layers, intermediate=width, gated=True)
    return encoder + _qwen_merger(vision, hidden, text_hidden)


def _qwen3_vl(vision: Fields, text_hidden: int) -> int:
    """Learned positions, and one merger more for each layer whose features enter the text model."""
    hidden = vision.whole("hidden_size")
    layers = vision.whole("depth", high=LAYERS_MAX)
    encoder = _encoder(vision, hidden, layers=layers, intermediate=vision.whole("intermediate_size"))
    positions = vision.whole("num_position_embeddings", default=2304) * hidden
    mergers = 1 + len(vision.wholes("deepstack_visual_indexes"))
    return encoder + positions + mergers * _qwen_merger(vision, hidden, text_hidden)


def _siglip(vision: Fields, text_hidden: int) -> int:
    hidden = vision.whole("hidden_size")
    layers = vision.whole("num_hidden_layers", high=LAYERS_MAX)
    encoder = _encoder(vision, hidden, layers=layers, intermediate=vision.whole("intermediate_size"))
    side = vision.whole("image_size", high=100_000) // vision.whole("patch_size", high=1024)
    return encoder + side**2 * hidden + hidden * text_hidden


def _gemma4(vision: Fields, text_hidden: int) -> int:
    hidden = vision.whole("hidden_size")
    layers = vision.whole("num_hidden_layers", high=LAYERS_MAX)
    width = vision.whole("intermediate_size")
    encoder = _encoder(vision, hidden, layers=layers, intermediate=width, gated=True)
    positions = 2 * vision.whole("position_embedding_size", default=0, low=0) * hidden
    return encoder + positions + hidden * text_hidden


def _moonvit(vision: Fields, text_hidden: int) -> int:
    hidden = vision.whole("vt_hidden_size", "hidden_size")
    layers = vision.whole("vt_num_hidden_layers", "num_hidden_layers", high=LAYERS_MAX)
    width = vision.whole("vt_intermediate_size", "intermediate_size")
    encoder = _encoder(vision, hidden, layers=layers, intermediate=width)
    height = vision.whole("init_pos_emb_height", default=64)
    positions = height * vision.whole("init_pos_emb_width", default=64) * hidden
    return encoder + positions + 4 * hidden * (4 * hidden + text_hidden)


def _llama4(vision: Fields, text_hidden: int) -> int:
    hidden = vision.whole("hidden_size")
    layers = vision.whole("num_hidden_layers", high=LAYERS_MAX)
    width = vision.whole("intermediate_size")
    encoder = _encoder(vision, hidden, layers=layers, intermediate=width)
    projected = vision.whole("projector_input_dim", default=4096)
    out = vision.whole("vision_output_dim", default=4096)
    return encoder + width * projected + projected * out + out * text_hidden


def _pixtral(vision: Fields, text_hidden: int) -> int:
    hidden = vision.whole("hidden_size")
    layers = vision.whole("num_hidden_layers", high=LAYERS_MAX)
    width = vision.whole("intermediate_size")
    encoder = _encoder(vision, hidden, layers=layers, intermediate=width, gated=True)
    return encoder + 4 * hidden**2 + hidden * text_hidden + text_hidden**2


_TOWERS: dict[str, Callable[[Fields, int], int]] = {
    "Gemma3ForConditionalGeneration": _siglip,
    "Gemma4ForConditionalGeneration": _gemma4,
    "KimiK25ForConditionalGeneration": _moonvit,
    "Llama4ForConditionalGeneration": _llama4,
    "Mistral3ForConditionalGeneration": _pixtral,
    "Qwen2VLForConditionalGeneration": _qwen2_vl,
    "Qwen2_5_VLForConditionalGeneration": _qwen2_5_vl,
    "Qwen3VLForConditionalGeneration": _qwen3_vl,
    "Qwen3VLMoeForConditionalGeneration": _qwen3_vl,
    "Qwen3_5ForConditionalGeneration": _qwen3_vl,
    "Qwen3_5MoeForConditionalGeneration": _qwen3_vl,
}
