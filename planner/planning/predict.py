"""Many deployments at once: memory, latency and throughput of each, with what is known of the error."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.deployment import EngineSettings, MemoryBudget, Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.evidence import Basis
from planner.domain.hardware import Gpu, Interconnect
from planner.domain.model import Model
from planner.domain.plan import Bottleneck, Latency
from planner.domain.workload import Workload
from planner.formulas.arrays import FloatArray
from planner.formulas.host_time import HostTime
from planner.formulas.kv_paging import kv_paging
from planner.formulas.step import Cluster, StepModel, StepTable, stack
from planner.planning.basis import has_rough_kernels
from planner.planning.candidates import BITS_PER_BYTE, BITS_PER_GBIT, NETWORK_FLOOR_GBPS
from planner.planning.facts import Facts
from planner.planning.loads import Loaded, largest_captured, load_of, resident_tokens
from planner.planning.sizing import Placed, Refusal, Sizer, extras_problem, memory_refusal
from planner.serving.mean_step import Load
from planner.serving.steady_state import (
    ServingState,
    closed_loop,
    open_loop,
    running_at_rate,
)

GPUS_PER_INSTANCE = 8
REQUESTS_PER_USER = 10
OPEN_LOOP_SPAN_S = 600.0


class Case(NamedTuple):
    """One deployment and what it serves."""

    model: Model
    gpu: Gpu
    parallelism: Parallelism
    kv_dtype: KvDtype
    engine: EngineSettings
    workload: Workload | None
    """None: memory alone is asked for."""


class Prediction(NamedTuple):
    """What one case does; `refusal` says why the engine would not start (memory may still be known)."""

    memory: MemoryBudget | None = None
    latency: Latency | None = None
    output_tokens_per_s: float = float("nan")
    prompt_time_ratio: float = float("nan")
    running_requests: float = float("nan")
    basis: Basis | None = None
    refusal: Refusal | None = None
    rough_kernels: bool = False
    """Much of the model's time is in the kernels that are least sure."""
    gpu: str = ""
    """Its name; empty where memory was not placed."""


class Sized(NamedTuple):
    """The memory of a deployment, and why its engine would not start where it would not."""

    placed: Placed | None = None
    budget: MemoryBudget | None = None
    refusal: Refusal | None = None


def size(case: Case, sizer: Sizer) -> Sized:
    """What one GPU of a deployment holds; `sizer` remembers what layouts share."""
    placed = sizer.place(
        case.model,
        case.gpu,
        case.parallelism,
        kv_dtype=case.kv_dtype,
        cluster=default_cluster(case.gpu, case.parallelism),
        paging=kv_paging(case.engine, case.gpu, case.model, case.kv_dtype),
    )
    if isinstance(placed, Refusal):
        return Sized(refusal=placed)
    problem = extras_problem(case.model, case.parallelism, case.engine)
    if problem is not None:
        layout = case.parallelism
        return Sized(refusal=Refusal(Bottleneck.PARALLELISM, layout.gpus, layout.tp, "ranks", problem))
    budget = sizer.budget(placed, case.engine)
    refusal = None if budget.fits else memory_refusal(placed, budget, case.engine)
    return Sized(placed, budget, refusal)


def memory_alone(sized: Sized) -> Prediction:
    """What is known of a deployment without traffic."""
    placed = sized.placed
    if placed is None:
        return Prediction(sized.budget, refusal=sized.refusal)
    rough = has_rough_kernels(placed.model)
    return Prediction(
        sized.budget,
        basis=placed.basis,
        refusal=sized.refusal,
        rough_kernels=rough,
        gpu=placed.operators.gpu.name,
    )


def default_interconnect(gpu: Gpu) -> Interconnect:
    """How GPUs of this kind usually reach each other, where no instance says so."""
    if gpu.vllm_backend == "rocm" and gpu.nvlink_bytes_per_s > 0:
        return Interconnect.INFINITY_FABRIC
    if gpu.nvlink_bytes_per_s <= 0:
        return Interconnect.PCIE
    return Interconnect.NVLINK_PAIR if gpu.has_nvlink_bridges else Interconnect.NVSWITCH


