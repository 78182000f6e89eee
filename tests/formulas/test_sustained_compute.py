"""Compute that is sustained: slower than in tables of bursts wherever compute binds, and nowhere else."""

import numpy as np
import pytest

from planner.catalog.load import find_gpu
from planner.domain.dtypes import WeightDtype
from planner.formulas.operators import (
    AttentionShape,
    GpuOperators,
    IndexerShape,
    LatentShape,
    LinearShape,
    MoeShape,
    StepTuning,
    all_reduce_s,
    context_attention,
    decode_attention,
    elementwise_s,
    gemm_s,
    indexer_context,
    indexer_decode,
    linear_attention_context,
    linear_attention_decode,
    mla_context,
    mla_decode,
    moe_s,
    send_recv_s,
    transfer,
)
from planner.formulas.operators.coefficients import GemmCurve, GemmFit, MoeCurve
from tests.formulas.known_operators import MEASURED, TOKENS, group, ops_of


def slowed(ops: GpuOperators, sustained_slowdown: float = 0.1) -> GpuOperators:
    return ops._replace(tuning=StepTuning(sustained_slowdown))


def exact(ops: GpuOperators, dtype: WeightDtype = WeightDtype.BF16) -> GpuOperators:
    """Linear layers and experts at datasheet rates: whichever of compute and memory takes longer, nothing else."""
    curve = {"flop_efficiency": 1.0, "byte_efficiency": 1.0, "exponent": 64.0, "constant_s": 0.0}
    gemm_curve = GemmCurve(**curve, per_k_s=0.0, quantize_passes=0.0)
    fitted = ops.coefficients.gemm[dtype]
    fields = {name: getattr(fitted, name) for name in GemmFit.model_fields}
    gemm = GemmFit(**{**fields, "small": gemm_curve, "large": gemm_curve, "surface": None})
    moe_curve = MoeCurve(
        **curve,
        imbalance_exponent=0.0,
        tile_rows=0.0,
        skew=1e6,
        per_width_s=0.0,
        activation_efficiency=100.0,
        token_passes=0.0,
    )
    experts = ops.coefficients.moe[dtype].model_copy(
        update={"tensor_parallel": moe_curve, "expert_parallel": moe_curve}
    )
    fits = {"gemm": {dtype: gemm}, "moe": {dtype: experts}}
    return ops._replace(coefficients=ops.coefficients.model_copy(update=fits))


def test_sustained_compute_slows_what_compute_binds_and_nothing_else() -> None:
    # 8192 x 8192 weights on an H100: 2 x 16384 x 8192 x 8192 FLOP at 989.4 TFLOP/s are 2.22 ms, 10 % more when
    # sustained; for 8 tokens 134.2 MB of weights and 0.3 of activations at 3.35 TB/s are 40.1 us either way.
    ops = exact(ops_of("H100-SXM-80GB"))
    tokens = np.array([8.0, 16384.0])
    plain_s, sustained_s = (gemm_s(tokens, 8192, 8192, WeightDtype.BF16, each) for each in (ops, slowed(ops)))
    assert plain_s == pytest.approx([40.14e-6, 2.2226e-3], rel=1e-3)
    assert sustained_s / plain_s == pytest.approx([1.0, 1.1], rel=1e-6)


def test_sustained_compute_slows_experts_that_it_binds() -> None:
    # 8 experts of 3 x 4096 x 14336 weights, all for each of 8192 tokens: compute. One token: weights.
    ops = exact(ops_of("H100-SXM-80GB"))
    shape = MoeShape(8, 8, 8, 4096, 14336, True, WeightDtype.BF16, False)
    tokens = np.array([1.0, 8192.0])
    plain_s, sustained_s = (moe_s(tokens, shape, each) for each in (ops, slowed(ops)))
    assert plain_s[1] == pytest.approx(2 * 8192 * 8 * 3 * 4096 * 14336 / 989.4e12, rel=0.01)
    assert sustained_s / plain_s == pytest.approx([1.0, 1.1], rel=1e-3)


