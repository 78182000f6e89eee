"""Host time fitted on measured serving runs: what a simulated replica lacks beside the kernels' time.

The kernels' time is fitted elsewhere and stays as it is. What is fitted here is a few numbers for all models, GPUs
and degrees, so they cannot hide what the kernel tables get wrong.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import numpy as np

from planner.catalog.host_time import FittedHostTime
from planner.domain.base import InputError
from planner.domain.workload import Workload
from planner.formulas.arrays import BoolArray, FloatArray
from planner.formulas.host_time import MAX_S, NO_HOST_TIME, HostTime
from planner.planning.facts import Facts
from planner.planning.predict import Case, size
from planner.planning.simulate import drawn_traffic, engine_of
from planner.planning.sizing import Sizer
from planner.serving.scheduler_types import RequestStream
from planner.serving.simulation import Replica, simulate, tpot_s, ttft_s

FEWEST_RUNS = 10
SEED = 0
TPOT_WEIGHT = 3.0
"""Repeats of one run differ several times less in TPOT than in TTFT."""
ROBUST_SCALE = 0.1
"""Log errors well above this count linearly and not squared."""
STEPS = (0.1, 0.05)
"""Of difference quotients, in units of START, one search after the other: simulated times jump where the order of
events changes, so the first must look over such jumps."""
MAX_EVALUATIONS = 12
"""Of one search."""
SIGNIFICANT_DIGITS = 3
START = HostTime(
    step_s=1e-4,
    per_sequence_s=1e-5,
    sync_step_s=1e-3,
    sync_per_sequence_s=5e-5,
    front_s=0.0,
    front_per_token_s=2e-6,
    reply_s=5e-3,
    reply_per_user_s=1e-4,
)
"""Where the search begins, and the size of each number; `front_s` is not fitted, as closed loops hardly tell it from
`reply_s`."""
ASYNC_FIELDS = ("step_s", "per_sequence_s")
SYNC_FIELDS = ("sync_step_s", "sync_per_sequence_s")


class MeasuredRun(NamedTuple):
    """A run and the means that its clients measured."""

    case: Case
    ttft_s: float
    tpot_s: float
    says_batch: bool
    """The table says `max_num_batched_tokens`; where it does not, TTFT is not fitted, as it depends on that most."""


class Runnable(NamedTuple):
    """A measured run with the replica that serves it, as one data-parallel rank sees it."""

    run: MeasuredRun
    replica: Replica
    stream: RequestStream
    users: int
    """0: open loop."""


class Means(NamedTuple):
    """Mean latency of each of N runs, or how far predicted / measured is from 1."""

    ttft: FloatArray
    tpot: FloatArray


def runnable(runs: Sequence[MeasuredRun], facts: Facts) -> list[Runnable]:
    """The runs that can be simulated, in their order; one whose engine would not start is left out."""
    sizer = Sizer(facts)
    return [found for run in runs if (found := _runnable(run, sizer)) is not None]


def _runnable(run: MeasuredRun, sizer: Sizer) -> Runnable | None:
    case = run.case
    sized = size(case, sizer)
    if case.workload is None or sized.placed is None or sized.budget is None or sized.refusal is not None:
        return None
    traffic = drawn_traffic(_of_one_rank(case.workload, case.parallelism.dp), SEED)
    return Runnable(run, engine_of(case, sized, sizer, NO_HOST_TIME), traffic.stream, traffic.users)


def _of_one_rank(workload: Workload, ranks: int) -> Workload:
    """What one of the data-parallel ranks gets."""
    if ranks == 1:
        return workload
    users, rate, requests = workload.concurrency, workload.requests_per_s, workload.num_requests
    return workload.model_copy(
        update={
            "concurrency": users and max(1, round(users / ranks)),
            "requests_per_s": rate and rate / ranks,
            "num_requests": requests and max(1, round(requests / ranks)),
        }
    )


def simulated(runs: Sequence[Runnable], host: HostTime) -> Means:
    """Mean TTFT and TPOT of each run with this host time [s]."""
    found = np.array([_simulated(one, host) for one in runs], dtype=np.float64).reshape(-1, 2)
    return Means(found[:, 0], found[:, 1])


def _simulated(one: Runnable, host: HostTime) -> tuple[float, float]:
    served = with_host_time(one.replica, host)
    out = simulate(served, one.stream, users=one.users)
    waits = out.finished_s - out.sent_s
    span_s = float(out.finished_s.max() - out.sent_s.min())
    in_flight = float(one.users) if one.users else float(waits.sum()) / span_s
    return float(ttft_s(served, out, in_flight).mean()), float(tpot_s(out, one.stream).mean())


def with_host_time(one: Replica, host: HostTime) -> Replica:
    """The same replica with another host time."""
    host_s, per_sequence_s = host.of_step(async_scheduling=one.engine.async_scheduling)
    times = one.times._replace(
        host_s=host_s,
        host_per_sequence_s=per_sequence_s,
        front_s=host.front_s,
        front_per_token_s=host.front_per_token_s,
    )
    return one._replace(times=times, host=host)


def check_enough(runs: Sequence[Runnable]) -> None:
    """Raises `InputError` where there are too few runs for a fit."""
    if len(runs) < FEWEST_RUNS:
        raise InputError(
            f"{len(runs)} runs with TTFT and TPOT whose engine would start; {FEWEST_RUNS} are needed"
        )


def fit_host_time(runs: Sequence[Runnable]) -> HostTime:
    """The host time that minimises the soft-L1 loss of log(predicted / measured) of TTFT and TPOT, none negative.

    Where only one way of scheduling was measured, the other has the same time. Raises `InputError` where there
    are too few runs.
    """
    from scipy.optimize import least_squares

    check_enough(runs)
    names = _measured_fields(runs)
    scale = np.array([getattr(START, name) for name in names])
    says_batch = np.array([one.run.says_batch for one in runs])
    fits_ttft = says_batch if says_batch.any() else ~says_batch

    def residual(values: FloatArray) -> FloatArray:
        return _log_errors(runs, _host_time(names, values * scale), fits_ttft)

    found = np.ones_like(scale)
    for step in STEPS:
        found = least_squares(
            residual,
            found,
            jac=partial(_slopes, residual, step),
            bounds=(0.0, MAX_S / scale),
            loss="soft_l1",
            f_scale=ROBUST_SCALE,
            max_nfev=MAX_EVALUATIONS,
        ).x
    rounded = [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in found * scale]
    return _host_time(names, np.array(rounded))


def _slopes(residual: Callable[[FloatArray], FloatArray], step: float, values: FloatArray) -> FloatArray:
    """Difference quotients of residuals [residuals, values]."""
    here = residual(values)
    return np.stack([(residual(values + step * axis) - here) / step for axis in np.eye(values.size)], axis=1)


def _measured_fields(runs: Sequence[Runnable]) -> list[str]:
    """What these runs tell: the time of a way of scheduling that none used is not in it."""
    ways = {one.replica.engine.async_scheduling for one in runs}
    unseen = {"front_s", *(() if True in ways else ASYNC_FIELDS), *(() if False in ways else SYNC_FIELDS)}
    return [name for name in HostTime.model_fields if name not in unseen]


def _host_time(names: Sequence[str], values: FloatArray) -> HostTime:
    known = {"front_s": START.front_s, **dict(zip(names, values.tolist(), strict=True))}
    for one, other in zip(ASYNC_FIELDS, SYNC_FIELDS, strict=True):
        known.setdefault(one, known.get(other, 0.0))
        known.setdefault(other, known[one])
    return HostTime(**known)


def _log_errors(runs: Sequence[Runnable], host: HostTime, fits_ttft: BoolArray) -> FloatArray:
    errors = relative_errors(runs, host)
    kept = np.concatenate([errors.ttft[fits_ttft], errors.tpot])
    weights = np.concatenate([np.ones(int(fits_ttft.sum())), np.full(errors.tpot.size, TPOT_WEIGHT)])
    return np.asarray(weights * np.log1p(kept), dtype=np.float64)


def relative_errors(runs: Sequence[Runnable], host: HostTime) -> Means:
    """Predicted / measured - 1 of each run with this host time."""
    means = simulated(runs, host)
    return Means(
        means.ttft / np.array([one.run.ttft_s for one in runs]) - 1.0,
        means.tpot / np.array([one.run.tpot_s for one in runs]) - 1.0,
    )


def fitted_host_time(host: HostTime, runs: Sequence[Runnable], *, source: str) -> FittedHostTime:
    """The fit as it is stored; `source` names the table that it rests on."""
    says_batch = sum(one.run.says_batch for one in runs)
    return FittedHostTime(
        host=host,
        runs=len(runs),
        async_runs=sum(one.replica.engine.async_scheduling for one in runs),
        fitted_on=datetime.now(UTC).date().isoformat(),
        provenance=(
            f"{source}: mean TPOT of {len(runs)} runs and mean TTFT of the {says_batch or len(runs)} "
            f"{'that say max_num_batched_tokens' if says_batch else ''}".rstrip()
            + ", against simulated runs with kernel times as they are"
        ),
    )
