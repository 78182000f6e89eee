"""Fits linear layers: a curve for few tokens, one for many, and a smooth surface for what both leave."""

from itertools import product
from math import log2
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from planner.calibrate.fitting import Bound, evidence, fit_and_hold_out, robust_fit, rounded, sample_rows
from planner.calibrate.tables import KernelTable
from planner.domain.dtypes import ComputeDtype, WeightDtype
from planner.domain.hardware import Gpu
from planner.formulas.arrays import BoolArray, FloatArray, IntArray
from planner.formulas.operators.coefficients import (
    Evidence,
    GemmColumns,
    GemmCurve,
    GemmFit,
    GemmSurface,
    Origin,
)
from planner.formulas.operators.gemm import (
    GemmWork,
    blended_log_s,
    gemm_curve_s,
    gemm_work,
    surface_log_ratio,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SMALL_TOKENS = 256
MIN_WIDTH = 256
MIN_WEIGHTS = 2**20
MAX_WEIGHTS = 2**30
"""Shapes of real layers on one rank; smaller ones are launch noise."""
ALIGNED_TOKENS = 16
"""Beyond SMALL_TOKENS the tables have m and m + 1 for round m. In 8 bit the odd ones take 20 to 50 % longer, longer
than larger round ones; prompts of served runs, of any length, are computed as fast as the round ones."""
CACHED_SPEEDUP = 1.1
LARGEST_CACHED_BYTES = 200e6
"""A weight read about as fast as memory allows, or faster, was timed out of the L2 cache, where serving never finds it;
nearly twice the largest L2 and more is read from memory, however fast."""
SURFACE_TOKENS = (1, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384)
SURFACE_WIDTHS = (
    *(256, 512, 768, 1024, 1536, 2048, 2560, 3072, 3584, 4096),
    *(5120, 6144, 7168, 8192, 10240, 12288, 16384, 51200, 65536),
)
"""Those of the tables: kernels are chosen shape by shape, and jump between them."""
SURFACE_STIFFNESS = 0.03
SURFACE_RIDGE = 0.003
BLOCK_MIN_TOKENS = 1024
HOST_FLOOR_MULTIPLE = 2.0

WEIGHT_BYTES = {
    WeightDtype.BF16: 2.0,
    WeightDtype.FP8: 1.0,
    WeightDtype.FP8_BLOCK: 1.0 + 4.0 / (128 * 128),
    WeightDtype.INT8: 1.0,
    WeightDtype.INT4: 0.5 + 2.0 / 128,
    WeightDtype.MXFP4: 0.5 + 1.0 / 32,
    WeightDtype.NVFP4: 0.5 + 1.0 / 16,
}
"""A weight with its share of scales."""

_TABLE_NAMES = {WeightDtype.BF16: "bfloat16", WeightDtype.FP8: "fp8", WeightDtype.NVFP4: "nvfp4"}
_COMPUTE = {
    WeightDtype.BF16: ComputeDtype.BF16,
    WeightDtype.FP8: ComputeDtype.FP8,
    WeightDtype.NVFP4: ComputeDtype.FP4,
}

_BOUNDS = (
    Bound(0.7, 0.05, 1.0),
    Bound(0.85, 0.05, 1.0),
    Bound(2.0, 1.0, 30.0),
    Bound(4e-6, 1e-8, 1e-4),
    Bound(1e-10, 1e-14, 1e-8),
    Bound(0.5, 1e-3, 10.0),
)
_NO_QUANTIZATION = Bound(1e-9, 1e-10, 1e-8)


class _Rows(NamedTuple):
    m: FloatArray
    n: FloatArray
    k: FloatArray
    latency_s: FloatArray
    in_memory: BoolArray
    """False where the weight came out of the L2 cache."""


class _Model(NamedTuple):
    small: FloatArray
    large: FloatArray
    surface: GemmSurface


def _rows(table: KernelTable, label: str, weight_bytes: float, gpu: Gpu) -> _Rows:
    n, k = table.numbers["n"], table.numbers["k"]
    keep = (table.labels["gemm_dtype"] == label) & (np.minimum(n, k) >= MIN_WIDTH)
    keep &= (table.numbers["m"] <= SMALL_TOKENS) | (table.numbers["m"] % ALIGNED_TOKENS == 0)
    table = table.where(keep & (n * k >= MIN_WEIGHTS) & (n * k <= MAX_WEIGHTS))
    m, n, k = table.numbers["m"], table.numbers["n"], table.numbers["k"]
    memory_s = n * k * weight_bytes / gpu.memory_bandwidth_bytes_per_s
    cached = (table.latency_s < CACHED_SPEEDUP * memory_s) & (m <= 64)
    cached &= n * k * weight_bytes < LARGEST_CACHED_BYTES
    cached_shapes = np.unique(_shape(n, k)[cached])
    in_memory = ~np.isin(_shape(n, k), cached_shapes) | (m > SMALL_TOKENS)
    return _Rows(m, n, k, table.latency_s, in_memory)


def _shape(n: FloatArray, k: FloatArray) -> FloatArray:
    """One number for each weight shape."""
    return n * 2.0**20 + k


def _curve_s(values: FloatArray, work: GemmWork) -> FloatArray:
    return gemm_curve_s(work, GemmColumns(*values))


def _take(work: GemmWork, index: IntArray) -> GemmWork:
    return GemmWork(*(np.asarray(column)[index] for column in work))


def _fit_curve(work: GemmWork, latency_s: FloatArray, rows: BoolArray, quantized: bool) -> FloatArray:
    index = sample_rows(rows)
    part = _take(work, index)
    bounds = (*_BOUNDS[:-1], _BOUNDS[-1] if quantized else _NO_QUANTIZATION)
    values = robust_fit(lambda x: _curve_s(x, part), bounds, latency_s[index])
    if not quantized:
        values[-1] = 0.0
    return values


def _interpolation(points: tuple[FloatArray, ...], axes: tuple[FloatArray, ...]) -> "csr_array":
    """Multilinear interpolation on a grid as a matrix [rows, knots], constant beyond the grid."""
    from scipy.sparse import csr_array

    count = points[0].size
    left = [np.clip(np.searchsorted(a, p) - 1, 0, a.size - 2) for p, a in zip(points, axes, strict=True)]
    share = [
        np.clip((p - a[i]) / (a[i + 1] - a[i]), 0.0, 1.0) for p, a, i in zip(points, axes, left, strict=True)
    ]
    columns, weights = [], []
    for corner in product((0, 1), repeat=len(axes)):
        column, weight = np.zeros(count, dtype=np.int64), np.ones(count)
        for axis, i, s, right in zip(axes, left, share, corner, strict=True):
            column = column * axis.size + i + right
            weight = weight * (s if right else 1.0 - s)
        columns.append(column)
        weights.append(weight)
    rows = np.tile(np.arange(count), len(columns))
    shape = (count, int(np.prod([axis.size for axis in axes])))
    return csr_array((np.concatenate(weights), (rows, np.concatenate(columns))), shape=shape)


def _stiffness(axes: tuple[FloatArray, ...]) -> "csr_array":
    """Penalty matrix of squared slopes between neighbours along every axis of the grid."""
    from scipy.sparse import csr_array, eye_array, kron

    size = int(np.prod([axis.size for axis in axes]))
    total = csr_array((size, size))
    for number, axis in enumerate(axes):
        slope = np.diff(np.eye(axis.size), axis=0) / np.diff(axis)[:, None]
        before = int(np.prod([other.size for other in axes[:number]]))
        after = int(np.prod([other.size for other in axes[number + 1 :]]))
        total = total + csr_array(kron(kron(eye_array(before), slope.T @ slope), eye_array(after)))
    return total


def fit_surface(rows: tuple[FloatArray, FloatArray, FloatArray], log_ratio: FloatArray) -> GemmSurface:
    """The smoothest grid over (m, n, k) that follows `log_ratio`: ridge on slopes between neighbours, outliers damped.

    Four rounds of reweighted least squares; every cell between the rows is pulled to its neighbours, and all to 0.
    """
    from scipy.sparse import diags_array, eye_array
    from scipy.sparse.linalg import spsolve

    axes = (np.log2(SURFACE_TOKENS), np.log2(SURFACE_WIDTHS), np.log2(SURFACE_WIDTHS))
    design = _interpolation(tuple(np.log2(column) for column in rows), axes)
    penalty = SURFACE_STIFFNESS * _stiffness(axes) + SURFACE_RIDGE * eye_array(design.shape[1])
    weight = np.ones(log_ratio.size)
    for _ in range(4):
        normal = design.T @ diags_array(weight) @ design + penalty
        grid = spsolve(normal.tocsc(), design.T @ (weight * log_ratio))
        weight = 1.0 / np.sqrt(1.0 + ((log_ratio - design @ grid) / 0.1) ** 2)
    return GemmSurface(
        log2_tokens=tuple(rounded(log2(m)) for m in SURFACE_TOKENS),
        log2_width=tuple(rounded(log2(width)) for width in SURFACE_WIDTHS),
        log_ratio=tuple(round(float(value), 3) for value in grid),
    )


def _surface_at(rows: _Rows, surface: GemmSurface) -> FloatArray:
    """The surface at every row [rows], shape by shape."""
    result = np.zeros_like(rows.m)
    shapes = _shape(rows.n, rows.k)
    order = np.argsort(shapes, kind="stable")
    starts = np.flatnonzero(np.diff(shapes[order], prepend=-1.0))
    for part in np.split(order, starts[1:]):
        n, k = rows.n[part[0]], rows.k[part[0]]
        result[part] = surface_log_ratio(np.log2(rows.m[part]), n, k, surface)
    return result


def _predict_s(model: _Model, rows: _Rows, work: GemmWork) -> FloatArray:
    curves_s = np.stack([_curve_s(model.small, work), _curve_s(model.large, work)])
    return np.asarray(np.exp(blended_log_s(np.log2(rows.m), curves_s) + _surface_at(rows, model.surface)))


def _curve(values: FloatArray) -> GemmCurve:
    return GemmCurve(**dict(zip(GemmCurve.model_fields, (float(value) for value in values), strict=True)))


def fit_dtype(table: KernelTable, dtype: WeightDtype, gpu: Gpu) -> GemmFit | None:
    """One storage format's curves, surface and errors; None where the table does not hold it."""
    label = _TABLE_NAMES[dtype]
    if not (table.labels["gemm_dtype"] == label).any():
        return None
    blank = GemmCurve(
        flop_efficiency=1, byte_efficiency=1, exponent=1, constant_s=0, per_k_s=0, quantize_passes=0
    )
    unmeasured = Evidence(origin=Origin.TABLE)
    shell = GemmFit(
        compute=_COMPUTE[dtype],
        weight_bytes=WEIGHT_BYTES[dtype],
        small=blank,
        large=blank,
        small_evidence=unmeasured,
        large_evidence=unmeasured,
    )
    rows = _rows(table, label, shell.weight_bytes, gpu)
    work = gemm_work(rows.m, rows.n, rows.k, shell, gpu)
    quantized = dtype is not WeightDtype.BF16
    small, large = rows.m <= SMALL_TOKENS, rows.m > SMALL_TOKENS

    def fit(use: BoolArray) -> _Model:
        use = use & rows.in_memory
        small_values = _fit_curve(work, rows.latency_s, use & small, quantized)
        large_values = _fit_curve(work, rows.latency_s, use & large, quantized)
        curves_s = np.stack([_curve_s(small_values, work), _curve_s(large_values, work)])
        left = np.log(rows.latency_s) - blended_log_s(np.log2(rows.m), curves_s)
        surface = fit_surface((rows.m[use], rows.n[use], rows.k[use]), left[use])
        return _Model(small_values, large_values, surface)

    model, outcome = fit_and_hold_out(fit, lambda m: _predict_s(m, rows, work), _shape(rows.n, rows.k))
    return shell.model_copy(
        update={
            "small": _curve(model.small),
            "large": _curve(model.large),
            "surface": model.surface,
            "small_evidence": evidence(rows.latency_s, outcome, small & rows.in_memory),
            "large_evidence": evidence(rows.latency_s, outcome, large),
        }
    )


def fit_fp8_block(table: KernelTable, fp8: GemmFit, gpu: Gpu) -> GemmFit | None:
    """The fp8 curves, with the compute rate for many tokens refitted to block-scaled rows.

    The table was timed without CUDA graphs, so that small shapes show the host and not the kernel: only rows of
    1024 tokens or more, and of twice the flat floor, are believed.
    """
    label = "fp8_block"
    if not (table.labels["gemm_dtype"] == label).any():
        return None
    rows = _rows(table, label, WEIGHT_BYTES[WeightDtype.FP8_BLOCK], gpu)
    work = gemm_work(rows.m, rows.n, rows.k, fp8, gpu)
    smallest = (rows.m <= 64) & (rows.n * rows.k <= 4 * MIN_WEIGHTS)
    floor_s = float(np.median(rows.latency_s[smallest]))
    believed = (rows.m >= BLOCK_MIN_TOKENS) & (rows.latency_s >= HOST_FLOOR_MULTIPLE * floor_s)
    columns = np.array(list(fp8.large.model_dump().values()))
    surface = fp8.surface
    log_surface = np.zeros_like(rows.m) if surface is None else _surface_at(rows, surface)

    def predict(values: FloatArray) -> FloatArray:
        return np.asarray(_curve_s(np.concatenate([values, columns[1:]]), work) * np.exp(log_surface))

    def fit(use: BoolArray) -> FloatArray:
        index = sample_rows(use & believed)
        part, factor = _take(work, index), np.exp(log_surface[index])
        return robust_fit(
            lambda x: _curve_s(np.concatenate([x, columns[1:]]), part) * factor,
            [_BOUNDS[0]],
            rows.latency_s[index],
        )

    values, outcome = fit_and_hold_out(fit, predict, _shape(rows.n, rows.k))
    note = f"fp8 curve; its own table is host time of {floor_s * 1e6:.0f} us there"
    return fp8.model_copy(
        update={
            "weight_bytes": WEIGHT_BYTES[WeightDtype.FP8_BLOCK],
            "large": fp8.large.model_copy(update={"flop_efficiency": float(values[0])}),
            "small_evidence": Evidence(origin=Origin.DONOR, note=note),
            "large_evidence": evidence(
                rows.latency_s,
                outcome,
                believed,
                "fp8 curve with its own compute rate; rows above the host floor",
            ),
        }
    )


def fit_gemm(table: KernelTable, gpu: Gpu) -> dict[WeightDtype, GemmFit]:
    """Every storage format that the table holds."""
    fits: dict[WeightDtype, GemmFit] = {}
    for dtype in _TABLE_NAMES:
        found = fit_dtype(table, dtype, gpu)
        if found is not None:
            fits[dtype] = found
    if WeightDtype.FP8 in fits:
        block = fit_fp8_block(table, fits[WeightDtype.FP8], gpu)
        if block is not None:
            fits[WeightDtype.FP8_BLOCK] = block
    return fits
