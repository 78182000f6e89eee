"""Which step to measure next: the one that narrows the predictions of steps in service most for each second it takes.

Before any measurement the logarithms of all steps' times are one normal vector, correlated through the unknowns they
share and, for what the model lacks, through their likeness (a Gaussian process on logarithms of shape, as in Sacks et
al. 1989). What was measured conditions it. The next shape is the one after which the mean variance over a *target*,
shapes drawn over all that the engine takes, falls most a second: V-optimality, one shape after the other (Cohn 1996).
"""

from collections.abc import Sequence
from itertools import product
from random import Random
from typing import NamedTuple

import numpy as np

from planner.calibrate.fit_steps import MeasuredSteps, noise_of
from planner.calibrate.least_squares import DIFFERENCE, Problem, jacobian_of, minimum
from planner.calibrate.step_unknowns import StepDeployment, model_error, step_unknowns
from planner.domain.calibration import StepPoint, StepShape
from planner.domain.evidence import StepKind
from planner.formulas.arrays import FloatArray
from planner.formulas.shape_time import ShapeColumns, shape_columns

REPETITIONS, WARMUPS = 3, 1
"""Of a shape. A median of three is off by less than the model is, so more shapes tell more than more repetitions; with
three, one that something disturbed does not count."""
FIRST_ASK_S = 0.05
"""Of asking for one shape, until it is known."""
LIKENESS_LOG_LENGTH = 0.8
"""Shapes a factor of e^0.8 apart in one quantity still tell much of each other."""
LIKE_SHARE = 0.5
"""Of the variance of what the model lacks: shapes near one another have that share in common, the rest is their own."""
EXPECTED_NOISE = 0.02
"""Of a median not yet measured."""
NEAR_ENOUGH = 0.1
"""In units of the prior's spread: a choice needs no better fit."""
TARGET_SHAPES_PER_KIND, TARGET_SEED, TARGET_TRIES = 40, 11, 50
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
    """What is expected of N steps, given what was measured."""

    step_s: FloatArray
    """[N]"""
    covariance: FloatArray
    """[N, N] of their logarithms."""
    target_covariance: FloatArray
    """[N, T] with those of the target."""
    own_variance: float
    """Of the logarithm of one measurement: its noise, and what of the shape no other has."""
    unknowns: FloatArray
    """[P] of the fit, from where the next starts."""


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


def target_shapes(limits: EngineLimits) -> tuple[StepShape, ...]:
    """Steps as service may meet them: as many of each kind, drawn evenly in logarithms over what the engine takes."""
    random = Random(TARGET_SEED)

    def size(low: int, high: int) -> int:
        return round(low * float((max(high, low) / low) ** random.random()))

    def drawn(kind: StepKind) -> StepShape:
        prompts = 0 if kind is StepKind.DECODE else size(1, PROMPTS[-1])
        decodes = 0 if kind is StepKind.PREFILL else size(1, limits.max_num_seqs)
        after_some = prompts and random.random() < 0.5
        return StepShape(
            prompts=prompts,
            prompt_tokens=size(SMALLEST_CHUNK, limits.max_num_batched_tokens) if prompts else 0,
            past_tokens=size(SMALLEST_CONTEXT, limits.max_model_len) if after_some else 0,
            decodes=decodes,
            context_tokens=size(SMALLEST_CONTEXT, limits.max_model_len) if decodes else 0,
        )

    found: list[StepShape] = []
    for kind in StepKind:
        tried = (drawn(kind) for _ in range(TARGET_TRIES * TARGET_SHAPES_PER_KIND))
        found += list(filter(limits.allows, tried))[:TARGET_SHAPES_PER_KIND]
    return tuple(found)


