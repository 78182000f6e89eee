"""What serving runs say beyond steps: host time that only they show, and how service differs from steps timed alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from planner.assemble.served import Runnable, simulated
from planner.calibrate.fit_steps import DISTURBED_FACTOR, IDENTIFIED_RATIO, estimate, rounded
from planner.calibrate.least_squares import Solution, solve
from planner.domain.dtypes import WeightDtype
from planner.formulas.arrays import FloatArray
from planner.formulas.gpu_fit import FittedParameter
from planner.formulas.host_time import HostTime, MeasuredHost
from planner.formulas.tuning import RunDeployment, ServingTuning, model_shape

TTFT_NOISE, TPOT_NOISE = 0.08, 0.03
"""Of logarithms of means: repeats of a run, and what the simulation is off beside steps."""
HOST_SPREAD = 0.7
RATIO_SPREAD = 0.05
"""Of ratios between kernels in service and the same steps timed alone: a machine drifts by more from run to run."""
DIFFERENCE = 0.1
"""Simulated times jump where the order of events changes: difference quotients must look over that."""
MOST_RATIO = 4.0
IN_PROCESS, SERVER = ("step_s", "chain_s"), ("front_s", "reply_s")


class Evidence(NamedTuple):
    """One serving run: what was measured, and how it is predicted."""

    name: str
    """Of its deployment: model, format and TP."""
    deployment: tuple[str, WeightDtype, int]
    """Model shape, format and TP."""
    ttft_s: float
    tpot_s: float
    asynchronous: bool
    through_server: bool
    disturbed: bool
    predict: Callable[[HostTime, ServingTuning], tuple[float, float]]
    """Mean TTFT and TPOT [s]."""


class ServiceFit(NamedTuple):
    """What was found."""

    host: MeasuredHost
    deployments: tuple[RunDeployment, ...]
    parameters: tuple[FittedParameter, ...]


class Start(NamedTuple):
    """What the fit begins with."""

    host: HostTime
    measured: MeasuredHost
    """From steps, which stays."""
    tuning: ServingTuning
    """With the curves of the deployments whose steps were measured."""
    own: tuple[RunDeployment, ...]
    """Those deployments."""


def benchmark_evidence(runs: Sequence[Runnable]) -> list[Evidence]:
    """Imported benchmarks as evidence."""
    found = []
    for one in runs:
        case = one.run.case

        def predict(host: HostTime, tuning: ServingTuning, one: Runnable = one) -> tuple[float, float]:
            means = simulated([one], host, tuning)
            return float(means.ttft[0]), float(means.tpot[0])

        found.append(
            Evidence(
                name=f"{case.model.name} {case.model.weight_dtype.value} TP {case.parallelism.tp}",
                deployment=(model_shape(case.model), case.model.weight_dtype, case.parallelism.tp),
                ttft_s=one.run.ttft_s,
                tpot_s=one.run.tpot_s,
                asynchronous=case.engine.async_scheduling,
                through_server=True,
                disturbed=False,
                predict=predict,
            )
        )
    return found


def fit_service(evidence: Sequence[Evidence], start: Start) -> ServiceFit:
    """Host times and two ratios for each deployment, drawn to what was known and to 1."""
    usable = [one for one in evidence if one.ttft_s > 0 and one.tpot_s > 0]
    if not usable:
        return ServiceFit(start.measured, start.own, ())
    names = [name for name in _host_names(usable) if getattr(start.host, name) > 0]
    served = {one.deployment for one in usable}
    own = [one for one in start.own if (one.model_shape, one.weight_dtype, one.tp) in served]
    ratios = [(one, kind) for one in own for kind in ("decode_ratio", "prompt_ratio")]
    spreads = np.array([HOST_SPREAD] * len(names) + [RATIO_SPREAD] * len(ratios))

    def applied(values: FloatArray) -> tuple[MeasuredHost, tuple[RunDeployment, ...]]:
        factors = np.clip(np.exp(values), 1 / MOST_RATIO, MOST_RATIO).tolist()
        host = {
            name: rounded(getattr(start.host, name) * factor)
            for name, factor in zip(names, factors, strict=False)
        }
        found = {id(one): one for one in start.own}
        for (one, kind), factor in zip(ratios, factors[len(names) :], strict=True):
            found[id(one)] = found[id(one)].model_copy(update={kind: rounded(factor)})
        return start.measured.model_copy(update=host), tuple(found.values())

    def predict(values: FloatArray) -> FloatArray:
        measured, deployments = applied(values)
        others = tuple(one for one in start.tuning.deployments if one not in start.own)
        tuning = start.tuning.model_copy(update={"deployments": (*others, *deployments)})
        host = measured.on(start.host)
        means = np.array([one.predict(host, tuning) for one in usable], dtype=np.float64)
        return np.asarray(np.log(means).ravel(), dtype=np.float64)

    observed = np.log([[one.ttft_s, one.tpot_s] for one in usable]).ravel()
    doubts = np.array([DISTURBED_FACTOR if one.disturbed else 1.0 for one in usable])
    noise = np.outer(doubts, [TTFT_NOISE, TPOT_NOISE]).ravel()
    solution = solve(predict, np.asarray(observed, np.float64), noise, spreads, DIFFERENCE)
    host, deployments = applied(solution.values)
    called = {one.deployment: one.name for one in usable}
    labels = [
        *names,
        *(f"{kind}, {called[one.model_shape, one.weight_dtype, one.tp]}" for one, kind in ratios),
    ]
    before = [*(getattr(start.host, name) for name in names), *(1.0 for _ in ratios)]
    parameters = _parameters(labels, before, solution, spreads)
    return ServiceFit(host, deployments, parameters)


def _host_names(evidence: Sequence[Evidence]) -> list[str]:
    """Numbers that these runs can tell of."""
    found = [name for name in IN_PROCESS if any(one.asynchronous for one in evidence)]
    return found + [name for name in SERVER if any(one.through_server for one in evidence)]


def _parameters(
    labels: Sequence[str], before: Sequence[float], solution: Solution, spreads: FloatArray
) -> tuple[FittedParameter, ...]:
    found = []
    rows = zip(
        labels, before, solution.values.tolist(), solution.spreads.tolist(), spreads.tolist(), strict=True
    )
    for label, value, x, spread, prior in rows:
        found.append(
            FittedParameter(
                name=label,
                estimate=estimate(value * float(np.exp(x)), min(spread, prior), solution.residuals.size),
                prior=estimate(value, prior, 0),
                identified=spread < IDENTIFIED_RATIO * prior,
            )
        )
    return tuple(found)
