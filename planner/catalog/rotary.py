"""Tables of rotary positions, as vLLM's get_rope makes them from a config (vllm/.../rotary_embedding/__init__.py).

vLLM tabulates every position that the config allows, not `max_model_len`, so a table can be gigabytes.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from planner.catalog.architectures.base import Decoder
from planner.catalog.config_fields import TOKENS_MAX, WIDTH_MAX, Fields
from planner.domain.model import LatentAttention, RotaryTable, SoftmaxAttention

FP32_TABLES = ("GptOssForCausalLM",)
"""These ask get_rope for fp32."""
WITHOUT_ROTARY = ("NemotronHForCausalLM",)
MROPE_MODELS = ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3_5", "Glm4v")
"""Images have positions of their own, for which vLLM makes the table four times as long."""
MROPE_LENGTHENS = 4
LENGTHENING = frozenset({"linear", "dynamic", "yarn", "deepseek_yarn"})
"""Kinds whose table has `factor` times the rows it starts from."""
FACTOR_MAX = 10_000
LOCAL = "sliding_attention"
LOCAL_BASES = ("rope_local_base_freq", "swa_rope_theta")
"""Fields that give local layers a base, hence a table, of their own (Gemma 3, MiMo-V2)."""


class _Kind(NamedTuple):
    """Parameters of one table: the config's own, and for which layers they are."""

    parameters: Fields
    layer_type: str = ""


def rotary_tables(text: Fields, architecture: str, decoder: Decoder) -> tuple[RotaryTable, ...]:
    """The tables a model makes, each distinct one once.

    Raises:
        InputError: rope parameters are not what they should be.
    """
    if decoder.position_embeddings or architecture in WITHOUT_ROTARY:
        return ()
    tables = []
    for kind in _kinds(text):
        width = _width(text, kind, decoder)
        if not width:
            continue
        rows = _rows(text, kind.parameters, decoder.max_position)
        if architecture.startswith(MROPE_MODELS) or kind.parameters.has("mrope_section"):
            rows *= MROPE_LENGTHENS
        tables.append(RotaryTable(rows=rows, width=width, fp32=architecture in FP32_TABLES))
    if not text.flag("indexer_rope_interleave"):
        tables += _indexer_tables(tables, decoder)
    return tuple(tables)


def _kinds(text: Fields) -> Iterator[_Kind]:
    """One entry a table: nested by layer type, or one for all, with a second base for local layers."""
    parameters = text.section("rope_parameters") or text.section("rope_scaling") or Fields({}, text.where)
    nested = [name for name, value in parameters.values.items() if isinstance(value, Mapping)]
    for name in nested:
        inner = parameters.section(name)
        if inner is not None:
            yield _Kind(inner, name)
    if not nested:
        yield _Kind(parameters)
        if any(text.has(name) for name in LOCAL_BASES):
            yield _Kind(Fields({}, text.where), LOCAL)


def _rows(text: Fields, parameters: Fields, max_position: int) -> int:
    kind = parameters.text("rope_type", "type", default="default")
    rows = max_position
    if kind in {"yarn", "deepseek_yarn"}:
        rows = parameters.whole("original_max_position_embeddings", default=max_position, high=TOKENS_MAX)
    if kind == "longrope" and (parameters.has("original_max_position_embeddings")):
        return rows + parameters.whole("original_max_position_embeddings", high=TOKENS_MAX)
    if kind == "longrope":
        return rows + text.whole("original_max_position_embeddings", default=rows, high=TOKENS_MAX)
    if kind in LENGTHENING and parameters.has("factor"):
        rows = round(rows * parameters.number("factor", low=0, high=FACTOR_MAX))
    return max(1, rows)


def _width(text: Fields, kind: _Kind, decoder: Decoder) -> int:
    """Rotated dimensions of a head, 0 where nothing rotates."""
    for layer in decoder.layers:
        match layer.attention:
            case LatentAttention():
                return layer.attention.qk_rope_head_dim
            case SoftmaxAttention():
                is_local = layer.attention.window_tokens is not None
                if not kind.layer_type or is_local == (kind.layer_type == LOCAL):
                    return _partial_width(text, kind.parameters, layer.attention.head_dim)
    return 0


def _partial_width(text: Fields, parameters: Fields, head_dim: int) -> int:
    if text.has("rotary_dim"):
        return text.whole("rotary_dim", high=WIDTH_MAX)
    if parameters.text("rope_type", "type", default="default") == "proportional":
        return head_dim
    for fields, name in (
        (parameters, "partial_rotary_factor"),
        (text, "partial_rotary_factor"),
        (text, "rotary_pct"),
    ):
        if fields.has(name):
            return int(head_dim * fields.number(name, low=0, high=1))
    return head_dim


def _indexer_tables(tables: list[RotaryTable], decoder: Decoder) -> Iterator[RotaryTable]:
    """Sparse attention's indexer rotates in another order, so it has a table of its own (DeepSeek V3.2, not GLM-5)."""
    attentions = (layer.attention for layer in decoder.layers)
    if tables and any(isinstance(one, LatentAttention) and one.indexer_heads for one in attentions):
        yield tables[0]
