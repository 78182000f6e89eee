"""Time of moving activations between GPUs."""

from typing import NamedTuple

import numpy as np

from planner.domain.hardware import Interconnect
from planner.formulas.arrays import FloatArray
from planner.formulas.engine_defaults import EngineVersion, parse_version
from planner.formulas.operators.coefficients import CollectiveCurve, GpuOperators, p_norm

SEND_RECV_LATENCY_S = 10e-6
SEND_RECV_EFFICIENCY = 0.7
PAIR = 2


class RankGroup(NamedTuple):
    """GPUs of one instance that reduce together."""

    ranks: int
    interconnect: Interconnect
    engine: EngineVersion
    """Which kernel takes a message depends on the release."""


def crosses_nvlink(ranks: int, interconnect: Interconnect) -> bool:
    """True where all `ranks` of a group reach each other over the GPU fabric and not over PCIe."""
    if interconnect is Interconnect.NVLINK_PAIR:
        return ranks <= PAIR
    return interconnect in (Interconnect.NVLINK, Interconnect.NVSWITCH, Interconnect.INFINITY_FABRIC)


def collective_curve_s(
    message_bytes: FloatArray, link_bytes_per_s: float, curve: CollectiveCurve
) -> FloatArray:
    """p-norm of the latency and 2 (n - 1) / n x message / (link e), with the correction for the size [s]."""
    volume_bytes = message_bytes * (2.0 * (curve.ranks - 1) / curve.ranks)
    link_s = volume_bytes / (link_bytes_per_s * curve.link_efficiency)
    smooth_s = p_norm(link_s, np.full_like(link_s, curve.constant_s), curve.exponent)
    if not curve.log2_bytes:
        return smooth_s
    return smooth_s * np.exp(np.interp(np.log2(message_bytes), curve.log2_bytes, curve.log_ratio))


def _for_ranks(curves: tuple[CollectiveCurve, ...], ranks: int) -> tuple[CollectiveCurve, ...]:
    """Those of the smallest measured group that holds `ranks`, else of the largest."""
    group = min((curve.ranks for curve in curves if curve.ranks >= ranks), default=curves[-1].ranks)
    return tuple(curve for curve in curves if curve.ranks == group)


def _for_release(curves: tuple[CollectiveCurve, ...], version: EngineVersion) -> CollectiveCurve:
    """The newest that is not newer than the release, else the oldest."""
    by_age = sorted(curves, key=lambda curve: parse_version(curve.engine_version))
    older = [curve for curve in by_age if parse_version(curve.engine_version) <= version]
    return older[-1] if older else by_age[0]


def all_reduce_s(message_bytes: FloatArray, group: RankGroup, ops: GpuOperators) -> FloatArray:
    """Time of one all-reduce of `message_bytes` [G] among GPUs of one instance [s]; 0 for one rank."""
    if group.ranks <= 1:
        return np.zeros_like(message_bytes)
    over_nvlink = crosses_nvlink(group.ranks, group.interconnect) and ops.gpu.nvlink_bytes_per_s > 0
    fit = ops.coefficients.nvlink_all_reduce if over_nvlink else ops.coefficients.pcie_all_reduce
    link = ops.gpu.nvlink_bytes_per_s if over_nvlink else ops.gpu.pcie_bytes_per_s
    if fit.engine and group.ranks <= max(curve.ranks for curve in fit.engine):
        curve = _for_release(_for_ranks(fit.engine, group.ranks), group.engine)
    else:
        curve = _for_ranks(fit.nccl, group.ranks)[0]
    return collective_curve_s(message_bytes, link, curve)


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
