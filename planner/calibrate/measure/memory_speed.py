"""How fast threads read this machine's memory: timed, since no processor tells."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from planner.calibrate.measure.cpu_load import memory_bytes
from planner.formulas.arrays import FloatArray

READ_BYTES = 512 * 2**20
"""Of all threads together: larger than most caches, and read in a tenth of a second."""
LARGEST_SHARE = 0.1
"""Of the memory that is free."""
PASSES = 5


def read_bytes_per_s(threads: int) -> float:
    """Bytes a second that so many threads together read, once through, at the best of some passes."""
    free = memory_bytes()
    room = READ_BYTES if free is None else min(READ_BYTES, int(LARGEST_SHARE * (free[0] - free[1])))
    count = max(1, room // threads // np.dtype(np.float64).itemsize)
    with ThreadPoolExecutor(threads) as pool:
        # Filled by the thread that reads it, so that it lies in that core's own memory.
        parts: list[FloatArray] = list(pool.map(np.ones, [count] * threads))
        best_s = min(_pass_s(pool, parts) for _ in range(PASSES))
    return float(sum(part.nbytes for part in parts) / best_s)


def _pass_s(pool: ThreadPoolExecutor, parts: list[FloatArray]) -> float:
    begin = time.perf_counter()
    list(pool.map(np.max, parts))
    return time.perf_counter() - begin
