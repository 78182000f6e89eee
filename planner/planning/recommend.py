"""From a question to ranked plans and the reasons of the rejected."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import NamedTuple

from planner.domain.base import InputError
from planner.domain.evidence import Basis, ErrorBand, LatencyRanges
from planner.domain.hardware import Interconnect, Price, Purchase
from planner.domain.plan import (
    Bottleneck,
    Candidate,
    CapacityMethod,
    Cost,
    Fleet,
    Plan,
    Question,
    Recommendation,
    Rejection,
)
from planner.domain.workload import Slo
from planner.formulas.cost import token_prices, usd_per_month
from planner.planning.basis import basis_detail, has_rough_kernels
from planner.planning.candidates import Replica, Site, price_of, sites
from planner.planning.evaluate import Service
from planner.planning.facts import Facts
from planner.planning.finalists import MOST_ROUNDS, Simulator
from planner.planning.screening import Answer, screen
from planner.planning.sizing import Refusal
from planner.serving.fleet import pack

OLD_PRICE_DAYS = 90
SCARCE_CACHE_RATIO = 0.1
UNMEASURABLE = (Bottleneck.BACKEND, Bottleneck.EVIDENCE, Bottleneck.DTYPE, Bottleneck.PARALLELISM)
"""Rejections that no amount of anything would mend."""


def recommend(question: Question, facts: Facts, *, finalists: int = 0) -> Recommendation:
    """Ranked plans and every rejected candidate; the replicas of the `finalists` cheapest are simulated.

    Raises `InputError` where nothing that the supply allows is for sale at all.
    """
    if question.workload.requests_per_s is None:
        raise InputError("a plan needs a request rate: give requests_per_s")
    found = sites(facts.offers, question.supply)
    if not found:
        raise InputError(
            "no offer in the catalog matches the supply: widen provider, region, gpu or purchase "
            "(see `catalog list instances`)"
        )
    screening = screen([site.instance for site in found], question, facts)
    judged = [
        _Judged(
            site, price, replica, _judge(site, price, replica, screening.verdicts[replica], question, facts)
        )
        for site in found
        for replica in screening.layouts[site.instance]
        for price in site.wanted
    ]
    if finalists:
        judged = _simulated(judged, screening.verdicts, question, facts, finalists)
    return Recommendation(
        plans=_ranked([each.outcome for each in judged if isinstance(each.outcome, Plan)], question),
        rejections=tuple(each.outcome for each in judged if isinstance(each.outcome, Rejection)),
        offers_considered=sum(len(site.wanted) for site in found),
        settings_tried=screening.settings_tried,
    )


class _Judged(NamedTuple):
    """A candidate and what became of it."""

    site: Site
    price: Price
    replica: Replica
    outcome: Plan | Rejection


def _simulated(
    judged: list[_Judged],
    verdicts: Mapping[Replica, Answer | Refusal],
    question: Question,
    facts: Facts,
    finalists: int,
) -> list[_Judged]:
    """The candidates, those with the replicas of the cheapest plans judged again as simulated.

    Simulating may make a finalist dearer, or turn it down; who takes its place is then simulated too. Replicas are
    shared by many candidates, and all of them are judged again.
    """
    simulator = Simulator(question, facts)
    again: dict[Replica, Answer | Refusal] = {}
    for _ in range(MOST_ROUNDS):
        ranked = sorted((each for each in judged if isinstance(each.outcome, Plan)), key=_by_cost)
        fresh = [
            replica
            for replica in list(dict.fromkeys(each.replica for each in ranked))[:finalists]
            if replica not in again
        ]
        for replica in fresh:
            screened = verdicts[replica]
            again[replica] = screened if isinstance(screened, Refusal) else simulator.sized(screened)
        judged = [
            each._replace(
                outcome=_judge(each.site, each.price, each.replica, again[each.replica], question, facts)
            )
            if each.replica in fresh
            else each
            for each in judged
        ]
    return judged


def _by_cost(judged: _Judged) -> tuple[float, float]:
    assert isinstance(judged.outcome, Plan)
    return _rank(judged.outcome)


def _rank(plan: Plan) -> tuple[float, float]:
    """Cheapest first, the faster of equals before the slower."""
    return round(plan.cost.usd_per_month, 2), plan.latency.tpot_p95_s


def _judge(
    site: Site,
    price: Price,
    replica: Replica,
    verdict: Answer | Refusal,
    question: Question,
    facts: Facts,
) -> Plan | Rejection:
    """One candidate's plan, or its rejection."""
    model = question.variants[replica.variant]
    candidate = Candidate.model_construct(
        instance=site.instance,
        price=price,
        parallelism=replica.parallelism,
        weight_dtype=model.weight_dtype,
        kv_dtype=replica.kv_dtype,
    )
    if isinstance(verdict, Refusal):
        return Rejection.model_construct(candidate=candidate, **verdict._asdict())
    fleet = pack(verdict.replicas, replica.parallelism, site.instance.gpu_count)
    cost = _cost(fleet, price, site, verdict.service, question)
    budget = question.supply.budget_usd_per_month
    if budget is not None and cost.usd_per_month > budget:
        return Rejection.model_construct(
            candidate=candidate,
            bottleneck=Bottleneck.BUDGET,
            need=cost.usd_per_month,
            have=budget,
            unit="USD/month",
            reason=f"{fleet.instances} x {site.instance.instance_type} cost {cost.usd_per_month:,.0f} USD a month, "
            f"the budget is {budget:,.0f}",
        )
    capability, placed = verdict.capability, verdict.placed
    simulated = verdict.method is CapacityMethod.SIMULATE
    rough = has_rough_kernels(placed.model)
    gpu = placed.operators.gpu.name
    band = facts.accuracy.band(placed.basis, gpu=gpu, simulated=simulated, rough_kernels=rough)
    ranges = None if band is None else _ranges(band, verdict)
    replica_rate = capability.requests_per_s
    peak = (question.workload.requests_per_s or 0.0) * question.reserve.peak_ratio
    return Plan.model_construct(
        candidate=candidate,
        engine=capability.engine,
        fleet=fleet,
        cost=cost,
        latency=verdict.service.latency,
        memory=capability.budget,
        capacity_requests_per_s=replica_rate * fleet.replicas,
        replica_requests_per_s=replica_rate,
        capacity_method=verdict.method,
        steady_replica_requests_per_s=verdict.steady_requests_per_s,
        running_requests=verdict.service.running_requests,
        utilization_ratio=peak / (replica_rate * fleet.replicas),
        binding_constraint=capability.binding,
        basis=placed.basis,
        rough_kernels=rough,
        basis_detail=basis_detail(
            placed.model,
            placed.parallelism,
            placed.operators,
            facts.tuning.deployments,
            placed.paging.engine_version,
        ),
        expected_error_ratio=band.tpot.median_error_ratio if band else float("nan"),
        ranges=ranges,
        saving_usd_per_month=0.0,
        saving_vs_previous_usd_per_month=None,
        pareto=False,
        warnings=(
            *_beyond_band(ranges, question.slo),
            *_warnings(site, price, verdict, today=facts.today),
        ),
    )


