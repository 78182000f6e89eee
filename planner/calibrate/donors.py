"""Fills what a GPU's tables do not hold, from its other formats or its nearest sibling, and says so in every note."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from planner.calibrate.fit_gemm import WEIGHT_BYTES
from planner.domain.dtypes import ComputeDtype, WeightDtype
from planner.domain.hardware import Gpu
from planner.formulas.operators.coefficients import (
    AllReduceFit,
    CollectiveCurve,
    ContextAttentionFit,
    DecodeAttentionFit,
    Evidence,
    GemmCurve,
    GemmFit,
    LinearAttentionFit,
    MlaFit,
    MoeCurve,
    MoeFit,
    Origin,
    TableSource,
)
from planner.formulas.operators.moe import MoeShape, moe_curve_s, moe_work

ASSUMED_MARLIN_RATIO = 0.8
INT8_OF_BF16_EFFICIENCY = 0.75
"""Assumed where no fp8 curve stands in: fp8 keeps about this share of bf16's compute efficiency on H100 and L40S."""
MARLIN_DTYPES = (
    WeightDtype.FP8,
    WeightDtype.FP8_BLOCK,
    WeightDtype.INT4,
    WeightDtype.MXFP4,
    WeightDtype.NVFP4,
)
NEAREST_CAPABILITY_DISTANCE = 0.05
"""GPUs of one compute capability run the same kernels."""

COMPUTE_BOUND_TOKENS = np.array([65536.0])
MARLIN_SHAPE = MoeShape(384, 384, 8, 7168, 2048, True, WeightDtype.INT4, False)
"""The expert shape (Kimi K2) that the weight-only kernel was timed on."""

ItemT = TypeVar("ItemT")
CurveT = TypeVar("CurveT", GemmCurve, MoeCurve)


class MlaParts(NamedTuple):
    """Latent attention as far as one GPU's tables hold it: values with their evidence."""

    bmm: tuple[list[float], Evidence] | None
    decode: tuple[list[float], Evidence] | None
    context: tuple[list[float], Evidence] | None


class TableFits(NamedTuple):
    """What one GPU's own tables gave."""

    gpu: Gpu
    tables: tuple[TableSource, ...]
    gemm: dict[WeightDtype, GemmFit]
    moe: dict[WeightDtype, MoeFit]
    decode: dict[int, tuple[DecodeAttentionFit, ...]]
    context: dict[int, tuple[ContextAttentionFit, ...]]
    mla: MlaParts
    linear: LinearAttentionFit | None
    all_reduce: AllReduceFit | None
    """Over NVLink where the GPU has it, else over PCIe."""


def _capability(gpu: Gpu) -> float:
    try:
        return float(gpu.compute_capability)
    except ValueError:
        return float("inf")


def _donor(note: str) -> Evidence:
    return Evidence(origin=Origin.DONOR, note=note)


def _by_distance(gpu: Gpu, others: Iterable[TableFits]) -> list[TableFits]:
    """Other GPUs, nearest compute capability first."""
    return sorted(
        (fits for fits in others if fits.gpu.name != gpu.name),
        key=lambda fits: abs(_capability(fits.gpu) - _capability(gpu)),
    )


def _from_sibling(
    own: TableFits, others: Sequence[TableFits], part: Callable[[TableFits], ItemT | None]
) -> tuple[ItemT, str] | None:
    """A part of the nearest GPU that has it, with that GPU's name."""
    for fits in _by_distance(own.gpu, others):
        found = part(fits)
        if found is not None:
            return found, fits.gpu.name
    return None


def _scaled(curve: CurveT, ratio: float) -> CurveT:
    return curve.model_copy(update={"flop_efficiency": curve.flop_efficiency * ratio})


