"""What single engine steps compute and move, and how fast their GPU could: the axes of a roofline (Williams 2009)."""

from typing import NamedTuple

import numpy as np

from planner.domain.dtypes import ComputeDtype, WeightDtype
from planner.domain.hardware import Gpu
from planner.domain.model import SoftmaxAttention
from planner.formulas.arrays import FloatArray
from planner.formulas.layer_time import UNLIMITED_TOKENS
from planner.formulas.operators import UNTUNED, GpuOperators, peak_flop_per_s
from planner.formulas.operators.gemm import kernel_dtype
from planner.formulas.relief import at_datasheet_rates
from planner.formulas.shape_time import ShapeColumns, shapes_s
from planner.formulas.step import StepModel
from planner.formulas.step_parts import Layout

UNIT_PER_S = 1e12
"""A rate at which time tells amounts."""
FREE_PER_S = 1e30
"""A rate at which nothing takes time."""


class StepWork(NamedTuple):
    """Of one GPU in each step [N]."""

    flop: FloatArray
    moved_bytes: FloatArray
    """Weights, activations, KV cache and states, each as often as its kernel reads or writes it."""

    @property
    def intensity(self) -> FloatArray:
        """FLOP per byte moved [N]."""
        return self.flop / self.moved_bytes


class Ceiling(NamedTuple):
    """The two lines of a roofline."""

    flop_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """FLOP per byte at which they meet."""
        return self.flop_per_s / self.bytes_per_s


def step_work(layout: Layout, shapes: ShapeColumns) -> StepWork:
    """FLOP and bytes of steps as the step model counts them: its own forms on a GPU that has one rate alone.

    Softmax attention of decoding sequences, which the forms hold against its bytes, is added; states of linear layers
    count as bytes alone, communication as neither.
    """
    flop_s = shapes_s(_step(layout, flop_per_s=UNIT_PER_S, bytes_per_s=FREE_PER_S), shapes)
    byte_s = shapes_s(_step(layout, flop_per_s=FREE_PER_S, bytes_per_s=UNIT_PER_S), shapes)
    return StepWork(flop_s * UNIT_PER_S + _decode_flop(layout, shapes), byte_s * UNIT_PER_S)


def _step(layout: Layout, *, flop_per_s: float, bytes_per_s: float) -> StepModel:
    """The layout on a GPU of these rates, whose kernels lose nothing and are there at once."""
    gpu: Gpu = layout.ops.gpu.model_copy(
        update={
            "peak_flop_per_s": dict.fromkeys(ComputeDtype, flop_per_s),
            "memory_bandwidth_bytes_per_s": bytes_per_s,
            "nvlink_bytes_per_s": FREE_PER_S,
            "pcie_bytes_per_s": FREE_PER_S,
        }
    )
    ops = at_datasheet_rates(layout.ops._replace(gpu=gpu, tuning=UNTUNED))
    step = layout._replace(ops=ops).step()
    return step._replace(launch_s=np.zeros_like(step.launch_s))


def _decode_flop(layout: Layout, shapes: ShapeColumns) -> FloatArray:
    """Scores and values of decoding sequences: 2 heads (head_dim + v_head_dim) for each key in scope [N]."""
    model, total = layout.model, np.zeros_like(shapes.decodes)
    for index, kind in enumerate(model.layer_kinds):
        attention = kind.attention
        if not isinstance(attention, SoftmaxAttention):
            continue
        heads = max(1, attention.heads // layout.parallelism.tp)
        chunk = attention.chunk_tokens / 2.0 if attention.chunk_tokens else None
        seen = np.minimum(shapes.context_tokens + 1.0, attention.window_tokens or chunk or UNLIMITED_TOKENS)
        pair_flop = 2.0 * heads * (attention.head_dim + attention.v_head_dim)
        total = total + model.layer_pattern.count(index) * pair_flop * shapes.decodes * seen
    return total


def datasheet_ceiling(ops: GpuOperators, dtype: WeightDtype) -> Ceiling:
    """What the data sheet allows matrix products of weights stored as `dtype`."""
    compute = ops.coefficients.gemm[kernel_dtype(dtype)].compute
    return Ceiling(peak_flop_per_s(ops.gpu, compute), ops.gpu.memory_bandwidth_bytes_per_s)


def attained_ceiling(ops: GpuOperators, dtype: WeightDtype) -> Ceiling:
    """What dense matrix products reach by the coefficients: compute of large ones, bandwidth of small ones."""
    fit, sheet = ops.coefficients.gemm[kernel_dtype(dtype)], datasheet_ceiling(ops, dtype)
    return Ceiling(
        sheet.flop_per_s * fit.large.flop_efficiency / ops.compute_slowdown,
        sheet.bytes_per_s * fit.small.byte_efficiency,
    )
