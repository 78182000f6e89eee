"""Fits all-reduce: what the engine dispatches to, release by release, and NCCL for what it leaves to it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.calibrate.fitting import Bound, evidence, fit_and_hold_out, robust_fit, rounded
from planner.calibrate.tables import KernelTable
from planner.formulas.arrays import BoolArray, FloatArray
from planner.formulas.operators.coefficients import AllReduceFit, CollectiveCurve, Evidence, Origin
from planner.formulas.operators.collectives import collective_curve_s

ELEMENT_BYTES = 2.0
"""Message sizes of the tables are 16-bit elements."""

_BOUNDS = (Bound(5e-6, 1e-7, 1e-3), Bound(0.4, 1e-4, 1.0), Bound(1.0, 0.3, 10.0))
_UNMEASURED = Evidence(origin=Origin.TABLE)


class Group(NamedTuple):
    """Ranks that reduce together over one kind of link."""

    ranks: int
    link_bytes_per_s: float
    engine_version: str = ""


def _plain_curve(group: Group, values: FloatArray) -> CollectiveCurve:
    return CollectiveCurve(
        ranks=group.ranks,
        engine_version=group.engine_version,
        constant_s=float(values[0]),
        link_efficiency=float(values[1]),
        exponent=float(values[2]),
        evidence=_UNMEASURED,
    )


def _followed(
    curve: CollectiveCurve, message_bytes: FloatArray, latency_s: FloatArray, link_bytes_per_s: float
) -> CollectiveCurve:
    """The curve with what it leaves at each measured size."""
    sizes = np.unique(message_bytes)
    left = np.log(latency_s / collective_curve_s(message_bytes, link_bytes_per_s, curve))
    ratios = [float(np.median(left[message_bytes == size])) for size in sizes]
    return curve.model_copy(
        update={
            "log2_bytes": tuple(rounded(float(size)) for size in np.log2(sizes)),
            "log_ratio": tuple(round(ratio, 3) for ratio in ratios),
        }
    )


def _undisturbed_s(message_bytes: FloatArray, latency_s: FloatArray) -> FloatArray:
    """No message takes longer than a larger one: it could be padded."""
    order = np.argsort(message_bytes, kind="stable")
    result = np.empty_like(latency_s)
    result[order] = np.minimum.accumulate(latency_s[order][::-1])[::-1]
    return result


def _fit_group(table: KernelTable, group: Group, note: str) -> CollectiveCurve:
    message_bytes = table.numbers["message_size"] * ELEMENT_BYTES
    latency_s = _undisturbed_s(message_bytes, table.latency_s)
    link = group.link_bytes_per_s

    def fit(use: BoolArray) -> CollectiveCurve:
        sizes, measured_s = message_bytes[use], latency_s[use]
        values = robust_fit(
            lambda values: collective_curve_s(sizes, link, _plain_curve(group, values)), _BOUNDS, measured_s
        )
        return _followed(_plain_curve(group, values), sizes, measured_s, link)

    curve, outcome = fit_and_hold_out(
        fit, lambda curve: collective_curve_s(message_bytes, link, curve), message_bytes
    )
    everything = np.ones(message_bytes.shape, dtype=np.bool_)
    return curve.model_copy(update={"evidence": evidence(latency_s, outcome, everything, note)})


def _fit_each(
    table: KernelTable, link_bytes_per_s: float, note: str, version: str = ""
) -> list[CollectiveCurve]:
    counts = table.numbers["num_gpus"]
    return [
        _fit_group(table.where(counts == count), Group(int(count), link_bytes_per_s, version), note)
        for count in np.unique(counts)
    ]


def fit_all_reduce(
    engine: Sequence[KernelTable], nccl: KernelTable, link_bytes_per_s: float, engine_ranks: int
) -> AllReduceFit:
    """Every measured group: tables of the engine's dispatch, one a release, and of NCCL.

    `engine_ranks` is the largest group that the engine reduces by other means than NCCL.
    """
    halves = (nccl.labels["op_name"] == "all_reduce") & (nccl.labels["nccl_dtype"] == "half")
    by_nccl = _fit_each(nccl.where(halves), link_bytes_per_s, "NCCL all-reduce")
    curves: list[CollectiveCurve] = []
    for table in engine:
        in_graph = np.char.find(table.labels["kernel_source"], "graph") >= 0
        served = table.numbers["num_gpus"] <= engine_ranks
        version = table.source.engine_version
        believed = _no_slower_than(by_nccl, table.where(in_graph & served), link_bytes_per_s)
        curves += _fit_each(believed, link_bytes_per_s, f"vLLM {version}, in a graph", version)
    return AllReduceFit(engine=tuple(curves), nccl=tuple(by_nccl))


def _no_slower_than(
    nccl: Sequence[CollectiveCurve], table: KernelTable, link_bytes_per_s: float
) -> KernelTable:
    """The engine's times, none above NCCL's among as many GPUs of that kind: such a machine was disturbed."""
    sizes, latency_s = table.numbers["message_size"] * ELEMENT_BYTES, table.latency_s.copy()
    for curve in nccl:
        rows = table.numbers["num_gpus"] == curve.ranks
        latency_s[rows] = np.minimum(
            latency_s[rows], collective_curve_s(sizes[rows], link_bytes_per_s, curve)
        )
    return table._replace(numbers={**table.numbers, "latency": latency_s})