def marlin_ratio(own: TableFits, others: Sequence[TableFits]) -> tuple[float, str]:
    """Compute rate of the weight-only kernel over the 16-bit one, from experts at many tokens; and where it is from.

    The kernel multiplies with Ampere's instructions everywhere, so that it falls behind on later GPUs.
    """
    for fits in (own, *_by_distance(own.gpu, others)):
        if WeightDtype.INT4 in fits.moe and WeightDtype.BF16 in fits.moe:
            half_s, weight_only_s = (
                moe_curve_s(
                    moe_work(COMPUTE_BOUND_TOKENS, MARLIN_SHAPE, fits.moe[dtype], fits.gpu),
                    fits.moe[dtype].tensor_parallel,
                )
                for dtype in (WeightDtype.BF16, WeightDtype.INT4)
            )
            return min(1.0, round(float(half_s[0] / weight_only_s[0]), 2)), f"{fits.gpu.name} expert tables"
    return ASSUMED_MARLIN_RATIO, "assumed"


def complete_gemm(own: TableFits, others: Sequence[TableFits]) -> dict[WeightDtype, GemmFit]:
    """Linear layers of every format: measured, or the kernel vLLM runs instead."""
    fits = dict(own.gemm)
    half = fits[WeightDtype.BF16]
    ratio, ratio_source = marlin_ratio(own, others)
    if ComputeDtype.FP8 in own.gpu.peak_flop_per_s and WeightDtype.FP8 in fits:
        fits.setdefault(WeightDtype.FP8_BLOCK, fits[WeightDtype.FP8])
        fits[WeightDtype.INT8] = _gemm_with(
            fits[WeightDtype.FP8].model_copy(update={"surface": None}),
            _donor("fp8 curves at the int8 rate"),
            compute=ComputeDtype.INT8,
        )
    else:
        note = f"bf16 curves at the int8 rate with {INT8_OF_BF16_EFFICIENCY} of their efficiency"
        fits[WeightDtype.INT8] = _gemm_with(
            half.model_copy(
                update={
                    "weight_bytes": WEIGHT_BYTES[WeightDtype.INT8],
                    "small": _scaled(half.small, INT8_OF_BF16_EFFICIENCY),
                    "large": _scaled(half.large, INT8_OF_BF16_EFFICIENCY),
                    "surface": None,
                }
            ),
            Evidence(origin=Origin.ASSUMED, note=note),
            compute=ComputeDtype.INT8,
        )
    if WeightDtype.NVFP4 in fits:
        native = fits[WeightDtype.NVFP4].model_copy(
            update={"weight_bytes": WEIGHT_BYTES[WeightDtype.MXFP4], "surface": None}
        )
        fits.setdefault(
            WeightDtype.MXFP4, _gemm_with(native, _donor("nvfp4 curves"), compute=ComputeDtype.FP4)
        )
    marlin = half.model_copy(
        update={
            "small": _scaled(half.small, ratio),
            "large": _scaled(half.large, ratio),
            "surface": None,
        }
    )
    note = (
        f"weight-only kernel: bf16 curves, fewer weight bytes, {ratio} of the compute rate ({ratio_source})"
    )
    for dtype in MARLIN_DTYPES:
        if dtype not in fits:
            stored = marlin.model_copy(update={"weight_bytes": WEIGHT_BYTES[dtype]})
            fits[dtype] = _gemm_with(stored, _donor(note), compute=ComputeDtype.BF16)
    return fits


def _gemm_with(fit: GemmFit, evidence: Evidence, *, compute: ComputeDtype) -> GemmFit:
    return fit.model_copy(update={"compute": compute, "small_evidence": evidence, "large_evidence": evidence})


_ASSUMED_EXPERTS = MoeCurve(
    flop_efficiency=0.5,
    byte_efficiency=0.8,
    exponent=1.5,
    imbalance_exponent=0.3,
    tile_rows=0.0,
    skew=1.5,
    constant_s=3e-5,
    per_width_s=2e-9,
    activation_efficiency=0.5,
    token_passes=10.0,
)
_NO_EXPERT_TABLE = Evidence(
    origin=Origin.ASSUMED, note="no table of experts: typical of the GPUs that have one"
)
ASSUMED_MOE = MoeFit(
    compute=ComputeDtype.BF16,
    weight_bytes=WEIGHT_BYTES[WeightDtype.BF16],
    tensor_parallel=_ASSUMED_EXPERTS,
    expert_parallel=_ASSUMED_EXPERTS,
    tensor_parallel_evidence=_NO_EXPERT_TABLE,
    expert_parallel_evidence=_NO_EXPERT_TABLE,
)


