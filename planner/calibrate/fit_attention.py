"""Fits softmax attention: decoding and prompts, per cache format, head size and kind of scope."""

from typing import NamedTuple

import numpy as np

from planner.calibrate.fitting import Bound, evidence, fit_and_hold_out, robust_fit, sample_rows
from planner.calibrate.tables import KernelTable
from planner.domain.dtypes import ComputeDtype
from planner.domain.hardware import Gpu
from planner.formulas.arrays import BoolArray, FloatArray, IntArray
from planner.formulas.operators.coefficients import (
    ContextAttentionFit,
    DecodeAttentionFit,
    peak_flop_per_s,
)

KV_LABELS = {2: "bfloat16", 1: "fp8"}
ACTIVATION_BYTES = 2.0
CACHED_SPEEDUP = 1.1
"""A KV cache read faster than memory allows was timed out of the L2 cache, where serving never finds it."""
MIN_QUERY_TOKENS = 16
"""Shorter prompts run the decode kernel."""
MIN_ROWS = 50

_DECODE_BOUNDS = (
    Bound(0.8, 0.05, 1.0),
    Bound(1e-5, 1e-7, 1e-4),
    Bound(2e-8, 1e-12, 1e-6),
    Bound(2e-9, 1e-12, 1e-6),
)
_CONTEXT_BOUNDS = (
    Bound(0.7, 0.02, 1.0),
    Bound(0.6, 0.02, 3.0),
    Bound(1e-5, 1e-7, 1e-4),
    Bound(1e-9, 1e-13, 1e-7),
)


class _Columns(NamedTuple):
    """Terms of a linear form [rows, terms]: seconds per unit of each coefficient, the efficiencies inverted."""

    terms: FloatArray
    efficiencies: int
    """The first columns divide by their coefficient; the others multiply with it."""


def _predict_s(columns: _Columns, values: FloatArray) -> FloatArray:
    factors = values.copy()
    factors[: columns.efficiencies] = 1.0 / factors[: columns.efficiencies]
    return np.asarray(columns.terms @ factors, dtype=np.float64)


def _rows_of(columns: _Columns, index: IntArray) -> _Columns:
    return _Columns(columns.terms[index], columns.efficiencies)


def _head_shapes(table: KernelTable) -> FloatArray:
    """One number for each head configuration."""
    column = table.numbers
    return np.asarray(
        (column["num_heads"] * 2.0**10 + column["num_key_value_heads"]) * 2.0**12 + column["head_dim"]
    )


def _scope(table: KernelTable, tokens: FloatArray) -> FloatArray:
    """Keys that one query can see: all of them, or the window's."""
    window = table.numbers.get("window_size", np.zeros_like(tokens))
    return np.where(window > 0, np.minimum(window, tokens), tokens)


def _groups(table: KernelTable, kv_bytes: int) -> list[tuple[int, bool, KernelTable]]:
    """Head sizes and kinds of scope that the table holds for one cache format."""
    part = table.where(table.labels["kv_cache_dtype"] == KV_LABELS[kv_bytes])
    window = part.numbers.get("window_size", np.zeros_like(part.latency_s))
    groups = []
    for head_dim in np.unique(part.numbers["head_dim"]):
        for windowed in (False, True):
            rows = (part.numbers["head_dim"] == head_dim) & ((window > 0) == windowed)
            if rows.sum() >= MIN_ROWS:
                groups.append((int(head_dim), windowed, part.where(rows)))
    return groups


def decode_columns(table: KernelTable, kv_bytes: int, gpu: Gpu) -> _Columns:
    """Terms of KV bytes / (BW e) + c + batch (kv_heads tau_kv + heads tau_q)."""
    column = table.numbers
    batch, kv_heads = column["batch_size"], column["num_key_value_heads"]
    keys = _scope(table, column["step"] + 1.0)
    kv_values = batch * keys * kv_heads * (2.0 * column["head_dim"])
    terms = (
        kv_values * kv_bytes / gpu.memory_bandwidth_bytes_per_s,
        np.ones_like(batch),
        batch * kv_heads,
        batch * column["num_heads"],
    )
    return _Columns(np.column_stack(terms), efficiencies=1)


def context_columns(table: KernelTable, kv_bytes: int, gpu: Gpu) -> _Columns:
    """Terms of F / (P e_f) + B / (BW e_b) + c + keys tau."""
    column = table.numbers
    batch, tokens, heads = column["batch_size"], column["isl"], column["num_heads"]
    width = 2.0 * column["head_dim"]
    keys = _scope(table, tokens)
    pairs = batch * (keys * keys / 2.0 + (tokens - keys) * keys)
    moved = heads * width * ACTIVATION_BYTES + column["num_key_value_heads"] * width * kv_bytes
    terms = (
        2.0 * pairs * heads * width / peak_flop_per_s(gpu, ComputeDtype.BF16),
        batch * tokens * moved / gpu.memory_bandwidth_bytes_per_s,
        np.ones_like(batch),
        keys,
    )
    return _Columns(np.column_stack(terms), efficiencies=2)


def _fit(columns: _Columns, bounds: tuple[Bound, ...], latency_s: FloatArray, rows: BoolArray) -> FloatArray:
    index = sample_rows(rows)
    part = _rows_of(columns, index)
    return robust_fit(lambda values: _predict_s(part, values), bounds, latency_s[index])


def _kernel(table: KernelTable) -> str:
    return ", ".join(sorted({str(name).removeprefix("vllm_") for name in table.labels["kernel_source"]}))


def fit_decode(table: KernelTable, gpu: Gpu) -> dict[int, tuple[DecodeAttentionFit, ...]]:
    """Decode attention of every cache format, head size and kind of scope in the table."""
    fits: dict[int, tuple[DecodeAttentionFit, ...]] = {}
    for kv_bytes in KV_LABELS:
        found = []
        for head_dim, windowed, part in _groups(table, kv_bytes):
            columns = decode_columns(part, kv_bytes, gpu)
            real = part.latency_s >= CACHED_SPEEDUP * columns.terms[:, 0]
            part, columns = part.where(real), _rows_of(columns, np.flatnonzero(real))
            values, outcome = fit_and_hold_out(
                lambda rows, c=columns, t=part.latency_s: _fit(c, _DECODE_BOUNDS, t, rows),  # type: ignore[misc]
                lambda values, c=columns: _predict_s(c, values),  # type: ignore[misc]
                _head_shapes(part),
            )
            everything = np.ones(part.latency_s.shape, dtype=np.bool_)
            found.append(
                DecodeAttentionFit(
                    head_dim=head_dim,
                    windowed=windowed,
                    byte_efficiency=float(values[0]),
                    constant_s=float(values[1]),
                    per_kv_head_s=float(values[2]),
                    per_query_head_s=float(values[3]),
                    evidence=evidence(part.latency_s, outcome, everything, _kernel(part)),
                )
            )
        if found:
            fits[kv_bytes] = tuple(found)
    return fits
