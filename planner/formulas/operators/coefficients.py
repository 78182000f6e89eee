"""What is fitted for one GPU: the numbers of every operator form, with where they come from and how well they fit."""

from enum import StrEnum
from functools import cached_property
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from planner.domain.base import Frozen
from planner.domain.dtypes import ComputeDtype, WeightDtype
from planner.domain.evidence import Basis
from planner.domain.hardware import Gpu
from planner.formulas.arrays import FloatArray
from planner.formulas.host_time import HostTime, MeasuredHost

OPERATOR_FORMAT = 2
"""Raised whenever a form changes meaning, so that an older file is refused and not misread."""


# Wide enough for whatever a fit finds, narrow enough that no damaged number overflows later.
Seconds = Annotated[float, Field(ge=0, le=1)]
Efficiency = Annotated[float, Field(ge=1e-6, le=100)]
Multiple = Annotated[float, Field(ge=0, le=1e6)]
ErrorRatio = Annotated[float, Field(ge=-1e12, le=1e12)]
Log = Annotated[float, Field(ge=-64, le=64)]


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
    rows: int = Field(default=0, ge=0, le=10**12)
    median_ratio: ErrorRatio | None = None
    p90_ratio: ErrorRatio | None = None
    bias_ratio: ErrorRatio | None = None
    """Median of predicted / measured - 1, sign kept."""
    held_out_rows: int = Field(default=0, ge=0, le=10**12)
    held_out_median_ratio: ErrorRatio | None = None
    """On shapes the fit did not see (30 % of them), from a fit to the others."""
    held_out_p90_ratio: ErrorRatio | None = None


class GemmCurve(Frozen):
    """p-norm of compute and memory time, plus a launch, reduction depth and quantisation of the input."""

    flop_efficiency: Efficiency
    byte_efficiency: Efficiency
    exponent: float = Field(ge=0.5, le=64)
    constant_s: Seconds
    per_k_s: Seconds
    """Seconds per element of the reduction dimension."""
    quantize_passes: Multiple
    """Multiples of reading an input value in 16 bit and writing it in 8; 0 where inputs stay in 16 bit."""


class GemmColumns(NamedTuple):
    """`GemmCurve` with a column [curves, 1] for each of its coefficients."""

    flop_efficiency: FloatArray
    byte_efficiency: FloatArray
    exponent: FloatArray
    constant_s: FloatArray
    per_k_s: FloatArray
    quantize_passes: FloatArray


class GemmSurface(Frozen):
    """What the curves leave: log(measured / curve) on a grid of tokens x outputs x inputs, linear in between."""

    log2_tokens: tuple[Log, ...] = Field(min_length=2)
    log2_width: tuple[Log, ...] = Field(min_length=2)
    """Grid of both n and k."""
    log_ratio: tuple[Log, ...]
    """[tokens, n, k] flattened, last index fastest."""

    @model_validator(mode="after")
    def _complete(self) -> "GemmSurface":
        expected = len(self.log2_tokens) * len(self.log2_width) ** 2
        if len(self.log_ratio) != expected:
            raise ValueError(f"a surface of this grid has {expected} values, got {len(self.log_ratio)}")
        return self

    @cached_property
    def grid(self) -> FloatArray:
        """`log_ratio` as [tokens, n, k]."""
        widths = len(self.log2_width)
        return np.array(self.log_ratio).reshape(len(self.log2_tokens), widths, widths)

    @cached_property
    def tokens(self) -> FloatArray:
        """`log2_tokens` as an array."""
        return np.array(self.log2_tokens)


class GemmFit(Frozen):
    """One storage format of weights: what is multiplied in which format, below and above the blend."""

    compute: ComputeDtype
    weight_bytes: float = Field(gt=0, le=16)
    """Per weight, scales included."""
    small: GemmCurve
    large: GemmCurve
    surface: GemmSurface | None = None
    small_evidence: Evidence
    large_evidence: Evidence

    @cached_property
    def curves(self) -> GemmColumns:
        """Both curves as columns [2, 1] of each coefficient, to be evaluated together."""
        pairs = zip(self.small.model_dump().values(), self.large.model_dump().values(), strict=True)
        return GemmColumns(*(np.array([[small], [large]]) for small, large in pairs))