def complete_moe(own: TableFits, others: Sequence[TableFits]) -> dict[WeightDtype, MoeFit]:
    """Routed experts of every format: measured here, on a GPU of the same kind, or derived."""
    fits = dict(own.moe)
    same_kind = [
        other
        for other in others
        if abs(_capability(other.gpu) - _capability(own.gpu)) < NEAREST_CAPABILITY_DISTANCE
    ]
    for dtype in (WeightDtype.BF16, *MARLIN_DTYPES):
        sibling = _from_sibling(own, same_kind, _moe_of(dtype))
        if dtype not in fits and sibling is not None:
            fits[dtype] = _moe_with(sibling[0], _donor(f"{sibling[1]} efficiencies"))
    if WeightDtype.BF16 not in fits:
        nearest = _from_sibling(own, others, _moe_of(WeightDtype.BF16))
        fits[WeightDtype.BF16] = (
            ASSUMED_MOE if nearest is None else _moe_with(nearest[0], _donor(f"{nearest[1]} efficiencies"))
        )
    half = fits[WeightDtype.BF16]
    ratio, ratio_source = marlin_ratio(own, others)
    block = fits.get(WeightDtype.FP8_BLOCK)
    if block is not None:
        fits.setdefault(WeightDtype.FP8, _moe_with(block, _donor("fp8_block kernels")))
    if WeightDtype.FP8 in fits:
        eight_bit = _moe_with(fits[WeightDtype.FP8], _donor("fp8 experts at the int8 rate"))
        fits[WeightDtype.INT8] = eight_bit.model_copy(update={"compute": ComputeDtype.INT8})
    else:
        note = f"bf16 experts at the int8 rate with {INT8_OF_BF16_EFFICIENCY} of their efficiency"
        slower = _moe_scaled(half, INT8_OF_BF16_EFFICIENCY, Evidence(origin=Origin.ASSUMED, note=note))
        fits[WeightDtype.INT8] = slower.model_copy(
            update={"compute": ComputeDtype.INT8, "weight_bytes": WEIGHT_BYTES[WeightDtype.INT8]}
        )
    for dtype in MARLIN_DTYPES:
        if dtype in fits:
            continue
        if WeightDtype.INT4 in own.moe:
            stored = _moe_with(fits[WeightDtype.INT4], _donor("int4 weight-only kernel"))
        else:
            note = f"weight-only kernel: bf16 experts, fewer bytes, {ratio} of the rate ({ratio_source})"
            stored = _moe_scaled(half, ratio, _donor(note))
        fits[dtype] = stored.model_copy(update={"weight_bytes": WEIGHT_BYTES[dtype]})
    return fits


def _moe_of(dtype: WeightDtype) -> Callable[[TableFits], MoeFit | None]:
    """Takes one format's experts out of a GPU's fits."""
    return lambda fits: fits.moe.get(dtype)


def _moe_with(fit: MoeFit, evidence: Evidence) -> MoeFit:
    return fit.model_copy(update={"tensor_parallel_evidence": evidence, "expert_parallel_evidence": evidence})


def _moe_scaled(fit: MoeFit, ratio: float, evidence: Evidence) -> MoeFit:
    slower = {
        "tensor_parallel": _scaled(fit.tensor_parallel, ratio),
        "expert_parallel": _scaled(fit.expert_parallel, ratio),
    }
    return _moe_with(fit.model_copy(update=slower), evidence)


def complete_decode(own: TableFits) -> dict[int, tuple[DecodeAttentionFit, ...]]:
    """Decode attention of both cache formats."""
    note = _donor("16-bit kernel with half the cache bytes")
    half = tuple(fit.model_copy(update={"evidence": note}) for fit in own.decode[2])
    return {1: half} | own.decode


def complete_context(own: TableFits) -> dict[int, tuple[ContextAttentionFit, ...]]:
    """Prompt attention of both cache formats."""
    note = _donor("16-bit kernel with half the cache bytes")
    half = tuple(fit.model_copy(update={"evidence": note}) for fit in own.context[2])
    return {1: half} | own.context


