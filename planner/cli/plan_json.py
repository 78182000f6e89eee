"""A plan's answer as JSON."""

from collections import Counter

from planner.cli.plan_report import Answer, misses
from planner.cli.screen import Json, records
from planner.domain.plan import Plan, Question
from planner.domain.units import MONTHS_PER_YEAR, bytes_to_gib, seconds_to_ms
from planner.export.recommendation import PLAN_COLUMNS, REJECTION_COLUMNS, plan_row, rejection_row


def answer_json(answer: Answer) -> Json:
    """Everything a program wants of an answer; candidates = answered + the sum of rejected."""
    recommendation = answer.recommendation
    rejected = Counter(rejection.bottleneck.value for rejection in recommendation.rejections)
    missed = () if recommendation.plans else misses(recommendation.rejections)
    return {
        "question": _question(answer.question),
        "counts": {
            "candidates": recommendation.candidates,
            "answered": len(recommendation.plans),
            "rejected": dict(rejected),
            "settings_tried": recommendation.settings_tried,
            "offers_considered": recommendation.offers_considered,
        },
        "plans": [_plan(rank, plan, answer) for rank, plan in enumerate(answer.shortlist, start=1)],
        "pareto": [
            {
                "provider": plan.candidate.instance.provider,
                "region": plan.candidate.price.region,
                "instance_type": plan.candidate.instance.instance_type,
                "tp": plan.candidate.parallelism.tp,
                "pp": plan.candidate.parallelism.pp,
                "purchase": plan.candidate.price.purchase.value,
                "usd_per_month": plan.cost.usd_per_month,
                "tpot_ms_p95": seconds_to_ms(plan.latency.tpot_p95_s),
            }
            for plan in recommendation.plans
            if plan.pareto
        ],
        "nearest_misses": records(REJECTION_COLUMNS, [rejection_row(miss) for miss in missed]),
    }


def _plan(rank: int, plan: Plan, answer: Answer) -> Json:
    """One plan: the CSV's columns, and what does not fit into a row."""
    row = dict(zip(PLAN_COLUMNS, plan_row(rank, plan, answer.checkpoint), strict=True))
    previous = plan.saving_vs_previous_usd_per_month
    return {
        **row,
        "ttft_ms_mean": seconds_to_ms(plan.latency.ttft_mean_s),
        "ttft_ms_p99": seconds_to_ms(plan.latency.ttft_p99_s),
        "tpot_ms_mean": seconds_to_ms(plan.latency.tpot_mean_s),
        "tpot_ms_p99": seconds_to_ms(plan.latency.tpot_p99_s),
        "stranded_gpus": plan.fleet.stranded_gpus,
        "replica_requests_per_s": plan.replica_requests_per_s,
        "steady_replica_requests_per_s": plan.steady_replica_requests_per_s,
        "running_requests": plan.running_requests,
        "weights_gib_per_gpu": plan.memory.weights_gib,
        "kv_cache_gib_per_gpu": bytes_to_gib(plan.memory.kv_cache_bytes),
        "usd_per_month_by_purchase": {
            purchase.value: usd for purchase, usd in plan.cost.usd_per_month_by_purchase.items()
        },
        "saving_usd_per_year": plan.saving_usd_per_month * MONTHS_PER_YEAR,
        "saving_vs_previous_usd_per_month": previous,
        "saving_vs_previous_usd_per_year": None if previous is None else previous * MONTHS_PER_YEAR,
        "pareto": plan.pareto,
        "basis_detail": plan.basis_detail,
    }


def _question(question: Question) -> Json:
    workload, slo, supply, reserve = question.workload, question.slo, question.supply, question.reserve
    return {
        "model": question.variants[0].name,
        "architecture": question.variants[0].architecture,
        "weight_dtypes": [variant.weight_dtype.value for variant in question.variants],
        "kv_dtypes": [dtype.value for dtype in supply.kv_dtypes],
        "input_tokens": workload.input_tokens,
        "output_tokens": workload.output_tokens,
        "length_low_ratio": workload.length_low_ratio,
        "prefix_hit_ratio": workload.prefix_hit_ratio,
        "requests_per_s": workload.requests_per_s,
        "arrival_cv": workload.arrival_cv,
        "ttft_p95_ms": None if slo.ttft_p95_s is None else seconds_to_ms(slo.ttft_p95_s),
        "tpot_p95_ms": None if slo.tpot_p95_s is None else seconds_to_ms(slo.tpot_p95_s),
        "providers": list(supply.providers),
        "regions": list(supply.regions),
        "gpus": list(supply.gpus),
        "purchases": [purchase.value for purchase in supply.purchases],
        "budget_usd_per_month": supply.budget_usd_per_month,
        "max_tp": supply.max_tp,
        "max_pp": supply.max_pp,
        "peak_ratio": reserve.peak_ratio,
        "headroom_ratio": reserve.headroom_ratio,
        "spare_replicas": reserve.spare_replicas,
        "max_model_len": question.max_model_len,
        "engine_version": question.engine_version,
        "previous_usd_per_month": question.previous_usd_per_month,
    }