class MoeCurve(Frozen):
    """p-norm of grouped-matmul time and expert-weight traffic, plus routing, activations and launch."""

    flop_efficiency: Efficiency
    byte_efficiency: Efficiency
    exponent: float = Field(ge=0.5, le=64)
    imbalance_exponent: float = Field(ge=0, le=1)
    """a: the busiest of R expert-parallel ranks has R^a times the mean rows."""
    tile_rows: Multiple
    """Rows each active expert is padded by."""
    skew: float = Field(ge=1e-6, le=1e6)
    """s of E (1 - (1 + rows per expert / s)^-s) active experts; large is uniform routing."""
    constant_s: Seconds
    per_width_s: Seconds
    """Per element of both reduction dimensions, inputs and intermediate."""
    activation_efficiency: Efficiency
    """Share of memory bandwidth that routed activations move at."""
    token_passes: Multiple
    """Times every token's hidden state is moved whether routed here or not."""


class MoeFit(Frozen):
    """One storage format of expert weights, with experts sliced (tensor) or dealt out (expert parallel)."""

    compute: ComputeDtype
    weight_bytes: float = Field(gt=0, le=16)
    tensor_parallel: MoeCurve
    expert_parallel: MoeCurve
    tensor_parallel_evidence: Evidence
    expert_parallel_evidence: Evidence


class DecodeAttentionFit(Frozen):
    """One new token a sequence against its cache: KV traffic, a launch, and work per sequence and head."""

    head_dim: int = Field(gt=0, le=65_536)
    windowed: bool
    """Measured with a sliding window; kernels differ."""
    byte_efficiency: Efficiency
    constant_s: Seconds
    per_kv_head_s: Seconds
    """Per sequence and KV head."""
    per_query_head_s: Seconds
    """Per sequence and query head."""
    evidence: Evidence


class ContextAttentionFit(Frozen):
    """Many new tokens a sequence, causal among themselves, against all earlier ones."""

    head_dim: int = Field(gt=0, le=65_536)
    windowed: bool
    flop_efficiency: Efficiency
    byte_efficiency: Efficiency
    constant_s: Seconds
    per_key_s: Seconds
    """Per key of one sequence: a block of queries walks its keys one after another, on however large a GPU."""
    evidence: Evidence


class MlaFit(Frozen):
    """Multi-head latent attention without its projections."""

    bmm_flop_efficiency: Efficiency
    bmm_byte_efficiency: Efficiency
    bmm_constant_s: Seconds
    """Of one absorbed batched matmul; a decode layer has two."""
    decode_byte_efficiency: Efficiency
    decode_flop_efficiency: Efficiency
    decode_constant_s: Seconds
    context_flop_efficiency: Efficiency
    context_byte_efficiency: Efficiency
    """Share of memory bandwidth at which expanded keys and values are written and read."""
    context_constant_s: Seconds
    bmm_evidence: Evidence
    decode_evidence: Evidence
    context_evidence: Evidence


class LinearAttentionFit(Frozen):
    """Gated delta net or Mamba mixer without its projections."""

    decode_byte_efficiency: Efficiency
    """Share of memory bandwidth at which a sequence's state is read and written."""
    decode_constant_s: Seconds
    context_byte_efficiency: Efficiency
    """Share of memory bandwidth at which a prompt's inputs, convolutions and outputs move."""
    context_constant_s: Seconds
    context_per_token_s: Seconds
    """Per token of one sequence: chunks follow one another, on however large a GPU."""
    decode_evidence: Evidence
    context_evidence: Evidence


class ElementwiseFit(Frozen):
    """Norms, activations, rotary embeddings: no table times them, so these are assumed until steps are measured."""

    launch_s: Seconds = 1.5e-6
    """Of one kernel inside a CUDA graph."""
    byte_efficiency: Efficiency = 0.75
    """Share of memory bandwidth that their traffic moves at."""
    logit_s: Seconds = 0.0
    """Sampling, for each entry of the vocabulary and sampled row; a GPU hides it in the host time of a sequence."""
    dispatch_ratio: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    """Launches from Python over those of `launches.py`, which are a CPU's; 0 where kernels run on the host itself."""


