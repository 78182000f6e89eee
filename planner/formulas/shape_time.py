"""Time of single engine steps of known shape, as a calibration measures them: many shapes on one step model."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.calibration import StepShape
from planner.formulas.arrays import FloatArray
from planner.formulas.host_time import HostTime
from planner.formulas.launches import launches_s
from planner.formulas.step import GRID_TOKENS, StepModel


class ShapeColumns(NamedTuple):
    """Step shapes as columns [N]."""

    prompts: FloatArray
    prompt_tokens: FloatArray
    past_tokens: FloatArray
    decodes: FloatArray
    context_tokens: FloatArray

    @property
    def sequences(self) -> FloatArray:
        """In the step, prompts and decoding ones [N]."""
        return self.prompts + self.decodes

    @property
    def scheduled_tokens(self) -> FloatArray:
        """Computed in the step [N]."""
        return self.prompts * self.prompt_tokens + self.decodes


def shape_columns(shapes: Iterable[StepShape]) -> ShapeColumns:
    """Shapes as columns, in their order."""
    rows = [
        (one.prompts, one.prompt_tokens, one.past_tokens, one.decodes, one.context_tokens) for one in shapes
    ]
    return ShapeColumns(*np.array(rows, dtype=np.float64).reshape(-1, len(ShapeColumns._fields)).T)


def shapes_s(step: StepModel, shapes: ShapeColumns, captured_tokens: Sequence[int] = ()) -> FloatArray:
    """Device time of each step, or of its launches where that is longer [N].

    Steps are padded to `captured_tokens`, ascending, up to the largest; empty: an eager engine.
    """
    tokens = shapes.scheduled_tokens
    body_s = np.interp(padded_tokens(tokens, captured_tokens), GRID_TOKENS, step.body_s)
    head_s = np.interp(shapes.sequences, GRID_TOKENS, step.head_s)
    device_s = body_s + head_s + _decode_s(step, shapes) + _prompts_s(step, shapes)
    largest = float(captured_tokens[-1]) if captured_tokens else 0.0
    mixed_s, decode_s = (launches_s(step.launches, tokens, largest, mixed=mixed) for mixed in (True, False))
    return np.maximum(device_s, np.where(shapes.prompts > 0, mixed_s, decode_s))


def host_s(host: HostTime, shapes: ShapeColumns) -> FloatArray:
    """Host work around each step where the next is scheduled only when it has ended [N]."""
    step_s, per_sequence_s = host.of_step(async_scheduling=False)
    return step_s + shapes.sequences * per_sequence_s


def padded_tokens(tokens: FloatArray, captured_tokens: Sequence[int]) -> FloatArray:
    """The captured size that steps of so many tokens run at; their own where none is as large [N]."""
    if not captured_tokens:
        return tokens
    sizes = np.asarray(captured_tokens, dtype=np.float64)
    at = np.searchsorted(sizes, tokens)
    return np.where(at < sizes.size, sizes[np.minimum(at, sizes.size - 1)], tokens)


def _decode_s(step: StepModel, shapes: ShapeColumns) -> FloatArray:
    """Attention of the decoding sequences; the new token sees itself too."""
    seen_s = np.full_like(shapes.decodes, step.decode_per_sequence_s)
    for scope_tokens, token_s in zip(step.scope_tokens, step.decode_per_token_s, strict=True):
        seen_s = seen_s + np.minimum(shapes.context_tokens + 1.0, scope_tokens) * token_s
    return np.where(shapes.decodes > 0, step.decode_constant_s + shapes.decodes * seen_s, 0.0)


def _prompts_s(step: StepModel, shapes: ShapeColumns) -> FloatArray:
    """Attention of the prompts' chunks: q past + q (q + 1) / 2 pairs each, cut at the scope."""
    tokens, past = shapes.prompt_tokens, shapes.past_tokens
    chunk_s = tokens * step.context_per_token_s
    scopes = zip(step.scope_tokens, step.context_per_pair_s, step.context_per_past_s, strict=True)
    for scope_tokens, pair_s, past_s in scopes:
        growing = np.clip(scope_tokens - past, 0.0, tokens)
        pairs = growing * (past + (growing + 1.0) / 2.0) + (tokens - growing) * scope_tokens
        chunk_s = chunk_s + pairs * pair_s + np.minimum(past, scope_tokens) * past_s
    return np.where(shapes.prompts > 0, step.context_constant_s + shapes.prompts * chunk_s, 0.0)
