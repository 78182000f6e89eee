"""PyTorch's caching allocator as far as it decides what `memory_allocated` says of tensors that stay.

vLLM logs the growth of torch's allocated bytes as what the model takes (DeviceMemoryProfiler in
vllm/utils/mem_utils.py). Torch counts blocks, not tensors: sizes are rounded up to 512 bytes, tensors of 1 to 10 MiB
share segments of 20 MiB, larger ones get segments in steps of 2 MiB, and what remains of a segment is
given away with the block where it is no more than 1 MiB (c10/cuda/CUDACachingAllocator.cpp).
"""

from bisect import bisect_left, insort
from collections.abc import Iterable

from planner.domain.units import MIB_BYTES

BLOCK_BYTES = 512
SMALL_BYTES = MIB_BYTES
"""Up to here tensors share segments that are cut exactly."""
SHARED_SEGMENT_BELOW_BYTES = 10 * MIB_BYTES
SHARED_SEGMENT_BYTES = 20 * MIB_BYTES
SEGMENT_STEP_BYTES = 2 * MIB_BYTES


def round_up(size: int, multiple: int) -> int:
    """The next multiple.

    >>> round_up(2880, 256)
    3072
    """
    return -(-size // multiple) * multiple


def allocated_bytes(sizes_bytes: Iterable[int]) -> int:
    """What torch counts as allocated when tensors of these sizes are made in this order and all are kept.

    The 0.5 MiB that 19.5 MiB leave of their segment are given away, the 5 MiB that 15 MiB leave are not:

    >>> allocated_bytes([39 * 2**19]) / 2**20, allocated_bytes([5 * 2**20] * 3) / 2**20
    (20.0, 15.0)
    """
    total = 0
    free: list[int] = []
    for size in sizes_bytes:
        wanted = round_up(size, BLOCK_BYTES)
        if wanted <= SMALL_BYTES:
            total += wanted
            continue
        position = bisect_left(free, wanted)
        block = free.pop(position) if position < len(free) else _segment_bytes(wanted)
        left = block - wanted
        if left > SMALL_BYTES:
            insort(free, left)
            block = wanted
        total += block
    return total


def _segment_bytes(wanted: int) -> int:
    if wanted < SHARED_SEGMENT_BELOW_BYTES:
        return SHARED_SEGMENT_BYTES
    return round_up(wanted, SEGMENT_STEP_BYTES)
