"""What is fitted for one GPU: the numbers of every operator form, with where they come from and how well they fit."""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from planner.domain.base import Frozen
from planner.domain.dtypes import ComputeDtype, WeightDtype
from planner.domain.evidence import Basis
from planner.domain.hardware import Gpu

FloatArray = NDArray[np.float64]

OPERATOR_FORMAT = 1
"""Raised whenever a form changes meaning, so that an older file is refused and not misread."""


class Origin(StrEnum):
    """Where one operator's numbers come from."""

    TABLE = "table"
    """Fitted to this GPU's own kernel table."""
    DONOR = "donor"
    """Derived from another dtype's or another GPU's fit; the note says how."""
    ASSUMED = "assumed"
    """No table anywhere; the note says on what ground."""


class Evidence(Frozen):
    """Why an operator's numbers may be believed, and how far: relative errors |predicted / measured - 1|."""

    origin: Origin
    note: str = ""
    rows: int = Field(default=0, ge=0)
    median_ratio: float | None = None
    p90_ratio: float | None = None
    bias_ratio: float | None = None
    """Median of predicted / measured - 1, sign kept."""
    held_out_rows: int = Field(default=0, ge=0)
    held_out_median_ratio: float | None = None
    """On shapes the fit did not see (30 % of them), from a fit to the others."""
    held_out_p90_ratio: float | None = None


class GemmCurve(Frozen):
    """p-norm of compute and memory time, plus a launch cost that grows with the depth of the reduction."""

    flop_efficiency: float = Field(gt=0)
    byte_efficiency: float = Field(gt=0)
    exponent: float = Field(ge=0.5, le=64)
    constant_s: float = Field(ge=0)
    per_k_s: float = Field(ge=0)
    """Seconds per element of the reduction dimension."""


class GemmFit(Frozen):
    """One storage format of weights: what is multiplied in which format, below and above the blend."""

    compute: ComputeDtype
    weight_bytes: float = Field(gt=0)
    """Per weight, scales included."""
    small: GemmCurve
    large: GemmCurve
    small_evidence: Evidence
    large_evidence: Evidence


class MoeCurve(Frozen):
    """p-norm of grouped-matmul time and expert-weight traffic, plus routing and launch cost."""

    flop_efficiency: float = Field(gt=0)
    byte_efficiency: float = Field(gt=0)
    exponent: float = Field(ge=0.5, le=64)
    imbalance: float = Field(ge=1)
    """Rows of the busiest rank over the mean."""
    tile_rows: float = Field(ge=0)
    """Rows each active expert is padded by."""
    skew: float = Field(gt=0)
    """Routing skew s of E (1 - (1 + m k / (E s))^-s); large is uniform routing."""
    constant_s: float = Field(ge=0)
    per_expert_s: float = Field(ge=0)
    """Per expert held by the rank."""
    activation_efficiency: float = Field(gt=0)
    """Share of memory bandwidth that routed activations move at."""


class MoeFit(Frozen):
    """One storage format of expert weights, with experts sliced (tensor) or dealt out (expert parallel)."""

    compute: ComputeDtype
    weight_bytes: float = Field(gt=0)
    tensor_parallel: MoeCurve
    expert_parallel: MoeCurve
    tensor_parallel_evidence: Evidence
    expert_parallel_evidence: Evidence


class DecodeAttentionFit(Frozen):
    """One new token a sequence against its cache: KV traffic, a launch, and work per sequence and head."""

    byte_efficiency: float = Field(gt=0)
    constant_s: float = Field(ge=0)
    per_kv_head_s: float = Field(ge=0)
    """Per sequence and KV head."""
    per_query_head_s: float = Field(ge=0)
    """Per sequence and query head."""
    evidence: Evidence


class ContextAttentionFit(Frozen):
    """Many new tokens a sequence, causal among themselves, against all earlier ones."""

    flop_efficiency: float = Field(gt=0)
    byte_efficiency: float = Field(gt=0)
    constant_s: float = Field(ge=0)
    evidence: Evidence


class MlaFit(Frozen):
    """Multi-head latent attention without its projections."""

    bmm_flop_efficiency: float = Field(gt=0)
    bmm_byte_efficiency: float = Field(gt=0)
    bmm_constant_s: float = Field(ge=0)
    """Of one absorbed batched matmul; a decode layer has two."""
    decode_byte_efficiency: float = Field(gt=0)
    decode_flop_efficiency: float = Field(gt=0)
    decode_constant_s: float = Field(ge=0)
    context_flop_efficiency: float = Field(gt=0)
    context_constant_s: float = Field(ge=0)
    bmm_evidence: Evidence
    decode_evidence: Evidence
    context_evidence: Evidence


