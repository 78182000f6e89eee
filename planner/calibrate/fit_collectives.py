"""Fits all-reduce: the engine's own kernel for short messages, NCCL for long ones."""

import numpy as np

from planner.calibrate.fitting import Bound, evidence, fit_and_hold_out, robust_fit
from planner.calibrate.tables import KernelTable
from planner.formulas.arrays import BoolArray, FloatArray
from planner.formulas.operators.coefficients import AllReduceFit, CollectiveCurve, Evidence, Origin
from planner.formulas.operators.collectives import collective_curve_s

ELEMENT_BYTES = 2.0
"""Message sizes of the tables are 16-bit elements."""
CUSTOM_LIMIT_BYTES = 8.0 * 2**20
"""vLLM's CustomAllreduce takes messages below max_size = 8192 KiB (custom_all_reduce.py)."""

_BOUNDS = (Bound(5e-6, 1e-7, 1e-3), Bound(0.4, 1e-4, 1.0), Bound(1.0, 0.3, 10.0))
_UNMEASURED = Evidence(origin=Origin.TABLE)


def _curve(ranks: int, values: FloatArray) -> CollectiveCurve:
    return CollectiveCurve(
        ranks=ranks,
        constant_s=float(values[0]),
        link_efficiency=float(values[1]),
        exponent=float(values[2]),
        evidence=_UNMEASURED,
    )


def _fit_ranks(table: KernelTable, ranks: int, link_bytes_per_s: float, note: str) -> CollectiveCurve:
    message_bytes = table.numbers["message_size"] * ELEMENT_BYTES

    def predict_s(values: FloatArray) -> FloatArray:
        return collective_curve_s(message_bytes, link_bytes_per_s, _curve(ranks, values))

    def fit(use: BoolArray) -> FloatArray:
        return robust_fit(lambda values: predict_s(values)[use], _BOUNDS, table.latency_s[use])

    values, outcome = fit_and_hold_out(fit, predict_s, message_bytes)
    everything = np.ones(message_bytes.shape, dtype=np.bool_)
    worth = evidence(table.latency_s, outcome, everything, note)
    return _curve(ranks, values).model_copy(update={"evidence": worth})


def _fit_each(table: KernelTable, link_bytes_per_s: float, note: str) -> tuple[CollectiveCurve, ...]:
    ranks = np.unique(table.numbers["num_gpus"])
    return tuple(
        _fit_ranks(table.where(table.numbers["num_gpus"] == count), int(count), link_bytes_per_s, note)
        for count in ranks
    )


def fit_all_reduce(
    custom: KernelTable, nccl: KernelTable, link_bytes_per_s: float, custom_ranks: int
) -> AllReduceFit:
    """Both kernels for every measured group; `custom_ranks` is the largest group the engine's own kernel serves."""
    in_graph = np.char.find(custom.labels["kernel_source"], "graph") >= 0
    short = custom.numbers["message_size"] * ELEMENT_BYTES < CUSTOM_LIMIT_BYTES
    served = custom.numbers["num_gpus"] <= custom_ranks
    halves = (nccl.labels["op_name"] == "all_reduce") & (nccl.labels["nccl_dtype"] == "half")
    return AllReduceFit(
        custom=_fit_each(
            custom.where(in_graph & short & served), link_bytes_per_s, "custom all-reduce in a graph"
        ),
        nccl=_fit_each(nccl.where(halves), link_bytes_per_s, "NCCL all-reduce"),
        custom_limit_bytes=CUSTOM_LIMIT_BYTES,
    )
