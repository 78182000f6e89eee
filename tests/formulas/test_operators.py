"""Time of one kernel: bounds that physics sets, laws of scale, and the committed coefficients on every known GPU."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog.load import find_gpu, gpus
from planner.domain.dtypes import ComputeDtype, WeightDtype
from planner.domain.evidence import Basis
from planner.domain.hardware import Gpu
from planner.formulas.arrays import FloatArray
from planner.formulas.operators import (
    AttentionShape,
    ContextAttention,
    GpuOperators,
    LatentShape,
    LinearShape,
    MoeShape,
    all_reduce_s,
    context_attention,
    decode_attention,
    elementwise_s,
    gemm_s,
    linear_attention_context,
    linear_attention_decode,
    mla_context,
    mla_decode,
    moe,
    moe_s,
    peak_flop_per_s,
    send_recv_s,
    share_of_large,
    transfer,
)
from planner.formulas.operators.gemm import kernel_dtype
from tests.formulas.known_operators import MEASURED, TOKENS, group, ops_of

ROOFLINE_NOISE = 0.95
"""The measured surface may lie this far under datasheet rates: boost clocks and cached activations."""
ANSWERED = [gpu.name for gpu in gpus() if gpu.vllm_backend]

WIDTHS = (256, 512, 1024, 1280, 2560, 3584, 5120, 7168, 10240, 14336, 28672)

LAUNCH_S = 20e-6
"""Layers whose roofline is shorter are mostly a launch."""

widths = st.sampled_from(WIDTHS)
dtypes = st.sampled_from(list(WeightDtype))
names = st.sampled_from(MEASURED)


def roofline_s(n: int, k: int, dtype: WeightDtype, ops: GpuOperators) -> FloatArray:
    """At each of TOKENS, weights alone in memory traffic."""
    fit = ops.coefficients.gemm[kernel_dtype(dtype)]
    flop_s = 2.0 * TOKENS * n * k / peak_flop_per_s(ops.gpu, fit.compute)
    return np.maximum(flop_s, n * k * fit.weight_bytes / ops.gpu.memory_bandwidth_bytes_per_s)


def faster(gpu: Gpu, factor: float) -> Gpu:
    """The same GPU with every rate multiplied."""
    return gpu.model_copy(
        update={
            "memory_bandwidth_bytes_per_s": gpu.memory_bandwidth_bytes_per_s * factor,
            "peak_flop_per_s": {dtype: rate * factor for dtype, rate in gpu.peak_flop_per_s.items()},
            "nvlink_bytes_per_s": gpu.nvlink_bytes_per_s * factor,
            "pcie_bytes_per_s": gpu.pcie_bytes_per_s * factor,
        }
    )


@pytest.mark.parametrize("name", ANSWERED)
def test_every_gpu_answers_every_format(name: str) -> None:
    ops = ops_of(name)
    assert ops.basis is (Basis.OPERATORS if name in MEASURED else ops.basis)
    for dtype in WeightDtype:
        for times in (
            gemm_s(TOKENS, 4096, 4096, dtype, ops),
            moe_s(TOKENS, MoeShape(64, 64, 8, 2048, 768, True, dtype, False), ops),
        ):
            assert times.shape == TOKENS.shape
            assert np.isfinite(times).all()
            assert (times > 0).all()


def test_transferred_gpu_is_labelled_with_its_donor() -> None:
    assert ops_of("H20").basis is Basis.TRANSFERRED
    assert ops_of("H20").donor == "H100-SXM-80GB"
    assert ops_of("T4").donor == "A100-SXM-80GB"
    assert ops_of("B300").donor == "B200"
    assert ops_of("MI300X").basis is Basis.DATASHEET
    moved = transfer(ops_of("L40S"), find_gpu("L4"))
    assert (moved.basis, moved.donor, moved.gpu.name) == (Basis.TRANSFERRED, "L40S", "L4")


@settings(max_examples=60, deadline=None)
@given(name=names, n=widths, k=widths, dtype=dtypes)
def test_gemm_is_never_faster_than_the_roofline(name: str, n: int, k: int, dtype: WeightDtype) -> None:
    ops = ops_of(name)
    assert (gemm_s(TOKENS, n, k, dtype, ops) >= ROOFLINE_NOISE * roofline_s(n, k, dtype, ops)).all()


@pytest.mark.parametrize("name", MEASURED)
def test_gemm_grows_with_every_dimension(name: str) -> None:
    """Doubling tokens, outputs or inputs, over every pair of widths and every format.

    A time is a fitted roofline times an interpolated surface of measured / fitted, and kernels do jump: on an A100 a
    bf16 layer of 3584 outputs and 512 inputs takes 10.6 us for 16 tokens and 6.5 us for 32, on an H200 one of 1024 by
    1024 takes 7.6 us for one token and twice as many outputs take 4.0 us. So a layer that is mostly launch may be
    much quicker when doubled; one that keeps the GPU busy may not, and few are quicker at all.
    """
    ops = ops_of(name)
    quicker = cells = 0
    for n, k, dtype in product(WIDTHS, WIDTHS, WeightDtype):
        times, busy = gemm_s(TOKENS, n, k, dtype, ops), roofline_s(n, k, dtype, ops) >= LAUNCH_S
        for what, ratio, large in (
            ("tokens", times[1:] / times[:-1], busy[:-1]),
            ("outputs", gemm_s(TOKENS, 2 * n, k, dtype, ops) / times, busy),
            ("inputs", gemm_s(TOKENS, n, 2 * k, dtype, ops) / times, busy),
        ):
            cell = f"{n} outputs, {k} inputs, {dtype}, twice the {what}"
            assert (ratio[large] >= 0.88).all(), cell
            assert (ratio >= 0.48).all(), cell
            quicker, cells = quicker + int((ratio < 0.97).sum()), cells + ratio.size
    assert quicker < 0.02 * cells


@pytest.mark.parametrize("name", MEASURED)
def test_without_what_kernels_jump_by_gemm_grows_with_every_dimension(name: str) -> None:
    """The fitted curves alone, but for where one goes over into the other: a B200's narrow layers of 4-bit weights fall
    by 12 % from 128 to 256 tokens."""
    ops = ops_of(name)
    smooth = {d: fit.model_copy(update={"surface": None}) for d, fit in ops.coefficients.gemm.items()}
    ops = ops._replace(coefficients=ops.coefficients.model_copy(update={"gemm": smooth}))
    for n, k, dtype in product(WIDTHS, WIDTHS, WeightDtype):
        times = gemm_s(TOKENS, n, k, dtype, ops)
        assert (times[1:] >= (0.87 if name == "B200" else 0.98) * times[:-1]).all()
        assert ((times[1:] > times[:-1]) | ((TOKENS[1:] > 192) & (TOKENS[:-1] < 384))).all()
        assert (gemm_s(TOKENS, 2 * n, k, dtype, ops) > times).all()
        assert (gemm_s(TOKENS, n, 2 * k, dtype, ops) > times).all()


@settings(max_examples=30, deadline=None)
@given(name=names, n=widths, k=widths, dtype=dtypes, factor=st.floats(1.1, 8.0))
def test_faster_datasheet_saves_time_but_never_more_than_its_factor(
    name: str, n: int, k: int, dtype: WeightDtype, factor: float
) -> None:
    ops = ops_of(name)
    quick = transfer(ops, faster(ops.gpu, factor))
    experts = MoeShape(64, 64, 8, n, k, True, dtype, False)
    message_bytes = TOKENS * n
    times = [
        (
            gemm_s(TOKENS, n, k, dtype, each),
            moe_s(TOKENS, experts, each),
            all_reduce_s(message_bytes, group(8), each),
        )
        for each in (ops, quick)
    ]
    for slow_s, fast_s in zip(*times, strict=True):
        assert (fast_s <= slow_s * (1 + 1e-9)).all()
        assert (fast_s >= slow_s / factor * (1 - 1e-9)).all()


@pytest.mark.parametrize("name", MEASURED)
def test_stored_bytes_decide_small_batches(name: str) -> None:
    """At one token a big layer is read from memory: half the bytes must save a good part of the time.

    Least on a B200, whose fp8 kernels for one token are slow: 83.8 us for 51200 x 8192 weights against 127.5 in bf16,
    44.5 against 42.4 for 16384 x 8192.
    """
    ops, one = ops_of(name), np.ones(1)
    times = {dtype: gemm_s(one, 28672, 8192, dtype, ops)[0] for dtype in WeightDtype}
    assert times[WeightDtype.FP8] < (0.8 if name == "B200" else 0.7) * times[WeightDtype.BF16]
    assert times[WeightDtype.INT4] < 0.7 * times[WeightDtype.FP8]
    assert times[WeightDtype.AWQ] == times[WeightDtype.GPTQ] == times[WeightDtype.INT4]
    assert times[WeightDtype.FP16] == times[WeightDtype.BF16]


def test_weight_only_formats_multiply_in_sixteen_bit() -> None:
    for name in ("A100-SXM-80GB", "H100-SXM-80GB", "L40S"):
        gemm = ops_of(name).coefficients.gemm
        assert gemm[WeightDtype.INT4].compute is ComputeDtype.BF16
        assert gemm[WeightDtype.MXFP4].compute is ComputeDtype.BF16
    assert ops_of("A100-SXM-80GB").coefficients.gemm[WeightDtype.FP8].compute is ComputeDtype.BF16
    assert ops_of("B200").coefficients.gemm[WeightDtype.NVFP4].compute is ComputeDtype.FP4


def test_a_missing_rate_falls_back_to_a_wider_format() -> None:
    v100, a100 = find_gpu("V100-32GB"), find_gpu("A100-SXM-80GB")
    assert peak_flop_per_s(v100, ComputeDtype.BF16) == v100.peak_flop_per_s[ComputeDtype.FP16]
    assert peak_flop_per_s(a100, ComputeDtype.FP8) == a100.peak_flop_per_s[ComputeDtype.BF16]
    bare = a100.model_copy(update={"peak_flop_per_s": {}})
    with pytest.raises(ValueError, match="no rate"):
        peak_flop_per_s(bare, ComputeDtype.FP8)


@settings(max_examples=60, deadline=None)
@given(
    name=names,
    experts=st.sampled_from([8, 64, 128, 384]),
    per_token=st.sampled_from([1, 2, 8]),
    inputs=st.sampled_from([2048, 4096, 7168]),
    intermediate=st.sampled_from([192, 768, 2048]),
    dtype=dtypes,
)
def test_experts_grow_with_work_and_keep_to_the_roofline(
    name: str, experts: int, per_token: int, inputs: int, intermediate: int, dtype: WeightDtype
) -> None:
    ops = ops_of(name)
    shape = MoeShape(experts, experts, per_token, inputs, intermediate, True, dtype, False)
    times = moe_s(TOKENS, shape, ops)
    fit = ops.coefficients.moe[kernel_dtype(dtype)]
    weights = 3.0 * inputs * intermediate
    flop_s = 2.0 * TOKENS * per_token * weights / peak_flop_per_s(ops.gpu, fit.compute)
    assert (np.diff(times) > 0).all()
    assert (times >= flop_s).all()
    assert (moe_s(TOKENS, shape._replace(intermediate=2 * intermediate), ops) > times).all()
    assert (moe_s(TOKENS, shape._replace(gated=False), ops) < times).all()


@settings(max_examples=60, deadline=None)
@given(skew=st.floats(0.3, 50), rows=st.floats(1e-3, 1e6), experts=st.integers(1, 512))
def test_active_experts_are_no_more_than_held_and_no_more_than_rows(
    skew: float, rows: float, experts: int
) -> None:
    active = float(moe.active_experts(np.array([rows]), experts, skew)[0])
    assert 0 < active <= experts * (1 + 1e-12)
    assert active <= rows * experts * (1 + 1e-9)


def test_expert_parallel_rank_does_less_than_all_experts_on_one() -> None:
    ops = ops_of("H100-SXM-80GB")
    everything = MoeShape(256, 256, 8, 7168, 2048, True, WeightDtype.FP8_BLOCK, False)
    shared = everything._replace(local_experts=32, ep=True)
    assert (moe_s(TOKENS, shared, ops) < moe_s(TOKENS, everything, ops)).all()


def brute_force_pairs(query_tokens: int, past_tokens: int, window: int | None) -> float:
    """Keys seen, query by query; a query sees half of its own step of one token."""
    seen = [past_tokens + i + 0.5 for i in range(query_tokens)]
    return float(sum(min(keys, window) if window else keys for keys in seen))


@settings(max_examples=80, deadline=None)
@given(query=st.integers(1, 300), past=st.integers(0, 300), window=st.none() | st.integers(8, 400))
def test_pairs_count_what_each_query_sees(query: int, past: int, window: int | None) -> None:
    attention = ContextAttention(0.0, 1.0, 0.0, 0.0, window)
    found = float(attention.pairs(np.array([float(query)]), np.array([float(past)]))[0])
    assert found == pytest.approx(brute_force_pairs(query, past, window), abs=0.5 if window else 1e-6)


@settings(max_examples=40, deadline=None)
@given(first=st.integers(1, 4000), second=st.integers(1, 4000), window=st.none() | st.integers(16, 4096))
def test_chunks_see_what_the_whole_prompt_sees(first: int, second: int, window: int | None) -> None:
    attention = ContextAttention(0.0, 1.0, 0.0, 0.0, window)
    zero, one, two = np.zeros(1), np.array([float(first)]), np.array([float(second)])
    whole = attention.pairs(one + two, zero)
    assert attention.pairs(one, zero) + attention.pairs(two, one) == pytest.approx(whole)


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("kv_bytes", [1, 2])
def test_attention_grows_with_context_and_keeps_to_the_roofline(name: str, kv_bytes: int) -> None:
    ops = ops_of(name)
    shape = AttentionShape(heads=16, kv_heads=4, head_dim=128, v_head_dim=128, kv_bytes=kv_bytes)
    batch, context = np.array([1.0, 8.0, 64.0]), np.array([512.0, 4096.0, 32768.0])
    decode = decode_attention(shape, ops)
    kv_s = batch * context * 4 * 256 * kv_bytes / ops.gpu.memory_bandwidth_bytes_per_s
    assert (decode.time_s(batch, context) > kv_s).all()
    assert (decode.time_s(batch, 2 * context) > decode.time_s(batch, context)).all()
    prompt = context_attention(shape, ops)
    flop_s = 2.0 * prompt.pairs(context, batch) * 16 * 256 / peak_flop_per_s(ops.gpu, ComputeDtype.BF16)
    assert (prompt.time_s(context, batch) > flop_s).all()
    assert (prompt.time_s(context, 2 * context) > prompt.time_s(context, batch)).all()
    assert prompt.time_s(np.zeros(1), np.ones(1))[0] == 0.0


@pytest.mark.parametrize("name", MEASURED)
def test_window_bounds_prompt_time(name: str) -> None:
    ops, past = ops_of(name), np.array([100_000.0])
    shape = AttentionShape(heads=8, kv_heads=1, head_dim=64, v_head_dim=64, kv_bytes=2, window_tokens=128)
    windowed, full = context_attention(shape, ops), context_attention(shape._replace(window_tokens=None), ops)
    chunk = np.array([2048.0])
    assert windowed.time_s(chunk, past)[0] < 0.2 * full.time_s(chunk, past)[0]
    assert windowed.time_s(chunk, past)[0] == pytest.approx(windowed.time_s(chunk, 2 * past)[0])


@pytest.mark.parametrize("name", MEASURED)
def test_latent_attention_reads_its_cache_once_for_all_heads(name: str) -> None:
    ops = ops_of(name)
    shape = LatentShape(16, 512, 128, 64, 128, kv_bytes=2)
    decode = mla_decode(shape, ops)
    assert decode.per_context_token_s >= 576 * 2 / ops.gpu.memory_bandwidth_bytes_per_s
    assert mla_decode(shape._replace(heads=1), ops).per_context_token_s <= decode.per_context_token_s
    assert mla_decode(shape._replace(heads=128), ops).per_context_token_s > decode.per_context_token_s
    prompt, length = mla_context(shape, ops), np.array([4096.0])
    flop_s = 2.0 * 16 * 320 * length**2 / 2.0 / peak_flop_per_s(ops.gpu, ComputeDtype.BF16)
    assert (prompt.time_s(length, np.zeros(1)) > flop_s).all()
    assert (prompt.time_s(length, length) > prompt.time_s(length, np.zeros(1))).all()


def test_linear_attention_ignores_context_and_grows_with_state() -> None:
    ops = ops_of("H100-SXM-80GB")
    shape = LinearShape(32, 128, 128, conv_channels=8192, conv_kernel=4, state_bytes=4)
    decode = linear_attention_decode(shape, ops)
    assert decode.per_context_token_s == 0.0
    state_s = 2.0 * 32 * 128 * 128 * 4 / ops.gpu.memory_bandwidth_bytes_per_s
    assert state_s < decode.per_sequence_s < 2 * state_s
    prompt = linear_attention_context(shape, ops)
    times = prompt.time_s(TOKENS, np.zeros_like(TOKENS))
    assert (np.diff(times) > 0).all()
    assert prompt.time_s(TOKENS, TOKENS) == pytest.approx(times)


def test_the_share_of_large_matrices_goes_from_192_to_384_tokens() -> None:
    # Half of the way on a scale of octaves: 192 x sqrt(2) = 271.5.
    tokens = np.array([1.0, 192.0, 192.0 * np.sqrt(2.0), 384.0, 8192.0])
    assert share_of_large(np.log2(tokens)) == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])


def test_send_recv_and_elementwise_follow_their_stated_assumptions() -> None:
    ops = ops_of("H100-SXM-80GB")
    message_bytes = np.array([0.0, 315e9])
    assert send_recv_s(message_bytes, ops) == pytest.approx([10e-6, 1.0 + 10e-6])
    assert send_recv_s(message_bytes, ops, 45e9)[1] == pytest.approx(10.0 + 10e-6)
    tokens = np.array([0.0, 1e6])
    bytes_per_token = 0.75 * ops.gpu.memory_bandwidth_bytes_per_s / 1e6
    assert elementwise_s(tokens, bytes_per_token, 4, ops) == pytest.approx([6e-6, 1.0 + 6e-6])
