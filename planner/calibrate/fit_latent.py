"""Fits what is left of latent and linear attention once their projections are taken away."""

import numpy as np

from planner.calibrate.fitting import (
    Bound,
    LinearForm,
    Measured,
    evidence,
    fit_and_hold_out,
    fit_linear,
    robust_fit,
)
from planner.calibrate.tables import KernelTable
from planner.domain.dtypes import ComputeDtype, WeightDtype
from planner.domain.hardware import Gpu
from planner.formulas.arrays import BoolArray, FloatArray
from planner.formulas.operators.attention import (
    ACTIVATION_BYTES,
    LatentShape,
    LinearShape,
    latent_cached_token_s,
    latent_work,
    linear_state_bytes,
    linear_token_bytes,
)
from planner.formulas.operators.coefficients import (
    Evidence,
    GemmFit,
    LinearAttentionFit,
    peak_flop_per_s,
)
from planner.formulas.operators.gemm import blended_log_s, gemm_curve_s, gemm_work, surface_log_ratio

DEEPSEEK_V3 = LatentShape(
    heads=128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, kv_bytes=2
)
"""The model whose modules were timed, at various head counts."""
HIDDEN = 7168
Q_LORA_RANK = 1536
CACHED_SPEEDUP = 1.1
"""A state read faster than memory allows was timed out of the L2 cache."""
MIN_GROWTH_S = 20e-6
MIN_PROMPT_S = 300e-6

_BMM_BOUNDS = (Bound(0.6, 0.02, 1.0), Bound(0.6, 0.02, 1.0), Bound(4e-6, 1e-7, 1e-4))
_DECODE_BOUNDS = (Bound(0.7, 0.02, 1.0), Bound(0.6, 0.02, 1.0))
_CONTEXT_BOUNDS = (Bound(0.5, 0.02, 1.0), Bound(0.5, 0.02, 1.0), Bound(1e-4, 1e-6, 1e-2))
_STATE_BOUNDS = (Bound(0.7, 0.02, 1.0), Bound(5e-6, 1e-7, 1e-4))
_SCAN_BOUNDS = (Bound(0.5, 0.02, 1.0), Bound(1e-5, 1e-7, 1e-3), Bound(3e-8, 1e-11, 1e-6))


def fit_bmm(table: KernelTable, gpu: Gpu) -> tuple[list[float], Evidence]:
    """Absorbed batched matmul: FLOP and byte efficiency, constant [s]."""
    column = table.numbers
    heads, tokens = column["num_heads"], column["num_tokens"]
    weights = heads * DEEPSEEK_V3.kv_lora_rank * DEEPSEEK_V3.qk_nope_head_dim
    terms = (
        2.0 * tokens * weights / peak_flop_per_s(gpu, ComputeDtype.BF16),
        weights * ACTIVATION_BYTES / gpu.memory_bandwidth_bytes_per_s,
        np.ones_like(tokens),
    )
    form = LinearForm(np.column_stack(terms), efficiencies=2)
    return fit_linear(form, _BMM_BOUNDS, Measured(table.latency_s, heads, "torch_bmm"))


def fit_latent_decode(table: KernelTable, gpu: Gpu) -> tuple[list[float], Evidence]:
    """Byte and FLOP efficiency of a decode step's growth with context.

    The module's fixed part is mostly host and projection time, so that each row counts against the shortest context
    of its batch and head count.
    """
    table = table.where(
        (table.labels["kv_cache_dtype"] == "bfloat16") & (table.labels["gemm_type"] == "bfloat16")
    )
    column = table.numbers
    heads, batch, context = column["num_heads"], column["batch_size"], column["step"]
    group = heads * 2.0**16 + batch
    keys, first = np.unique(group[np.argsort(context, kind="stable")], return_index=True)
    shortest = np.argsort(context, kind="stable")[first][np.searchsorted(keys, group)]
    growth_s = table.latency_s - table.latency_s[shortest]
    tokens = batch * (context - context[shortest])
    long = growth_s > MIN_GROWTH_S
    growth_s, tokens, heads = growth_s[long], tokens[long], heads[long]
    one_head = latent_work(DEEPSEEK_V3._replace(heads=1), gpu)
    byte_s, flop_s = tokens * one_head.cached_byte_s, tokens * heads * one_head.cached_flop_s

    def predict_s(values: FloatArray) -> FloatArray:
        return latent_cached_token_s(byte_s / values[0], flop_s / values[1])

    def fit(use: BoolArray) -> FloatArray:
        return robust_fit(lambda values: predict_s(values)[use], _DECODE_BOUNDS, growth_s[use])

    values, outcome = fit_and_hold_out(fit, predict_s, heads)
    note = "growth with context of the decode module"
    everything = np.ones(growth_s.shape, dtype=np.bool_)
    return [float(x) for x in values], evidence(growth_s, outcome, everything, note)


def _projections_s(tokens: FloatArray, heads: FloatArray, fit: GemmFit, gpu: Gpu) -> FloatArray:
    """qkv_a, q_b and output projections of a DeepSeek V3 layer with `heads` heads [s]."""
    total_s = np.zeros_like(tokens)
    log2_tokens = np.log2(tokens)
    for count in np.unique(heads):
        rows = heads == count
        query = count * (DEEPSEEK_V3.qk_nope_head_dim + DEEPSEEK_V3.qk_rope_head_dim)
        shapes = (
            (Q_LORA_RANK + DEEPSEEK_V3.latent, HIDDEN),
            (query, Q_LORA_RANK),
            (HIDDEN, count * DEEPSEEK_V3.v_head_dim),
        )
        for n, k in shapes:
            log_s = blended_log_s(
                log2_tokens[rows], gemm_curve_s(gemm_work(tokens[rows], n, k, fit, gpu), fit.curves)
            )
            if fit.surface is not None:
                log_s = log_s + surface_log_ratio(log2_tokens[rows], n, k, fit.surface)
            total_s[rows] += np.exp(log_s)
    return total_s


