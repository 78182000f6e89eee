"""Tables of plans, rejections and facts in human units, and what a selection in them means."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from planner.catalog.models import BundledModel
from planner.domain.dtypes import ComputeDtype
from planner.domain.hardware import Gpu, Offer, Purchase
from planner.domain.plan import Bottleneck, Plan, Rejection
from planner.domain.units import GB_BYTES, MONTHS_PER_YEAR, TERA, bytes_to_gib, seconds_to_ms
from planner.domain.workload import Preset
from planner.export.evidence import spanned
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
    Bottleneck.EVIDENCE: "no evidence",
}
MEASURED = (Bottleneck.MEMORY, Bottleneck.TTFT, Bottleneck.TPOT, Bottleneck.BUDGET)
"""Rejections whose need and have are quantities."""
MANIFOLD = 3.0
RELAXATIONS = {
    Bottleneck.BUDGET: "Raise the budget to {need}, or allow reserved or spot capacity",
    Bottleneck.TPOT: "Promise a TPOT of more than {have}, or allow a larger TP or faster GPUs",
    Bottleneck.TTFT: "Promise a TTFT of more than {have}, or send shorter prompts",
    Bottleneck.MEMORY: "Allow a larger TP or PP, fp8 weights or KV cache, or shorter requests",
    Bottleneck.PARALLELISM: "Allow another TP or PP",
    Bottleneck.DTYPE: "Choose another weight or KV format, or newer GPUs",
    Bottleneck.BACKEND: "Choose GPUs on which vLLM is modelled",
    Bottleneck.EVIDENCE: "Include untrusted facts (under Advanced), or measure this GPU",
}
"""What to give up where this stops a candidate; what stops it last of all checks comes first."""


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
                "$/month": rounded(plan.cost.usd_per_month),
                "GPU": plan.candidate.instance.gpu,
                "Layout": layout_title(plan),
                "Replicas": plan.fleet.replicas,
                "TTFT p95, ms": rounded(seconds_to_ms(plan.latency.ttft_p95_s)),
                "TPOT p95, ms": rounded(seconds_to_ms(plan.latency.tpot_p95_s)),
                "Busy": rounded(100 * plan.utilization_ratio, 2),
                "$/M tokens": rounded(plan.cost.usd_per_million_tokens),
                "Binds": BOTTLENECK_TITLES[plan.binding_constraint],
                "Where": f"{plan.candidate.instance.provider} {plan.candidate.price.region}",
                "Purchase": PURCHASE_TITLES[plan.candidate.price.purchase],
                "TTFT 90 %": spanned(plan.ranges.ttft) if plan.ranges else "",
                "TPOT 90 %": spanned(plan.ranges.tpot) if plan.ranges else "",
                "Basis": plan.basis.value,
            }
            for plan in plans
        ]
    )


def comparison_table(plans: Sequence[Plan]) -> pd.DataFrame:
    """Plans side by side, a column each, and how every one after the first differs from it."""
    first = _figures(plans[0])
    columns: dict[str, list[str]] = {}
    for index, plan in enumerate(plans):
        figures, letter = _figures(plan), letter_of(index)
        columns[letter] = [figure.shown for figure in figures]
        if index:
            columns[f"{letter} − A"] = [
                _delta(mine.value, base.value) for mine, base in zip(figures, first, strict=True)
            ]
    return pd.DataFrame(columns, index=pd.Index([figure.name for figure in first], name=""))


def letter_of(index: int) -> str:
    """What a compared plan is called.

    >>> letter_of(0), letter_of(3)
    ('A', 'D')
    """
    return chr(ord("A") + index)


class _Figure(NamedTuple):
    """A row of a comparison: what is shown, and the number a difference is taken of."""

    name: str
    shown: str
    value: float | None = None


def _figures(plan: Plan) -> tuple[_Figure, ...]:
    candidate, month, fleet = plan.candidate, plan.cost.usd_per_month, plan.fleet
    ttft, tpot, tokens = plan.latency.ttft_p95_s, plan.latency.tpot_p95_s, plan.memory.kv_cache_tokens
    per_million = plan.cost.usd_per_million_tokens
    return (
        _Figure("Instances", f"{fleet.instances} × {candidate.instance.instance_type}"),
        _Figure("GPUs", f"{fleet.instances * candidate.instance.gpu_count} × {candidate.instance.gpu}"),
        _Figure("Layout", layout_title(plan)),
        _Figure("Where", f"{candidate.instance.provider} {candidate.price.region}"),
        _Figure("Purchase", PURCHASE_TITLES[candidate.price.purchase]),
        _Figure("Replicas", str(fleet.replicas), fleet.replicas),
        _Figure("$ per month", usd(month), month),
        _Figure("$ per year", usd(month * MONTHS_PER_YEAR), month),
        _Figure("$ per M tokens", usd(per_million), per_million),
        _Figure("TTFT p95", latency(ttft), ttft),
        _Figure("TPOT p95", latency(tpot), tpot),
        _Figure("TTFT 90 %", spanned(plan.ranges.ttft) if plan.ranges else ""),
        _Figure("TPOT 90 %", spanned(plan.ranges.tpot) if plan.ranges else ""),
        _Figure("Basis", plan.basis.value),
        _Figure("Busy at peak", percent(plan.utilization_ratio), plan.utilization_ratio),
        _Figure("KV tokens", number(tokens), tokens),
        _Figure("Stranded GPUs", str(fleet.stranded_gpus), fleet.stranded_gpus),
    )


def _delta(value: float | None, base: float | None) -> str:
    """A difference as a share of the base; as a multiple where it is many times the base.

    >>> _delta(90.0, 100.0), _delta(400.0, 100.0), _delta(2.0, 0.0), _delta(1.0, 1.0)
    ('-10 %', '× 4.00', '+2', '=')
    """
    if value is None or base is None:
        return ""
    if value == base:
        return "="
    if base == 0:
        return f"{value:+g}"
    ratio = value / base
    return f"× {number(ratio)}" if ratio >= MANIFOLD else f"{100 * (ratio - 1):+.0f} %"


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


def nearest_by_bottleneck(rejections: Sequence[Rejection]) -> list[Rejection]:
    """The nearest miss for each thing that can be relaxed by degrees; for each of the rest where there is none."""
    nearest = [
        min(stopped, key=lambda rejection: rejection.miss_ratio)
        for bottleneck in RELAXATIONS
        if (stopped := [rejection for rejection in rejections if rejection.bottleneck is bottleneck])
    ]
    return [rejection for rejection in nearest if rejection.bottleneck in MEASURED] or nearest


def relaxation(miss: Rejection) -> str:
    """What to relax, and how far, for this candidate to work."""
    quantity = usd if miss.bottleneck is Bottleneck.BUDGET else _in_unit(miss.unit)
    return RELAXATIONS[miss.bottleneck].format(need=quantity(miss.need), have=quantity(miss.have))


def _in_unit(unit: str) -> Callable[[float], str]:
    return lambda value: f"{number(value)} {unit}"


def rejection_table(rejections: Iterable[Rejection]) -> pd.DataFrame:
    """One row a rejection: what stopped it, by how much, and why."""
    return pd.DataFrame.from_records(
        [
            {
                "Instance": rejection.candidate.instance.instance_type,
                "GPU": rejection.candidate.instance.gpu,
                "Stopped by": BOTTLENECK_TITLES[rejection.bottleneck],
                "Need": rounded(rejection.need) if rejection.bottleneck in MEASURED else None,
                "Have": rounded(rejection.have) if rejection.bottleneck in MEASURED else None,
                "Unit": rejection.unit if rejection.bottleneck in MEASURED else "",
                "TP": rejection.candidate.parallelism.tp,
                "PP": rejection.candidate.parallelism.pp,
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


def compared(pinned: Iterable[int], front: Sequence[int], most: int) -> list[int]:
    """Plans to set side by side: those pinned, or the two ends of the front; a lone pin beside the cheapest.

    >>> compared([], [0, 4, 9], 4), compared([7], [0, 4, 9], 4), compared([0], [0, 4], 4)
    ([0, 9], [0, 7], [0, 4])
    """
    chosen = sorted(set(pinned))
    if len(chosen) < 2:
        ends = [front[0], front[-1]] if not chosen or chosen[0] == front[0] else [front[0]]
        chosen = sorted({*chosen, *ends})
    return chosen[:most]


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
                    f"{dtype.value} TFLOP/s": rounded(gpu.peak_flop_per_s[dtype] / TERA, 4)
                    if dtype in gpu.peak_flop_per_s
                    else None
                    for dtype in (ComputeDtype.BF16, ComputeDtype.FP16, ComputeDtype.FP8, ComputeDtype.FP4)
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


def model_table(models: Iterable[BundledModel]) -> pd.DataFrame:
    """One row a bundled model, with the source of its config."""
    return pd.DataFrame.from_records(
        [
            {
                "Model": model.name,
                "Class": model.architecture,
                "Also known as": ", ".join(model.aliases),
                "As of": model.as_of,
                "Source": model.source,
            }
            for model in models
        ]
    )


def preset_table(presets: Iterable[Preset]) -> pd.DataFrame:
    """One row a preset."""
    return pd.DataFrame.from_records(
        [
            {
                "Preset": preset.title,
                "Requests/s": preset.requests_per_s,
                "Input tokens": preset.input_tokens,
                "Output tokens": preset.output_tokens,
                "Prefix hits": preset.prefix_hit_ratio,
                "TTFT p95, ms": preset.ttft_p95_ms,
                "TPOT p95, ms": preset.tpot_p95_ms,
                "What it is": preset.description,
                "As of": preset.as_of,
                "Source": preset.source,
            }
            for preset in presets
        ]
    )