def opening_shapes(shapes: Sequence[StepShape]) -> list[StepShape]:
    """What is measured while nothing is known: the corners that cost little, and a prompt of middling length.

    A device without kernel tables may be ten times off what is expected of it, so that times cannot be weighed yet.
    These tell how much longer larger steps take; the forecast then says which of those are worth it.
    """
    decodes = [shape for shape in shapes if not shape.prompts]
    prompts = [shape for shape in shapes if shape.prompts == 1 and not shape.decodes]
    found: list[StepShape] = []
    if decodes:
        found = [
            min(decodes, key=lambda shape: (shape.decodes, shape.context_tokens)),
            min(decodes, key=lambda shape: (-shape.decodes, shape.context_tokens)),
            min(decodes, key=lambda shape: (shape.decodes, -shape.context_tokens)),
        ]
    if prompts:
        fresh = sorted({shape.prompt_tokens for shape in prompts if not shape.past_tokens})
        middle = fresh[len(fresh) // 2 :][:1]
        found += [
            min(prompts, key=lambda shape: (shape.prompt_tokens, shape.past_tokens)),
            min(prompts, key=lambda shape: (shape.prompt_tokens, -shape.past_tokens)),
            *(shape for shape in prompts if [shape.prompt_tokens] == middle and not shape.past_tokens),
        ]
    return list(dict.fromkeys(found))


def forecast(
    deployment: StepDeployment,
    measured: Sequence[StepPoint],
    shapes: Sequence[StepShape],
    *,
    target: Sequence[StepShape] = (),
    start: FloatArray | None = None,
) -> Forecast:
    """What steps of `shapes` will take, from a fit to what was measured, or from what is known without any.

    `target`: what the measuring is for; the shapes themselves where none is given.
    `start`: unknowns of an earlier forecast, from which the search for those of this one begins.
    """
    known = MeasuredSteps(deployment, tuple(measured))
    unknowns = step_unknowns([deployment])
    spreads, values = unknowns.spreads, start

    def log_s(at: FloatArray, of: ShapeColumns) -> FloatArray:
        return unknowns.log_s(at, [of])

    if values is None:
        values = np.zeros(spreads.size)
    if measured:
        problem = Problem(lambda at: log_s(at, known.shapes), known.log_s, known.noise, spreads)
        values = minimum(problem, values, NEAR_ENOUGH)
    asked = [*(point.shape for point in measured), *shapes]
    columns = shape_columns([*asked, *(target or shapes)])
    predicted = log_s(values, columns)
    jacobian = jacobian_of(lambda at: log_s(at, columns), values, DIFFERENCE * spreads, predicted) * spreads
    lacking = model_error(deployment) ** 2
    joint = jacobian @ jacobian.T + LIKE_SHARE * lacking * likeness(columns, columns)
    own = (1.0 - LIKE_SHARE) * lacking
    first, end = len(measured), len(asked)
    noise = np.diag([own + noise_of(point) ** 2 for point in measured])
    told = np.linalg.solve(joint[:first, :first] + noise.reshape(first, first), joint[:first, first:])
    left = joint[first:end, first:] - joint[first:end, :first] @ told
    return Forecast(
        step_s=np.exp(predicted[first:end]),
        covariance=left[:, : end - first],
        target_covariance=left[:, end - first :],
        own_variance=own + EXPECTED_NOISE**2,
        unknowns=values,
    )


def likeness(left: ShapeColumns, right: ShapeColumns) -> FloatArray:
    """exp(-d^2 / 2) with d the distance of log shapes in units of LIKENESS_LOG_LENGTH [L, R]."""
    ours, theirs = (np.log1p(np.array(side)).T / LIKENESS_LOG_LENGTH for side in (left, right))
    squared = ((ours[:, None, :] - theirs[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-squared / 2.0))


def next_shapes(
    shapes: Sequence[StepShape], expected: Forecast, plan: Plan, *, count: int, most_s: float
) -> list[StepShape]:
    """Up to `count` shapes, the most telling of the target for their time first, of at most `most_s` together.

    Each is chosen as if those before it had been measured already.
    """
    cost_s, covariance, of_target = (
        plan.cost_s(expected.step_s),
        expected.covariance,
        expected.target_covariance,
    )
    chosen: list[int] = []
    left_s = most_s
    while len(chosen) < count:
        variance = np.diag(covariance) + expected.own_variance
        narrowed = (of_target**2).sum(axis=1) / variance
        narrowed[cost_s > left_s] = 0.0
        narrowed[chosen] = 0.0
        best = int(np.argmax(narrowed / cost_s))
        if narrowed[best] <= 0.0:
            break
        chosen.append(best)
        left_s -= float(cost_s[best])
        share = covariance[:, best] / variance[best]
        covariance, of_target = (
            covariance - np.outer(share, covariance[best]),
            of_target - np.outer(share, of_target[best]),
        )
    return [shapes[index] for index in chosen]
