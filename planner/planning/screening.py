"""What every distinct replica can do, sized once however many sites sell it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.evidence import Basis
from planner.domain.hardware import Instance
from planner.domain.plan import Bottleneck, CapacityMethod, Question, Reserve
from planner.formulas.host_time import HostTime
from planner.formulas.kv_paging import default_paging
from planner.formulas.step import StepTable, stack
from planner.planning.candidates import Replica, pipeline_degrees, replica_on, tensor_degrees
from planner.planning.evaluate import (
    Capability,
    Choice,
    Service,
    Share,
    capabilities,
    choices,
    default_max_model_len,
    serve,
    thinned_cv,
)
from planner.planning.facts import Facts
from planner.planning.loads import largest_captured
from planner.planning.sizing import Placed, Refusal, Sizer
from planner.serving.fleet import replicas_for

SPLITTING_PASSES = 3
"""How bursty one replica's share is depends on their number, and that on how bursty it is."""


class Answer(NamedTuple):
    """What one replica does in the fleet that the question needs."""

    placed: Placed
    capability: Capability
    service: Service
    replicas: int
    arrival_cv: float
    """Of the requests that one replica gets."""
    steady_requests_per_s: float
    """What it carries in closed form."""
    method: CapacityMethod = CapacityMethod.STEADY
    """Where everything else comes from."""


class Screening(NamedTuple):
    """Layouts by instance type, and what each comes to."""

    layouts: Mapping[Instance, Sequence[Replica]]
    verdicts: Mapping[Replica, Answer | Refusal]
    settings_tried: int


class _Bench:
    """Layouts tried so far: those that start, with the flags they start under, and why others do not."""

    def __init__(self, question: Question, facts: Facts) -> None:
        self._question, self._facts = question, facts
        self.sizer = Sizer(facts)
        self._max_model_len = default_max_model_len(question)
        self.refusals: dict[Replica, Refusal] = {}
        self.placed: dict[Replica, Placed] = {}
        self.options: list[Choice] = []

    def attempt(self, replica: Replica) -> None:
        """Tries a layout once."""
        if replica in self.placed or replica in self.refusals:
            return
        where = self._place(replica)
        if isinstance(where, Refusal):
            self.refusals[replica] = where
            return
        flags = choices(len(self.placed), where, self._question, self.sizer, self._max_model_len)
        if isinstance(flags, Refusal):
            self.refusals[replica] = flags
            return
        self.placed[replica] = where
        self.options.extend(flags)

    def _place(self, replica: Replica) -> Placed | Refusal:
        question = self._question
        model, gpu = question.variants[replica.variant], self._facts.gpus[replica.gpu]
        where = self.sizer.place(
            model,
            gpu,
            replica.parallelism,
            kv_dtype=replica.kv_dtype,
            cluster=replica.cluster,
            paging=default_paging(gpu, model, replica.kv_dtype, question.engine_version),
        )
        if isinstance(where, Refusal):
            return where
        return _unproven(where, question.supply.weakest_basis) or where

    def lacks_memory(self, replica: Replica) -> bool:
        """Whether a layout that was tried did not fit."""
        refusal = self.refusals.get(replica)
        return refusal is not None and refusal.bottleneck is Bottleneck.MEMORY

    def fitting(self) -> set[tuple[str, int, KvDtype]]:
        """GPUs on which some layout of a variant starts."""
        return {(replica.gpu, replica.variant, replica.kv_dtype) for replica in self.placed}


def screen(instances: Iterable[Instance], question: Question, facts: Facts) -> Screening:
    """Every legal layout on these instance types and what it can carry.

    Pipeline stages are tried on the largest legal tensor-parallel group that lacks memory, and only where
    no instance with these GPUs holds the model: a replica that spans instances fails with any of them.
    """
    bench = _Bench(question, facts)
    supply = question.supply
    formats = [(variant, kv) for variant in range(len(question.variants)) for kv in supply.kv_dtypes]
    layouts: dict[Instance, list[Replica]] = {}
    for instance in instances:
        if instance not in layouts:
            layouts[instance] = [
                replica_on(instance, variant, kv, Parallelism(tp=tp))
                for variant, kv in formats
                for tp in tensor_degrees(instance, supply)
            ]
    for replica in (replica for replicas in layouts.values() for replica in replicas):
        bench.attempt(replica)
    shorter = 1
    for pp in pipeline_degrees(supply):
        fitting = bench.fitting()
        for instance, replicas in layouts.items():
            for variant, kv in formats:
                tried = (
                    replica_on(instance, variant, kv, Parallelism(tp=tp, pp=shorter))
                    for tp in tensor_degrees(instance, supply)
                )
                short = [replica for replica in tried if bench.lacks_memory(replica)]
                if short and (instance.gpu, variant, kv) not in fitting:
                    widest = short[-1].parallelism.tp
                    longer = replica_on(instance, variant, kv, Parallelism(tp=widest, pp=pp))
                    bench.attempt(longer)
                    replicas.append(longer)
        shorter = pp
    answers = _answers(bench, question, facts.host) if bench.placed else {}
    return Screening(layouts, {**bench.refusals, **answers}, len(bench.options))


