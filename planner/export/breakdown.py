"""One step taken apart, as rows that screens and files share."""

from collections.abc import Iterable
from typing import NamedTuple

from planner.domain.units import seconds_to_ms
from planner.export.table import Cell
from planner.formulas.breakdown import Breakdown, PartTime
from planner.formulas.relief import Resource
from planner.formulas.step_parts import OUTSIDE_LAYERS, Operator
from planner.planning.explain import KV, StepExplained

PART_COLUMNS = (
    "layer_type",
    "layers",
    "operator",
    "time_ms",
    "share_ratio",
    "roofline_ms",
    "efficiency_ratio",
    "binds",
)
OPERATOR_TITLES = {
    Operator.QKV: "projections in",
    Operator.ATTENTION_DECODE: "attention, decoding",
    Operator.ATTENTION_PREFILL: "attention, prompt",
    Operator.INDEXER: "indexer",
    Operator.OUT_PROJECTION: "projection out",
    Operator.ROUTER: "router",
    Operator.EXPERTS: "experts",
    Operator.SHARED_EXPERTS: "shared experts",
    Operator.LATENT_PROJECTIONS: "latent projections",
    Operator.DENSE_MLP: "dense MLP",
    Operator.ALL_REDUCE: "all-reduce",
    Operator.ELEMENTWISE: "element-wise",
    Operator.HEAD: "head",
    Operator.HOPS: "hops between stages",
    Operator.HOST: "host",
    Operator.LAUNCHES: "waiting for launches",
}
LIMIT_TITLES = {**{what.value: what.value for what in Resource}, KV: "KV cache"}
"""What may bind a step or the batch, in words."""


class TypeTime(NamedTuple):
    """All layers of one type together."""

    title: str
    time_s: float
    roofline_s: float


def layers_title(part: PartTime) -> str:
    """How many layers of which type a part belongs to.

    >>> layers_title(PartTime("full attention + experts", 18, Operator.QKV, 1e-3, 5e-4, Resource.BANDWIDTH))
    '18 x full attention + experts'
    """
    return f"{part.layers} x {part.layer_type}" if part.layers else OUTSIDE_LAYERS


def by_time(found: Breakdown) -> list[PartTime]:
    """The parts, longest first."""
    return sorted(found.parts, key=lambda part: -part.time_s)


def step_part_rows(found: Breakdown) -> list[tuple[Cell, ...]]:
    """Every part, longest first (`PART_COLUMNS`)."""
    return [
        (
            part.layer_type,
            part.layers or None,
            part.operator.value,
            seconds_to_ms(part.time_s),
            part.time_s / found.step_s,
            None if part.roofline_s is None else seconds_to_ms(part.roofline_s),
            part.efficiency_ratio,
            part.binds.value,
        )
        for part in by_time(found)
    ]


def type_times(found: Breakdown) -> list[TypeTime]:
    """Time and roofline by type of layer, in the order of the model; the host has no roofline."""
    sums: dict[str, list[PartTime]] = {}
    for part in found.parts:
        sums.setdefault(layers_title(part), []).append(part)
    return [
        TypeTime(title, sum(part.time_s for part in parts), roofline_s(parts))
        for title, parts in sums.items()
    ]


def roofline_s(parts: Iterable[PartTime]) -> float:
    """What parts take together at the data sheet's rates."""
    return sum(part.roofline_s or 0.0 for part in parts)


def relief_rows(found: Breakdown) -> list[tuple[Resource, float, float]]:
    """Step time with each resource infinitely fast, and the share of the step that this saves; largest first."""
    rows = [(what, time_s, 1.0 - time_s / found.step_s) for what, time_s in found.relieved_step_s.items()]
    return sorted(rows, key=lambda row: row[1])


def kv_sentence(answer: StepExplained) -> str:
    """How many sequences the cache holds; empty where nothing decodes."""
    if answer.held is None:
        return ""
    asked = answer.asked
    beside = f" beside a prompt of {asked.prompt_tokens:,}" if asked.prompt_tokens else ""
    full = ": it is full" if answer.kv_binds else ""
    return (
        f"The KV cache holds {answer.held:,} sequences of {asked.context_tokens:,} tokens{beside}, "
        f"the batch is {asked.batch:,}{full}."
    )


def ridge_sentence(answer: StepExplained, max_num_seqs: int) -> str:
    """From which batch on compute matters more than bandwidth; empty where nothing decodes."""
    if not answer.asked.batch:
        return ""
    if answer.ridge is None:
        return f"Up to max_num_seqs, {max_num_seqs:,}, bandwidth matters more than compute in a decode step."
    return f"From a batch of {answer.ridge:,} on, compute matters more than bandwidth in a decode step."
