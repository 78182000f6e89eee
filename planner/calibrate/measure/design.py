"""Which step to measure next: the one that narrows the predictions of all others most for each second it takes.

Predictions of steps are correlated through the unknowns they share and, for what the model lacks, through their
likeness (a Gaussian process on logarithms of shape). Measuring one narrows the others by what is known of linear
Gaussian models (Chaloner and Verdinelli 1995, Bayesian A-optimality); Cohn 1996 weighs that against time.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from planner.calibrate.fit_steps import FEWEST_STEPS, MeasuredSteps, noise_of
from planner.calibrate.least_squares import DIFFERENCE, jacobian_of, solve
from planner.calibrate.step_unknowns import StepDeployment, model_error, step_unknowns
from planner.domain.calibration import StepPoint, StepShape
from planner.formulas.arrays import FloatArray
from planner.formulas.shape_time import ShapeColumns, shape_columns

LIKENESS_LOG_LENGTH = 0.8
"""Shapes a factor of e^0.8 apart in one quantity still tell much of each other."""
EXPECTED_NOISE = 0.02
"""Of a median not yet measured."""
UNLIKE_FACTOR = 2.0
"""A design trusts the model less than a fit does, so that points also lie where the model has nothing to ask. This and
the length were tuned on one recorded engine and tried on another (docs/calibration.md)."""
PROMPTS = (1, 2, 4, 8, 16)
PAST_SHARES = (0.0, 0.25, 0.6, 1.0)
"""Of the room that is left beside the chunk."""
TOKENS_FACTOR, SEQUENCES_FACTOR, CONTEXT_FACTOR = 2.0, 1.5, 2.5
SMALLEST_CHUNK, SMALLEST_CONTEXT = 16, 16


class EngineLimits(NamedTuple):
    """What steps an engine can be asked for."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_tokens: int
    block_size: int

    def allows(self, shape: StepShape) -> bool:
        """Whether the step fits one iteration, the sequence limit and the cache."""
        longest = max(shape.past_tokens + shape.prompt_tokens, shape.context_tokens if shape.decodes else 0)
        sequences = shape.prompts + shape.decodes
        # Each sequence wastes up to a block, and decoding goes on while it is timed.
        cached = shape.cached_tokens + 2 * sequences * self.block_size
        return (
            longest + self.block_size < self.max_model_len
            and sequences <= self.max_num_seqs
            and shape.scheduled_tokens <= self.max_num_batched_tokens
            and cached <= self.kv_cache_tokens
        )


class Plan(NamedTuple):
    """What goes into a measurement's time."""

    repetitions: int
    warmups: int
    overhead_s: float
    """Of asking for one shape."""

    def cost_s(self, step_s: FloatArray) -> FloatArray:
        """Time to measure each shape [N]."""
        return self.overhead_s + (self.repetitions + self.warmups) * step_s


class Forecast(NamedTuple):
    """What is expected of steps, given what was measured."""

    step_s: FloatArray
    """[N]"""
    covariance: FloatArray
    """[N, N] of their logarithms."""


def candidate_shapes(limits: EngineLimits) -> tuple[StepShape, ...]:
    """Every shape worth asking for: prompts, decoding and both, spread evenly in logarithms up to the limits."""
    chunks = _spread(SMALLEST_CHUNK, limits.max_num_batched_tokens, TOKENS_FACTOR)
    contexts = _spread(SMALLEST_CONTEXT, limits.max_model_len - 2 * limits.block_size, CONTEXT_FACTOR)
    batches = _spread(1, limits.max_num_seqs, SEQUENCES_FACTOR)
    found = [
        StepShape(
            prompts=prompts,
            prompt_tokens=chunk,
            past_tokens=int(share * max(limits.max_model_len - 2 * limits.block_size - chunk, 0)),
        )
        for prompts, chunk, share in product(PROMPTS, chunks, PAST_SHARES)
    ]
    found += [
        StepShape(decodes=batch, context_tokens=context) for batch, context in product(batches, contexts)
    ]
    found += [
        StepShape(prompts=1, prompt_tokens=chunk, decodes=batch, context_tokens=context)
        for chunk, batch, context in product(chunks[1::2], batches[1::3], contexts[1::2])
    ]
    return tuple(dict.fromkeys(shape for shape in found if limits.allows(shape)))


def _spread(low: int, high: int, factor: float) -> tuple[int, ...]:
    """Whole numbers from low to high, each about `factor` times the last; none where high is below low."""
    count = int(np.floor(np.log(max(high, 1) / low) / np.log(factor) + 1e-9)) + 1
    values = [round(low * factor**step) for step in range(max(count, 0))]
    return tuple(dict.fromkeys([*values, high] if values and values[-1] * factor**0.5 < high else values))


def forecast(
    deployment: StepDeployment, measured: Sequence[StepPoint], shapes: Iterable[StepShape]
) -> Forecast:
    """What steps of `shapes` will take, from a fit to what was measured, or from what is known without any."""
    unknowns = step_unknowns([deployment])
    spreads, columns = unknowns.spreads, shape_columns(shapes)

    def log_s(values: FloatArray, of: ShapeColumns = columns) -> FloatArray:
        return unknowns.log_s(values, [of])

    values, covariance = np.zeros(spreads.size), np.diag(spreads**2)
    known = MeasuredSteps(deployment, tuple(measured))
    if len(measured) >= FEWEST_STEPS:
        found = solve(lambda x: log_s(x, known.shapes), known.log_s, known.noise, spreads)
        values, covariance = found.values, found.covariance
    predicted = log_s(values)
    jacobian = jacobian_of(log_s, values, DIFFERENCE * spreads, predicted)
    unlike = (UNLIKE_FACTOR * model_error(deployment)) ** 2
    own = likeness(columns, columns)
    joint = jacobian @ covariance @ jacobian.T + unlike * own
    if len(measured) >= FEWEST_STEPS:
        across = unlike * likeness(columns, known.shapes)
        among = unlike * likeness(known.shapes, known.shapes) + np.diag(
            [noise_of(one) ** 2 for one in measured]
        )
        joint = joint - across @ np.linalg.solve(among, across.T)
    return Forecast(np.exp(predicted), np.asarray(joint, dtype=np.float64))


def likeness(left: ShapeColumns, right: ShapeColumns) -> FloatArray:
    """exp(-d^2 / 2) with d the distance of log shapes in units of LIKENESS_LOG_LENGTH [L, R]."""
    ours, theirs = (np.log1p(np.array(side)).T / LIKENESS_LOG_LENGTH for side in (left, right))
    squared = ((ours[:, None, :] - theirs[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-squared / 2.0))


def next_shapes(
    shapes: Sequence[StepShape], expected: Forecast, plan: Plan, *, count: int, most_s: float
) -> list[StepShape]:
    """Up to `count` shapes, the most telling for their time first, of at most `most_s` together.

    Each is chosen as if those before it had been measured already.
    """
    cost_s, covariance = plan.cost_s(expected.step_s), expected.covariance.copy()
    chosen: list[int] = []
    left_s = most_s
    while len(chosen) < count:
        variance = np.diag(covariance) + EXPECTED_NOISE**2
        narrowed = (covariance**2).sum(axis=0) / variance
        narrowed[cost_s > left_s] = 0.0
        narrowed[chosen] = 0.0
        best = int(np.argmax(narrowed / cost_s))
        if narrowed[best] <= 0.0:
            break
        chosen.append(best)
        left_s -= float(cost_s[best])
        column = covariance[:, best]
        covariance = covariance - np.outer(column, column) / variance[best]
    return [shapes[index] for index in chosen]