def _commonest(fit: DecodeAttentionFit | ContextAttentionFit) -> tuple[bool, int]:
    """Sorts full attention at head size 128 first."""
    return fit.windowed, abs(fit.head_dim - 128)


def _mla_part(
    own: TableFits,
    others: Sequence[TableFits],
    part: Callable[[TableFits], tuple[list[float], Evidence] | None],
) -> tuple[list[float], Evidence]:
    measured = part(own)
    if measured is not None:
        return measured
    sibling = _from_sibling(own, others, part)
    if sibling is None:
        return [0.5, 0.5, 5e-6], Evidence(origin=Origin.ASSUMED, note="no table: half of every rate")
    return sibling[0][0], _donor(f"{sibling[1]} efficiencies")


def complete_mla(own: TableFits, others: Sequence[TableFits]) -> MlaFit:
    """Latent attention; launches are those of softmax attention, since the module's tables hold host time."""
    bmm, bmm_evidence = _mla_part(own, others, lambda fits: fits.mla.bmm)
    decode, decode_evidence = _mla_part(own, others, lambda fits: fits.mla.decode)
    context, context_evidence = _mla_part(own, others, lambda fits: fits.mla.context)
    return MlaFit(
        bmm_flop_efficiency=bmm[0],
        bmm_byte_efficiency=bmm[1],
        bmm_constant_s=bmm[2],
        decode_byte_efficiency=decode[0],
        decode_flop_efficiency=decode[1],
        decode_constant_s=min(own.decode[2], key=_commonest).constant_s,
        context_flop_efficiency=context[0],
        context_byte_efficiency=context[1],
        context_constant_s=min(own.context[2], key=_commonest).constant_s,
        bmm_evidence=bmm_evidence,
        decode_evidence=decode_evidence,
        context_evidence=context_evidence,
    )


def complete_linear(own: TableFits, others: Sequence[TableFits]) -> LinearAttentionFit:
    """Gated delta net; Mamba mixers use the same numbers."""
    if own.linear is not None:
        return own.linear
    sibling = _from_sibling(own, others, lambda fits: fits.linear)
    if sibling is None:
        assumed = Evidence(origin=Origin.ASSUMED, note="no table: half of memory bandwidth")
        return LinearAttentionFit(
            decode_byte_efficiency=0.5,
            decode_constant_s=5e-6,
            context_byte_efficiency=0.5,
            context_constant_s=15e-6,
            context_per_token_s=4e-8,
            decode_evidence=assumed,
            context_evidence=assumed,
        )
    note = _donor(f"{sibling[1]} efficiencies")
    return sibling[0].model_copy(update={"decode_evidence": note, "context_evidence": note})


ASSUMED_ALL_REDUCE = AllReduceFit(
    engine=(),
    nccl=tuple(
        CollectiveCurve(
            ranks=ranks,
            constant_s=latency_s,
            link_efficiency=efficiency,
            exponent=1.0,
            evidence=Evidence(origin=Origin.ASSUMED, note="no table of a machine with such links"),
        )
        for ranks, latency_s, efficiency in ((2, 1e-5, 0.3), (4, 2e-5, 0.2), (8, 3e-5, 0.1))
    ),
)


def complete_all_reduce(own: TableFits, others: Sequence[TableFits], *, nvlink: bool) -> AllReduceFit:
    """All-reduce over NVLink or over PCIe, from a machine that has such links."""

    def over_such_links(fits: TableFits) -> AllReduceFit | None:
        return fits.all_reduce if (fits.gpu.nvlink_bytes_per_s > 0) == nvlink else None

    measured = over_such_links(own)
    if measured is not None:
        return measured
    sibling = _from_sibling(own, others, over_such_links)
    if sibling is None:
        return ASSUMED_ALL_REDUCE
    note = _donor(f"measured on {sibling[1]}")
    curves = {
        kind: tuple(curve.model_copy(update={"evidence": note}) for curve in getattr(sibling[0], kind))
        for kind in ("engine", "nccl")
    }
    return sibling[0].model_copy(update=curves)
