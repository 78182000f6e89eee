"""Measured serving runs, simulated with whatever host time and tuning of kernels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.base import InputError
from planner.domain.workload import Workload
from planner.formulas.arrays import FloatArray
from planner.formulas.host_time import NO_HOST_TIME, HostTime
from planner.formulas.step import StepModel
from planner.formulas.tuning import ServingTuning, step_tuning
from planner.planning.facts import Facts
from planner.planning.predict import Case, size
from planner.planning.simulate import captured, drawn_traffic, engine_of, ranks_together
from planner.planning.sizing import Placed, Sizer, step_of
from planner.serving.lockstep import Load, simulate_in_step
from planner.serving.scheduler_types import RequestStream
from planner.serving.simulation import Replica, simulate, step_times, tpot_s, ttft_s

SEED = 0


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
    placed: Placed
    stream: RequestStream
    users: int
    """0: open loop."""


class Means(NamedTuple):
    """Mean latency of each of N runs, or how far predicted / measured is from 1."""

    ttft: FloatArray
    tpot: FloatArray


def runnable(runs: Sequence[MeasuredRun], facts: Facts) -> list[Runnable]:
    """The runs that can be simulated, in their order; left out: engines that would not start or take every request."""
    sizer = Sizer(facts)
    return [found for run in runs if (found := _runnable(run, sizer)) is not None]


def _runnable(run: MeasuredRun, sizer: Sizer) -> Runnable | None:
    case = run.case
    sized = size(case, sizer)
    if case.workload is None or sized.placed is None or sized.budget is None or sized.refusal is not None:
        return None
    try:
        traffic = drawn_traffic(_of_one_rank(case.workload, case.parallelism.dp), SEED)
    except InputError:
        return None
    if not _is_served(traffic.stream, case.engine.max_model_len):
        return None
    replica = engine_of(case, sized, sizer, NO_HOST_TIME)
    return Runnable(run, replica, sized.placed, traffic.stream, traffic.users)


def _is_served(stream: RequestStream, max_model_len: int) -> bool:
    """All requests are sent at some time, none is too long, and one has a token after its first."""
    longest = int((stream.prompt_tokens + stream.output_tokens).max())
    is_sent = bool(np.isfinite(stream.sent_s).all())
    return is_sent and longest <= max_model_len and int(stream.output_tokens.max()) > 1


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


def simulated(runs: Sequence[Runnable], host: HostTime, tuning: ServingTuning) -> Means:
    """Mean TTFT and TPOT of each run [s]."""
    steps: dict[str, StepModel] = {}
    found = np.array([_simulated(one, host, tuning, steps) for one in runs], dtype=np.float64).reshape(-1, 2)
    return Means(found[:, 0], found[:, 1])


def _simulated(
    one: Runnable, host: HostTime, tuning: ServingTuning, steps: dict[str, StepModel]
) -> tuple[float, float]:
    served = _tuned(one, host, tuning, steps)
    ranks = ranks_together(one.placed.model, one.run.case.parallelism)
    if ranks > 1:
        (out,) = simulate_in_step(served, [Load(one.stream, one.users)], ranks)
    else:
        out = simulate(served, one.stream, users=one.users)
    waits = out.finished_s - out.sent_s
    span_s = float(out.finished_s.max() - out.sent_s.min())
    in_flight = float(one.users) if one.users else float(waits.sum()) / span_s
    return float(ttft_s(served, out, in_flight).mean()), float(tpot_s(out, one.stream).mean())


def _tuned(one: Runnable, host: HostTime, tuning: ServingTuning, steps: dict[str, StepModel]) -> Replica:
    """The replica with these times; runs of one layout share their step model."""
    placed, case = one.placed, one.run.case
    own = step_tuning(placed.model, placed.gpu, placed.parallelism, tuning, placed.paging.engine_version)
    key = f"{placed.model.name} {placed.model.weight_dtype} {placed.gpu.name} {placed.parallelism} "
    key += f"{placed.kv_dtype} {placed.paging.engine_version} {placed.cluster}"
    if key not in steps:
        steps[key] = step_of(placed._replace(operators=placed.operators._replace(tuning=own)))
    times = step_times(steps[key], case.engine, host, captured(placed, case))
    return one.replica._replace(times=times, host=host)


def relative_errors(runs: Sequence[Runnable], host: HostTime, tuning: ServingTuning) -> Means:
    """Predicted / measured - 1 of each run."""
    means = simulated(runs, host, tuning)
    return Means(
        means.ttft / np.array([one.run.ttft_s for one in runs]) - 1.0,
        means.tpot / np.array([one.run.tpot_s for one in runs]) - 1.0,
    )
