"""Fits routed experts: tensor-parallel and expert-parallel rows apart, one storage format at a time."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from planner.calibrate.fit_gemm import WEIGHT_BYTES
from planner.calibrate.fitting import Bound, HeldOut, evidence, fit_and_hold_out, robust_fit, sample_rows
from planner.calibrate.tables import KernelTable, read_table, table_paths
from planner.domain.dtypes import ComputeDtype, WeightDtype
from planner.domain.hardware import Gpu
from planner.formulas.arrays import BoolArray, FloatArray
from planner.formulas.operators.coefficients import Evidence, MoeCurve, MoeFit, TableSource, peak_flop_per_s
from planner.formulas.operators.gemm import ACTIVATION_BYTES
from planner.formulas.operators.moe import MoeWork, moe_curve_s

GATED_MATRICES = 3
MAX_TOKENS = 16384
MIN_INTERMEDIATE = 96
MIN_SHAPES_TO_HOLD_OUT = 3
MAX_TENSOR_RANKS = 16
MAX_EXPERT_RANKS = 64
CACHED_SPEEDUP = 1.1
INT4_EXPERT_BYTES = 0.5 + 2.0 / 32
"""The newest tables hold the shape of one int4 model alone, whose checkpoint has a scale for 32 weights."""

_LABELS = {
    WeightDtype.BF16: "bfloat16",
    WeightDtype.FP8: "fp8",
    WeightDtype.FP8_BLOCK: "fp8_block",
    WeightDtype.INT4: "int4_wo",
    WeightDtype.MXFP4: "w4a16_mxfp4",
    WeightDtype.NVFP4: "nvfp4",
}
_COMPUTE = {
    WeightDtype.FP8: ComputeDtype.FP8,
    WeightDtype.FP8_BLOCK: ComputeDtype.FP8,
    WeightDtype.NVFP4: ComputeDtype.FP4,
}
_MODELOPT_CUTLASS_FP8 = "vllm_modeloptfp8moe_flashinfer_cutlass_flashinferexperts"
"""On Hopper this kernel, chosen for statically scaled checkpoints alone, is 2.4 times slower than bf16."""
_MXFP4_MODEL = "gptoss"
"""Kernels of the one family that ships its experts so."""

_BOUNDS = (
    Bound(0.5, 0.05, 1.0),
    Bound(0.7, 0.1, 1.0),
    Bound(2.0, 1.0, 30.0),
    Bound(0.4, 1e-3, 1.0),
    Bound(8.0, 0.01, 256.0),
    Bound(2.0, 0.3, 50.0),
    Bound(1.5e-5, 1e-7, 1e-3),
    Bound(1e-9, 1e-11, 1e-7),
    Bound(0.7, 0.02, 10.0),
    Bound(1.0, 0.01, 100.0),
)


class MoeRows(NamedTuple):
    """What the fit needs of a table's rows."""

    work: MoeWork
    latency_s: FloatArray
    shapes: FloatArray
    """One number for each expert shape (width, intermediate, experts, experts per token).

    Where one or two were timed, for each way of spreading them over ranks.
    """


def gated_power_law(table: KernelTable, label: str) -> KernelTable:
    """The rows of one format whose experts are gated and whose routing is skewed as in real traffic.

    Experts of 2688 and of top-22 routing (Nemotron-H) have no gate in some tables and one in others: left out.
    """
    routed = np.char.startswith(table.labels["distribution"], "power_law")
    keep = routed & (table.labels["moe_dtype"] == label) & (table.numbers["num_tokens"] <= MAX_TOKENS)
    ungated = (table.numbers["topk"] == 22) | (table.numbers["hidden_size"] == 2688)
    wide = table.numbers["inter_size"] / table.numbers["moe_tp_size"] >= MIN_INTERMEDIATE
    return table.where(keep & ~ungated & wide)


def moe_rows(table: KernelTable, compute: ComputeDtype, weight_bytes: float, gpu: Gpu) -> MoeRows:
    """A table's rows at the datasheet's rates."""
    column = table.numbers
    tokens, inputs, experts = column["num_tokens"], column["hidden_size"], column["num_experts"]
    ranks = column["moe_ep_size"]
    intermediate = column["inter_size"] / column["moe_tp_size"]
    weights = GATED_MATRICES * inputs * intermediate
    bytes_per_s = gpu.memory_bandwidth_bytes_per_s
    work = MoeWork(
        rows_per_expert=tokens * column["topk"] / experts,
        local_experts=experts / ranks,
        ranks=ranks,
        row_flop_s=2.0 * weights / peak_flop_per_s(gpu, compute),
        expert_byte_s=weights * weight_bytes / bytes_per_s,
        row_byte_s=(2 * inputs + GATED_MATRICES * intermediate) * ACTIVATION_BYTES / bytes_per_s,
        token_byte_s=tokens * inputs * ACTIVATION_BYTES / bytes_per_s,
        width=inputs + intermediate,
    )
    shapes = ((inputs * 2.0**16 + column["inter_size"]) * 2.0**12 + experts) * 32 + column["topk"]
    if np.unique(shapes).size < MIN_SHAPES_TO_HOLD_OUT:
        shapes = shapes * 2.0**9 + column["moe_tp_size"] + ranks
    return MoeRows(work, table.latency_s, shapes)


