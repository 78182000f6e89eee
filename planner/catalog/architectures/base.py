"""What an architecture module returns, and the building blocks the families share."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from planner.catalog.config_fields import LAYERS_MAX, TOKENS_MAX, Fields, shown
from planner.domain.model import (
    Attention,
    DenseFfn,
    Ffn,
    GemmRole,
    LatentAttention,
    Layer,
    LinearAttention,
    MoeFfn,
    QkNorm,
    SoftmaxAttention,
    VisionTower,
)

FULL, SLIDING, CHUNKED, LINEAR = (
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "linear_attention",
)
"""Entries of `layer_types`, as transformers spells them."""

Names = Mapping[GemmRole, tuple[str, ...]]
"""For each module of a layer, what the checkpoint calls its parts, below `model.layers.N.`"""

DECODER_NAMES: Names = {
    GemmRole.QKV: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj"),
    GemmRole.ATTENTION_OUT: ("self_attn.o_proj",),
    GemmRole.MLA_DOWN: ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
    GemmRole.MLA_Q_UP: ("self_attn.q_b_proj", "self_attn.q_proj"),
    GemmRole.MLA_KV_UP: ("self_attn.kv_b_proj",),
    GemmRole.INDEXER: ("self_attn.indexer.wq_b",),
    GemmRole.LINEAR_IN: ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.in_proj_qkvz"),
    GemmRole.LINEAR_GATES: ("linear_attn.in_proj_b", "linear_attn.in_proj_a", "linear_attn.in_proj_ba"),
    GemmRole.LINEAR_OUT: ("linear_attn.out_proj",),
    GemmRole.GATE_UP: ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj"),
    GemmRole.DOWN: ("mlp.down_proj",),
    GemmRole.SHARED_GATE_UP: (
        "mlp.shared_experts.gate_proj",
        "mlp.shared_experts.up_proj",
        "mlp.shared_expert.gate_proj",
        "mlp.shared_expert.up_proj",
    ),
    GemmRole.SHARED_DOWN: ("mlp.shared_experts.down_proj", "mlp.shared_expert.down_proj"),
    GemmRole.EXPERTS: ("mlp.experts.0.gate_proj", "mlp.experts.0.up_proj", "mlp.experts.0.down_proj"),
}


class Decoder(NamedTuple):
    """A decoder before its quantisation is known: one entry of `layers` for each layer."""

    hidden: int
    vocab: int
    max_position: int
    tied_embeddings: bool
    layers: tuple[Layer, ...]
    names: Names = DECODER_NAMES
    norm_bias: bool = False
    head_bias: bool = False
    position_embeddings: int = 0
    final_norm: bool = True
    vision: VisionTower | None = None


Architecture = Callable[[Fields], Decoder]
"""Reads the fields of a config of one `architectures` class."""


def layer_count(fields: Fields) -> int:
    """Number of decoder layers."""
    return fields.whole("num_hidden_layers", "n_layer", "n_layers", "num_layers", high=LAYERS_MAX)


def hidden_size(fields: Fields) -> int:
    """Width of the residual stream."""
    return fields.whole("hidden_size", "n_embd", "d_model")


def build(  # noqa: PLR0913 - the fields of Decoder that differ between families
    fields: Fields,
    layers: list[Layer],
    *,
    tied: bool = False,
    names: Names = DECODER_NAMES,
    norm_bias: bool = False,
    head_bias: bool = False,
    position_embeddings: int = 0,
) -> Decoder:
    """Puts embeddings, head and positions round the layers; `tied` is the config class's own default."""
    _check_declared(fields, layers)
    return Decoder(
        hidden=hidden_size(fields),
        vocab=fields.whole("vocab_size", high=10_000_000),
        max_position=fields.whole(
            "max_position_embeddings", "n_positions", "max_sequence_length", default=2048, high=TOKENS_MAX
        ),
        tied_embeddings=fields.flag("tie_word_embeddings", default=tied),
        layers=tuple(layers),
        names=names,
        norm_bias=norm_bias,
        head_bias=head_bias,
        position_embeddings=position_embeddings,
    )


def _check_declared(fields: Fields, layers: list[Layer]) -> None:
    """Refuses a config whose lists of layer types say something else than its class makes of them."""
    for name, kind_of in (("layer_types", _attention_types), ("mlp_layer_types", _ffn_types)):
        declared = fields.texts(name)
        if declared and len(declared) != len(layers):
            raise fields.refuse(f"{name} has {len(declared)} entries for {len(layers)} layers")
        for index, kind in enumerate(declared):
            if kind not in kind_of(layers[index]):
                raise fields.refuse(f"{name}[{index}] {shown(kind)} is not understood for this architecture")


def _attention_types(layer: Layer) -> frozenset[str]:
    match layer.attention:
        case SoftmaxAttention(chunk_tokens=int()):
            return frozenset({CHUNKED})
        case SoftmaxAttention(window_tokens=int()):
            return frozenset({SLIDING})
        case SoftmaxAttention():
            return frozenset({FULL})
        case LatentAttention():
            return frozenset({FULL, "deepseek_sparse_attention"} if layer.attention.indexer_topk else {FULL})
        case LinearAttention():
            return frozenset({LINEAR})
    return frozenset()


