"""Every operator's fit recovers the coefficients that made a table, and disbelieves what is not kernel time."""

import numpy as np
import pytest

from planner.calibrate.fit_attention import fit_context_attention, fit_decode_attention
from planner.calibrate.fit_collectives import fit_all_reduce
from planner.calibrate.fit_gemm import SURFACE_TOKENS, SURFACE_WIDTHS, fit_gemm, fit_surface
from planner.calibrate.fit_moe import fit_format
from planner.calibrate.tables import KernelTable
from planner.domain.dtypes import WeightDtype
from planner.formulas.arrays import FloatArray
from planner.formulas.operators import (
    AttentionShape,
    MoeShape,
    Origin,
    context_attention,
    decode_attention,
    gemm_s,
    moe_s,
)
from planner.formulas.operators.coefficients import CollectiveCurve, Evidence
from planner.formulas.operators.collectives import collective_curve_s
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


def test_surface_follows_a_jump_at_one_shape_and_nowhere_else() -> None:
    """Kernels are chosen shape by shape: one weight shape takes 35 % longer than its neighbours, in as many rows as
    the tables have of one."""
    m, n, k = grid(*(list(map(float, axis)) for axis in (SURFACE_TOKENS, SURFACE_WIDTHS, SURFACE_WIDTHS)))
    m, n, k = (np.tile(column, 6) for column in (m, n, k))
    surface = fit_surface((m, n, k), np.where((n == 2560) & (k == 7168), 0.3, 0.0))
    at_n, at_k = SURFACE_WIDTHS.index(2560), SURFACE_WIDTHS.index(7168)
    assert (surface.grid[:, at_n, at_k] > 0.2).all()
    assert (surface.grid[:, at_n, at_k] < 0.3).all()
    others = np.abs(surface.grid)
    others[:, at_n, at_k] = 0.0
    assert others.max() < 0.03


def test_surface_goes_over_where_there_is_no_row() -> None:
    """Between two measured widths the correction lies between theirs, and beyond them it fades."""
    m, n, k = grid(list(map(float, SURFACE_TOKENS)), [1024.0, 16384.0], list(map(float, SURFACE_WIDTHS)))
    surface = fit_surface((m, n, k), np.where(n == 1024.0, 0.2, -0.2))
    low, high = SURFACE_WIDTHS.index(1024), SURFACE_WIDTHS.index(16384)
    along = surface.grid[5, :, SURFACE_WIDTHS.index(4096)]
    assert along[low] == pytest.approx(0.2, abs=0.02)
    assert along[high] == pytest.approx(-0.2, abs=0.02)
    assert (np.diff(along[low : high + 1]) < 0).all()
    assert (np.diff(along[: low + 1]) > 0).all()
    assert (np.abs(along[high + 1 :]) < -along[high]).all()


def test_rows_of_odd_token_counts_are_not_believed_beyond_256() -> None:
    """In 8 bit m + 1 takes up to half longer than m; prompts of any length are computed as fast as round ones."""
    honest = gemm_table(WeightDtype.FP8, "fp8")
    many = honest.numbers["m"] >= 512
    odd = {name: column[many] for name, column in honest.numbers.items()}
    odd = {**odd, "m": odd["m"] + 1.0, "latency": 1.5 * odd["latency"]}
    both = KernelTable(
        source=honest.source,
        numbers={name: np.concatenate([honest.numbers[name], odd[name]]) for name in odd},
        labels={"gemm_dtype": np.full(honest.latency_s.size + int(many.sum()), "fp8")},
    )
    with_odd, without = (fit_gemm(made, H100)[WeightDtype.FP8] for made in (both, honest))
    assert with_odd.model_dump() == without.model_dump()


def test_rows_of_odd_token_counts_count_up_to_256() -> None:
    honest = gemm_table(WeightDtype.BF16, "bfloat16")
    shifted = np.where(honest.numbers["m"] == 128, 129.0, honest.numbers["m"])
    fit = fit_gemm(honest._replace(numbers={**honest.numbers, "m": shifted}), H100)[WeightDtype.BF16]
    assert fit.small_evidence.rows == fit_gemm(honest, H100)[WeightDtype.BF16].small_evidence.rows


