"""From a question to ranked plans and the reasons of the rejected."""

from collections.abc import Iterable, Sequence
from datetime import date

from planner.domain.base import InputError
from planner.domain.evidence import Basis, ErrorBand
from planner.domain.hardware import Interconnect, Price, Purchase
from planner.domain.plan import (
    Bottleneck,
    Candidate,
    Cost,
    Fleet,
    Plan,
    Question,
    Recommendation,
    Rejection,
)
from planner.domain.workload import Slo
from planner.formulas.cost import token_prices, usd_per_month
from planner.planning.candidates import Replica, Site, price_of, sites
from planner.planning.evaluate import Service
from planner.planning.facts import Facts
from planner.planning.screening import Answer, screen
from planner.planning.sizing import Placed, Refusal
from planner.serving.fleet import pack

OLD_PRICE_DAYS = 90
SCARCE_CACHE_RATIO = 0.1
UNMEASURABLE = (Bottleneck.BACKEND, Bottleneck.EVIDENCE, Bottleneck.DTYPE, Bottleneck.PARALLELISM)
"""Rejections that no amount of anything would mend."""


def recommend(question: Question, facts: Facts) -> Recommendation:
    """Ranked plans and every rejected candidate.

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
    plans: list[Plan] = []
    rejections: list[Rejection] = []
    for site in found:
        for replica in screening.layouts[site.instance]:
            for price in site.wanted:
                outcome = _judge(
                    site, price, replica, screening.verdicts[replica], question=question, facts=facts
                )
                if isinstance(outcome, Plan):
                    plans.append(outcome)
                else:
                    rejections.append(outcome)
    return Recommendation(
        plans=_ranked(plans, question),
        rejections=tuple(rejections),
        offers_considered=sum(len(site.wanted) for site in found),
        settings_tried=screening.settings_tried,
    )


def _judge(
    site: Site,
    price: Price,
    replica: Replica,
    verdict: Answer | Refusal,
    *,
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
    capability, operators = verdict.capability, verdict.placed.operators
    band = facts.accuracy.band(operators.basis)
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
        running_requests=verdict.service.running_requests,
        utilization_ratio=peak / (replica_rate * fleet.replicas),
        binding_constraint=capability.binding,
        basis=operators.basis,
        basis_detail=_basis_detail(verdict.placed),
        expected_error_ratio=band.tpot_median_error_ratio if band else float("nan"),
        saving_usd_per_month=0.0,
        saving_vs_previous_usd_per_month=None,
        pareto=False,
        warnings=(
            *_beyond_band(verdict, band, question.slo),
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


def _basis_detail(placed: Placed) -> str:
    operators = placed.operators
    if operators.basis is Basis.OPERATORS:
        return f"kernel tables of {operators.donor}"
    return f"kernel tables of {operators.donor}, scaled by datasheet to {placed.gpu.name}"


def _beyond_band(answer: Answer, band: ErrorBand | None, slo: Slo) -> Iterable[str]:
    """Promises that the plan keeps as predicted, but not at the upper end of what is known of the error."""
    if band is None:
        return
    latency = answer.service.latency
    for name, predicted_s, factor, promised_s in (
        ("TTFT", latency.ttft_p95_s, band.ttft_factor_high, slo.ttft_p95_s),
        ("TPOT", latency.tpot_p95_s, band.tpot_factor_high, slo.tpot_p95_s),
    ):
        if promised_s is not None and predicted_s * factor > promised_s:
            yield f"{name} p95 breaks the promise at the upper end of its error band ({factor - 1.0:+.0%})"


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
    if placed.operators.basis is not Basis.OPERATORS:
        yield f"speed {placed.operators.basis.value} from {placed.operators.donor}"
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
    plans.sort(key=lambda plan: (round(plan.cost.usd_per_month, 2), plan.latency.tpot_p95_s))
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