def fit_latent_context(
    table: KernelTable, gemm: dict[WeightDtype, GemmFit], gpu: Gpu
) -> tuple[list[float], Evidence]:
    """FLOP and byte efficiency of a prompt's attention and kv_b expansion, and the module's fixed part [s].

    The projections are taken away at their fitted times; the fixed part is host time and is not used.
    """
    table = table.where(
        (table.labels["kv_cache_dtype"] == "bfloat16") & (table.labels["gemm_type"] == "bfloat16")
    )
    table = table.where(table.latency_s >= MIN_PROMPT_S)
    column = table.numbers
    heads, batch, tokens = column["num_heads"], column["batch_size"], column["isl"]
    projections_s = _projections_s(batch * tokens, heads, gemm[WeightDtype.BF16], gpu)
    one_head = latent_work(DEEPSEEK_V3._replace(heads=1), gpu)
    pairs = batch * tokens * tokens / 2.0
    terms = (
        heads * (pairs * one_head.pair_flop_s + batch * tokens * one_head.expand_flop_s),
        heads * batch * tokens * one_head.expand_byte_s,
        np.ones_like(pairs),
    )
    form = LinearForm(np.column_stack(terms), efficiencies=2)

    def predict_s(values: FloatArray) -> FloatArray:
        return projections_s + form.time_s(values)

    def fit(use: BoolArray) -> FloatArray:
        return robust_fit(lambda values: predict_s(values)[use], _CONTEXT_BOUNDS, table.latency_s[use])

    values, outcome = fit_and_hold_out(fit, predict_s, heads)
    everything = np.ones(heads.shape, dtype=np.bool_)
    note = "whole module, projections at their fitted times"
    return [float(x) for x in values], evidence(table.latency_s, outcome, everything, note)


def _per_step(table: KernelTable, phase: str) -> tuple[KernelTable, FloatArray]:
    """Rows of the state kernel with the convolution of the same shape added [s]."""
    part = table.where(table.labels["phase"] == phase)
    names = ("batch_size", "seq_len", "num_k_heads", "num_v_heads", "d_model")
    columns = np.column_stack([part.numbers[name] for name in names])
    keys = np.unique(columns, axis=0, return_inverse=True)[1]
    convolution = np.char.startswith(part.labels["kernel_source"], "causal_conv1d")
    order = np.argsort(keys[convolution], kind="stable")
    conv_keys, conv_s = keys[convolution][order], part.latency_s[convolution][order]
    state = part.where(~convolution)
    position = np.clip(np.searchsorted(conv_keys, keys[~convolution]), 0, conv_keys.size - 1)
    paired = conv_keys[position] == keys[~convolution]
    return state.where(paired), (state.latency_s + conv_s[position])[paired]


def _linear_sizes(table: KernelTable) -> tuple[FloatArray, FloatArray]:
    """State bytes of a sequence and moved bytes of a prompt token, row by row."""
    column = table.numbers
    state_bytes, token_bytes = np.empty_like(table.latency_s), np.empty_like(table.latency_s)
    for row in range(table.latency_s.size):
        key_dim, value_dim = int(column["head_k_dim"][row]), int(column["head_v_dim"][row])
        value_heads = int(column["num_v_heads"][row])
        shape = LinearShape(
            heads=value_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            conv_channels=value_heads * value_dim + 2 * int(column["num_k_heads"][row]) * key_dim,
            conv_kernel=int(column["d_conv"][row]),
            state_bytes=4,
        )
        state_bytes[row], token_bytes[row] = linear_state_bytes(shape), linear_token_bytes(shape)
    return state_bytes, token_bytes


def fit_linear_attention(table: KernelTable, gpu: Gpu) -> LinearAttentionFit:
    """Gated delta net: decode by its state's traffic, prompts by tokens moved and the chain of chunks."""
    bytes_per_s = gpu.memory_bandwidth_bytes_per_s
    decode, decode_s = _per_step(table, "generation")
    state_bytes, _ = _linear_sizes(decode)
    batch = decode.numbers["batch_size"]
    form = LinearForm(
        np.column_stack((2.0 * batch * state_bytes / bytes_per_s, np.ones_like(batch))), efficiencies=1
    )
    real = decode_s >= CACHED_SPEEDUP * form.terms[:, 0]
    heads = decode.numbers["num_v_heads"]
    measured = Measured(decode_s[real], heads[real], "convolution and recurrent step")
    decode_values, decode_worth = fit_linear(form.rows(real), _STATE_BOUNDS, measured)
    prompt, prompt_s = _per_step(table, "context")
    _, token_bytes = _linear_sizes(prompt)
    length = prompt.numbers["seq_len"]
    tokens = prompt.numbers["batch_size"] * length
    chain = (tokens * token_bytes / bytes_per_s, np.ones_like(tokens), length)
    context_values, context_worth = fit_linear(
        LinearForm(np.column_stack(chain), efficiencies=1),
        _SCAN_BOUNDS,
        Measured(prompt_s, prompt.numbers["num_v_heads"], "convolution and chunked scan"),
    )
    return LinearAttentionFit(
        decode_byte_efficiency=decode_values[0],
        decode_constant_s=decode_values[1],
        context_byte_efficiency=context_values[0],
        context_constant_s=context_values[1],
        context_per_token_s=context_values[2],
        decode_evidence=decode_worth,
        context_evidence=context_worth,
    )