def test_int4_experts_are_taken_to_have_a_scale_for_32_weights() -> None:
    """The one checkpoint in the tables: 4 bits and 2 / 32 bytes of scale a weight. Others are told by their config."""
    ops = truth()
    m, intermediate = grid([1.0, 4, 16, 64, 256, 1024, 4096], [1024.0, 2048])
    shape = MoeShape(256, 256, 8, 7168, 0, True, WeightDtype.INT4, False)
    times = [
        moe_s(np.array([tokens]), shape._replace(intermediate=int(width)), ops)[0]
        for tokens, width in zip(m, intermediate, strict=True)
    ]
    fixed = {"hidden_size": 7168.0, "topk": 8.0, "num_experts": 256.0, "moe_tp_size": 1.0, "moe_ep_size": 1.0}
    numbers = {name: np.full_like(m, value) for name, value in fixed.items()}
    half = {**numbers, "moe_ep_size": np.full_like(m, 2.0)}
    columns = {name: np.concatenate([numbers[name], half[name]]) for name in numbers}
    columns |= {"num_tokens": np.tile(m, 2), "inter_size": np.tile(intermediate, 2)}
    labels = {"distribution": "power_law_1.2", "moe_dtype": "int4_wo", "kernel_source": "made_up"}
    fit = fit_format(table(np.tile(times, 2), columns, labels), WeightDtype.INT4, H100)
    assert fit is not None
    assert fit.weight_bytes == 0.5 + 2 / 32
    assert fit.tensor_parallel_evidence.median_ratio is not None
    assert fit.tensor_parallel_evidence.median_ratio < 0.03


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


LINK_BYTES_PER_S = H100.nvlink_bytes_per_s
ELEMENTS: FloatArray = np.logspace(8, 28, 21, base=2.0)
"""Of 2 bytes, as the tables have them."""


def known_curve(ranks: int = 4, constant_s: float = 8e-6, link_efficiency: float = 0.7) -> CollectiveCurve:
    return CollectiveCurve(
        ranks=ranks,
        constant_s=constant_s,
        link_efficiency=link_efficiency,
        exponent=1.3,
        evidence=Evidence(origin=Origin.ASSUMED),
    )


def curve_s(curve: CollectiveCurve) -> FloatArray:
    return collective_curve_s(ELEMENTS * 2.0, LINK_BYTES_PER_S, curve)


def nccl_table(times: FloatArray, ranks: int = 4, dtype: str = "half", op: str = "all_reduce") -> KernelTable:
    numbers = {"message_size": ELEMENTS, "num_gpus": np.full_like(ELEMENTS, float(ranks))}
    return table(times, numbers, {"op_name": op, "nccl_dtype": dtype})


def engine_table(
    times: FloatArray, *, ranks: int = 4, version: str = "0.19.0", kernel: str = "vLLM_custom_graph"
) -> KernelTable:
    numbers = {"message_size": ELEMENTS, "num_gpus": np.full_like(ELEMENTS, float(ranks))}
    made = table(times, numbers, {"kernel_source": kernel})
    return made._replace(source=made.source.model_copy(update={"engine_version": version}))


def joined(*tables: KernelTable) -> KernelTable:
    """One table of the rows of several."""
    first = tables[0]
    return KernelTable(
        source=first.source,
        numbers={name: np.concatenate([one.numbers[name] for one in tables]) for name in first.numbers},
        labels={name: np.concatenate([one.labels[name] for one in tables]) for name in first.labels},
    )


SLOW_NCCL = nccl_table(3.0 * curve_s(known_curve()))
"""Binds nothing."""


def test_all_reduce_fit_recovers_the_times_that_made_the_table() -> None:
    nccl, engine = known_curve(constant_s=2e-5, link_efficiency=0.6), known_curve()
    fit = fit_all_reduce([engine_table(curve_s(engine))], nccl_table(curve_s(nccl)), LINK_BYTES_PER_S, 8)
    for found, known in ((fit.nccl[0], nccl), (fit.engine[0], engine)):
        assert found.constant_s == pytest.approx(known.constant_s, rel=0.02)
        assert found.link_efficiency == pytest.approx(known.link_efficiency, rel=0.02)
        assert found.evidence.median_ratio == pytest.approx(0.0, abs=1e-3)
        assert found.evidence.held_out_median_ratio == pytest.approx(0.0, abs=0.01)
    assert (fit.nccl[0].engine_version, fit.engine[0].engine_version) == ("", "0.19.0")


