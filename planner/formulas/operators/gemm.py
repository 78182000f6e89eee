"""Time of one linear layer and of the element-wise kernels around it."""

import numpy as np

from planner.domain.dtypes import WeightDtype
from planner.formulas.operators.coefficients import (
    FloatArray,
    GemmCurve,
    GemmFit,
    GpuOperators,
    p_norm,
    peak_flop_per_s,
)

BLEND_FROM_TOKENS = 192.0
BLEND_TO_TOKENS = 384.0
ACTIVATION_BYTES = 2.0
ELEMENTWISE_LAUNCH_S = 1.5e-6
ELEMENTWISE_BYTE_EFFICIENCY = 0.75

_SAME_KERNEL = {
    WeightDtype.FP16: WeightDtype.BF16,
    WeightDtype.AWQ: WeightDtype.INT4,
    WeightDtype.GPTQ: WeightDtype.INT4,
}


def kernel_dtype(dtype: WeightDtype) -> WeightDtype:
    """The storage format whose kernel times stand for `dtype`: fp16 runs as bf16, AWQ and GPTQ as int4."""
    return _SAME_KERNEL.get(dtype, dtype)


def blend(m: FloatArray, small_s: FloatArray, large_s: FloatArray) -> FloatArray:
    """Goes over from the fit for few tokens to the one for many, log-linearly between 192 and 384."""
    share = np.log2(m / BLEND_FROM_TOKENS) / np.log2(BLEND_TO_TOKENS / BLEND_FROM_TOKENS)
    share = np.minimum(np.maximum(share, 0.0), 1.0)
    result: FloatArray = small_s ** (1.0 - share) * large_s**share
    return result


def gemm_curve_s(flop_s: FloatArray, byte_s: FloatArray, k: FloatArray | float, curve: GemmCurve) -> FloatArray:
    """((flop_s / e_f)^p + (byte_s / e_b)^p)^(1/p) + c + k tau, from times at peak rates [s]."""
    bound_s = p_norm(flop_s / curve.flop_efficiency, byte_s / curve.byte_efficiency, curve.exponent)
    return bound_s + (curve.constant_s + k * curve.per_k_s)


def gemm_roofline_s(
    m: FloatArray, n: FloatArray | float, k: FloatArray | float, fit: GemmFit, gpu_rates: tuple[float, float]
) -> tuple[FloatArray, FloatArray]:
    """Compute and memory time of [m, k] x [k, n] at peak rates [s]; rates are FLOP/s and bytes/s."""
    flop_per_s, bytes_per_s = gpu_rates
    flop_s = m * (2.0 * n * k / flop_per_s)
    byte_s = (m * ((n + k) * ACTIVATION_BYTES) + n * k * fit.weight_bytes) / bytes_per_s
    return flop_s, byte_s


def gemm_s(m: FloatArray, n: int, k: int, dtype: WeightDtype, ops: GpuOperators) -> FloatArray:
    """Time of one linear layer [s]: `m` tokens [G] by a weight of `n` outputs and `k` inputs stored as `dtype`.

    t = ((F / (P e_f))^p + (B / (BW e_b))^p)^(1/p) + c + k tau with F = 2 m n k and B = weights and activations;
    one set of e_f, e_b, p, c, tau up to 192 tokens, another from 384. The quantisation of activations is included.
    """
    fit = ops.coefficients.gemm[kernel_dtype(dtype)]
    rates = (peak_flop_per_s(ops.gpu, fit.compute), ops.gpu.memory_bandwidth_bytes_per_s)
    flop_s, byte_s = gemm_roofline_s(m, n, k, fit, rates)
    if m.size == 0 or m.max() <= BLEND_FROM_TOKENS:
        return gemm_curve_s(flop_s, byte_s, k, fit.small)
    small_s = gemm_curve_s(flop_s, byte_s, k, fit.small)
    return blend(m, small_s, gemm_curve_s(flop_s, byte_s, k, fit.large))


def elementwise_s(m: FloatArray, bytes_per_token: float, kernels: int, ops: GpuOperators) -> FloatArray:
    """Norms, activations and rotary embeddings of `m` tokens [G]: a launch each and their traffic [s].

    1.5 us a kernel inside a CUDA graph, traffic at 0.75 of memory bandwidth: stated assumptions, not fitted.
    """
    bytes_per_s = ops.gpu.memory_bandwidth_bytes_per_s * ELEMENTWISE_BYTE_EFFICIENCY
    return kernels * ELEMENTWISE_LAUNCH_S + m * (bytes_per_token / bytes_per_s)