def _unproven(placed: Placed, weakest: Basis) -> Refusal | None:
    """A refusal where the GPU's speed rests on less than the question accepts."""
    order = list(Basis)
    basis = placed.operators.basis
    if order.index(basis) <= order.index(weakest):
        return None
    return Refusal(
        Bottleneck.EVIDENCE,
        1,
        0,
        "kernel tables",
        f"the speed of {placed.gpu.name} is known from its {basis.value} alone; "
        "include untrusted evidence to rank it too",
    )


def _answers(bench: _Bench, question: Question, host: HostTime) -> dict[Replica, Answer | Refusal]:
    """Capability of every replica that starts, and its service at the load of the fleet it needs."""
    keys, placed = list(bench.placed), list(bench.placed.values())
    table = stack(bench.sizer.step(replica) for replica in placed)
    workload, reserve = question.workload, question.reserve
    peak = (workload.requests_per_s or 0.0) * reserve.peak_ratio
    cvs = dict.fromkeys(range(len(placed)), 1.0)
    hosts = [replica.operators.host_on(host) for replica in placed]
    able = capabilities(table, bench.options, question, cvs, hosts)
    for _ in range(0 if workload.arrival_cv == 1.0 else SPLITTING_PASSES):
        cvs = {
            index: thinned_cv(workload.arrival_cv, _serving_replicas(found, peak, reserve))
            for index, found in able.items()
        }
        able = capabilities(table, bench.options, question, cvs, hosts)
    outcome: dict[Replica, Answer | Refusal] = {
        keys[index]: found for index, found in able.items() if isinstance(found, Refusal)
    }
    sized = {
        index: _resized(found, placed[index], bench.sizer)
        for index, found in able.items()
        if isinstance(found, Capability)
    }
    sized = _carrying(sized, table, question, cvs, hosts)
    serving = {index: _serving_replicas(found, peak, reserve) for index, found in sized.items()}
    shares = [Share(found, peak / serving[index], cvs[index]) for index, found in sized.items()]
    for (index, found), service in zip(sized.items(), serve(table, shares, workload, hosts), strict=True):
        replicas = serving[index] + reserve.spare_replicas
        outcome[keys[index]] = Answer(
            placed[index], found, service, replicas, cvs[index], found.requests_per_s
        )
    return outcome


def _carrying(
    sized: Mapping[int, Capability],
    table: StepTable,
    question: Question,
    arrival_cvs: Mapping[int, float],
    hosts: Sequence[HostTime],
) -> dict[int, Capability]:
    """What replicas carry with the slots and the cache that they will have."""
    flags = [
        Choice(index, found.engine, found.budget, found.kv_requests, found.captured_tokens)
        for index, found in sized.items()
    ]
    again = capabilities(table, flags, question, arrival_cvs, hosts) if flags else {}
    return {
        index: sized[index]._replace(
            requests_per_s=found.requests_per_s,
            binding=found.binding,
            running_requests=found.running_requests,
        )
        for index, found in again.items()
        if isinstance(found, Capability)
    }


def _serving_replicas(found: Capability | Refusal, peak_requests_per_s: float, reserve: Reserve) -> int:
    """Replicas that the peak needs without the spares; one of what cannot serve at all."""
    if isinstance(found, Refusal):
        return 1
    return replicas_for(peak_requests_per_s, found.requests_per_s, reserve) - reserve.spare_replicas


def _resized(found: Capability, placed: Placed, sizer: Sizer) -> Capability:
    """The capability with the memory that its own flags leave: fewer slots than were tried take less of it."""
    budget = sizer.budget(placed, found.engine)
    tried, left = (placed.kv.usable_bytes(each.kv_cache_bytes) for each in (found.budget, budget))
    return found._replace(
        budget=budget,
        kv_requests=found.kv_requests * left / max(tried, 1),
        captured_tokens=largest_captured(placed, found.engine),
    )
