"""Plans and rejections as tables with a fixed set of columns."""

from collections.abc import Sequence

from planner.domain.deployment import Layout
from planner.domain.model import Model
from planner.domain.plan import Candidate, Plan, Rejection
from planner.domain.units import seconds_to_ms
from planner.export.table import Cell, csv_text
from planner.export.vllm import missing_checkpoint, serve_command

PLAN_COLUMNS = (
    "rank",
    "provider",
    "region",
    "instance_type",
    "gpu",
    "gpus_per_instance",
    "tp",
    "pp",
    "replicas",
    "instances",
    "weight_dtype",
    "kv_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "gpu_memory_utilization",
    "ttft_ms_p95",
    "tpot_ms_p95",
    "capacity_requests_per_s",
    "utilization_ratio",
    "kv_cache_tokens",
    "purchase",
    "usd_per_hour",
    "usd_per_month",
    "usd_per_million_tokens",
    "usd_per_million_input_tokens",
    "usd_per_million_output_tokens",
    "saving_usd_per_month",
    "price_date",
    "price_source",
    "basis",
    "expected_error_ratio",
    "binding_constraint",
    "engine_command",
    "warnings",
    "capacity_method",
    "steady_capacity_requests_per_s",
    "capacity_disagreement_ratio",
    "ttft_ms_p95_low",
    "ttft_ms_p95_high",
    "tpot_ms_p95_low",
    "tpot_ms_p95_high",
)
"""Other programs read these by name and position: append only, in a new release."""

REJECTION_COLUMNS = (
    "provider",
    "region",
    "instance_type",
    "gpu",
    "gpus_per_instance",
    "tp",
    "pp",
    "weight_dtype",
    "kv_dtype",
    "purchase",
    "bottleneck",
    "need",
    "have",
    "unit",
    "reason",
)


def engine_command(plan: Plan, checkpoint: Model) -> str:
    """The `vllm serve` line of one replica of a plan."""
    candidate = plan.candidate
    layout = Layout(
        weight_dtype=candidate.weight_dtype, kv_dtype=candidate.kv_dtype, parallelism=candidate.parallelism
    )
    across = candidate.parallelism.gpus > candidate.instance.gpu_count
    return serve_command(checkpoint, plan.engine, layout, across_instances=across)


def plan_warnings(plan: Plan, checkpoint: Model) -> tuple[str, ...]:
    """What to know before buying, a missing checkpoint first."""
    missing = missing_checkpoint(checkpoint, plan.candidate.weight_dtype)
    return (missing, *plan.warnings) if missing else plan.warnings


def plan_row(rank: int, plan: Plan, checkpoint: Model) -> tuple[Cell, ...]:
    """One plan in the order of `PLAN_COLUMNS`; `checkpoint` is the model as it is stored."""
    candidate, engine, cost = plan.candidate, plan.engine, plan.cost
    return (
        rank,
        candidate.instance.provider,
        candidate.price.region,
        candidate.instance.instance_type,
        candidate.instance.gpu,
        candidate.instance.gpu_count,
        candidate.parallelism.tp,
        candidate.parallelism.pp,
        plan.fleet.replicas,
        plan.fleet.instances,
        candidate.weight_dtype.value,
        candidate.kv_dtype.value,
        engine.max_num_seqs,
        engine.max_num_batched_tokens,
        engine.max_model_len,
        engine.gpu_memory_utilization,
        seconds_to_ms(plan.latency.ttft_p95_s),
        seconds_to_ms(plan.latency.tpot_p95_s),
        plan.capacity_requests_per_s,
        plan.utilization_ratio,
        plan.memory.kv_cache_tokens,
        candidate.price.purchase.value,
        cost.usd_per_hour,
        cost.usd_per_month,
        cost.usd_per_million_tokens,
        cost.usd_per_million_input_tokens,
        cost.usd_per_million_output_tokens,
        plan.saving_usd_per_month,
        candidate.price.as_of,
        candidate.price.source,
        plan.basis.value,
        plan.expected_error_ratio,
        plan.binding_constraint.value,
        engine_command(plan, checkpoint),
        "; ".join(plan_warnings(plan, checkpoint)),
        plan.capacity_method.value,
        plan.steady_capacity_requests_per_s,
        plan.capacity_disagreement_ratio,
        *_range_cells(plan),
    )


def _range_cells(plan: Plan) -> tuple[Cell, ...]:
    """The 90 % ranges of TTFT and TPOT; empty where no measured run tells."""
    if plan.ranges is None:
        return (None,) * 4
    return tuple(seconds_to_ms(bound_s) for found in plan.ranges for bound_s in found)


def plan_rows(plans: Sequence[Plan], checkpoint: Model) -> list[tuple[Cell, ...]]:
    """Plans in their order, ranked from 1."""
    return [plan_row(rank, plan, checkpoint) for rank, plan in enumerate(plans, start=1)]


def recommendation_csv(plans: Sequence[Plan], checkpoint: Model) -> str:
    """The recommendation table as one text."""
    return csv_text(PLAN_COLUMNS, plan_rows(plans, checkpoint))


def _candidate_cells(candidate: Candidate) -> tuple[Cell, ...]:
    return (
        candidate.instance.provider,
        candidate.price.region,
        candidate.instance.instance_type,
        candidate.instance.gpu,
        candidate.instance.gpu_count,
        candidate.parallelism.tp,
        candidate.parallelism.pp,
        candidate.weight_dtype.value,
        candidate.kv_dtype.value,
        candidate.price.purchase.value,
    )


def rejection_row(rejection: Rejection) -> tuple[Cell, ...]:
    """One rejected candidate in the order of `REJECTION_COLUMNS`."""
    return (
        *_candidate_cells(rejection.candidate),
        rejection.bottleneck.value,
        rejection.need,
        rejection.have,
        rejection.unit,
        rejection.reason,
    )


def rejections_csv(rejections: Sequence[Rejection]) -> str:
    """Every rejected candidate as one text."""
    return csv_text(REJECTION_COLUMNS, map(rejection_row, rejections))
