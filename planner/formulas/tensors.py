"""Tensors as vLLM allocates them on one rank: shape, dtype and bytes, scales and zero points included."""

from collections.abc import Iterable
from math import ceil, prod
from typing import NamedTuple

from planner.domain.dtypes import WeightDtype
from planner.domain.model import GemmRole, Quantization
from planner.formulas.gemms import FP8_BLOCK

FP32 = "fp32"
VALUE_BYTES: dict[str, float] = {
    WeightDtype.BF16: 2,
    WeightDtype.FP16: 2,
    FP32: 4,
    WeightDtype.FP8: 1,
    WeightDtype.FP8_BLOCK: 1,
    WeightDtype.INT8: 1,
    WeightDtype.INT4: 0.5,
    WeightDtype.AWQ: 0.5,
    WeightDtype.GPTQ: 0.5,
    WeightDtype.MXFP4: 0.5,
    WeightDtype.NVFP4: 0.5,
}
FUSED_PARTS: dict[GemmRole, int] = {
    GemmRole.QKV: 3,
    GemmRole.GATE_UP: 2,
    GemmRole.SHARED_GATE_UP: 2,
    GemmRole.MLA_DOWN: 2,
    GemmRole.LINEAR_IN: 2,
    GemmRole.LINEAR_GATES: 2,
    GemmRole.MAMBA_IN: 5,
}
"""Checkpoint tensors that vLLM joins into one projection; each keeps its own per-tensor scale."""


SHAPE_BYTES = 16
"""compressed-tensors keeps the two sides of a packed weight beside it, in int64 ..."""
EXPERT_SHAPE_BYTES = 4
"""... and those of an expert's in the model's 16-bit dtype."""


class WeightTensor(NamedTuple):
    """Tensors of one shape on one rank."""

    group: str
    """`embedding`, `attention`, `ffn`, `experts`, `norm`, `head`, `vision`; of what comes after loading
    `post_load`, `buffer` or `allocator`."""
    name: str
    shape: tuple[int, ...]
    copies: int
    dtype: str
    size_bytes: int
    """All of them together, with scales and zero points."""
    scale_bytes: int = 0
    """The part of `size_bytes` that stands beside the weights in tensors of its own."""
    enlarges: str = ""
    """The tensor of the same layer that these bytes belong to, where they are no tensor of their own."""

    def times(self, count: int) -> "WeightTensor":
        """As many of them in as many layers."""
        return self._replace(
            copies=self.copies * count,
            size_bytes=self.size_bytes * count,
            scale_bytes=self.scale_bytes * count,
        )


class PlainTensor(NamedTuple):
    """A tensor outside the matrix products: norms, convolutions, biases of routing."""

    group: str
    name: str
    shape: tuple[int, ...]
    dtype: str


def total_bytes(tensors: Iterable[WeightTensor]) -> int:
    """What tensors take together [bytes]."""
    return sum(tensor.size_bytes for tensor in tensors)


def stored_bytes(n: int, k: int, dtype: WeightDtype, stored: Quantization | None, parts: int = 1) -> int:
    """Bytes of an `[n, k]` weight with the scales and zero points that stand beside it.

    `parts` checkpoint tensors were joined into it. Sources: vllm/model_executor/layers/quantization.

    >>> stored_bytes(4096, 4096, WeightDtype.AWQ, Quantization(dtype="awq", group_size=128, zero_points=True))
    8716288
    """
    scales = 0 if stored is None else scale_bytes(n, k, stored, parts)
    return value_bytes(n, k, dtype) + scales


def value_bytes(n: int, k: int, dtype: WeightDtype) -> int:
    """Bytes of an `[n, k]` weight without its scales."""
    return round(n * k * VALUE_BYTES[dtype])


def scale_bytes(n: int, k: int, stored: Quantization, parts: int = 1) -> int:
    """Bytes of the scales and zero points of a quantised `[n, k]` weight."""
    static_activations = 0 if stored.dynamic_activations else 4 * parts
    match stored.dtype:
        case WeightDtype.FP8 | WeightDtype.INT8:
            return 4 * (parts if stored.per_tensor_scale else n) + static_activations
        case WeightDtype.FP8_BLOCK:
            return 4 * ceil(n / FP8_BLOCK) * ceil(k / FP8_BLOCK)
        case WeightDtype.MXFP4:
            return n * ceil(k / 32)
        case WeightDtype.NVFP4:
            return n * ceil(k / 16) + 4 * parts + static_activations
        case WeightDtype.INT4 | WeightDtype.AWQ | WeightDtype.GPTQ:
            groups = ceil(k / stored.group_size) if stored.group_size else 1
            shape = SHAPE_BYTES if stored.dtype is WeightDtype.INT4 else 0
            return n * groups * 2 + (n * groups // 2 if stored.zero_points else 0) + shape
        case _:
            return 0


def plain(small: PlainTensor) -> WeightTensor:
    """The tensor with its bytes, stored without scales."""
    size_bytes = round(prod(small.shape) * VALUE_BYTES[small.dtype])
    return WeightTensor(small.group, small.name, small.shape, 1, small.dtype, size_bytes)
