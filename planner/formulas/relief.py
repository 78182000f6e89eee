"""The same operators with one resource out of the way, or at the rates of the data sheet."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from planner.domain.base import Frozen
from planner.formulas.operators.coefficients import GpuOperators, OperatorCoefficients

TIMES_FASTER = 1e9
"""As good as infinitely fast, and nothing is divided by nothing."""
COLLECTIVES = ("nvlink_all_reduce", "pcie_all_reduce")
WASTE = ("tile_rows", "token_passes", "quantize_passes", "dispatch_ratio")
"""Multiples of work that a perfect kernel would not do."""
CORRECTIONS = {"surface": None, "log2_bytes": (), "log_ratio": ()}
"""What measurements leave beside the forms, and what stands for none of it."""


class Resource(StrEnum):
    """What the time of a step is spent on."""

    COMPUTE = "compute"
    BANDWIDTH = "bandwidth"
    """Of the GPU's memory."""
    LATENCY = "latency"
    """What a kernel takes however little it does: launches, and work a head, a row or a key one after another."""
    COMMUNICATION = "communication"
    """Between GPUs, its latency included."""
    HOST = "host"


def relieved(ops: GpuOperators, resource: Resource) -> GpuOperators:
    """Operators with a resource so fast that it takes no time; communication and host are none of theirs.

    Launches of element-wise kernels are no coefficients, and stay.
    """
    gpu = ops.gpu
    if resource is Resource.COMPUTE:
        rates = {dtype: rate * TIMES_FASTER for dtype, rate in gpu.peak_flop_per_s.items()}
        return ops._replace(gpu=gpu.model_copy(update={"peak_flop_per_s": rates}))
    if resource is Resource.BANDWIDTH:
        bandwidth = gpu.memory_bandwidth_bytes_per_s * TIMES_FASTER
        return ops._replace(gpu=gpu.model_copy(update={"memory_bandwidth_bytes_per_s": bandwidth}))
    if resource is Resource.LATENCY:
        changed = _changed_fields(ops.coefficients, _without_constants)
        kept = {name: getattr(ops.coefficients, name) for name in COLLECTIVES}
        return ops._replace(coefficients=OperatorCoefficients.model_construct(**(changed | kept)))
    return ops


def at_datasheet_rates(ops: GpuOperators) -> GpuOperators:
    """Operators that reach every rate of the data sheet and lose nothing; routing of experts stays as uneven."""
    changed = _changed_fields(ops.coefficients, _ideal)
    return ops._replace(coefficients=OperatorCoefficients.model_construct(**changed))


def _without_constants(name: str, value: Any) -> Any:
    return 0.0 if name.endswith("_s") and isinstance(value, float) else value


def _ideal(name: str, value: Any) -> Any:
    if name in CORRECTIONS:
        return CORRECTIONS[name]
    if name.endswith("_efficiency"):
        return 1.0
    return 0.0 if name in WASTE else _without_constants(name, value)


Change = Callable[[str, Any], Any]


def _changed_fields(fit: Frozen, change: Change) -> dict[str, Any]:
    """Every field of a fit, changed by its name; not copied, since a copy keeps what was computed from the old ones."""
    return {name: _changed(name, getattr(fit, name), change) for name in type(fit).model_fields}


def _changed(name: str, value: Any, change: Change) -> Any:
    if isinstance(value, Frozen) and name not in CORRECTIONS:
        return type(value).model_construct(**_changed_fields(value, change))
    if isinstance(value, dict):
        return {key: _changed(name, item, change) for key, item in value.items()}
    if isinstance(value, tuple) and value and isinstance(value[0], Frozen):
        return tuple(_changed(name, item, change) for item in value)
    return change(name, value)