def _ffn_types(layer: Layer) -> frozenset[str]:
    return frozenset({"sparse" if isinstance(layer.ffn, MoeFfn) else "dense"})


def softmax_attention(
    fields: Fields,
    *,
    prefix: str = "",
    bias: bool = False,
    output_bias: bool | None = None,
    qk_norm: QkNorm = QkNorm.NONE,
) -> SoftmaxAttention:
    """Full attention with the usual field names (`prefix` for a second set of them); scope is added by `scoped`."""
    heads = fields.whole(f"{prefix}num_attention_heads", "n_head", high=100_000)
    kv_heads = fields.whole(f"{prefix}num_key_value_heads", default=heads, high=100_000)
    if heads % kv_heads:
        raise fields.refuse(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    head_dim = fields.optional_whole(f"{prefix}head_dim", high=65_536)
    if head_dim is None:
        hidden = hidden_size(fields)
        if hidden % heads:
            raise fields.refuse(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads} and head_dim is missing"
            )
        head_dim = hidden // heads
    return SoftmaxAttention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=fields.whole(f"{prefix}v_head_dim", default=head_dim, high=65_536),
        qkv_bias=bias,
        output_bias=bias if output_bias is None else output_bias,
        qk_norm=qk_norm,
    )


def windowed(attention: SoftmaxAttention, window_tokens: int | None) -> SoftmaxAttention:
    """The same attention within a sliding window."""
    return attention.model_copy(update={"window_tokens": window_tokens})


def sliding_window(fields: Fields, *names: str) -> int | None:
    """The sliding window in tokens, None where there is none."""
    return fields.optional_whole(*(names or ("sliding_window",)), high=TOKENS_MAX)


def needed_window(fields: Fields) -> int:
    """The sliding window of a model whose layers are told to slide."""
    return fields.whole("sliding_window", high=TOKENS_MAX)


def layer_types(fields: Fields, layers: int, known: tuple[str, ...]) -> list[str] | None:
    """`layer_types`, checked for length and for names; None where the field is absent."""
    types = fields.texts("layer_types")
    if not types:
        return None
    if len(types) != layers:
        raise fields.refuse(f"layer_types has {len(types)} entries but num_hidden_layers is {layers}")
    for kind in types:
        if kind not in known:
            raise fields.refuse(f"layer type {shown(kind)} is not understood; known: {', '.join(known)}")
    return types


def per_layer(fields: Fields, name: str, layers: int) -> list[int]:
    """A list of whole numbers with one entry a layer."""
    values = fields.wholes(name)
    if len(values) != layers:
        raise fields.refuse(f"{name} has {len(values)} entries but num_hidden_layers is {layers}")
    return values


def scoped(
    fields: Fields, attention: SoftmaxAttention, default: list[str] | None = None
) -> list[SoftmaxAttention]:
    """One attention a layer: sliding where `layer_types` (else `default`, else nothing) says so."""
    layers = layer_count(fields)
    types = layer_types(fields, layers, (FULL, SLIDING)) or default
    if types is None or SLIDING not in types:
        return [attention] * layers
    sliding = windowed(attention, needed_window(fields))
    return [sliding if kind == SLIDING else attention for kind in types]


def dense_ffn(fields: Fields, *names: str, gated: bool = True, bias: bool = False) -> DenseFfn:
    """The feed-forward block every token passes."""
    return DenseFfn(intermediate=fields.whole(*(names or ("intermediate_size",))), gated=gated, bias=bias)


def experts_per_token(fields: Fields, experts: int, *names: str) -> int:
    """Experts a token is sent to."""
    chosen = fields.whole(*(names or ("num_experts_per_tok", "experts_per_token")), high=100_000)
    if chosen > experts:
        raise fields.refuse(
            f"{(names or ('num_experts_per_tok',))[0]} {chosen} exceeds the {experts} experts"
        )
    return chosen


def stack(
    attentions: Sequence[Attention], ffns: Sequence[Ffn], *, norms: int = 2, norm_bias: bool = False
) -> list[Layer]:
    """Layers of one attention and one feed-forward block each."""
    made: dict[tuple[int, int], Layer] = {}
    layers = []
    for attention, ffn in zip(attentions, ffns, strict=True):
        key = (id(attention), id(ffn))
        if key not in made:
            made[key] = Layer(attention=attention, ffn=ffn, norms=norms, norm_bias=norm_bias)
        layers.append(made[key])
    return layers


def sparse_after(dense: DenseFfn, moe: MoeFfn, layers: int, first_dense: int, every: int = 1) -> list[Ffn]:
    """Dense blocks in the first layers, then experts in every `every`-th layer."""
    return [moe if i >= first_dense and i % every == 0 else dense for i in range(layers)]
