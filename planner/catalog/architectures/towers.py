"""Vision towers as their wrappers' `vision_config` describes them; sources are vLLM's classes of the same families."""

from collections.abc import Callable

from planner.catalog.config_fields import LAYERS_MAX, Fields
from planner.domain.model import TowerBlock, TowerFamily, TowerLinear, TowerSplit, TowerVector, VisionTower

IMAGE_CHANNELS = 3
LLAMA4_SHUFFLE = 0.5
WHOLE, COLUMN, ROW = TowerSplit.WHOLE, TowerSplit.COLUMN, TowerSplit.ROW

TowerReader = Callable[[Fields, Fields, int], VisionTower]
"""Makes a tower of its own fields, those of the wrapper round it, and the width of the language model."""


def _layers(vision: Fields, *names: str) -> int:
    return vision.whole(*names, high=LAYERS_MAX)


def _patch_values(vision: Fields) -> int:
    """Numbers that one patch is made of: channels x frames x height x width."""
    channels = vision.whole("in_channels", "in_chans", "num_channels", default=IMAGE_CHANNELS, high=64)
    frames = vision.whole("temporal_patch_size", default=1, high=64)
    return channels * frames * vision.whole("patch_size", high=1024) ** 2


def _merge(vision: Fields, default: int = 2) -> int:
    return vision.whole("spatial_merge_size", default=default, high=64)


def _norm(name: str, width: int, *, bias: bool = True) -> TowerVector:
    return TowerVector(name=name, values=(2 if bias else 1) * width)


def _even_heads(vision: Fields, hidden: int, *names: str) -> int:
    """Attention heads that share the hidden width."""
    heads = vision.whole(*names, high=100_000)
    if hidden % heads:
        raise vision.refuse(f"hidden size {hidden} is not a multiple of {names[0]} {heads}")
    return heads


def _merger(name: str, hidden: int, wide: int, out: int) -> tuple[TowerLinear, TowerLinear]:
    """Joins neighbouring patches and brings them to the language model's width; split like any two products."""
    return (
        TowerLinear(name=f"{name}.fc1", inputs=wide, outputs=hidden, split=COLUMN, bias=True),
        TowerLinear(name=f"{name}.fc2", inputs=hidden, outputs=out, split=ROW, bias=True),
    )


def qwen2_vl(vision: Fields, _wrapper: Fields, text_hidden: int) -> VisionTower:
    """vllm/model_executor/models/qwen2_vl.py, Qwen2VisionTransformer; `hidden_size` is the text model's width there."""
    hidden = vision.whole("embed_dim")
    merge = _merge(vision)
    wide = hidden * merge**2
    return VisionTower(
        family=TowerFamily.QWEN2_VL,
        hidden=hidden,
        heads=_even_heads(vision, hidden, "num_heads"),
        patch_values=_patch_values(vision),
        patch_size=vision.whole("patch_size", high=1024),
        merge_size=merge,
        output_width=text_hidden,
        layers=_layers(vision, "depth"),
        block=TowerBlock(
            intermediate=vision.whole("mlp_ratio", default=4, high=64) * hidden,
            mlp_bias=True,
            norm_values=4 * hidden,
        ),
        linears=(
            TowerLinear(name="patch_embed", inputs=_patch_values(vision), outputs=hidden),
            *_merger("merger", wide, wide, text_hidden),
        ),
        vectors=(_norm("merger.norm", hidden),),
    )