def _curve(values: FloatArray) -> MoeCurve:
    return MoeCurve(**dict(zip(MoeCurve.model_fields, (float(value) for value in values), strict=True)))


def _take(work: MoeWork, rows: BoolArray) -> MoeWork:
    index = sample_rows(rows)
    return MoeWork(*(np.asarray(column)[index] for column in work))


def fit_curve(rows: MoeRows, note: str) -> tuple[MoeCurve, Evidence]:
    """One way of spreading experts over ranks."""

    def fit(use: BoolArray) -> FloatArray:
        part = _take(rows.work, use)
        measured_s = rows.latency_s[sample_rows(use)]
        return robust_fit(lambda values: moe_curve_s(part, _curve(values)), _BOUNDS, measured_s)

    def predict_s(values: FloatArray) -> FloatArray:
        return moe_curve_s(rows.work, _curve(values))

    values, outcome = fit_and_hold_out(fit, predict_s, rows.shapes)
    return _curve(values), _evidence(rows, outcome, note)


def _evidence(rows: MoeRows, outcome: HeldOut, note: str) -> Evidence:
    shapes = np.unique(rows.shapes).size
    kernels = f"{note}; " if note else ""
    everything = np.ones(rows.shapes.shape, dtype=np.bool_)
    return evidence(rows.latency_s, outcome, everything, f"{kernels}{shapes} shapes")


def fit_format(table: KernelTable, dtype: WeightDtype, gpu: Gpu) -> MoeFit | None:
    """One storage format; None where the table does not hold it."""
    part = gated_power_law(table, _LABELS[dtype])
    if dtype is WeightDtype.MXFP4:
        part = part.where(np.char.find(part.labels["kernel_source"], _MXFP4_MODEL) >= 0)
    if gpu.compute_capability.startswith("9"):
        part = part.where(part.labels["kernel_source"] != _MODELOPT_CUTLASS_FP8)
    if not part.latency_s.size:
        return None
    compute = _COMPUTE.get(dtype, ComputeDtype.BF16)
    weight_bytes = INT4_EXPERT_BYTES if dtype is WeightDtype.INT4 else WEIGHT_BYTES[dtype]
    column = part.numbers
    sliced = (column["moe_ep_size"] == 1) & (column["moe_tp_size"] <= MAX_TENSOR_RANKS)
    expert_bytes = GATED_MATRICES * column["hidden_size"] * column["inter_size"] / column["moe_tp_size"]
    read_s = expert_bytes * weight_bytes * column["topk"] / gpu.memory_bandwidth_bytes_per_s
    cached = (part.latency_s < CACHED_SPEEDUP * read_s) & (column["num_tokens"] <= 2)
    dealt = (column["moe_ep_size"] > 1) & (column["moe_tp_size"] == 1)
    dealt &= column["moe_ep_size"] <= MAX_EXPERT_RANKS
    kernels = ", ".join(sorted({str(name).removeprefix("vllm_") for name in part.labels["kernel_source"]}))
    tensor, tensor_evidence = fit_curve(
        moe_rows(part.where(sliced & ~cached), compute, weight_bytes, gpu), kernels
    )
    expert, expert_evidence = fit_curve(moe_rows(part.where(dealt), compute, weight_bytes, gpu), kernels)
    return MoeFit(
        compute=compute,
        weight_bytes=weight_bytes,
        tensor_parallel=tensor,
        expert_parallel=expert,
        tensor_parallel_evidence=tensor_evidence,
        expert_parallel_evidence=expert_evidence,
    )


def fit_moe(gpu_directory: Path, gpu: Gpu) -> tuple[dict[WeightDtype, MoeFit], list[TableSource]]:
    """Every storage format, each from the newest table that holds it, with the tables used."""
    fits: dict[WeightDtype, MoeFit] = {}
    sources: list[TableSource] = []
    for path in table_paths(gpu_directory, "moe", "vllm", "moe"):
        missing = [dtype for dtype in _LABELS if dtype not in fits]
        if not missing:
            break
        table = read_table(path, gpu_directory.parent)
        found = {dtype: fit for dtype in missing if (fit := fit_format(table, dtype, gpu)) is not None}
        fits |= found
        if found:
            sources.append(table.source)
    return fits, sources
