"""Memory of profiling a multimodal model's encoder: its forward pass on dummy images, and what is kept of it.

vLLM runs the encoder on as many of the largest items as its budget takes, keeps the outputs (and the inputs) on
the card, and then runs the language model: vllm/v1/worker/gpu_model_runner.py, profile_run;
vllm/multimodal/encoder_budget.py; vllm/v1/core/encoder_cache_manager.py, compute_mm_encoder_budget.
"""

from functools import lru_cache
from math import ceil, sqrt
from typing import NamedTuple

from planner.domain.deployment import EngineSettings
from planner.domain.model import Model, TowerFamily, VisionTower
from planner.formulas.engine_defaults import EngineVersion, parse_version
from planner.formulas.profile_rules import uses_v2_runner
from planner.formulas.vision import head_width, tower_ranks

BYTES_PER_VALUE = 2
"""Pixels, activations and outputs are 16-bit."""

QWEN2_VL_IMAGE_PIXELS = 12_845_056
"""`max_pixels` of Qwen2-VL's and Qwen2.5-VL's published preprocessor_config.json."""
QWEN2_VL_VIDEO_FRAMES = 14
"""vllm/model_executor/models/qwen2_vl.py, the most frames of a dummy video."""
QWEN3_VL_IMAGE_PIXELS = 16_777_216
"""`size.longest_edge` of Qwen3-VL's and Qwen3.5's published preprocessor_config.json."""
QWEN3_VL_VIDEO_PIXELS = 25_165_824
"""`size.longest_edge` of their video_preprocessor_config.json: pixels of all frames together."""
QWEN3_VL_TIMESTAMP_RATIO = 12.5
"""Tokens that releases before 0.13 counted for each video token, timestamps included."""
FRAMES_PER_PATCH = 2
LLAMA4_TILES = 16 + 1
"""`max_patches` of Llama 4's published preprocessor_config.json, and the whole image once more."""
KIMI_IMAGE_SIDE_PIXELS = 3000
"""vllm/model_executor/models/kimi_k25.py, side of the dummy image."""
KIMI_IMAGE_PATCHES = 16_384
"""`in_patch_limit` of Kimi K2.5's published preprocessor_config.json."""
KIMI_POSITIONS_SIDE = 512
"""vllm/model_executor/models/kimi_k25_vit.py, side of the table of rotary positions."""
GEMMA4_VIDEO_FRAMES = 32
GEMMA4_FRAME_TOKENS = 70
GEMMA4_FRAME_TEXT_TOKENS = 8
"""vllm/model_executor/models/gemma4_mm.py: frames of a dummy video, tokens of each, and what marks each."""

HELD_STREAMS: dict[TowerFamily, int] = {
    TowerFamily.GEMMA3: 1,
    TowerFamily.GEMMA4: 1,
    TowerFamily.KIMI_K25: 1,
    TowerFamily.LLAMA4: 1,
    TowerFamily.PIXTRAL: 3,
    TowerFamily.QWEN2_VL: 0,
    TowerFamily.QWEN2_5_VL: 2,
    TowerFamily.QWEN3_VL: 1,
}
"""Copies of the hidden width that outlive the blocks, because a calling function still names them: the embedded
patches, Qwen3-VL's positions, each block's attention (Pixtral, Qwen2.5-VL), patches before their norm (Pixtral)
and the wide product behind the narrow one (Qwen2.5-VL)."""
TURNED_COPIES: dict[TowerFamily, int] = {
    TowerFamily.GEMMA3: 0,
    TowerFamily.GEMMA4: 2,
    TowerFamily.KIMI_K25: 1,
    TowerFamily.LLAMA4: 5,
    TowerFamily.PIXTRAL: 1,
    TowerFamily.QWEN2_VL: 1,
    TowerFamily.QWEN2_5_VL: 1,
    TowerFamily.QWEN3_VL: 1,
}
"""Copies of queries and keys, in 16-bit values, that are alive while they are turned by their position: none with
learned positions, normalised and turned ones (Gemma 4), fp32 input and result and the result cast back where they
are turned as complex numbers (Llama 4)."""
CONTIGUOUS_FIRST = frozenset({TowerFamily.QWEN2_VL, TowerFamily.QWEN2_5_VL, TowerFamily.QWEN3_VL})
"""Towers that copy queries and keys once more before they turn them, in later releases."""


