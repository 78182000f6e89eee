"""Pieces of the compiled scheduler loop: curves, blocks, the waiting queue, counters."""

from typing import Any

import numpy as np

from planner.formulas.arrays import FloatArray, IntArray
from planner.serving.scheduler_compiler import compiled
from planner.serving.scheduler_types import (
    GAP_BINS,
    GAP_LOW_S,
    GAP_RATIO,
    LOG_FIELDS,
    SERIES_BINS,
    SERIES_FIELDS,
    BlockPool,
    Outcome,
    StepTimes,
)

LOG_GAP_RATIO = float(np.log(GAP_RATIO))


@compiled
def on_curve(grid: FloatArray, values: FloatArray, x: float) -> float:
    """A curve between its grid points, and in a line beyond the last."""
    right = min(max(int(np.searchsorted(grid, x)), 1), grid.size - 1)
    low = grid[right - 1]
    share = (max(x, grid[0]) - low) / (grid[right] - low)
    return values[right - 1] + share * (values[right] - values[right - 1])


@compiled
def padded(times: StepTimes, tokens: int) -> float:
    """The captured size a step of so many tokens runs at."""
    captured = times.captured_tokens
    if captured.size and tokens <= captured[-1]:
        return captured[np.searchsorted(captured, tokens)]
    return float(tokens)


@compiled
def decode_attention_s(times: StepTimes, sequences: int, seen: FloatArray) -> float:
    """Attention of decoding sequences that see `seen` tokens together in each scope [S]."""
    time_s = times.decode_constant_s + sequences * times.decode_per_sequence_s
    for scope in range(seen.size):
        time_s += seen[scope] * times.decode_per_token_s[scope]
    return time_s


@compiled
def least_step_s(times: StepTimes, sequences: int, tokens: int, mixed: bool) -> float:
    """Time the host needs for a step: its work beside the GPU, or before it, and the launches of what no CUDA graph
    holds (`planner.formulas.launches.launches_s`)."""
    captured = times.captured_tokens
    if captured.size == 0 or tokens > captured[-1]:
        launch_s = times.larger_launch_s
    else:
        launch_s = times.mixed_launch_s if mixed else times.decode_launch_s
    beside_s = times.chain_s + sequences * times.chain_per_sequence_s
    return launch_s + max(beside_s, times.host_s + sequences * times.host_per_sequence_s)


@compiled
def prompt_attention_s(times: StepTimes, past: int, tokens: int) -> float:
    """Attention of a prompt's chunk of `tokens` after `past` tokens."""
    time_s = tokens * times.context_per_token_s
    for scope in range(times.scope_tokens.size):
        limit = times.scope_tokens[scope]
        free = limit - past
        if free >= tokens:
            pairs = tokens * past + tokens * (tokens + 1) * 0.5
        elif free <= 0:
            pairs = tokens * limit
        else:
            pairs = free * past + free * (free + 1) * 0.5 + (tokens - free) * limit
        time_s += pairs * times.context_per_pair_s[scope] + min(past, limit) * times.context_per_past_s[scope]
    return time_s


@compiled
def unseen_blocks(pool: BlockPool, group: int, computed: int) -> int:
    """Blocks of a windowed group that are out of sight once so many tokens are computed."""
    window = pool.window_tokens[group]
    unseen = computed // window * window if pool.chunked[group] else computed - window + 1
    return max(unseen, 0) // pool.block_tokens[group]


@compiled
def blocks_of(pool: BlockPool, computed: int, total: int) -> int:
    """Blocks a sequence holds once `total` tokens have a slot, `computed` of them from before the step."""
    blocks = 0
    for group in range(pool.block_tokens.size):
        if pool.state_blocks[group] > 0:
            blocks += pool.state_blocks[group]
            continue
        size = pool.block_tokens[group]
        held = (total + size - 1) // size
        if pool.window_tokens[group] > 0:
            held -= unseen_blocks(pool, group, computed)
        blocks += held
    return blocks


@compiled
def reserved_blocks(pool: BlockPool, computed: int, total: int) -> int:
    """Blocks a sequence will need at most until `total` tokens are computed: a windowed group frees what is out of
    sight (vllm/v1/core/single_type_kv_cache_manager.py, get_num_blocks_to_allocate)."""
    blocks = blocks_of(pool, computed, total)
    for group in range(pool.block_tokens.size):
        if pool.window_tokens[group] > 0 and pool.state_blocks[group] == 0:
            whole = (total + pool.block_tokens[group] - 1) // pool.block_tokens[group]
            found = computed // pool.block_tokens[group]
            blocks -= max(whole - max(pool.most_blocks[group], found), 0)
    return blocks