def test_all_reduce_is_exact_at_measured_sizes_and_between_its_neighbours() -> None:
    """Other kernels take over at some sizes: the curve follows any jump, but no size is slower than a larger one."""
    jumps = np.exp(np.random.default_rng(2).normal(0.0, 0.3, ELEMENTS.size))
    measured_s = curve_s(known_curve()) * jumps
    fit = fit_all_reduce([engine_table(measured_s)], SLOW_NCCL, LINK_BYTES_PER_S, 8)
    (curve,) = fit.engine
    sizes = ELEMENTS * 2.0
    # Ratios are kept to three digits of their logarithm: half of 0.001.
    assert collective_curve_s(sizes, LINK_BYTES_PER_S, curve) == pytest.approx(
        np.minimum.accumulate(measured_s[::-1])[::-1], rel=1e-3
    )
    between_s = collective_curve_s(np.sqrt(sizes[1:] * sizes[:-1]), LINK_BYTES_PER_S, curve)
    smooth = curve.model_copy(update={"log2_bytes": (), "log_ratio": ()})
    ratio = between_s / collective_curve_s(np.sqrt(sizes[1:] * sizes[:-1]), LINK_BYTES_PER_S, smooth)
    ends = np.exp(np.array(curve.log_ratio))
    assert (ratio <= np.maximum(ends[1:], ends[:-1]) + 1e-9).all()
    assert (ratio >= np.minimum(ends[1:], ends[:-1]) - 1e-9).all()


def test_an_engine_slower_than_nccl_among_as_many_gpus_is_not_believed() -> None:
    """A disturbed machine: at the three largest sizes the engine takes four times as long as NCCL between 4 GPUs."""
    nccl_s, engine_s = curve_s(known_curve(constant_s=2e-5)), curve_s(known_curve())
    disturbed = np.zeros(ELEMENTS.size, dtype=np.bool_)
    disturbed[-3:] = True
    four = engine_table(np.where(disturbed, 4.0 * nccl_s, engine_s))
    two = engine_table(np.where(disturbed, 4.0 * nccl_s, engine_s), ranks=2)
    both = fit_all_reduce([joined(two, four)], nccl_table(nccl_s), LINK_BYTES_PER_S, 8).engine
    assert [curve.ranks for curve in both] == [2, 4]
    found = [collective_curve_s(ELEMENTS * 2.0, LINK_BYTES_PER_S, curve) for curve in both]
    assert found[1][disturbed] == pytest.approx(nccl_s[disturbed], rel=2e-3)
    assert found[1][~disturbed] == pytest.approx(engine_s[~disturbed], rel=2e-3)
    # NCCL was not measured between 2.
    assert found[0][disturbed] == pytest.approx(4.0 * nccl_s[disturbed], rel=2e-3)


def test_every_release_has_a_curve_of_its_own() -> None:
    older, newer = curve_s(known_curve()), 0.8 * curve_s(known_curve())
    tables = [engine_table(older, version="0.14.0"), engine_table(newer, version="0.19.0")]
    fit = fit_all_reduce(tables, SLOW_NCCL, LINK_BYTES_PER_S, 8)
    assert [(curve.engine_version, curve.ranks) for curve in fit.engine] == [("0.14.0", 4), ("0.19.0", 4)]
    assert "0.14.0" in fit.engine[0].evidence.note
    times = [collective_curve_s(ELEMENTS * 2.0, LINK_BYTES_PER_S, curve) for curve in fit.engine]
    assert times[1] / times[0] == pytest.approx(0.8, rel=2e-3)


def test_only_rows_that_serving_runs_are_fitted() -> None:
    """Within a graph, up to so many GPUs, 16-bit sums: everything else is off by ten and must not show."""
    good_s = curve_s(known_curve())
    engine = joined(
        engine_table(good_s),
        engine_table(10.0 * good_s, kernel="vLLM_custom_eager"),
        engine_table(10.0 * good_s, ranks=8),
    )
    nccl_s = 2.0 * good_s
    nccl = joined(
        nccl_table(nccl_s),
        nccl_table(0.1 * nccl_s, dtype="int8"),
        nccl_table(0.1 * nccl_s, op="all_gather"),
    )
    fit = fit_all_reduce([engine], nccl, LINK_BYTES_PER_S, 4)
    assert [curve.ranks for curve in fit.engine] == [curve.ranks for curve in fit.nccl] == [4]
    for curve, wanted_s in ((fit.engine[0], good_s), (fit.nccl[0], nccl_s)):
        assert collective_curve_s(ELEMENTS * 2.0, LINK_BYTES_PER_S, curve) == pytest.approx(
            wanted_s, rel=2e-3
        )
