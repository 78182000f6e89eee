"""Time of one kernel: datasheet rates times fitted efficiencies, plus what a launch costs.

Every form is a pure function of shapes and an `GpuOperators`; arrays of token counts in, arrays of seconds out.
"""

from planner.formulas.operators.attention import (
    AttentionShape,
    ContextAttention,
    DecodeAttention,
    IndexerShape,
    LatentShape,
    LinearShape,
    context_attention,
    decode_attention,
    indexer_context,
    indexer_decode,
    linear_attention_context,
    linear_attention_decode,
    mla_context,
    mla_decode,
)
from planner.formulas.operators.coefficients import (
    UNTUNED,
    Evidence,
    GpuOperators,
    OperatorCoefficients,
    Origin,
    StepTuning,
    peak_flop_per_s,
    transfer,
)
from planner.formulas.operators.collectives import RankGroup, all_reduce_s, send_recv_s
from planner.formulas.operators.gemm import elementwise_s, gemm_s, share_of_large
from planner.formulas.operators.moe import MoeShape, moe_s

__all__ = [
    "UNTUNED",
    "AttentionShape",
    "ContextAttention",
    "DecodeAttention",
    "Evidence",
    "GpuOperators",
    "IndexerShape",
    "LatentShape",
    "LinearShape",
    "MoeShape",
    "OperatorCoefficients",
    "Origin",
    "RankGroup",
    "StepTuning",
    "all_reduce_s",
    "context_attention",
    "decode_attention",
    "elementwise_s",
    "gemm_s",
    "indexer_context",
    "indexer_decode",
    "linear_attention_context",
    "linear_attention_decode",
    "mla_context",
    "mla_decode",
    "moe_s",
    "peak_flop_per_s",
    "send_recv_s",
    "share_of_large",
    "transfer",
]