def qwen2_5_vl(vision: Fields, _wrapper: Fields, text_hidden: int) -> VisionTower:
    """vllm/model_executor/models/qwen2_5_vl.py, Qwen2_5_VisionTransformer: gated blocks and RMS norms."""
    hidden = vision.whole("hidden_size")
    merge = _merge(vision)
    wide = hidden * merge**2
    return VisionTower(
        family=TowerFamily.QWEN2_5_VL,
        hidden=hidden,
        heads=_even_heads(vision, hidden, "num_heads"),
        patch_values=_patch_values(vision),
        patch_size=vision.whole("patch_size", high=1024),
        merge_size=merge,
        output_width=text_hidden,
        layers=_layers(vision, "depth"),
        block=TowerBlock(
            intermediate=vision.whole("intermediate_size"), gated=True, mlp_bias=True, norm_values=2 * hidden
        ),
        linears=(
            TowerLinear(name="patch_embed", inputs=_patch_values(vision), outputs=hidden),
            *_merger("merger", wide, wide, vision.whole("out_hidden_size", default=text_hidden)),
        ),
        vectors=(_norm("merger.norm", hidden, bias=False),),
    )


def qwen3_vl(vision: Fields, _wrapper: Fields, text_hidden: int) -> VisionTower:
    """vllm/model_executor/models/qwen3_vl.py, Qwen3_VisionTransformer.

    Learned positions, and one merger more for each layer whose features enter the text model.
    """
    hidden = vision.whole("hidden_size")
    merge = _merge(vision)
    wide = hidden * merge**2
    out = vision.whole("out_hidden_size", default=text_hidden)
    taps = len(vision.wholes("deepstack_visual_indexes"))
    positions = vision.whole("num_position_embeddings", default=2304) * hidden
    deepstack = [
        linear.model_copy(update={"copies": taps}) for linear in _merger("deepstack_merger", wide, wide, out)
    ]
    return VisionTower(
        family=TowerFamily.QWEN3_VL,
        hidden=hidden,
        heads=_even_heads(vision, hidden, "num_heads"),
        patch_values=_patch_values(vision),
        patch_size=vision.whole("patch_size", high=1024),
        merge_size=merge,
        output_width=out * (1 + taps),
        deepstack_layers=taps,
        layers=_layers(vision, "depth"),
        block=TowerBlock(
            intermediate=vision.whole("intermediate_size"), mlp_bias=True, norm_values=4 * hidden
        ),
        linears=(
            TowerLinear(name="patch_embed", inputs=_patch_values(vision), outputs=hidden, bias=True),
            *_merger("merger", wide, wide, out),
            *(deepstack if taps else ()),
        ),
        vectors=(
            TowerVector(name="positions", values=positions),
            _norm("merger.norm", hidden),
            *((_norm("deepstack_merger.norm", wide * taps),) if taps else ()),
        ),
    )


def siglip(vision: Fields, wrapper: Fields, text_hidden: int) -> VisionTower:
    """vllm/model_executor/models/siglip.py, SiglipVisionModel, with the projector of gemma3_mm.py."""
    hidden = vision.whole("hidden_size")
    side = vision.whole("image_size", high=100_000) // vision.whole("patch_size", high=1024)
    if side < 1:
        raise vision.refuse("image_size is smaller than patch_size")
    return VisionTower(
        family=TowerFamily.GEMMA3,
        hidden=hidden,
        heads=_even_heads(vision, hidden, "num_attention_heads"),
        patch_values=_patch_values(vision),
        patch_size=vision.whole("patch_size", high=1024),
        image_patches=side**2,
        image_tokens=wrapper.whole("mm_tokens_per_image", default=256, high=1_000_000),
        output_width=text_hidden,
        layers=_layers(vision, "num_hidden_layers"),
        block=TowerBlock(
            intermediate=vision.whole("intermediate_size"), mlp_bias=True, norm_values=4 * hidden
        ),
        linears=(
            TowerLinear(name="patch_embed", inputs=_patch_values(vision), outputs=hidden, bias=True),
            TowerLinear(name="projector", inputs=text_hidden, outputs=hidden),
        ),
        vectors=(
            TowerVector(name="positions", values=side**2 * hidden),
            _norm("post_norm", hidden),
            _norm("projector.norm", hidden, bias=False),
        ),
    )


