"""Every operator's fit recovers the coefficients that made a table, and disbelieves what is not kernel time."""

import numpy as np
import pytest

from planner.calibrate.fit_attention import fit_context_attention, fit_decode_attention
from planner.calibrate.fit_collectives import fit_all_reduce
from planner.calibrate.fit_gemm import fit_gemm, fit_surface
from planner.calibrate.fit_moe import fit_format
from planner.calibrate.tables import KernelTable
from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Interconnect
from planner.formulas.operators import (
    AttentionShape,
    MoeShape,
    Origin,
    all_reduce_s,
    context_attention,
    decode_attention,
    gemm_s,
    moe_s,
)
from tests.calibrate.made_tables import H100, gemm_table, grid, noisy, table, truth


@pytest.mark.parametrize(("dtype", "label"), [(WeightDtype.BF16, "bfloat16"), (WeightDtype.FP8, "fp8")])
def test_gemm_fit_recovers_the_times_that_made_the_table(dtype: WeightDtype, label: str) -> None:
    fit = fit_gemm(gemm_table(dtype, label), H100)[dtype]
    known = truth().coefficients.gemm[dtype]
    assert fit.large.flop_efficiency == pytest.approx(known.large.flop_efficiency, rel=0.05)
    assert fit.small.byte_efficiency == pytest.approx(known.small.byte_efficiency, rel=0.05)
    for worth in (fit.small_evidence, fit.large_evidence):
        assert worth.origin is Origin.TABLE
        assert worth.held_out_median_ratio is not None
        assert worth.held_out_median_ratio < 0.03
    ops = truth()
    fitted = ops._replace(
        coefficients=ops.coefficients.model_copy(update={"gemm": {**ops.coefficients.gemm, dtype: fit}})
    )
    tokens = np.array([1.0, 16, 96, 300, 1000, 6000])
    expected = gemm_s(tokens, 3584, 5120, dtype, ops)
    assert gemm_s(tokens, 3584, 5120, dtype, fitted) == pytest.approx(expected, rel=0.05)


def test_weights_read_from_the_cache_are_not_believed() -> None:
    """Small shapes timed ten times faster than memory allows must not raise the byte efficiency."""
    honest = gemm_table(WeightDtype.BF16, "bfloat16")
    cached = (honest.numbers["n"] * honest.numbers["k"] < 8e6) & (honest.numbers["m"] <= 64)
    spoiled = {**honest.numbers, "latency": np.where(cached, honest.latency_s / 10, honest.latency_s)}
    fit = fit_gemm(honest._replace(numbers=spoiled), H100)[WeightDtype.BF16]
    known = truth().coefficients.gemm[WeightDtype.BF16]
    assert fit.small.byte_efficiency == pytest.approx(known.small.byte_efficiency, rel=0.05)
    assert fit.small_evidence.rows < (honest.numbers["m"] <= 256).sum()


def test_host_time_in_block_scaled_rows_is_not_believed() -> None:
    plain = gemm_table(WeightDtype.FP8, "fp8")
    floor_s = 1e-4
    block = {**plain.numbers, "latency": np.maximum(plain.latency_s * 1.25, floor_s)}
    both = KernelTable(
        source=plain.source,
        numbers={name: np.concatenate([plain.numbers[name], block[name]]) for name in plain.numbers},
        labels={"gemm_dtype": np.repeat(["fp8", "fp8_block"], plain.latency_s.size)},
    )
    fits = fit_gemm(both, H100)
    fp8, blocked = fits[WeightDtype.FP8], fits[WeightDtype.FP8_BLOCK]
    assert blocked.small == fp8.small
    assert blocked.small_evidence.origin is Origin.DONOR
    assert "host time of 100 us" in blocked.small_evidence.note
    assert 0.6 < blocked.large.flop_efficiency / fp8.large.flop_efficiency < 0.85


def test_surface_follows_a_smooth_error_and_damps_outliers() -> None:
    m, n, k = grid([1.0, 16, 64, 256, 1024, 4096], [512.0, 2048, 8192], [512.0, 2048, 8192])
    error = 0.05 * np.log2(m / 64)
    m, n, k, error = (np.tile(column, 20) for column in (m, n, k, error))
    spoiled = error.copy()
    spoiled[::50] += 2.0
    surface = fit_surface((m, n, k), spoiled)
    at = surface.grid[3, 2, 2]
    assert at == pytest.approx(0.05 * (surface.log2_tokens[3] - 6), abs=0.02)
    assert surface.grid.shape == (len(surface.log2_tokens), *2 * (len(surface.log2_width),))


