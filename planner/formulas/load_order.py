"""In which order a rank's tensors are made, and how much torch's allocator rounds up over them."""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple

from planner.formulas.allocator import allocated_bytes
from planner.formulas.post_load import POST_LOAD
from planner.formulas.tensors import WeightTensor

ALLOCATOR = "allocator"
AFTER_THE_LAYERS = frozenset({"head", "norm"})


class LoadOrder(NamedTuple):
    """What one rank holds: outside its layers, and layer by layer."""

    outer: Sequence[WeightTensor]
    buffers: Sequence[WeightTensor]
    layers: Sequence[tuple[WeightTensor, ...]]


def rounding_tensor(order: LoadOrder) -> WeightTensor:
    """What the allocator counts beyond the tensors' own bytes.

    Temporary tensors of the loader are not followed: what they leave behind is returned before vLLM looks.
    """
    sizes = list(_sizes_bytes(order))
    rounding_bytes = allocated_bytes(sizes) - sum(sizes)
    return WeightTensor(ALLOCATOR, "rounding", (rounding_bytes,), 1, "byte", rounding_bytes)


def _sizes_bytes(order: LoadOrder) -> Iterator[int]:
    """Vision and embeddings, buffers, the layers one by one, norm and head, then what is made after loading."""
    kinds = {id(layer): layer for layer in order.layers}
    made = {key: _layer_sizes(layer, after=False) for key, layer in kinds.items()}
    after = {key: _layer_sizes(layer, after=True) for key, layer in kinds.items()}
    first = [tensor for tensor in order.outer if tensor.group not in AFTER_THE_LAYERS]
    last = [tensor for tensor in order.outer if tensor.group in AFTER_THE_LAYERS]
    yield from _outer_sizes([*first, *order.buffers])
    yield from chain.from_iterable(made[id(layer)] for layer in order.layers)
    yield from _outer_sizes(last)
    yield from chain.from_iterable(after[id(layer)] for layer in order.layers)


def _outer_sizes(tensors: Sequence[WeightTensor]) -> Iterator[int]:
    """Tensors that there are equally many of are made block by block, as those of a vision tower."""
    for copies, block in groupby(tensors, key=lambda tensor: tensor.copies):
        sizes = [size for tensor in block for size in _one_sizes(tensor)]
        for _ in range(copies):
            yield from sizes


def _layer_sizes(layer: tuple[WeightTensor, ...], *, after: bool) -> list[int]:
    """Sizes of the tensors of a layer that are there before or only after its checkpoint is loaded."""
    enlarged: dict[str, int] = {}
    for tensor in layer:
        if tensor.enlarges:
            enlarged[tensor.enlarges] = enlarged.get(tensor.enlarges, 0) + tensor.size_bytes
    return [
        size
        for tensor in layer
        if (tensor.group == POST_LOAD) is after and not tensor.enlarges
        for size in _one_sizes(tensor, enlarged.get(tensor.name, 0)) * tensor.copies
    ]


def _one_sizes(tensor: WeightTensor, more_bytes: int = 0) -> list[int]:
    """Weight and scales of one copy; what is given up is no tensor."""
    values = (tensor.size_bytes - tensor.scale_bytes) // tensor.copies + more_bytes
    scales = tensor.scale_bytes // tensor.copies
    return [size for size in (values, scales) if size > 0]