class LinearAttentionFit(Frozen):
    """Gated delta net or Mamba mixer without its projections."""

    decode_byte_efficiency: float = Field(gt=0)
    """Share of memory bandwidth at which a sequence's state is read and written."""
    decode_constant_s: float = Field(ge=0)
    context_flop_efficiency: float = Field(gt=0)
    context_byte_efficiency: float = Field(gt=0)
    context_constant_s: float = Field(ge=0)
    context_per_step_s: float = Field(ge=0)
    """Per token of one sequence that cannot be spread over the GPU: the chunk recurrence."""
    decode_evidence: Evidence
    context_evidence: Evidence


class CollectiveCurve(Frozen):
    """p-norm of a latency and the ring volume 2 (n - 1) / n x message over the link."""

    ranks: int = Field(ge=2)
    constant_s: float = Field(ge=0)
    link_efficiency: float = Field(gt=0)
    exponent: float = Field(gt=0, le=64)
    evidence: Evidence


class AllReduceFit(Frozen):
    """Sum over ranks: the engine's own kernel for short messages, NCCL for long ones."""

    custom: tuple[CollectiveCurve, ...]
    nccl: tuple[CollectiveCurve, ...]
    custom_limit_bytes: float = Field(ge=0)
    """Messages of at least this size go through NCCL."""


class TableSource(Frozen):
    """One measured table that a fit used."""

    path: str
    """Relative to the directory of tables."""
    engine_version: str
    rows: int = Field(ge=1)


class OperatorCoefficients(Frozen):
    """Everything fitted for one GPU, JSON-serialisable."""

    format: int = OPERATOR_FORMAT
    gpu: str
    fitted_on: str
    """ISO date."""
    tables: tuple[TableSource, ...]
    gemm: dict[WeightDtype, GemmFit]
    moe: dict[WeightDtype, MoeFit]
    decode_attention: dict[int, DecodeAttentionFit]
    """By bytes of one cached value: 2 or 1."""
    context_attention: dict[int, ContextAttentionFit]
    mla: MlaFit
    linear_attention: LinearAttentionFit
    nvlink_all_reduce: AllReduceFit
    pcie_all_reduce: AllReduceFit

    def __hash__(self) -> int:
        return hash((self.gpu, self.fitted_on))


class GpuOperators(NamedTuple):
    """A GPU's datasheet with the efficiencies that apply to it."""

    gpu: Gpu
    coefficients: OperatorCoefficients
    basis: Basis
    donor: str
    """The GPU whose tables the coefficients come from."""


def transfer(operators: GpuOperators, gpu: Gpu, basis: Basis = Basis.TRANSFERRED) -> GpuOperators:
    """The same efficiencies and constants on another GPU's datasheet figures, labelled with their donor."""
    return GpuOperators(gpu=gpu, coefficients=operators.coefficients, basis=basis, donor=operators.donor)


HALF = (ComputeDtype.BF16, ComputeDtype.FP16, ComputeDtype.FP32)
_FALLBACK = {
    ComputeDtype.FP4: (ComputeDtype.FP4, ComputeDtype.FP8, *HALF),
    ComputeDtype.FP8: (ComputeDtype.FP8, *HALF),
    ComputeDtype.INT8: (ComputeDtype.INT8, *HALF),
}


def peak_flop_per_s(gpu: Gpu, compute: ComputeDtype) -> float:
    """Dense rate in a format [FLOP/s], or in the next wider one that the GPU has.

    Raises `ValueError` where the GPU has no rate at all.
    """
    for candidate in _FALLBACK.get(compute, HALF):
        rate = gpu.peak_flop_per_s.get(candidate)
        if rate:
            return rate
    raise ValueError(f"{gpu.name} has no rate for {compute} or a wider format")


def p_norm(first_s: FloatArray, second_s: FloatArray, exponent: float) -> FloatArray:
    """Soft maximum of two times: (a^p + b^p)^(1/p), exact where one dominates.

    >>> float(p_norm(np.array([3.0]), np.array([4.0]), 2.0)[0])
    5.0
    """
    longer = np.maximum(first_s, second_s)
    shorter = np.minimum(first_s, second_s)
    result: FloatArray = longer * (1.0 + (shorter / longer) ** exponent) ** (1.0 / exponent)
    return result
