"""Latent and linear attention: the fits find what made the tables once projections and host time are in them."""

import numpy as np
import pytest

from planner.calibrate.fit_latent import (
    DEEPSEEK_V3,
    fit_bmm,
    fit_latent_context,
    fit_latent_decode,
    fit_linear_attention,
)
from planner.calibrate.tables import KernelTable
from planner.domain.dtypes import WeightDtype
from planner.formulas.operators import (
    LinearShape,
    gemm_s,
    linear_attention_context,
    linear_attention_decode,
    mla_context,
    mla_decode,
)
from tests.calibrate.made_tables import H100, grid, noisy, table, truth

HEADS = [4.0, 8, 16, 32, 64, 128]
HOST_S = 1.5e-4


def test_absorbed_matmul() -> None:
    tokens, heads = grid([1.0, 16, 128, 1024, 8192], HEADS)
    fit = truth().coefficients.mla
    weights = heads * 512 * 128
    times = (
        2 * tokens * weights / 989.4e12 / fit.bmm_flop_efficiency
        + weights * 2 / H100.memory_bandwidth_bytes_per_s / fit.bmm_byte_efficiency
        + fit.bmm_constant_s
    )
    values, worth = fit_bmm(table(noisy(times), {"num_tokens": tokens, "num_heads": heads}, {}), H100)
    assert values[0] == pytest.approx(fit.bmm_flop_efficiency, rel=0.05)
    assert values[2] == pytest.approx(fit.bmm_constant_s, rel=0.05)
    assert worth.held_out_median_ratio is not None
    assert worth.held_out_median_ratio < 0.03


def test_decode_counts_growth_with_context_and_not_the_host() -> None:
    ops = truth()
    batch, context, heads = grid([1.0, 8, 64], [2.0, 1024, 8192, 65536], HEADS)
    times = np.array(
        [
            HOST_S
            + mla_decode(DEEPSEEK_V3._replace(heads=int(h)), ops).time_s(np.array([b]), np.array([c]))[0]
            for b, c, h in zip(batch, context, heads, strict=True)
        ]
    )
    made = table(
        times,
        {"batch_size": batch, "step": context, "num_heads": heads},
        {"kv_cache_dtype": "bfloat16", "gemm_type": "bfloat16"},
    )
    values, worth = fit_latent_decode(made, H100)
    fit = ops.coefficients.mla
    assert values == pytest.approx([fit.decode_byte_efficiency, fit.decode_flop_efficiency], rel=0.02)
    assert worth.median_ratio is not None
    assert worth.median_ratio < 0.01


def test_prompt_takes_projections_away_and_leaves_the_host_out() -> None:
    ops = truth()
    batch, tokens, heads = grid([1.0, 4], [512.0, 2048, 8192, 16384], HEADS)
    times = []
    for b, t, h in zip(batch, tokens, heads, strict=True):
        rows = np.array([b * t])
        projections = ((2112, 7168), (int(h) * 192, 1536), (7168, int(h) * 128))
        prompt = mla_context(DEEPSEEK_V3._replace(heads=int(h)), ops)
        fixed_s = prompt.constant_s
        attention_s = prompt.time_s(np.array([t]), np.zeros(1))[0] - fixed_s
        linear_s = sum(gemm_s(rows, n, k, WeightDtype.BF16, ops)[0] for n, k in projections)
        times.append(HOST_S + linear_s + b * attention_s)
    made = table(
        np.array(times),
        {"batch_size": batch, "isl": tokens, "num_heads": heads},
        {"kv_cache_dtype": "bfloat16", "gemm_type": "bfloat16"},
    )
    values, worth = fit_latent_context(made, ops.coefficients.gemm, H100)
    fit = ops.coefficients.mla
    expected = [fit.context_flop_efficiency, fit.context_byte_efficiency, HOST_S]
    assert values == pytest.approx(expected, rel=0.03)
    assert worth.median_ratio is not None
    assert worth.median_ratio < 0.01


def test_linear_attention_adds_the_convolution_to_the_state_kernel() -> None:
    ops = truth()
    parts: list[KernelTable] = []
    for phase, lengths in (("generation", [1.0]), ("context", [64.0, 512, 4096, 16384])):
        batch, length, heads = grid([1.0, 8, 32, 128], lengths, [8.0, 16, 32])
        times = []
        for b, t, h in zip(batch, length, heads, strict=True):
            shape = LinearShape(
                int(h), 128, 128, conv_channels=int(h) * 128 + 4096, conv_kernel=4, state_bytes=4
            )
            decode, prompt = linear_attention_decode(shape, ops), linear_attention_context(shape, ops)
            chain_s = ops.coefficients.linear_attention.context_per_token_s
            moved_s = prompt.per_query_token_s - chain_s
            times.append(
                decode.constant_s + b * decode.per_sequence_s
                if phase == "generation"
                else prompt.constant_s + t * chain_s + b * t * moved_s
            )
        numbers = {
            **{"batch_size": batch, "seq_len": length, "num_v_heads": heads, "d_model": heads * 0 + 2048},
            **{"num_k_heads": heads * 0 + 16, "head_k_dim": heads * 0 + 128, "head_v_dim": heads * 0 + 128},
            "d_conv": heads * 0 + 4,
        }
        for kernel, share in (("causal_conv1d", 0.3), ("delta_rule", 0.7)):
            labels = {"phase": phase, "kernel_source": kernel}
            parts.append(table(np.array(times) * share, numbers, labels))
    made = KernelTable(
        source=parts[0].source,
        numbers={name: np.concatenate([part.numbers[name] for part in parts]) for name in parts[0].numbers},
        labels={name: np.concatenate([part.labels[name] for part in parts]) for name in parts[0].labels},
    )
    fit, known = fit_linear_attention(made, H100), ops.coefficients.linear_attention
    assert fit.decode_byte_efficiency == pytest.approx(known.decode_byte_efficiency, rel=0.02)
    assert fit.decode_constant_s == pytest.approx(known.decode_constant_s, rel=0.02)
    assert fit.context_byte_efficiency == pytest.approx(known.context_byte_efficiency, rel=0.02)
    assert fit.context_per_token_s == pytest.approx(known.context_per_token_s, rel=0.02)
