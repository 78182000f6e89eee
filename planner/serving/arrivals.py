"""Streams of requests: lengths and arrival times drawn from a workload, or taken from a trace."""

from collections.abc import Sequence
from math import ceil

import numpy as np

from planner.domain.workload import Workload
from planner.formulas.arrays import FloatArray, IntArray
from planner.serving.scheduler_types import RequestStream

NO_PREFIX_BLOCK_TOKENS = 512
CONSTANT_CV = 1e-3
"""Gaps that vary less are drawn as constant ones."""


def drawn_stream(workload: Workload, requests: int, seed: int) -> RequestStream:
    """So many requests of a workload: lengths uniform in [r L, L], gaps constant, Poisson or gamma; equal for a seed.

    Prefix hits are the stated share of each prompt; the last token of a prompt is always computed.
    """
    random = np.random.default_rng(seed)
    prompts = _lengths(random, workload.input_tokens, workload.length_low_ratio, requests)
    outputs = _lengths(random, workload.output_tokens, workload.length_low_ratio, requests)
    cached = np.minimum((prompts * workload.prefix_hit_ratio).astype(np.int64), prompts - 1)
    return plain_stream(_sent_s(random, workload, requests), prompts, outputs, cached)


def plain_stream(
    sent_s: FloatArray, prompts: IntArray, outputs: IntArray, cached: IntArray | None = None
) -> RequestStream:
    """Requests of one priority that share no prefixes but those already cached [N]."""
    count = prompts.size
    nothing = np.zeros(count, dtype=np.int64)
    return RequestStream(
        sent_s=np.asarray(sent_s, dtype=np.float64),
        prompt_tokens=np.asarray(prompts, dtype=np.int64),
        output_tokens=np.asarray(outputs, dtype=np.int64),
        cached_tokens=nothing if cached is None else np.asarray(cached, dtype=np.int64),
        priority=nothing,
        prefix_start=np.zeros(count + 1, dtype=np.int64),
        prefix_ids=np.zeros(0, dtype=np.int64),
        prefix_block_tokens=NO_PREFIX_BLOCK_TOKENS,
    )


def with_prefixes(stream: RequestStream, ids: Sequence[Sequence[int]], block_tokens: int) -> RequestStream:
    """The same requests, whose prompts begin with these blocks of tokens: equal ids are equal tokens."""
    numbers: dict[int, int] = {}
    flat = [numbers.setdefault(one, len(numbers)) for blocks in ids for one in blocks]
    starts = np.concatenate([[0], np.cumsum([len(blocks) for blocks in ids])])
    return stream._replace(
        prefix_start=starts.astype(np.int64),
        prefix_ids=np.array(flat, dtype=np.int64),
        prefix_block_tokens=block_tokens,
    )


def _lengths(random: np.random.Generator, longest: float, low_ratio: float, count: int) -> IntArray:
    """Whole lengths uniform in [r L, L]; a fractional L, a mean, is met by rounding up as often as down."""
    if low_ratio < 1.0:
        low, high = max(1, ceil(low_ratio * longest)), max(1, int(longest))
        return np.asarray(random.integers(min(low, high), high + 1, count), dtype=np.int64)
    whole = int(longest)
    return np.asarray(np.maximum(1, whole + (random.random(count) < longest - whole)), dtype=np.int64)


def _sent_s(random: np.random.Generator, workload: Workload, count: int) -> FloatArray:
    """Arrival times; a closed loop has none of its own."""
    if workload.requests_per_s is None:
        return np.zeros(count)
    mean_s = 1.0 / workload.requests_per_s
    if workload.arrival_cv < CONSTANT_CV:
        gaps = np.full(count, mean_s)
    else:
        shape = 1.0 / workload.arrival_cv**2
        gaps = random.gamma(shape, mean_s / shape, count)
    return np.asarray(np.cumsum(gaps), dtype=np.float64)