@compiled
def unfilled_blocks(pool: BlockPool, total: int, known: int, windowed: bool) -> int:
    """Blocks of a sequence of `total` tokens that nothing can be found in: those not full of known ones, and states;
    those of windowed groups only where that is asked."""
    blocks = 0
    for group in range(pool.block_tokens.size):
        if pool.state_blocks[group] > 0:
            blocks += pool.state_blocks[group]
        elif windowed or pool.window_tokens[group] == 0:
            size = pool.block_tokens[group]
            blocks += (total + size - 1) // size - known // size
    return blocks


@compiled
def shared_blocks(pool: BlockPool, tokens: int) -> int:
    """Blocks of so many prompt tokens that requests can share: those of groups that see everything."""
    blocks = 0
    for group in range(pool.block_tokens.size):
        if pool.state_blocks[group] == 0 and pool.window_tokens[group] == 0:
            blocks += tokens // pool.block_tokens[group]
    return blocks


@compiled
def _before(keys: FloatArray, a: int, b: int) -> bool:
    return keys[a, 0] < keys[b, 0] or (keys[a, 0] == keys[b, 0] and keys[a, 1] < keys[b, 1])


@compiled
def push(heap: IntArray, keys: FloatArray, size: int, item: int) -> int:
    """Adds a request to the waiting queue (a binary heap over `keys`); returns its new size."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if not _before(keys, item, heap[parent]):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = item
    return size + 1


@compiled
def pop(heap: IntArray, keys: FloatArray, size: int) -> int:
    """Takes the first request, `heap[0]`, off the waiting queue; returns its new size."""
    size -= 1
    item = heap[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(keys, heap[child + 1], heap[child]):
            child += 1
        if not _before(keys, heap[child], item):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item
    return size


@compiled
def _gap_bin(gap_s: float) -> int:
    position = int(np.log(max(gap_s, GAP_LOW_S) / GAP_LOW_S) / LOG_GAP_RATIO)
    return min(position, GAP_BINS - 1)


@compiled
def count_gap(gaps: FloatArray, gap_s: float, count: int) -> None:
    """Counts gaps between tokens of one length."""
    gaps[_gap_bin(gap_s)] += count


@compiled
def count_growing_gaps(gaps: FloatArray, first_s: float, last_s: float, count: int) -> None:
    """Counts gaps between tokens whose lengths are spread evenly from the first to the last."""
    low, high = _gap_bin(first_s), _gap_bin(last_s)
    begin_s = first_s
    for b in range(low, high):
        end_s = GAP_LOW_S * GAP_RATIO ** (b + 1)
        gaps[b] += count * (end_s - begin_s) / (last_s - first_s)
        begin_s = end_s
    gaps[high] += count * ((last_s - begin_s) / (last_s - first_s) if high > low else 1.0)


@compiled
def record(out: Outcome, start_s: float, length_s: float, levels: tuple[Any, ...]) -> None:
    """Adds a stretch of time to the series; bins grow twice as wide whenever it does not fit.

    `levels`, integers of 64 bits: busy (0 or 1), running, waiting, blocks in use (held throughout), tokens (spread over
    it), and blocks that come into use over the stretch, evenly.
    """
    series, totals = out.series, out.totals
    while start_s + length_s > totals[4] * SERIES_BINS:
        for b in range(SERIES_BINS // 2):
            for field in range(SERIES_FIELDS):
                series[b, field] = series[2 * b, field] + series[2 * b + 1, field]
        series[SERIES_BINS // 2 :] = 0.0
        totals[4] *= 2.0
    width = totals[4]
    tokens_per_s = levels[4] / length_s if length_s > 0.0 else 0.0
    blocks_per_s = levels[5] / length_s if length_s > 0.0 else 0.0
    b = min(int(start_s / width), SERIES_BINS - 1)
    left = length_s
    while left > 0.0 and b < SERIES_BINS:
        part = min(left, max((b + 1) * width - start_s, 0.0))
        for field in range(SERIES_FIELDS - 1):
            series[b, field] += part * levels[field]
        series[b, 3] += part * blocks_per_s * (length_s - left + 0.5 * part)
        series[b, 4] += part * tokens_per_s
        start_s += part
        left -= part
        b += 1


@compiled
def write_down(out: Outcome, row: int, entry: tuple[Any, ...]) -> int:
    """Writes one line of the log where there is room; returns the next free row."""
    if row < out.log.shape[0]:
        for field in range(LOG_FIELDS):
            out.log[row, field] = entry[field]
    return row + 1
