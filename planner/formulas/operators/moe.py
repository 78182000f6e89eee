"""Time of the routed experts of one layer."""

from typing import NamedTuple

import numpy as np

from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Gpu
from planner.formulas.arrays import FloatArray
from planner.formulas.operators.coefficients import GpuOperators, MoeCurve, MoeFit, p_norm, peak_flop_per_s
from planner.formulas.operators.gemm import ACTIVATION_BYTES, kernel_dtype


class MoeShape(NamedTuple):
    """The routed experts of one layer as one rank holds them."""

    experts: int
    """Of the whole layer."""
    local_experts: int
    """Held by this rank: all of them unless `ep`."""
    experts_per_token: int
    inputs: int
    """Width of a token at the experts' door [values]."""
    intermediate: int
    """Of one expert on this rank: divided by the tensor-parallel degree unless `ep`."""
    gated: bool
    dtype: WeightDtype
    ep: bool
    """Experts are dealt out to ranks instead of sliced."""
    weight_bytes: float | None = None
    """Per weight with its share of scales, where that is not what the fitted table had."""


class MoeWork(NamedTuple):
    """What the experts of one rank take at peak rates; scalars or arrays of one shape."""

    rows_per_expert: FloatArray
    """m k / E: token-expert pairs of one expert if routing were even."""
    local_experts: FloatArray | float
    ranks: FloatArray | float
    """Expert-parallel ranks: E / E_local."""
    row_flop_s: FloatArray | float
    """One row through one expert [s]."""
    expert_byte_s: FloatArray | float
    """Reading one expert's weights [s]."""
    row_byte_s: FloatArray | float
    """One row's activations in and out of both matmuls [s]."""
    token_byte_s: FloatArray
    """Moving every token's hidden state once [s]."""
    width: FloatArray | float
    """Reduction depth of both matmuls: inputs + intermediate [values]."""


def moe_work(m: FloatArray, experts: MoeShape, fit: MoeFit, gpu: Gpu) -> MoeWork:
    """What one layer's routed experts take at the datasheet's rates."""
    bytes_per_s = gpu.memory_bandwidth_bytes_per_s
    matrices = 3 if experts.gated else 2
    weights = matrices * experts.inputs * experts.intermediate
    row_values = 2 * experts.inputs + matrices * experts.intermediate
    return MoeWork(
        rows_per_expert=m * (experts.experts_per_token / experts.experts),
        local_experts=experts.local_experts,
        ranks=experts.experts / experts.local_experts,
        row_flop_s=2.0 * weights / peak_flop_per_s(gpu, fit.compute),
        expert_byte_s=weights * (experts.weight_bytes or fit.weight_bytes) / bytes_per_s,
        row_byte_s=row_values * ACTIVATION_BYTES / bytes_per_s,
        token_byte_s=m * (experts.inputs * ACTIVATION_BYTES / bytes_per_s),
        width=float(experts.inputs + experts.intermediate),
    )


def active_experts(rows_per_expert: FloatArray, local_experts: FloatArray | float, skew: float) -> FloatArray:
    """Experts that receive any token: E_local (1 - (1 + rows / s)^-s); s -> inf is uniform routing.

    >>> float(active_experts(np.array([0.5]), 128, 2.0)[0])
    46.08
    """
    return np.asarray(local_experts * (1.0 - (1.0 + rows_per_expert / skew) ** -skew))


def moe_curve_s(work: MoeWork, curve: MoeCurve) -> FloatArray:
    """p-norm of compute and weight traffic, plus activations, every token's state, depth and a constant [s]."""
    rows_per_expert = work.rows_per_expert * work.ranks**curve.imbalance_exponent
    active = active_experts(rows_per_expert, work.local_experts, curve.skew)
    rows = rows_per_expert * work.local_experts
    flop_s = (rows + curve.tile_rows * active) * (work.row_flop_s / curve.flop_efficiency)
    weight_s = active * (work.expert_byte_s / curve.byte_efficiency)
    moved_s = rows * (work.row_byte_s / curve.activation_efficiency) + work.token_byte_s * curve.token_passes
    fixed_s = curve.constant_s + work.width * curve.per_width_s
    return p_norm(flop_s, weight_s, curve.exponent) + moved_s + fixed_s


def moe_s(m: FloatArray, experts: MoeShape, ops: GpuOperators) -> FloatArray:
    """Time of one layer's routed experts [s], routing included: `m` tokens [G] of the whole expert group."""
    fit = ops.coefficients.moe[kernel_dtype(experts.dtype)]
    curve = fit.expert_parallel if experts.ep else fit.tensor_parallel
    work = moe_work(m, experts, fit, ops.gpu)
    return moe_curve_s(work._replace(row_flop_s=work.row_flop_s * ops.compute_slowdown), curve)
