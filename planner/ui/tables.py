"""Tables of plans, rejections and facts in human units, and what a selection in them means."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from planner.domain.hardware import Gpu, Offer, Purchase
from planner.domain.plan import Bottleneck, Plan, Rejection
from planner.domain.units import GB_BYTES, MONTHS_PER_YEAR, TERA, bytes_to_gib, seconds_to_ms
from planner.ui.format import latency, number, percent, rounded, signed_usd, usd

PURCHASE_TITLES = {
    Purchase.ON_DEMAND: "On demand",
    Purchase.RESERVED_1Y: "1 year",
    Purchase.RESERVED_3Y: "3 years",
    Purchase.SPOT: "Spot",
}
BOTTLENECK_TITLES = {
    Bottleneck.BACKEND: "engine support",
    Bottleneck.DTYPE: "number format",
    Bottleneck.PARALLELISM: "TP/PP division",
    Bottleneck.MEMORY: "memory",
    Bottleneck.TTFT: "TTFT",
    Bottleneck.TPOT: "TPOT",
    Bottleneck.BUDGET: "budget",
    Bottleneck.KV_CACHE: "KV cache",
    Bottleneck.THROUGHPUT: "throughput",
}
MEASURED = (Bottleneck.MEMORY, Bottleneck.TTFT, Bottleneck.TPOT, Bottleneck.BUDGET)
"""Rejections whose need and have are quantities."""
RELAXATIONS = {
    Bottleneck.MEMORY: "allow a larger TP or PP, fp8 weights or KV cache, or shorter requests",
    Bottleneck.TTFT: "promise a longer TTFT or send shorter prompts",
    Bottleneck.TPOT: "promise a longer TPOT or allow a larger TP or faster GPUs",
    Bottleneck.BUDGET: "raise the budget, or allow reserved or spot capacity",
    Bottleneck.DTYPE: "choose another weight or KV format, or newer GPUs",
    Bottleneck.PARALLELISM: "allow another TP or PP",
    Bottleneck.BACKEND: "choose GPUs that vLLM is modelled on",
}


def layout_title(plan: Plan) -> str:
    """Parallelism and formats of one replica, in a few words."""
    candidate = plan.candidate
    parts = [f"TP {candidate.parallelism.tp}"]
    if candidate.parallelism.pp > 1:
        parts.append(f"PP {candidate.parallelism.pp}")
    parts.append(candidate.weight_dtype.value)
    if candidate.kv_dtype != "auto":
        parts.append(f"KV {candidate.kv_dtype.value}")
    return ", ".join(parts)


def short_title(plan: Plan) -> str:
    """A plan's name where little space is."""
    candidate = plan.candidate
    return f"{plan.fleet.instances} × {candidate.instance.instance_type} ({layout_title(plan)})"


def plan_table(plans: Iterable[Plan]) -> pd.DataFrame:
    """One row a plan, in their order."""
    return pd.DataFrame.from_records(
        [
            {
                "Instances": f"{plan.fleet.instances} × {plan.candidate.instance.instance_type}",
                "GPU": plan.candidate.instance.gpu,
                "Layout": layout_title(plan),
                "Replicas": plan.fleet.replicas,
                "$/month": rounded(plan.cost.usd_per_month),
                "TTFT p95, ms": rounded(seconds_to_ms(plan.latency.ttft_p95_s)),
                "TPOT p95, ms": rounded(seconds_to_ms(plan.latency.tpot_p95_s)),
                "Busy": rounded(100 * plan.utilization_ratio, 2),
                "$/M tokens": rounded(plan.cost.usd_per_million_tokens),
                "Binds": BOTTLENECK_TITLES[plan.binding_constraint],
                "Where": f"{plan.candidate.instance.provider} {plan.candidate.price.region}",
                "Purchase": PURCHASE_TITLES[plan.candidate.price.purchase],
                "Basis": plan.basis.value,
            }
            for plan in plans
        ]
    )


def comparison_table(plans: Sequence[Plan]) -> pd.DataFrame:
    """Plans side by side, one column each, with what every one after the first differs from the first."""
    columns: dict[str, list[str]] = {}
    for index, plan in enumerate(plans):
        name = f"{chr(ord('A') + index)}: {short_title(plan)}"
        columns[name] = [value for value, _ in _figures(plan)]
        if index:
            columns[f"{chr(ord('A') + index)} − A"] = [
                _delta(mine, base)
                for (_, mine), (_, base) in zip(_figures(plan), _figures(plans[0]), strict=True)
            ]
    return pd.DataFrame(columns, index=pd.Index(FIGURES, name=""))


FIGURES = (
    "Where",
    "GPU",
    "Replicas",
    "$ per month",
    "$ per year",
    "$ per M tokens",
    "TTFT p95",
    "TPOT p95",
    "Busy at the peak",
    "KV cache tokens",
    "Stranded GPUs",
)


def _figures(plan: Plan) -> tuple[tuple[str, float | None], ...]:
    """The rows of a comparison: what is shown, and the number a difference is taken of."""
    candidate, month = plan.candidate, plan.cost.usd_per_month
    price = candidate.price
    ttft, tpot = plan.latency.ttft_p95_s, plan.latency.tpot_p95_s
    return (
        (f"{candidate.instance.provider} {price.region}, {PURCHASE_TITLES[price.purchase].lower()}", None),
        (f"{plan.fleet.instances * candidate.instance.gpu_count} × {candidate.instance.gpu}", None),
        (str(plan.fleet.replicas), float(plan.fleet.replicas)),
        (usd(month), month),
        (usd(month * MONTHS_PER_YEAR), month * MONTHS_PER_YEAR),
        (usd(plan.cost.usd_per_million_tokens), plan.cost.usd_per_million_tokens),
        (latency(ttft), ttft),
        (latency(tpot), tpot),
        (percent(plan.utilization_ratio), plan.utilization_ratio),
        (number(plan.memory.kv_cache_tokens), float(plan.memory.kv_cache_tokens)),
        (str(plan.fleet.stranded_gpus), float(plan.fleet.stranded_gpus)),
    )


