"""What measured steps say of a device's kernels: one factor on the time of each kind of work."""

from typing import Annotated

from pydantic import Field

from planner.domain.base import Frozen
from planner.formulas.operators.coefficients import (
    AllReduceFit,
    CollectiveCurve,
    ContextAttentionFit,
    DecodeAttentionFit,
    ElementwiseFit,
    GemmCurve,
    GemmFit,
    LinearAttentionFit,
    MlaFit,
    MoeCurve,
    MoeFit,
    OperatorCoefficients,
)

LEAST_SCALE, LARGEST_SCALE = 1e-3, 1e3
Scale = Annotated[float, Field(ge=LEAST_SCALE, le=LARGEST_SCALE)]


class KernelScales(Frozen):
    """Factors on time; 1 leaves the coefficients as they are."""

    compute: Scale = 1.0
    """Dense matrix products bound by compute."""
    weights: Scale = 1.0
    """Dense matrix products bound by reading their weights."""
    expert_compute: Scale = 1.0
    expert_weights: Scale = 1.0
    launch: Scale = 1.0
    """What a kernel takes however little it does."""
    elementwise: Scale = 1.0
    """Traffic of norms, activations and rotary embeddings."""
    decode_cache: Scale = 1.0
    """Reading cached tokens for one new token each."""
    decode_sequence: Scale = 1.0
    """What each decoding sequence takes in attention, however short."""
    prompt_pairs: Scale = 1.0
    """Query-key pairs of prompts."""
    prompt_tokens: Scale = 1.0
    """What each token of a prompt takes in attention, however few it sees."""
    collective: Scale = 1.0
    dispatch: Scale = 1.0
    """Launches from Python, of steps that no captured graph holds."""
    logit_s: float = Field(default=0.0, ge=0, le=1e-3)
    """Seconds, and not a factor: sampling a row, for each entry of the vocabulary."""


PLAIN = KernelScales()


def scaled(coefficients: OperatorCoefficients, scales: KernelScales) -> OperatorCoefficients:
    """The coefficients of kernels that take `scales` times as long."""
    if scales == PLAIN:
        return coefficients
    return coefficients.model_copy(
        update={
            "gemm": {dtype: _gemm(fit, scales) for dtype, fit in coefficients.gemm.items()},
            "moe": {dtype: _moe(fit, scales) for dtype, fit in coefficients.moe.items()},
            "decode_attention": {
                size: tuple(_decode(fit, scales) for fit in fits)
                for size, fits in coefficients.decode_attention.items()
            },
            "context_attention": {
                size: tuple(_context(fit, scales) for fit in fits)
                for size, fits in coefficients.context_attention.items()
            },
            "mla": _latent(coefficients.mla, scales),
            "linear_attention": _linear(coefficients.linear_attention, scales),
            "elementwise": _elementwise(coefficients.elementwise, scales),
            "nvlink_all_reduce": _all_reduce(coefficients.nvlink_all_reduce, scales.collective),
            "pcie_all_reduce": _all_reduce(coefficients.pcie_all_reduce, scales.collective),
        }
    )


def _gemm(fit: GemmFit, scales: KernelScales) -> GemmFit:
    def curve(one: GemmCurve) -> GemmCurve:
        return one.model_copy(
            update={
                "flop_efficiency": one.flop_efficiency / scales.compute,
                "byte_efficiency": one.byte_efficiency / scales.weights,
                "constant_s": one.constant_s * scales.launch,
                "per_k_s": one.per_k_s * scales.launch,
                "quantize_passes": one.quantize_passes * scales.elementwise,
            }
        )

    # Not model_copy, which would keep the columns cached from the old curves.
    return GemmFit(
        compute=fit.compute,
        weight_bytes=fit.weight_bytes,
        small=curve(fit.small),
        large=curve(fit.large),
        surface=fit.surface,
        small_evidence=fit.small_evidence,
        large_evidence=fit.large_evidence,
    )