def test_sustained_compute_slows_pairs_of_prompts_and_not_what_is_read() -> None:
    ops = ops_of("H100-SXM-80GB")
    shape = AttentionShape(heads=16, kv_heads=4, head_dim=128, v_head_dim=128, kv_bytes=2)
    plain, sustained = (context_attention(shape, each) for each in (ops, slowed(ops)))
    assert sustained.per_pair_s == pytest.approx(1.1 * plain.per_pair_s)
    assert sustained._replace(per_pair_s=plain.per_pair_s) == plain
    assert decode_attention(shape, slowed(ops)) == decode_attention(shape, ops)


def test_sustained_compute_slows_latent_prompts() -> None:
    ops = ops_of("H100-SXM-80GB")
    shape = LatentShape(16, 512, 128, 64, 128, kv_bytes=2)
    plain, sustained = (mla_context(shape, each) for each in (ops, slowed(ops)))
    assert sustained.per_pair_s == pytest.approx(1.1 * plain.per_pair_s)
    # Expanding a token's keys and values is part compute, part traffic.
    for name in ("per_query_token_s", "per_past_token_s"):
        assert 1.0 < getattr(sustained, name) / getattr(plain, name) < 1.1
    assert sustained.constant_s == plain.constant_s
    assert mla_decode(shape, slowed(ops)) == mla_decode(shape, ops)
    scorer = IndexerShape(64, 128)
    pairs = [indexer_context(scorer, each).per_pair_s for each in (ops, slowed(ops))]
    assert pairs[1] == pytest.approx(1.1 * pairs[0])
    assert indexer_decode(scorer, slowed(ops)) == indexer_decode(scorer, ops)


def test_sustained_compute_leaves_traffic_and_launches_alone() -> None:
    ops, tokens = ops_of("H100-SXM-80GB"), np.array([1.0, 512.0, 8192.0])
    linear = LinearShape(32, 128, 128, conv_channels=8192, conv_kernel=4, state_bytes=4)
    hot = slowed(ops)
    assert (all_reduce_s(tokens * 8192, group(8), hot) == all_reduce_s(tokens * 8192, group(8), ops)).all()
    assert (elementwise_s(tokens, 1e5, 4, hot) == elementwise_s(tokens, 1e5, 4, ops)).all()
    assert (send_recv_s(tokens, hot) == send_recv_s(tokens, ops)).all()
    assert linear_attention_decode(linear, hot) == linear_attention_decode(linear, ops)
    assert linear_attention_context(linear, hot) == linear_attention_context(linear, ops)


@pytest.mark.parametrize("name", MEASURED)
def test_a_slowdown_is_never_passed_by(name: str) -> None:
    """Whatever the shape and format, 10 % less compute costs between nothing and 10 %."""
    ops = ops_of(name)
    for dtype in WeightDtype:
        for n, k in ((256, 7168), (5120, 5120), (28672, 8192)):
            ratio = gemm_s(TOKENS, n, k, dtype, slowed(ops)) / gemm_s(TOKENS, n, k, dtype, ops)
            assert (ratio >= 1.0).all()
            assert (ratio <= 1.1 + 1e-9).all()
        shape = MoeShape(64, 64, 8, 2048, 768, True, dtype, False)
        ratio = moe_s(TOKENS, shape, slowed(ops)) / moe_s(TOKENS, shape, ops)
        assert (ratio >= 1.0).all()
        assert (ratio <= 1.1 + 1e-9).all()


def test_a_transferred_gpu_keeps_its_tuning() -> None:
    moved = transfer(slowed(ops_of("H100-SXM-80GB")), find_gpu("H20"))
    assert moved.tuning == StepTuning(0.1)
    assert moved.compute_slowdown == pytest.approx(1.1)


def test_experts_weigh_what_their_checkpoint_says() -> None:
    """One token to 8 of 8 experts reads them all: half the bytes a weight, half the time."""
    ops = exact(ops_of("H100-SXM-80GB"))
    own = ops.coefficients.moe[WeightDtype.BF16].weight_bytes
    shape = MoeShape(8, 8, 8, 4096, 14336, True, WeightDtype.BF16, False)
    plain_s, half_s, same_s = (
        moe_s(np.ones(1), shape._replace(weight_bytes=each), ops)[0] for each in (None, own / 2, own)
    )
    assert same_s == plain_s
    assert half_s == pytest.approx(plain_s / 2, rel=1e-3)
