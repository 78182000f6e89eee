"""Time of the routed experts of one layer."""

from typing import NamedTuple

import numpy as np

from planner.domain.dtypes import WeightDtype
from planner.formulas.operators.coefficients import FloatArray, GpuOperators, MoeCurve, p_norm, peak_flop_per_s
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


class MoeWork(NamedTuple):
    """Arrays a MoE curve works on; scalars broadcast."""

    routed_rows: FloatArray
    """Token-expert pairs of this rank if routing were even."""
    routed_per_expert: FloatArray
    """m k / E."""
    local_experts: FloatArray | float
    row_flop_s: FloatArray | float
    """One row through one expert at peak rate [s]."""
    expert_byte_s: FloatArray | float
    """One expert's weights at full bandwidth [s]."""
    row_byte_s: FloatArray | float
    """One row's activations, in and out of both matmuls, at full bandwidth [s]."""


def active_experts(routed_per_expert: FloatArray, local_experts: FloatArray | float, skew: float) -> FloatArray:
    """Experts that receive any token: E_local (1 - (1 + m k / (E s))^-s); s -> inf is uniform routing.

    >>> float(active_experts(np.array([1e9]), 8, 2.0)[0])
    8.0
    """
    result: FloatArray = local_experts * (1.0 - (1.0 + routed_per_expert / skew) ** -skew)
    return result


def moe_curve_s(work: MoeWork, curve: MoeCurve) -> FloatArray:
    """p-norm of compute and weight traffic, plus activations, a constant and a cost per expert held [s]."""
    active = active_experts(work.routed_per_expert, work.local_experts, curve.skew)
    rows = work.routed_rows * curve.imbalance
    flop_s = (rows + curve.tile_rows * active) * (work.row_flop_s / curve.flop_efficiency)
    weight_s = active * (work.expert_byte_s / curve.byte_efficiency)
    activation_s = rows * (work.row_byte_s / curve.activation_efficiency)
    fixed_s = curve.constant_s + work.local_experts * curve.per_expert_s
    return p_norm(flop_s, weight_s, curve.exponent) + activation_s + fixed_s


def moe_s(m: FloatArray, experts: MoeShape, ops: GpuOperators) -> FloatArray:
    """Time of one layer's routed experts [s], routing included: `m` tokens [G] of the whole expert group."""
    fit = ops.coefficients.moe[kernel_dtype(experts.dtype)]
    flop_per_s = peak_flop_per_s(ops.gpu, fit.compute)
    bytes_per_s = ops.gpu.memory_bandwidth_bytes_per_s
    weights = (3 if experts.gated else 2) * experts.inputs * experts.intermediate
    row_values = 2 * experts.inputs + (3 if experts.gated else 2) * experts.intermediate
    routed_per_expert = m * (experts.experts_per_token / experts.experts)
    work = MoeWork(
        routed_rows=routed_per_expert * experts.local_experts,
        routed_per_expert=routed_per_expert,
        local_experts=experts.local_experts,
        row_flop_s=2.0 * weights / flop_per_s,
        expert_byte_s=weights * fit.weight_bytes / bytes_per_s,
        row_byte_s=row_values * ACTIVATION_BYTES / bytes_per_s,
    )
    return moe_curve_s(work, fit.expert_parallel if experts.ep else fit.tensor_parallel)