def _delta(value: float | None, base: float | None) -> str:
    """A difference as a share of the base; the plain difference where the base is nothing."""
    if value is None or base is None:
        return ""
    if value == base:
        return "="
    if base == 0:
        return f"{value:+g}"
    return f"{100 * (value / base - 1):+.0f} %"


def saving(usd_per_month: float) -> str:
    """A saving by month and by year."""
    return f"{usd(usd_per_month)} a month, {usd(usd_per_month * MONTHS_PER_YEAR)} a year"


def cost_change(usd_per_month: float, before_usd_per_month: float | None) -> str | None:
    """How the cost moved since the last answer; None where it did not."""
    if before_usd_per_month is None or usd_per_month == before_usd_per_month:
        return None
    return signed_usd(usd_per_month - before_usd_per_month)


def distinct_rejections(rejections: Iterable[Rejection]) -> list[Rejection]:
    """Nearest to working first; what fails alike in every region and purchase stands once."""
    seen: set[tuple[object, ...]] = set()
    distinct = []
    for rejection in sorted(rejections, key=lambda rejection: rejection.miss_ratio):
        candidate = rejection.candidate
        key = (
            candidate.instance.provider,
            candidate.instance.instance_type,
            candidate.parallelism,
            candidate.weight_dtype,
            candidate.kv_dtype,
            rejection.bottleneck,
        )
        if key not in seen:
            seen.add(key)
            distinct.append(rejection)
    return distinct


def rejection_table(rejections: Iterable[Rejection]) -> pd.DataFrame:
    """One row a rejection: what stopped it, by how much, and why."""
    return pd.DataFrame.from_records(
        [
            {
                "Instance": rejection.candidate.instance.instance_type,
                "GPU": rejection.candidate.instance.gpu,
                "TP": rejection.candidate.parallelism.tp,
                "PP": rejection.candidate.parallelism.pp,
                "Stopped by": BOTTLENECK_TITLES[rejection.bottleneck],
                "Need": rounded(rejection.need) if rejection.bottleneck in MEASURED else None,
                "Have": rounded(rejection.have) if rejection.bottleneck in MEASURED else None,
                "Unit": rejection.unit if rejection.bottleneck in MEASURED else "",
                "Reason": rejection.reason,
                "Weights": rejection.candidate.weight_dtype.value,
                "Provider": rejection.candidate.instance.provider,
            }
            for rejection in rejections
        ]
    )


def chosen_rows(rows: Sequence[int], size: int) -> list[int]:
    """Selected rows that the table still has, in its order.

    >>> chosen_rows([7, 2, 0], 5)
    [0, 2]
    """
    return sorted({row for row in rows if 0 <= row < size})


def chosen_points(points: Iterable[Mapping[str, object]], size: int) -> list[int]:
    """Indices that selected chart points carry in `customdata`, bare or in a list.

    >>> chosen_points([{"customdata": 3}, {"customdata": [1]}, {"x": 5}], 4)
    [1, 3]
    """
    found = set()
    for point in points:
        data = point.get("customdata")
        value = data[0] if isinstance(data, list | tuple) and data else data
        if isinstance(value, int) and 0 <= value < size:
            found.add(value)
    return sorted(found)


def gpu_table(gpus: Iterable[Gpu]) -> pd.DataFrame:
    """One row a GPU, with the source of its figures."""
    return pd.DataFrame.from_records(
        [
            {
                "GPU": gpu.name,
                "Architecture": gpu.architecture,
                "Memory, GiB": rounded(bytes_to_gib(gpu.memory_bytes), 4),
                "Memory seen": gpu.memory_observed,
                "Bandwidth, GB/s": rounded(gpu.memory_bandwidth_bytes_per_s / GB_BYTES, 4),
                **{
                    f"{dtype} TFLOP/s": rounded(gpu.peak_flop_per_s[dtype] / TERA, 4)
                    if dtype in gpu.peak_flop_per_s
                    else None
                    for dtype in ("bf16", "fp8", "fp4")
                },
                "NVLink, GB/s": rounded(gpu.nvlink_bytes_per_s / GB_BYTES, 4),
                "Power, W": gpu.power_w,
                "vLLM": gpu.vllm_backend or "not modelled",
                "Confidence": gpu.confidence.value,
                "As of": gpu.as_of,
                "Source": gpu.source,
            }
            for gpu in gpus
        ]
    )


def offer_table(offers: Iterable[Offer]) -> pd.DataFrame:
    """One row an instance and price, with the date and source of the price."""
    return pd.DataFrame.from_records(
        [
            {
                "Provider": offer.instance.provider,
                "Instance": offer.instance.instance_type,
                "GPU": offer.instance.gpu,
                "GPUs": offer.instance.gpu_count,
                "Interconnect": offer.instance.interconnect.value,
                "Region": offer.price.region,
                "Purchase": PURCHASE_TITLES[offer.price.purchase],
                "$/hour": rounded(offer.price.usd_per_hour, 4),
                "$/GPU-hour": rounded(offer.price.usd_per_hour / offer.instance.gpu_count),
                "As of": offer.price.as_of or "undated",
                "Confidence": offer.price.confidence.value,
                "Source": offer.price.source,
                "Notes": offer.price.notes,
            }
            for offer in offers
        ]
    )
