"""What one replica is asked to serve, as the arrays that the steady state works on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.deployment import EngineSettings
from planner.domain.workload import Workload
from planner.formulas.arrays import IntArray
from planner.formulas.host_time import NO_HOST_TIME, HostTime
from planner.formulas.memory import captured_sizes
from planner.planning.sizing import Placed
from planner.serving.mean_step import Load

LEAST_PROMPT_TOKENS = 1.0
"""Computed of a prompt however much of it is cached: its last token always is."""


class Loaded(NamedTuple):
    """One element of a pass."""

    row: int
    """Of the step table."""
    engine: EngineSettings
    kv_requests: float
    """Requests of mean length that the KV cache holds."""
    arrival_cv: float
    """At this replica."""
    workload: Workload
    host: HostTime = NO_HOST_TIME
    captured_tokens: float = 0.0
    """Largest CUDA-graph size; 0 where nothing is captured."""


def load_of(elements: Sequence[Loaded]) -> Load:
    """Arrays of one value an element [R]."""
    values = []
    for row, engine, kv_requests, arrival_cv, workload, host, captured_tokens in elements:
        prompt = workload.mean_input_tokens
        host_s, per_sequence_s = host.of_step(async_scheduling=engine.async_scheduling)
        chain_s, chain_per_sequence_s = host.beside_step(async_scheduling=engine.async_scheduling)
        hits = prompt * workload.prefix_hit_ratio
        values.append(
            (
                row,
                max(prompt - hits, LEAST_PROMPT_TOKENS),
                hits,
                workload.mean_output_tokens,
                workload.length_low_ratio,
                engine.max_num_batched_tokens,
                engine.max_num_seqs,
                kv_requests,
                arrival_cv,
                float(engine.async_scheduling),
                captured_tokens,
                host_s,
                per_sequence_s,
                chain_s,
                chain_per_sequence_s,
                host.front_s + host.front_per_token_s * prompt,
                host.reply_s,
                host.reply_per_user_s,
            )
        )
    columns = np.array(values, dtype=np.float64).T
    return Load(columns[0].astype(np.intp), *columns[1:])


def resident_tokens(workload: Workload) -> float:
    """Mean context of a running request: half of its answer is there, and long answers stay longer.

    >>> resident_tokens(Workload(input_tokens=1000, output_tokens=200, requests_per_s=1))
    1100.0
    """
    low = workload.length_low_ratio
    length_cv_squared = ((1.0 - low) / (1.0 + low)) ** 2 / 3.0
    return workload.mean_input_tokens + workload.mean_output_tokens * (1.0 + length_cv_squared) / 2.0


def largest_captured(placed: Placed, engine: EngineSettings) -> float:
    """The largest step that this engine captured as a CUDA graph on this card; 0 for none [tokens]."""
    return 0.0 if engine.enforce_eager else float(max(captured_sizes(placed.card, engine), default=0))


def as_column(load: Load) -> Load:
    """The same elements as a column [R, 1], to be set against a row of loads."""
    layout, *values = load
    return Load(layout[:, None], *(value[:, None] for value in values))


def row_of(load: Load, rows: IntArray) -> Load:
    """Some rows of a column."""
    layout, *values = load
    return Load(layout[rows], *(value[rows] for value in values))