class EncoderRules(NamedTuple):
    """What of the encoder's profiling differs between releases."""

    counts_timestamps: bool
    """Qwen3-VL videos are budgeted with their timestamps, and outputs are padded to the budget."""
    copies_before_turning: bool
    """Qwen towers make queries and keys contiguous before they turn them."""
    interpolates_in_kernel: bool
    """Qwen3-VL's learned positions are interpolated in one kernel, not from four gathered copies."""
    batches_frames: bool
    """Gemma 4 encodes its frames together, not one by one."""
    v2_runner_profiles: bool
    """Model Runner V2 profiles the encoder too."""


class BatchLimits(NamedTuple):
    """The flags that limit the dummy items."""

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int


class DummyItem(NamedTuple):
    """The largest image or video a family's processor lets through."""

    budgeted_tokens: int
    patches: int
    output_tokens: int


class EncoderBatch(NamedTuple):
    """The dummy items that the encoder is profiled on."""

    items: int
    item: DummyItem
    patches_at_once: int
    """Of all items, that pass the tower together."""
    kept_tokens: int
    """Rows of output that are kept of all items."""


class EncoderProfile(NamedTuple):
    """Bytes on one rank; zeros where there is no encoder or it takes no items."""

    peak_bytes: int = 0
    """While the encoder runs, before the language model does."""
    cached_bytes: int = 0
    """Stays while the language model's dummy batch runs."""


@lru_cache(maxsize=256)
def encoder_rules(engine_version: str = "") -> EncoderRules:
    """The rules of a release; one between two that were read follows the older one.

    Sources: gpu_model_runner.py and gpu/model_runner.py (profile_run),
    models/{qwen3_vl,qwen2_5_vl,gemma4_mm}.py of 0.11.0 to 0.33.0.
    """
    version = parse_version(engine_version)

    def since(minor: int) -> bool:
        return version >= EngineVersion(0, minor, 0)

    return EncoderRules(
        counts_timestamps=not since(13),
        copies_before_turning=since(16),
        interpolates_in_kernel=since(20),
        batches_frames=since(22),
        v2_runner_profiles=since(27),
    )


def encoder_profile(model: Model, engine: EngineSettings, tp: int = 1) -> EncoderProfile:
    """Bytes that profiling the encoder takes on one of `tp` ranks of the first pipeline stage."""
    if model.vision is None or not engine.multimodal:
        return EncoderProfile()
    rules = encoder_rules(engine.engine_version)
    drafts = engine.speculation is not None
    v2_runner = uses_v2_runner(model, parse_version(engine.engine_version), drafts=drafts)
    if v2_runner and not rules.v2_runner_profiles:
        return EncoderProfile()
    limits = BatchLimits(engine.max_num_batched_tokens, engine.max_num_seqs, engine.max_model_len)
    return _profile(model.vision, rules, limits, tp, keeps_inputs=not v2_runner)


@lru_cache(maxsize=4096)
def _profile(
    tower: VisionTower, rules: EncoderRules, limits: BatchLimits, tp: int, *, keeps_inputs: bool
) -> EncoderProfile:
    batch = encoder_batch(tower, rules, limits)
    return EncoderProfile(
        encoder_peak_bytes(tower, batch, rules, tp=tp),
        encoder_cache_bytes(tower, batch, keeps_inputs=keeps_inputs),
    )


