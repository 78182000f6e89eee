"""What one replica is asked to serve, as the arrays that the steady state works on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.deployment import EngineSettings
from planner.domain.workload import Workload
from planner.serving.steady_state import Load

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


def load_of(elements: Sequence[Loaded]) -> Load:
    """Arrays of one value an element [R]."""
    values = []
    for row, engine, kv_requests, arrival_cv, workload in elements:
        prompt = workload.mean_input_tokens
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
            )
        )
    columns = np.array(values, dtype=np.float64).T
    return Load(columns[0].astype(np.intp), *columns[1:])


def as_column(load: Load) -> Load:
    """The same elements as a column [R, 1], to be set against a row of loads."""
    layout, *values = load
    return Load(layout[:, None], *(value[:, None] for value in values))