def _cost(fleet: Fleet, price: Price, site: Site, service: Service, question: Question) -> Cost:
    workload = question.workload
    usd_per_hour = price.usd_per_hour * fleet.instances
    tokens = token_prices(
        usd_per_hour,
        workload.requests_per_s or 0.0,
        (workload.mean_input_tokens, workload.mean_output_tokens),
        service.prompt_time_ratio,
    )
    return Cost.model_construct(
        usd_per_hour=usd_per_hour,
        usd_per_month=usd_per_month(usd_per_hour),
        usd_per_million_tokens=tokens.both_usd,
        usd_per_million_input_tokens=tokens.input_usd,
        usd_per_million_output_tokens=tokens.output_usd,
        usd_per_month_by_purchase={
            purchase: usd_per_month(other.usd_per_hour * fleet.instances)
            for purchase in Purchase
            if (other := price_of(site.prices, purchase)) is not None
        },
    )


def _ranges(band: ErrorBand, verdict: Answer) -> LatencyRanges:
    latency = verdict.service.latency
    return band.ranges(ttft_s=latency.ttft_p95_s, tpot_s=latency.tpot_p95_s)


def _beyond_band(ranges: LatencyRanges | None, slo: Slo) -> Iterable[str]:
    """Promises that the plan keeps as predicted, but not at the upper end of what is known of the error."""
    if ranges is None:
        return
    for name, found, promised_s in (
        ("TTFT", ranges.ttft, slo.ttft_p95_s),
        ("TPOT", ranges.tpot, slo.tpot_p95_s),
    ):
        if promised_s is not None and found.high_s > promised_s:
            yield f"{name} p95 breaks the promise at the upper end of its 90 % range"