def gemma4(vision: Fields, wrapper: Fields, text_hidden: int) -> VisionTower:
    """vllm/model_executor/models/gemma4_mm.py: the tower is taken from transformers and is whole on every rank."""
    hidden = vision.whole("hidden_size")
    heads = vision.whole("num_attention_heads", high=100_000)
    kv_heads = vision.whole("num_key_value_heads", default=heads, high=100_000)
    head_dim = vision.whole("head_dim", default=max(1, hidden // heads), high=65_536)
    positions = 2 * vision.whole("position_embedding_size", default=0, low=0) * hidden
    pool = vision.whole("pooling_kernel_size", default=3, high=64)
    tokens = wrapper.whole("vision_soft_tokens_per_image", default=280, high=1_000_000)
    return VisionTower(
        family=TowerFamily.GEMMA4,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        replicated=True,
        patch_values=_patch_values(vision),
        patch_size=vision.whole("patch_size", high=1024),
        merge_size=pool,
        image_patches=tokens * pool**2,
        image_tokens=tokens,
        output_width=text_hidden,
        layers=_layers(vision, "num_hidden_layers"),
        block=TowerBlock(
            intermediate=vision.whole("intermediate_size"),
            gated=True,
            attention_bias=vision.flag("attention_bias"),
            norm_values=4 * hidden + 2 * head_dim,
        ),
        linears=(
            TowerLinear(name="patch_embed", inputs=_patch_values(vision), outputs=hidden),
            TowerLinear(name="projector", inputs=hidden, outputs=text_hidden),
        ),
        vectors=(TowerVector(name="positions", values=positions),),
    )


def moonvit(vision: Fields, _wrapper: Fields, text_hidden: int) -> VisionTower:
    """vllm/model_executor/models/kimi_k25_vit.py, MoonViT3dPretrainedModel; the projector is whole on every rank."""
    hidden = vision.whole("vt_hidden_size", "hidden_size")
    merges = vision.wholes("merge_kernel_size", low=1, high=64) or [2, 2]
    wide = hidden * merges[0] * merges[-1]
    height = vision.whole("init_pos_emb_height", default=64)
    positions = height * vision.whole("init_pos_emb_width", default=64) * hidden
    return VisionTower(
        family=TowerFamily.KIMI_K25,
        hidden=hidden,
        heads=_even_heads(vision, hidden, "vt_num_attention_heads", "num_attention_heads"),
        patch_values=_patch_values(vision),
        patch_size=vision.whole("patch_size", high=1024),
        merge_size=merges[0],
        output_width=text_hidden,
        layers=_layers(vision, "vt_num_hidden_layers", "num_hidden_layers"),
        block=TowerBlock(
            intermediate=vision.whole("vt_intermediate_size", "intermediate_size"),
            mlp_bias=True,
            norm_values=4 * hidden,
        ),
        linears=(
            TowerLinear(name="patch_embed", inputs=_patch_values(vision), outputs=hidden, bias=True),
            TowerLinear(name="projector.fc1", inputs=wide, outputs=wide, bias=True),
            TowerLinear(name="projector.fc2", inputs=wide, outputs=text_hidden, bias=True),
        ),
        vectors=(
            TowerVector(name="positions", values=positions),
            _norm("final_norm", hidden),
            _norm("projector.norm", hidden),
        ),
    )


def llama4(vision: Fields, _wrapper: Fields, text_hidden: int) -> VisionTower:
    """vllm/model_executor/models/mllama4.py, Llama4VisionModel: patches, adapter and projector are split too."""
    hidden = vision.whole("hidden_size")
    width = vision.whole("intermediate_size")
    side = vision.whole("image_size", default=336, high=100_000) // vision.whole("patch_size", high=1024)
    if side < 2:
        raise vision.refuse("image_size must hold two patches or more")
    shuffled = round(hidden / LLAMA4_SHUFFLE**2)
    projected = vision.whole("projector_input_dim", default=4096)
    projector_out = vision.whole("projector_output_dim", default=4096)
    out = vision.whole("vision_output_dim", default=4096)
    return VisionTower(
        family=TowerFamily.LLAMA4,
        hidden=hidden,
        heads=_even_heads(vision, hidden, "num_attention_heads"),
        patch_values=_patch_values(vision),
        patch_size=vision.whole("patch_size", high=1024),
        image_patches=side**2 + 1,
        image_tokens=round(side**2 * LLAMA4_SHUFFLE**2),
        output_width=text_hidden,
        layers=_layers(vision, "num_hidden_layers"),
        block=TowerBlock(intermediate=width, mlp_bias=True, norm_values=4 * hidden),
        linears=(
            TowerLinear(name="patch_embed", inputs=_patch_values(vision), outputs=hidden, split=COLUMN),
            TowerLinear(name="adapter.fc1", inputs=shuffled, outputs=projected, split=COLUMN),
            TowerLinear(name="adapter.fc2", inputs=projected, outputs=projector_out, split=ROW),
            TowerLinear(name="projector", inputs=out, outputs=text_hidden, split=COLUMN),
        ),
        vectors=(
            TowerVector(name="class_embedding", values=hidden),
            TowerVector(name="positions", values=(side**2 + 1) * hidden),
            _norm("pre_norm", hidden),
            _norm("post_norm", hidden),
        ),
    )


def pixtral(vision: Fields, wrapper: Fields, text_hidden: int) -> VisionTower:
    """vllm/model_executor/models/pixtral.py, PixtralHFVisionModel, with the projector of mistral3.py."""
    hidden = vision.whole("hidden_size")
    heads = vision.whole("num_attention_heads", high=100_000)
    merge = wrapper.whole("spatial_merge_size", default=2, high=64)
    side = vision.whole("image_size", default=1024, high=100_000) // vision.whole("patch_size", high=1024)
    bias = wrapper.flag("multimodal_projector_bias")
    return VisionTower(
        family=TowerFamily.PIXTRAL,
        hidden=hidden,
        heads=heads,
        head_dim=vision.whole("head_dim", default=max(1, hidden // heads), high=65_536),
        patch_values=_patch_values(vision),
        patch_size=vision.whole("patch_size", high=1024),
        merge_size=merge,
        image_patches=max(side, 1) ** 2,
        image_tokens=max(side // merge, 1) ** 2,
        output_width=text_hidden,
        layers=_layers(vision, "num_hidden_layers"),
        block=TowerBlock(
            intermediate=vision.whole("intermediate_size"),
            gated=True,
            attention_bias=False,
            norm_values=2 * hidden,
        ),
        linears=(
            TowerLinear(name="patch_embed", inputs=_patch_values(vision), outputs=hidden),
            TowerLinear(name="projector.merge", inputs=hidden * merge**2, outputs=hidden),
            TowerLinear(name="projector.fc1", inputs=hidden, outputs=text_hidden, split=COLUMN, bias=bias),
            TowerLinear(name="projector.fc2", inputs=text_hidden, outputs=text_hidden, split=ROW, bias=bias),
        ),
        vectors=(_norm("pre_norm", hidden, bias=False), _norm("projector.norm", hidden, bias=False)),
    )


TOWERS: dict[str, TowerReader] = {
    "Gemma3ForConditionalGeneration": siglip,
    "Gemma4ForConditionalGeneration": gemma4,
    "KimiK25ForConditionalGeneration": moonvit,
    "Llama4ForConditionalGeneration": llama4,
    "Mistral3ForConditionalGeneration": pixtral,
    "Qwen2VLForConditionalGeneration": qwen2_vl,
    "Qwen2_5_VLForConditionalGeneration": qwen2_5_vl,
    "Qwen3VLForConditionalGeneration": qwen3_vl,
    "Qwen3VLMoeForConditionalGeneration": qwen3_vl,
    "Qwen3_5ForConditionalGeneration": qwen3_vl,
    "Qwen3_5MoeForConditionalGeneration": qwen3_vl,
}
"""How the tower of each wrapper class is read."""
