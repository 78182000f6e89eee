"""Time of one linear layer and of the element-wise kernels around it."""

from bisect import bisect_right
from math import log2
from typing import NamedTuple

import numpy as np

from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Gpu
from planner.formulas.arrays import FloatArray
from planner.formulas.operators.coefficients import (
    GemmColumns,
    GemmFit,
    GemmSurface,
    GpuOperators,
    p_norm,
    peak_flop_per_s,
)

BLEND_FROM_LOG2_TOKENS = log2(192)
BLEND_TO_LOG2_TOKENS = log2(384)
ACTIVATION_BYTES = 2.0
QUANTIZE_BYTES = 3.0
"""A 16-bit value read, an 8-bit one written."""

_SAME_KERNEL = {
    WeightDtype.FP16: WeightDtype.BF16,
    WeightDtype.AWQ: WeightDtype.INT4,
    WeightDtype.GPTQ: WeightDtype.INT4,
}


def kernel_dtype(dtype: WeightDtype) -> WeightDtype:
    """The storage format whose kernel times stand for `dtype`: fp16 runs as bf16, AWQ and GPTQ as int4."""
    return _SAME_KERNEL.get(dtype, dtype)


class GemmWork(NamedTuple):
    """[m, k] x [k, n] at peak rates."""

    flop_s: FloatArray
    byte_s: FloatArray
    """Weights, inputs and outputs."""
    quantize_s: FloatArray
    """Inputs read in 16 bit and written in 8."""
    k: FloatArray | float


def gemm_work(
    m: FloatArray, n: FloatArray | float, k: FloatArray | float, fit: GemmFit, gpu: Gpu
) -> GemmWork:
    """What a linear layer takes at the datasheet's rates [s]; shapes broadcast."""
    bytes_per_s = gpu.memory_bandwidth_bytes_per_s
    return GemmWork(
        flop_s=m * (2.0 * n * k / peak_flop_per_s(gpu, fit.compute)),
        byte_s=m * ((n + k) * (ACTIVATION_BYTES / bytes_per_s)) + n * k * (fit.weight_bytes / bytes_per_s),
        quantize_s=m * (k * (QUANTIZE_BYTES / bytes_per_s)),
        k=k,
    )


def gemm_curve_s(work: GemmWork, curve: GemmColumns) -> FloatArray:
    """((flop_s / e_f)^p + (byte_s / e_b)^p)^(1/p) + c + k tau + q quantize_s [s]; one row a curve."""
    bound_s = p_norm(work.flop_s / curve.flop_efficiency, work.byte_s / curve.byte_efficiency, curve.exponent)
    return bound_s + (curve.constant_s + work.k * curve.per_k_s) + work.quantize_s * curve.quantize_passes


def share_of_large(log2_tokens: FloatArray) -> FloatArray:
    """0 up to 192 tokens, 1 from 384 on."""
    share = (log2_tokens - BLEND_FROM_LOG2_TOKENS) / (BLEND_TO_LOG2_TOKENS - BLEND_FROM_LOG2_TOKENS)
    return np.minimum(np.maximum(share, 0.0), 1.0)


def blended_log_s(log2_tokens: FloatArray, curves_s: FloatArray) -> FloatArray:
    """Logarithm of the time, going over from the first curve to the second between 192 and 384 tokens."""
    log_s = np.log(curves_s)
    result: FloatArray = log_s[0] + share_of_large(log2_tokens) * (log_s[1] - log_s[0])
    return result


def _bracket(value: float, knots: tuple[float, ...]) -> tuple[int, float]:
    """Index of the knot at or below `value` and the share of the way to the next, clamped to the grid."""
    left = min(max(bisect_right(knots, value) - 1, 0), len(knots) - 2)
    share = (value - knots[left]) / (knots[left + 1] - knots[left])
    return left, min(max(share, 0.0), 1.0)


def surface_log_ratio(log2_tokens: FloatArray, n: float, k: float, surface: GemmSurface) -> FloatArray:
    """log(measured / curve) of an n x k weight at `log2_tokens` [G], held constant beyond the grid."""
    i, to_n = _bracket(log2(n), surface.log2_width)
    j, to_k = _bracket(log2(k), surface.log2_width)
    low, high = surface.grid[:, i], surface.grid[:, i + 1]
    at_n = low + to_n * (high - low)
    along_tokens = at_n[:, j] + to_k * (at_n[:, j + 1] - at_n[:, j])
    return np.interp(log2_tokens, surface.tokens, along_tokens)


def gemm_s(m: FloatArray, n: int, k: int, dtype: WeightDtype, ops: GpuOperators) -> FloatArray:
    """Time of one linear layer [s]: `m` tokens [G] by a weight of `n` outputs and `k` inputs stored as `dtype`.

    t = ((F / (P e_f))^p + (B / (BW e_b))^p)^(1/p) + c + k tau + q m k 3 B / BW with F = 2 m n k and B = weights
    and activations; one set of coefficients up to 192 tokens, another from 384, and a smooth correction by
    (m, n, k). The quantisation of activations is included.
    """
    fit = ops.coefficients.gemm[kernel_dtype(dtype)]
    log2_tokens = np.log2(m)
    work = gemm_work(m, n, k, fit, ops.gpu)
    work = work._replace(flop_s=work.flop_s * ops.compute_slowdown)
    log_s = blended_log_s(log2_tokens, gemm_curve_s(work, fit.curves))
    if fit.surface is not None:
        log_s = log_s + surface_log_ratio(log2_tokens, n, k, fit.surface)
    result: FloatArray = np.exp(log_s)
    return result


def elementwise_s(m: FloatArray, bytes_per_token: float, kernels: int, ops: GpuOperators) -> FloatArray:
    """Norms, activations and rotary embeddings of `m` tokens [G]: a launch each and their traffic [s]."""
    fit = ops.coefficients.elementwise
    bytes_per_s = ops.gpu.memory_bandwidth_bytes_per_s * fit.byte_efficiency
    return kernels * fit.launch_s + m * (bytes_per_token / bytes_per_s)