def encoder_batch(tower: VisionTower, rules: EncoderRules, limits: BatchLimits) -> EncoderBatch:
    """The items of the largest modality that the encoder's budget takes, at least one.

    The budget is `max_num_batched_tokens`, or one item where that is larger; no more items are taken than the
    sequences of one batch hold (MultiModalBudget._get_max_items).
    """
    item = largest_item(tower, rules, max_model_len=limits.max_model_len)
    in_budget = limits.max_num_batched_tokens // item.budgeted_tokens
    in_sequences = limits.max_num_seqs * max(1, limits.max_model_len // item.budgeted_tokens)
    items = max(1, min(in_budget, in_sequences))
    frame_by_frame = tower.family is TowerFamily.GEMMA4 and not rules.batches_frames
    return EncoderBatch(
        items=items,
        item=item,
        patches_at_once=item.patches // GEMMA4_VIDEO_FRAMES if frame_by_frame else items * item.patches,
        kept_tokens=items * (item.budgeted_tokens if rules.counts_timestamps else item.output_tokens),
    )


def encoder_cache_bytes(tower: VisionTower, batch: EncoderBatch, *, keeps_inputs: bool) -> int:
    """Outputs of the dummy items, with their pixels where the runner still holds those [bytes]."""
    outputs = batch.kept_tokens * tower.output_width
    inputs = batch.items * batch.item.patches * tower.patch_values if keeps_inputs else 0
    return BYTES_PER_VALUE * (_table_values(tower) + outputs + inputs)


def encoder_peak_bytes(tower: VisionTower, batch: EncoderBatch, rules: EncoderRules, *, tp: int = 1) -> int:
    """The most the encoder's forward pass holds on one of `tp` ranks, its inputs and outputs included [bytes].

    A block holds its input, the normalised copy of it and its wide products until it returns; attention itself
    needs no score matrix (FlashAttention). Workspaces of libraries are not counted.
    """
    patches = batch.patches_at_once
    pixels = batch.items * batch.item.patches * tower.patch_values
    outputs = batch.items * batch.item.output_tokens * tower.output_width
    tapped = outputs * tower.deepstack_layers // (1 + tower.deepstack_layers)
    ranks = tower_ranks(tower, tp)
    stream = (1 + HELD_STREAMS[tower.family]) * tower.hidden + _rotary_values(tower)
    block = max(_attention_values(tower, rules, ranks), _feed_forward_values(tower, ranks))
    embedding = patches * (tower.hidden + _embedding_values(tower, rules))
    running = patches * (stream + block) + tapped
    leaving = patches * stream + outputs + max(outputs, batch.kept_tokens * tower.output_width)
    return BYTES_PER_VALUE * (_table_values(tower) + pixels + max(embedding, running, leaving))


def largest_item(tower: VisionTower, rules: EncoderRules, *, max_model_len: int) -> DummyItem:
    """The dummy item of the modality with most tokens."""
    match tower.family:
        case TowerFamily.QWEN3_VL:
            return _qwen3_vl_item(tower, rules)
        case TowerFamily.QWEN2_VL | TowerFamily.QWEN2_5_VL:
            frame_tokens = _tokens_of(tower, QWEN2_VL_IMAGE_PIXELS)
            frames = min(max_model_len // frame_tokens, QWEN2_VL_VIDEO_FRAMES // FRAMES_PER_PATCH)
            return _merged(tower, frame_tokens * max(1, frames))
        case TowerFamily.KIMI_K25:
            return _merged(tower, _kimi_image_tokens(tower))
        case TowerFamily.GEMMA4:
            video = _merged(tower, GEMMA4_VIDEO_FRAMES * GEMMA4_FRAME_TOKENS)
            text_tokens = GEMMA4_VIDEO_FRAMES * GEMMA4_FRAME_TEXT_TOKENS
            return video._replace(budgeted_tokens=video.output_tokens + text_tokens)
    tiles = LLAMA4_TILES if tower.family is TowerFamily.LLAMA4 else 1
    tokens = tiles * (tower.image_tokens or 1)
    return DummyItem(tokens, tiles * (tower.image_patches or 1), tokens)


def _merged(tower: VisionTower, tokens: int) -> DummyItem:
    return DummyItem(tokens, tokens * tower.merge_size**2, tokens)


def _tokens_of(tower: VisionTower, pixels: int) -> int:
    return max(1, pixels // (tower.patch_size * tower.merge_size) ** 2)


def _qwen3_vl_item(tower: VisionTower, rules: EncoderRules) -> DummyItem:
    """An image, since frames of a video share fewer pixels; a video only where its timestamps count."""
    if not rules.counts_timestamps:
        return _merged(tower, _tokens_of(tower, QWEN3_VL_IMAGE_PIXELS))
    side_pixels = sqrt(QWEN3_VL_VIDEO_PIXELS / FRAMES_PER_PATCH)
    video = _merged(tower, max(1, int(side_pixels) // (tower.patch_size * tower.merge_size)) ** 2)
    return video._replace(budgeted_tokens=int(video.output_tokens * QWEN3_VL_TIMESTAMP_RATIO))


def _kimi_image_tokens(tower: VisionTower) -> int:
    """Tokens of the dummy image, scaled to the patch limit and padded to whole tokens (navit_resize_image)."""
    scale = min(1.0, sqrt(KIMI_IMAGE_PATCHES) / max(1, KIMI_IMAGE_SIDE_PIXELS // tower.patch_size))
    side_pixels = int(KIMI_IMAGE_SIDE_PIXELS * scale)
    tokens_across = ceil(side_pixels / (tower.patch_size * tower.merge_size))
    return tokens_across**2


def _rotary_values(tower: VisionTower) -> int:
    """Sines and cosines of a patch's position; Llama 4 has one table for all tiles."""
    return 0 if tower.family in {TowerFamily.GEMMA3, TowerFamily.LLAMA4} else head_width(tower)


def _table_values(tower: VisionTower) -> int:
    """A table of complex positions that is made on first use and stays, in 16-bit values (Kimi K2.5)."""
    return KIMI_POSITIONS_SIDE**2 * 2 * head_width(tower) if tower.family is TowerFamily.KIMI_K25 else 0


def _embedding_values(tower: VisionTower, rules: EncoderRules) -> int:
    """Values a patch needs while its position is added: four corners, their sum, and two copies of that."""
    if tower.family is TowerFamily.QWEN3_VL and not rules.interpolates_in_kernel:
        return 6 * tower.hidden
    return 2 * tower.hidden


def _attention_values(tower: VisionTower, rules: EncoderRules, ranks: int) -> int:
    """Beside a block's input: the normalised one, queries, keys and values, the turned ones and the result."""
    queries = tower.heads * head_width(tower) // ranks
    keys = (tower.kv_heads or tower.heads) * head_width(tower) // ranks
    turned = TURNED_COPIES[tower.family]
    if rules.copies_before_turning and tower.family in CONTIGUOUS_FIRST:
        turned += 1
    projected = tower.hidden + queries + 2 * keys
    turning = projected + turned * (queries + keys)
    left = 1 if tower.family is TowerFamily.LLAMA4 else turned
    return max(turning, projected + left * (queries + keys) + queries + _summed_values(tower, ranks))


def _feed_forward_values(tower: VisionTower, ranks: int) -> int:
    """Beside a block's input: its sum with the attention, that normalised, and the wide product and its activation."""
    wide = tower.block.intermediate // ranks
    activated = (3 if tower.block.gated else 2) * wide
    return 2 * tower.hidden + max(activated, wide + _summed_values(tower, ranks))


def _summed_values(tower: VisionTower, ranks: int) -> int:
    """A product split over ranks, before and after their parts are added."""
    return tower.hidden * (2 if ranks > 1 else 1)
