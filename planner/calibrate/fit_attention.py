"""Fits softmax attention: decoding and prompts, per cache format, head size and kind of scope."""

import numpy as np

from planner.calibrate.fitting import Bound, LinearForm, Measured, fit_linear
from planner.calibrate.tables import KernelTable
from planner.domain.dtypes import ComputeDtype
from planner.domain.hardware import Gpu
from planner.formulas.arrays import FloatArray
from planner.formulas.operators.attention import ACTIVATION_BYTES
from planner.formulas.operators.coefficients import (
    ContextAttentionFit,
    DecodeAttentionFit,
    peak_flop_per_s,
)

KV_LABELS = {2: "bfloat16", 1: "fp8"}
CACHED_SPEEDUP = 1.1
"""A KV cache read faster than memory allows was timed out of the L2 cache, where serving never finds it."""
MIN_QUERY_TOKENS = 16
"""Shorter prompts run the decode kernel."""
MIN_ROWS = 50

_DECODE_BOUNDS = (
    Bound(0.8, 0.05, 1.0),
    Bound(1e-5, 1e-7, 1e-4),
    Bound(2e-8, 1e-12, 1e-5),
    Bound(2e-9, 1e-12, 1e-5),
)
_CONTEXT_BOUNDS = (
    Bound(0.7, 0.02, 1.0),
    Bound(0.6, 0.02, 1.0),
    Bound(1e-5, 1e-7, 1e-4),
    Bound(1e-9, 1e-13, 1e-7),
)


def _measured(table: KernelTable) -> Measured:
    column = table.numbers
    shapes = column["num_heads"] * 2.0**10 + column["num_key_value_heads"]
    kernels = sorted({str(name).removeprefix("vllm_") for name in table.labels["kernel_source"]})
    return Measured(table.latency_s, shapes, ", ".join(kernels))


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


def decode_form(table: KernelTable, kv_bytes: int, gpu: Gpu) -> LinearForm:
    """KV bytes / (BW e) + c + batch (kv_heads tau_kv + heads tau_q)."""
    column = table.numbers
    batch, kv_heads = column["batch_size"], column["num_key_value_heads"]
    keys = _scope(table, column["step"] + 1.0)
    kv_bytes_read = batch * keys * kv_heads * (2.0 * column["head_dim"]) * kv_bytes
    terms = (
        kv_bytes_read / gpu.memory_bandwidth_bytes_per_s,
        np.ones_like(batch),
        batch * kv_heads,
        batch * column["num_heads"],
    )
    return LinearForm(np.column_stack(terms), efficiencies=1)


def context_form(table: KernelTable, kv_bytes: int, gpu: Gpu) -> LinearForm:
    """F / (P e_f) + B / (BW e_b) + c + keys tau."""
    column = table.numbers
    batch, tokens, heads = column["batch_size"], column["isl"], column["num_heads"]
    width = 2.0 * column["head_dim"]
    keys = _scope(table, tokens)
    pairs = batch * (keys * keys / 2.0 + (tokens - keys) * keys)
    token_bytes = heads * width * ACTIVATION_BYTES + column["num_key_value_heads"] * width * kv_bytes
    terms = (
        2.0 * pairs * heads * width / peak_flop_per_s(gpu, ComputeDtype.BF16),
        batch * tokens * token_bytes / gpu.memory_bandwidth_bytes_per_s,
        np.ones_like(batch),
        keys,
    )
    return LinearForm(np.column_stack(terms), efficiencies=2)


def fit_decode_attention(table: KernelTable, gpu: Gpu) -> dict[int, tuple[DecodeAttentionFit, ...]]:
    """Decode attention of every cache format, head size and kind of scope in the table."""
    fits: dict[int, list[DecodeAttentionFit]] = {}
    for kv_bytes in KV_LABELS:
        for head_dim, windowed, group in _groups(table, kv_bytes):
            read_s = decode_form(group, kv_bytes, gpu).terms[:, 0]
            part = group.where(group.latency_s >= CACHED_SPEEDUP * read_s)
            values, worth = fit_linear(decode_form(part, kv_bytes, gpu), _DECODE_BOUNDS, _measured(part))
            fits.setdefault(kv_bytes, []).append(
                DecodeAttentionFit(
                    head_dim=head_dim,
                    windowed=windowed,
                    byte_efficiency=values[0],
                    constant_s=values[1],
                    per_kv_head_s=values[2],
                    per_query_head_s=values[3],
                    evidence=worth,
                )
            )
    return {kv_bytes: tuple(found) for kv_bytes, found in fits.items()}


def fit_context_attention(table: KernelTable, gpu: Gpu) -> dict[int, tuple[ContextAttentionFit, ...]]:
    """Prompt attention of every cache format, head size and kind of scope in the table."""
    fits: dict[int, list[ContextAttentionFit]] = {}
    for kv_bytes in KV_LABELS:
        for head_dim, windowed, group in _groups(table, kv_bytes):
            part = group.where(group.numbers["isl"] >= MIN_QUERY_TOKENS)
            values, worth = fit_linear(context_form(part, kv_bytes, gpu), _CONTEXT_BOUNDS, _measured(part))
            fits.setdefault(kv_bytes, []).append(
                ContextAttentionFit(
                    head_dim=head_dim,
                    windowed=windowed,
                    flop_efficiency=values[0],
                    byte_efficiency=values[1],
                    constant_s=values[2],
                    per_key_s=values[3],
                    evidence=worth,
                )
            )
    return {kv_bytes: tuple(found) for kv_bytes, found in fits.items()}