def default_cluster(gpu: Gpu, parallelism: Parallelism) -> Cluster:
    """Boxes of eight GPUs with 10 Gbit/s between them: stated, pessimistic, and only used across boxes."""
    stages = max(1, GPUS_PER_INSTANCE // parallelism.tp)
    crosses = parallelism.pp > stages
    return Cluster(
        interconnect=default_interconnect(gpu),
        network_bytes_per_s=NETWORK_FLOOR_GBPS * BITS_PER_GBIT / BITS_PER_BYTE if crosses else 0.0,
        stages_per_instance=stages if crosses else parallelism.pp,
    )


def predict(cases: Sequence[Case], facts: Facts) -> list[Prediction]:
    """Predictions in the order of the cases; each distinct layout is compiled once."""
    sizer = Sizer(facts)
    predictions: list[Prediction] = []
    steps: dict[tuple[int, str, Parallelism, KvDtype, str], int] = {}
    models: list[StepModel] = []
    timed: list[tuple[int, int, Case, Placed, MemoryBudget]] = []
    for index, case in enumerate(cases):
        sized = size(case, sizer)
        placed, budget, refusal = sized
        predictions.append(memory_alone(sized))
        if placed is None or budget is None or refusal is not None or case.workload is None:
            continue
        key = (
            id(case.model),
            case.gpu.name,
            case.parallelism,
            case.kv_dtype,
            case.engine.engine_version,
        )
        if key not in steps:
            steps[key] = len(models)
            models.append(sizer.step(placed))
        timed.append((index, steps[key], case, placed, budget))
    if timed:
        table = stack(models)
        for closed in (True, False):
            _time(table, [row for row in timed if _is_closed(row[2]) is closed], predictions, facts.host)
    return predictions


def _is_closed(case: Case) -> bool:
    return case.workload is not None and case.workload.concurrency is not None


def _time(
    table: StepTable,
    rows: Sequence[tuple[int, int, Case, Placed, MemoryBudget]],
    predictions: list[Prediction],
    host: HostTime,
) -> None:
    """Fills in latency and throughput of rows that are all closed or all open loop."""
    if not rows:
        return
    load = _load(rows, host)
    cases = [case for _, _, case, _, _ in rows]
    state = _serve(table, load, cases)
    ranks = _ranks(cases)
    for row, (index, _, _, _, _) in enumerate(rows):
        predictions[index] = predictions[index]._replace(
            latency=state.latency_at((row,)),
            output_tokens_per_s=float(state.output_tokens_per_s[row] * ranks[row]),
            prompt_time_ratio=float(state.prompt_time_ratio[row]),
            running_requests=float(state.running_requests[row] * ranks[row]),
        )


def _load(rows: Sequence[tuple[int, int, Case, Placed, MemoryBudget]], host: HostTime) -> Load:
    """One element a row; data-parallel ranks are replicas that share the load evenly."""
    elements = []
    for _, step, case, placed, budget in rows:
        workload = case.workload
        assert workload is not None
        request_bytes = float(placed.kv.request_bytes(resident_tokens(workload)))
        held = placed.kv.usable_bytes(budget.kv_cache_bytes) / request_bytes
        loaded = Loaded(step, case.engine, max(held, 1.0), workload.arrival_cv, workload)
        elements.append(
            loaded._replace(
                host=placed.operators.host_on(host), captured_tokens=largest_captured(placed, case.engine)
            )
        )
    return load_of(elements)


def _serve(table: StepTable, load: Load, cases: Sequence[Case]) -> ServingState:
    workloads = [case.workload for case in cases if case.workload is not None]
    ranks = _ranks(cases)
    if workloads[0].concurrency is not None:
        users = np.array([workload.concurrency or 1 for workload in workloads], dtype=np.float64)
        requests = np.array(
            [
                workload.num_requests or REQUESTS_PER_USER * (workload.concurrency or 1)
                for workload in workloads
            ],
            dtype=np.float64,
        )
        return closed_loop(table, load, users / ranks, np.maximum(requests / ranks, 1.0))
    rates = np.array([workload.requests_per_s or 0.0 for workload in workloads]) / ranks
    state = open_loop(table, load, running_at_rate(table, load, rates))
    requests = np.array(
        [
            workload.num_requests or OPEN_LOOP_SPAN_S * (workload.requests_per_s or 0.0)
            for workload in workloads
        ]
    )
    return _overloaded(state, rates, requests / ranks)


def _ranks(cases: Sequence[Case]) -> FloatArray:
    """Data-parallel ranks that have work: a closed loop of few users leaves some idle."""
    return np.array(
        [
            min(case.parallelism.dp, case.workload.concurrency or case.parallelism.dp)
            for case in cases
            if case.workload is not None
        ],
        dtype=np.float64,
    )


def _overloaded(state: ServingState, rates: FloatArray, requests: FloatArray) -> ServingState:
    """Adds the queue that grows over the run where more arrives than is served: mean half of its final wait."""
    excess = np.maximum(rates / state.requests_per_s - 1.0, 0.0)
    final_wait_s = excess * requests / rates
    ttft = state.ttft
    return state._replace(
        ttft=ttft._replace(
            mean_s=ttft.mean_s + final_wait_s / 2.0,
            p50_s=ttft.p50_s + 0.5 * final_wait_s,
            p95_s=ttft.p95_s + 0.95 * final_wait_s,
            p99_s=ttft.p99_s + 0.99 * final_wait_s,
        )
    )
