"""Time of moving activations between GPUs."""

import numpy as np

from planner.domain.hardware import Interconnect
from planner.formulas.arrays import FloatArray
from planner.formulas.operators.coefficients import CollectiveCurve, GpuOperators, p_norm

SEND_RECV_LATENCY_S = 10e-6
SEND_RECV_EFFICIENCY = 0.7
PAIR = 2


def crosses_nvlink(ranks: int, interconnect: Interconnect) -> bool:
    """True where all `ranks` of a group reach each other over the GPU fabric and not over PCIe."""
    if interconnect is Interconnect.NVLINK_PAIR:
        return ranks <= PAIR
    return interconnect in (Interconnect.NVLINK, Interconnect.NVSWITCH, Interconnect.INFINITY_FABRIC)


def collective_curve_s(
    message_bytes: FloatArray, link_bytes_per_s: float, curve: CollectiveCurve
) -> FloatArray:
    """p-norm of the latency and 2 (n - 1) / n x message / (link e) [s]."""
    volume_bytes = message_bytes * (2.0 * (curve.ranks - 1) / curve.ranks)
    link_s = volume_bytes / (link_bytes_per_s * curve.link_efficiency)
    return p_norm(link_s, np.full_like(link_s, curve.constant_s), curve.exponent)


def _for_ranks(curves: tuple[CollectiveCurve, ...], ranks: int) -> CollectiveCurve:
    """The curve of the smallest measured group that holds `ranks`, else of the largest."""
    return next((curve for curve in curves if curve.ranks >= ranks), curves[-1])


def all_reduce_s(
    message_bytes: FloatArray, ranks: int, interconnect: Interconnect, ops: GpuOperators
) -> FloatArray:
    """Time of one all-reduce of `message_bytes` [G] over `ranks` GPUs of one instance [s]; 0 for one rank."""
    if ranks <= 1:
        return np.zeros_like(message_bytes)
    over_nvlink = crosses_nvlink(ranks, interconnect) and ops.gpu.nvlink_bytes_per_s > 0
    fit = ops.coefficients.nvlink_all_reduce if over_nvlink else ops.coefficients.pcie_all_reduce
    link = ops.gpu.nvlink_bytes_per_s if over_nvlink else ops.gpu.pcie_bytes_per_s
    long_s = collective_curve_s(message_bytes, link, _for_ranks(fit.nccl, ranks))
    if not fit.custom or fit.custom[-1].ranks < ranks:
        return long_s
    custom = _for_ranks(fit.custom, ranks)
    short_s = collective_curve_s(np.minimum(message_bytes, fit.custom_limit_bytes), link, custom)
    return np.where(message_bytes < fit.custom_limit_bytes, short_s, np.maximum(short_s, long_s))


def send_recv_s(
    message_bytes: FloatArray, ops: GpuOperators, across_instances_bytes_per_s: float | None = None
) -> FloatArray:
    """Time of handing `message_bytes` [G] to the next pipeline stage [s].

    Assumed, not measured: 10 us and 0.7 of the link in one direction; the link is the fabric or PCIe within an
    instance, else the network rate given.
    """
    inside = ops.gpu.nvlink_bytes_per_s or ops.gpu.pcie_bytes_per_s
    one_way = inside / 2.0 if across_instances_bytes_per_s is None else across_instances_bytes_per_s
    return SEND_RECV_LATENCY_S + message_bytes / (one_way * SEND_RECV_EFFICIENCY)