class CollectiveCurve(Frozen):
    """p-norm of a latency and the ring volume 2 (n - 1) / n x message over the link, and what that leaves."""

    ranks: int = Field(ge=2, le=65_536)
    engine_version: str = ""
    """The release that chose the kernels; empty where it makes no difference."""
    constant_s: Seconds
    link_efficiency: Efficiency
    exponent: float = Field(ge=0.1, le=64)
    log2_bytes: tuple[Log, ...] = ()
    log_ratio: tuple[Log, ...] = ()
    """log(measured / curve) at messages of 2^log2_bytes, linear in between: other kernels take over at some sizes."""
    evidence: Evidence

    @model_validator(mode="after")
    def _paired(self) -> "CollectiveCurve":
        if len(self.log2_bytes) != len(self.log_ratio):
            raise ValueError(f"{len(self.log2_bytes)} sizes with {len(self.log_ratio)} ratios")
        return self


class AllReduceFit(Frozen):
    """Sum over ranks, as the engine dispatches it (`engine`), else by NCCL."""

    engine: tuple[CollectiveCurve, ...]
    """One for each group and release; its own kernel for short messages, others above."""
    nccl: tuple[CollectiveCurve, ...]


class TableSource(Frozen):
    """One measured table that a fit used."""

    path: str
    """Relative to the directory of tables."""
    engine_version: str
    rows: int = Field(ge=1, le=10**12)


class OperatorCoefficients(Frozen):
    """Everything fitted for one GPU, JSON-serialisable."""

    format: int = OPERATOR_FORMAT
    gpu: str
    fitted_on: str
    """ISO date."""
    tables: tuple[TableSource, ...]
    gemm: dict[WeightDtype, GemmFit]
    moe: dict[WeightDtype, MoeFit]
    decode_attention: dict[int, tuple[DecodeAttentionFit, ...]]
    """By bytes of one cached value: 2 or 1."""
    context_attention: dict[int, tuple[ContextAttentionFit, ...]]
    mla: MlaFit
    linear_attention: LinearAttentionFit
    elementwise: ElementwiseFit = ElementwiseFit()
    nvlink_all_reduce: AllReduceFit
    pcie_all_reduce: AllReduceFit

    def __hash__(self) -> int:
        return hash((self.gpu, self.fitted_on))


class StepTuning(NamedTuple):
    """What served runs say of kernel times, beyond what tables of single kernels can tell."""

    sustained_slowdown: float = 0.0
    """Products and prompts' attention bound by compute take 1 + this times as long as in the tables: they were timed in
    bursts of a few runs, before the card lowers its clocks."""
    rank_wait_s: float = 0.0
    """What each doubling of the ranks adds to a collective: in a table they arrive together, in a step they wait for
    the last."""
    decode_ratio: float = 1.0
    """Measured / predicted time of steps that only decode, where this model was run with this TP."""
    prompt_ratio: float = 1.0
    """The same of steps with long prompts."""
    log2_tokens: tuple[float, ...] = ()
    log_ratio: tuple[float, ...] = ()
    """Measured / predicted time of a step's layers without attention, in logarithms, at 2^log2_tokens scheduled tokens,
    linear in between and constant beyond; empty where steps of this model were not measured one by one."""


UNTUNED = StepTuning()


class GpuOperators(NamedTuple):
    """A GPU's datasheet with the efficiencies that apply to it."""

    gpu: Gpu
    coefficients: OperatorCoefficients
    basis: Basis
    donor: str
    """The GPU whose tables the coefficients come from."""
    tuning: StepTuning = UNTUNED
    host: MeasuredHost | None = None
    """As steps measured on this GPU's machine have it; None where none were."""

    def host_on(self, host: HostTime) -> HostTime:
        """What is known of the host in general, with what was measured beside this GPU."""
        return host if self.host is None else self.host.on(host)

    @property
    def compute_slowdown(self) -> float:
        """Factor on time bound by compute."""
        return 1.0 + self.tuning.sustained_slowdown


def transfer(operators: GpuOperators, gpu: Gpu, basis: Basis = Basis.TRANSFERRED) -> GpuOperators:
    """The same efficiencies and constants on another GPU's datasheet figures, labelled with their donor."""
    return operators._replace(gpu=gpu, basis=basis)


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


def p_norm(first_s: FloatArray, second_s: FloatArray, exponent: FloatArray | float) -> FloatArray:
    """Soft maximum of two times: (a^p + b^p)^(1/p), exact where one dominates.

    >>> float(p_norm(np.array([3.0]), np.array([4.0]), 2.0)[0])
    5.0
    """
    longer = np.maximum(first_s, second_s)
    shorter = np.minimum(first_s, second_s)
    result: FloatArray = longer * (1.0 + (shorter / longer) ** exponent) ** (1.0 / exponent)
    return result