def test_moe_fit_recovers_the_times_that_made_the_table() -> None:
    ops = truth()
    shapes = [
        (2048, 768, 8, 128),
        (4096, 1536, 8, 128),
        (7168, 2048, 8, 256),
        (4096, 14336, 2, 8),
        (6144, 2560, 8, 160),
    ]
    rows = [
        (m, h, i, k, e, tp, ep)
        for h, i, k, e in shapes
        for m in (1, 4, 16, 64, 256, 1024, 4096, 16384)
        for tp, ep in ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (1, 8))
        if e // ep >= 2
    ]
    times = [
        moe_s(np.array([float(m)]), MoeShape(e, e // ep, k, h, i // tp, True, WeightDtype.BF16, ep > 1), ops)[
            0
        ]
        for m, h, i, k, e, tp, ep in rows
    ]
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    numbers = dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True))
    labels = {"distribution": "power_law_1.2", "moe_dtype": "bfloat16", "kernel_source": "made_up"}
    made = table(noisy(np.array(times)), numbers, labels)
    fit = fit_format(made, WeightDtype.BF16, H100)
    assert fit is not None
    for worth in (fit.tensor_parallel_evidence, fit.expert_parallel_evidence):
        assert worth.median_ratio is not None
        assert worth.median_ratio < 0.03
        assert worth.held_out_median_ratio is not None
        assert worth.held_out_median_ratio < 0.06
    known = ops.coefficients.moe[WeightDtype.BF16].tensor_parallel
    assert fit.tensor_parallel.byte_efficiency == pytest.approx(known.byte_efficiency, rel=0.1)
    assert fit_format(made, WeightDtype.FP8, H100) is None


def test_attention_fits_recover_the_times_that_made_the_table() -> None:
    ops = truth()
    batch, context, heads, kv_heads = grid(
        [1.0, 4, 16, 64, 256], [127.0, 1023, 8191, 32767], [8.0, 16, 32, 64], [1.0, 4, 8]
    )
    shapes = [AttentionShape(int(h), int(g), 128, 128, 2) for h, g in zip(heads, kv_heads, strict=True)]
    decode = [
        decode_attention(shape, ops).time_s(np.array([b]), np.array([c + 1]))[0]
        for shape, b, c in zip(shapes, batch, context, strict=True)
    ]
    numbers = {
        "batch_size": batch,
        "step": context,
        "num_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": np.full_like(batch, 128.0),
    }
    labels = {"kv_cache_dtype": "bfloat16", "kernel_source": "vllm_made_up"}
    (fit,) = fit_decode_attention(table(noisy(np.array(decode)), numbers, labels), H100)[2]
    known = next(f for f in ops.coefficients.decode_attention[2] if f.head_dim == 128 and not f.windowed)
    assert fit.byte_efficiency == pytest.approx(known.byte_efficiency, rel=0.03)
    assert fit.constant_s == pytest.approx(known.constant_s, rel=0.03)
    assert fit.evidence.note == "made_up"

    prompt = [
        context_attention(shape, ops).time_s(np.array([c + 1]), np.zeros(1))[0]
        for shape, c in zip(shapes, context, strict=True)
    ]
    numbers = {**numbers, "isl": context + 1, "batch_size": np.ones_like(batch)}
    (prompt_fit,) = fit_context_attention(table(noisy(np.array(prompt)), numbers, labels), H100)[2]
    wanted = next(f for f in ops.coefficients.context_attention[2] if f.head_dim == 128 and not f.windowed)
    assert prompt_fit.flop_efficiency == pytest.approx(wanted.flop_efficiency, rel=0.05)
    assert prompt_fit.constant_s == pytest.approx(wanted.constant_s, rel=0.1)


def test_all_reduce_fit_recovers_the_times_that_made_the_table() -> None:
    ops = truth()
    elements = 2.0 ** np.arange(8, 29)
    small = elements[elements * 2 < 8 * 2**20]
    custom = table(
        all_reduce_s(small * 2, 4, Interconnect.NVSWITCH, ops),
        {"message_size": small, "num_gpus": np.full_like(small, 4.0)},
        {"kernel_source": "vLLM_custom_graph"},
    )
    curve = ops.coefficients.nvlink_all_reduce.nccl[1]
    forced = ops.coefficients.nvlink_all_reduce.model_copy(update={"custom": ()})
    nccl_only = ops._replace(coefficients=ops.coefficients.model_copy(update={"nvlink_all_reduce": forced}))
    nccl = table(
        all_reduce_s(elements * 2, 4, Interconnect.NVSWITCH, nccl_only),
        {"message_size": elements, "num_gpus": np.full_like(elements, 4.0)},
        {"op_name": "all_reduce", "nccl_dtype": "half"},
    )
    fit = fit_all_reduce(custom, nccl, H100.nvlink_bytes_per_s, 8)
    assert fit.nccl[0].constant_s == pytest.approx(curve.constant_s, rel=0.02)
    assert fit.nccl[0].link_efficiency == pytest.approx(curve.link_efficiency, rel=0.02)
    assert fit.custom[0].evidence.median_ratio == pytest.approx(0.0, abs=1e-3)