def _moe(fit: MoeFit, scales: KernelScales) -> MoeFit:
    def curve(one: MoeCurve) -> MoeCurve:
        return one.model_copy(
            update={
                "flop_efficiency": one.flop_efficiency / scales.expert_compute,
                "byte_efficiency": one.byte_efficiency / scales.expert_weights,
                "constant_s": one.constant_s * scales.launch,
                "per_width_s": one.per_width_s * scales.launch,
                "activation_efficiency": one.activation_efficiency / scales.elementwise,
                "token_passes": one.token_passes * scales.elementwise,
            }
        )

    curves = {"tensor_parallel": curve(fit.tensor_parallel), "expert_parallel": curve(fit.expert_parallel)}
    return fit.model_copy(update=curves)


def _decode(fit: DecodeAttentionFit, scales: KernelScales) -> DecodeAttentionFit:
    return fit.model_copy(
        update={
            "byte_efficiency": fit.byte_efficiency / scales.decode_cache,
            "constant_s": fit.constant_s * scales.launch,
            "per_kv_head_s": fit.per_kv_head_s * scales.decode_sequence,
            "per_query_head_s": fit.per_query_head_s * scales.decode_sequence,
        }
    )


def _context(fit: ContextAttentionFit, scales: KernelScales) -> ContextAttentionFit:
    return fit.model_copy(
        update={
            "flop_efficiency": fit.flop_efficiency / scales.prompt_pairs,
            "byte_efficiency": fit.byte_efficiency / scales.prompt_tokens,
            "constant_s": fit.constant_s * scales.launch,
            "per_key_s": fit.per_key_s * scales.prompt_tokens,
        }
    )


def _latent(fit: MlaFit, scales: KernelScales) -> MlaFit:
    return fit.model_copy(
        update={
            "bmm_flop_efficiency": fit.bmm_flop_efficiency / scales.compute,
            "bmm_byte_efficiency": fit.bmm_byte_efficiency / scales.weights,
            "bmm_constant_s": fit.bmm_constant_s * scales.launch,
            "decode_byte_efficiency": fit.decode_byte_efficiency / scales.decode_cache,
            "decode_flop_efficiency": fit.decode_flop_efficiency / scales.decode_cache,
            "decode_constant_s": fit.decode_constant_s * scales.launch,
            "context_flop_efficiency": fit.context_flop_efficiency / scales.prompt_pairs,
            "context_byte_efficiency": fit.context_byte_efficiency / scales.prompt_tokens,
            "context_constant_s": fit.context_constant_s * scales.launch,
        }
    )


def _linear(fit: LinearAttentionFit, scales: KernelScales) -> LinearAttentionFit:
    return fit.model_copy(
        update={
            "decode_byte_efficiency": fit.decode_byte_efficiency / scales.decode_sequence,
            "decode_constant_s": fit.decode_constant_s * scales.launch,
            "context_byte_efficiency": fit.context_byte_efficiency / scales.prompt_tokens,
            "context_constant_s": fit.context_constant_s * scales.launch,
            "context_per_token_s": fit.context_per_token_s * scales.prompt_tokens,
        }
    )


def _elementwise(fit: ElementwiseFit, scales: KernelScales) -> ElementwiseFit:
    return fit.model_copy(
        update={
            "launch_s": fit.launch_s * scales.launch,
            "byte_efficiency": fit.byte_efficiency / scales.elementwise,
            "logit_s": scales.logit_s or fit.logit_s,
            "dispatch_ratio": fit.dispatch_ratio * scales.dispatch,
        }
    )


def _all_reduce(fit: AllReduceFit, scale: float) -> AllReduceFit:
    def curve(one: CollectiveCurve) -> CollectiveCurve:
        return one.model_copy(
            update={"constant_s": one.constant_s * scale, "link_efficiency": one.link_efficiency / scale}
        )

    return fit.model_copy(
        update={"engine": tuple(map(curve, fit.engine)), "nccl": tuple(map(curve, fit.nccl))}
    )