def _warnings(site: Site, price: Price, answer: Answer, *, today: str) -> Iterable[str]:
    placed, budget = answer.placed, answer.capability.budget
    parallelism = placed.parallelism
    if parallelism.tp > 1 and site.instance.interconnect in (Interconnect.PCIE, Interconnect.NONE):
        yield "tensor parallel over PCIe"
    if parallelism.tp > 2 and site.instance.interconnect is Interconnect.NVLINK_PAIR:
        yield "tensor parallel beyond an NVLink pair goes over PCIe"
    if parallelism.pp > 1:
        yield "pipeline stages cross instances" if placed.cluster.network_bytes_per_s else "pipeline parallel"
    if budget.kv_cache_bytes < SCARCE_CACHE_RATIO * budget.total_bytes:
        yield "less than 10 % of the card is left for KV cache"
    if not placed.gpu.memory_observed:
        yield "GPU memory from the datasheet, not from a driver"
    if placed.basis in (Basis.TRANSFERRED, Basis.DATASHEET):
        yield f"speed {placed.basis.value} from {placed.operators.donor}"
    if price.purchase is Purchase.SPOT:
        yield "spot capacity can be taken back"
    if not price.as_of:
        yield "price without a date"
    elif _age_days(price.as_of, today) > OLD_PRICE_DAYS:
        yield f"price of {price.as_of} is over {OLD_PRICE_DAYS} days old"


def _age_days(as_of: str, today: str) -> int:
    """Days since an ISO date or month (then its first day)."""
    full = as_of if len(as_of) > len("2026-01") else f"{as_of}-01"
    return (date.fromisoformat(today) - date.fromisoformat(full)).days


def _ranked(plans: list[Plan], question: Question) -> tuple[Plan, ...]:
    """Cheapest first, the faster of equals before the slower; with savings and the Pareto front."""
    if not plans:
        return ()
    plans.sort(key=_rank)
    dearest = max(plan.cost.usd_per_month for plan in plans)
    front = _front(plans)
    previous = question.previous_usd_per_month
    return tuple(
        plan.model_copy(
            update={
                "saving_usd_per_month": dearest - plan.cost.usd_per_month,
                "saving_vs_previous_usd_per_month": None
                if previous is None
                else previous - plan.cost.usd_per_month,
                "pareto": index in front,
            }
        )
        for index, plan in enumerate(plans)
    )


def _front(plans: Sequence[Plan]) -> set[int]:
    """Indices of plans that no cheaper plan beats on TPOT; `plans` are sorted by cost."""
    front: set[int] = set()
    fastest = float("inf")
    for index, plan in enumerate(plans):
        if plan.latency.tpot_p95_s < fastest:
            fastest = plan.latency.tpot_p95_s
            front.add(index)
    return front


def shortlist(plans: Sequence[Plan], top: int) -> tuple[Plan, ...]:
    """The `top` best plans, each instance type and layout once, in its cheapest region."""
    seen: set[tuple[object, ...]] = set()
    best: list[Plan] = []
    for plan in plans:
        candidate = plan.candidate
        key = (
            candidate.instance.provider,
            candidate.instance.instance_type,
            candidate.price.purchase,
            candidate.parallelism.tp,
            candidate.parallelism.pp,
            candidate.weight_dtype,
            candidate.kv_dtype,
        )
        if key not in seen:
            seen.add(key)
            best.append(plan)
        if len(best) == top:
            break
    return tuple(best)


def nearest_misses(rejections: Sequence[Rejection], top: int) -> tuple[Rejection, ...]:
    """Rejections closest to working, at most one a GPU and bottleneck."""
    seen: set[tuple[str, Bottleneck]] = set()
    nearest: list[Rejection] = []
    measurable = (r for r in rejections if r.bottleneck not in UNMEASURABLE)
    for rejection in sorted(measurable, key=lambda r: r.miss_ratio):
        key = (rejection.candidate.instance.gpu, rejection.bottleneck)
        if key not in seen:
            seen.add(key)
            nearest.append(rejection)
        if len(nearest) == top:
            break
    return tuple(nearest) or tuple(rejections[:top])
