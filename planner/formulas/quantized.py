"""A model stored in another number format: which projections can be quantised, and the user's wish for them."""

from planner.domain.dtypes import WeightDtype
from planner.domain.model import (
    DenseFfn,
    Ffn,
    GemmRole,
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
    Quantization,
    QuantMethod,
    SoftmaxAttention,
)

WISHES: dict[WeightDtype, Quantization] = {
    WeightDtype.FP8: Quantization(dtype=WeightDtype.FP8, method=QuantMethod.COMPRESSED_TENSORS),
    WeightDtype.FP8_BLOCK: Quantization(dtype=WeightDtype.FP8_BLOCK, method=QuantMethod.FP8),
    WeightDtype.INT8: Quantization(dtype=WeightDtype.INT8, method=QuantMethod.COMPRESSED_TENSORS),
    WeightDtype.INT4: Quantization(
        dtype=WeightDtype.INT4, method=QuantMethod.COMPRESSED_TENSORS, group_size=128
    ),
    WeightDtype.AWQ: Quantization(dtype=WeightDtype.AWQ, group_size=128, zero_points=True),
    WeightDtype.GPTQ: Quantization(dtype=WeightDtype.GPTQ, group_size=128, zero_points=True),
    WeightDtype.MXFP4: Quantization(dtype=WeightDtype.MXFP4, group_size=32),
    WeightDtype.NVFP4: Quantization(dtype=WeightDtype.NVFP4, method=QuantMethod.MODELOPT, group_size=16),
}
"""How the usual tools store each format."""

FAMILIES: tuple[frozenset[WeightDtype], ...] = (
    frozenset({WeightDtype.FP8, WeightDtype.FP8_BLOCK}),
    frozenset({WeightDtype.INT4, WeightDtype.AWQ, WeightDtype.GPTQ}),
)
"""Formats that people call by one name."""


def quantizable_roles(layer: Layer) -> frozenset[GemmRole]:
    """The modules of a layer that a quantised checkpoint may store in few bits: no routers, norms, embeddings."""
    return _attention_roles(layer) | (frozenset() if layer.ffn is None else _ffn_roles(layer.ffn))


def _attention_roles(layer: Layer) -> frozenset[GemmRole]:
    match layer.attention:
        case SoftmaxAttention():
            return frozenset({GemmRole.QKV, GemmRole.ATTENTION_OUT})
        case LatentAttention():
            roles = {GemmRole.MLA_DOWN, GemmRole.MLA_Q_UP, GemmRole.MLA_KV_UP, GemmRole.ATTENTION_OUT}
            return frozenset(roles | ({GemmRole.INDEXER} if layer.attention.indexer_heads else set()))
        case LinearAttention():
            return frozenset({GemmRole.LINEAR_IN, GemmRole.LINEAR_GATES, GemmRole.LINEAR_OUT})
        case MambaMixer():
            return frozenset({GemmRole.MAMBA_IN, GemmRole.MAMBA_OUT})
    return frozenset()


def _ffn_roles(ffn: Ffn) -> frozenset[GemmRole]:
    dense = {GemmRole.GATE_UP, GemmRole.DOWN}
    if isinstance(ffn, DenseFfn):
        return frozenset(dense)
    roles = {GemmRole.EXPERTS}
    if ffn.shared_intermediate:
        roles |= {GemmRole.SHARED_GATE_UP, GemmRole.SHARED_DOWN}
    if ffn.latent:
        roles |= {GemmRole.LATENT_IN, GemmRole.LATENT_OUT}
    if ffn.parallel_dense is not None:
        roles |= dense
    return frozenset(roles)


def with_weight_dtype(model: Model, dtype: WeightDtype | None) -> Model:
    """The model with its linear layers stored as `dtype`; embeddings, head, norms and routers stay.

    None means as the checkpoint is. Another format than a quantised checkpoint's means another checkpoint of the same
    architecture: the layers it quantises follow the wish, not the checkpoint.
    """
    if dtype is None or (model.quantization is not None and _is_same(model, dtype)):
        return model
    model = _unquantised(model)
    if dtype in {WeightDtype.BF16, WeightDtype.FP16}:
        same = dtype is model.activation_dtype
        return model if same else model.model_copy(update={"activation_dtype": dtype})
    wish = WISHES[dtype]
    experts_only = dtype is WeightDtype.MXFP4 and model.has_moe
    kinds = tuple(
        kind.model_copy(update={"quantized": _wished(kind, wish, experts_only=experts_only)})
        for kind in model.layer_kinds
    )
    return model.model_copy(update={"layer_kinds": kinds, "quantization": wish})


def _unquantised(model: Model) -> Model:
    if model.quantization is None:
        return model
    kinds = tuple(kind.model_copy(update={"quantized": ()}) for kind in model.layer_kinds)
    return model.model_copy(update={"layer_kinds": kinds, "quantization": None, "head_quantization": None})


def _is_same(model: Model, dtype: WeightDtype) -> bool:
    """True where `dtype`, or a format of its family, is what the checkpoint has."""
    wanted = next((family for family in FAMILIES if dtype in family), frozenset({dtype}))
    stored = {how.dtype for kind in model.layer_kinds for _, how in kind.quantized}
    return bool(wanted & stored)


def _wished(
    layer: Layer, wish: Quantization, *, experts_only: bool
) -> tuple[tuple[GemmRole, Quantization], ...]:
    roles = quantizable_roles(layer)
    if experts_only:
        roles &= {GemmRole.EXPERTS}
    if wish.dtype is WeightDtype.FP8_BLOCK:
        # A few outputs a head are fewer than one scale block.
        roles -= {GemmRole.LINEAR_GATES}
    return tuple((role, wish) for role in GemmRole if role in roles)
