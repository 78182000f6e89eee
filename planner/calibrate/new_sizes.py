"""What a step with prompts takes more where its number of tokens is met for the first time.

A CPU's kernel library makes each kernel anew for the size of its operands and keeps it (oneDNN's primitive cache);
served prompts rarely have a size again. On a GPU kernels are chosen from tables, and servers warm up first.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from planner.calibrate.least_squares import solve
from planner.domain.calibration import CalibrationRun
from planner.formulas.arrays import FloatArray
from planner.formulas.gpu_fit import NewSizes

FEWEST_SIZES = 4
NOISE_RATIO, NOISE_S = 0.3, 1e-3
PRIOR = NewSizes(step_s=3e-3, per_token_s=1e-5)
PRIOR_SPREAD = 2.0
"""Of both numbers' logarithms."""


class FirstMeeting(NamedTuple):
    """A step whose size the engine had not run before."""

    tokens: int
    extra_s: float


def first_meetings(run: CalibrationRun) -> Iterator[FirstMeeting]:
    """The first warm-up of each new size of steps with prompts, over the step's median."""
    seen: set[int] = set()
    for point in run.points:
        tokens = point.shape.scheduled_tokens
        if point.shape.prompts and point.times_s and point.warmup_s and tokens not in seen:
            yield FirstMeeting(tokens, max(point.warmup_s[0] - point.median_s, 0.0))
        seen.add(tokens)


def new_sizes(runs: Sequence[CalibrationRun]) -> NewSizes:
    """The extra time as a constant and a share of the tokens; nothing where too few sizes were met."""
    met = [one for run in runs for one in first_meetings(run)]
    if len(met) < FEWEST_SIZES:
        return NewSizes()
    tokens = np.array([one.tokens for one in met], dtype=np.float64)
    extra_s = np.array([one.extra_s for one in met])

    def predict(logs: FloatArray) -> FloatArray:
        step, per_token = np.exp(logs)
        return np.asarray(PRIOR.step_s * step + PRIOR.per_token_s * per_token * tokens)

    found = solve(predict, extra_s, NOISE_S + NOISE_RATIO * extra_s, np.full(2, PRIOR_SPREAD))
    step, per_token = np.exp(found.values).tolist()
    return NewSizes(step_s=PRIOR.step_s * step, per_token_s=PRIOR.per_token_s * per_token)
