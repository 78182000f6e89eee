"""Peak memory of the engine's profiling run: one forward pass of a full batch, then sampling."""

from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import (
    DenseFfn,
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
    MoeFfn,
    SoftmaxAttention,
)
from planner.formulas.gemms import expert_ranks, padded_vocab

BYTES_PER_VALUE = 2
"""Activations are 16-bit."""
FP8_BYTES_PER_VALUE = 1
STREAMS = 2
"""Hidden states and residual live through a whole layer."""
EXPERT_BLOCK_ROWS = 128
"""DeepGEMM lays each expert's rows out on multiples of this."""
LOGITS_BYTES_PER_VALUE = 2 + 4 + 4 + 4
"""16-bit logits, their fp32 copy, probabilities and the exponential noise they are divided by."""
SORTED_LOGITS_BYTES_PER_VALUE = 2 + 4 + 4 + 8 + 4 + 2
"""16-bit logits, fp32 copy, sorted values, their 64-bit indices, probabilities and two masks."""


class ForwardPeak(NamedTuple):
    """Memory a forward pass needs at once beside the weights."""

    bytes_per_token: int
    fixed_bytes: int = 0

    def size_bytes(self, tokens: int) -> int:
        """The peak of a pass over this many tokens [bytes]."""
        return tokens * self.bytes_per_token + self.fixed_bytes


class ActivationShape(NamedTuple):
    """What of a model and its layout decides the memory of the profiling run; made once per layout."""

    architecture: str
    forward: ForwardPeak
    forward_deep_gemm: ForwardPeak
    """Where block-quantised experts run through DeepGEMM (Hopper); the same otherwise."""
    hidden_bytes_per_token: int
    vocab: int
    layers: int

    def sampling_bytes(self, tokens: int, sequences: int, *, sorts: bool) -> int:
        """Hidden states of the batch and the sampler's working copies of the logits [bytes]."""
        per_logit = SORTED_LOGITS_BYTES_PER_VALUE if sorts else LOGITS_BYTES_PER_VALUE
        return tokens * self.hidden_bytes_per_token + min(sequences, tokens) * self.vocab * per_logit


def activation_shape(model: Model, parallelism: Parallelism) -> ActivationShape:
    """What the profiling run of this model will hold on one rank."""
    streams = STREAMS * model.hidden * BYTES_PER_VALUE
    kinds = model.layer_kinds
    blocks = [_block_bytes_per_token(kind, model.hidden, parallelism) for kind in kinds]
    forward = ForwardPeak(streams + max(blocks))
    is_block_quantized = model.quantization is not None and model.quantization.dtype is WeightDtype.FP8_BLOCK
    deep_gemm = [
        _deep_gemm_peak(kind.ffn, model.hidden, parallelism)
        for kind in kinds
        if is_block_quantized and isinstance(kind.ffn, MoeFfn)
    ]
    return ActivationShape(
        architecture=model.architecture,
        forward=forward,
        forward_deep_gemm=max(
            (ForwardPeak(streams + peak.bytes_per_token, peak.fixed_bytes) for peak in deep_gemm),
            default=forward,
        ),
        hidden_bytes_per_token=model.hidden * BYTES_PER_VALUE,
        vocab=padded_vocab(model.vocab),
        layers=model.layers,
    )


def _block_bytes_per_token(kind: Layer, hidden: int, parallelism: Parallelism) -> int:
    """The wider of a layer's two blocks; each frees its buffers before the next one starts."""
    return max(
        _mixer_values(kind, parallelism.tp) * BYTES_PER_VALUE,
        _ffn_values(kind, hidden, parallelism) * BYTES_PER_VALUE,
    )


def _mixer_values(kind: Layer, tp: int) -> int:
    """Values a token needs in the attention block: projections in, and the mixed output."""
    match kind.attention:
        case SoftmaxAttention() as a:
            queries = a.heads * a.head_dim * (2 if a.output_gate else 1)
            return (queries + a.kv_heads * (a.head_dim + a.v_head_dim) + a.heads * a.v_head_dim) // tp
        case LatentAttention() as a:
            head = 2 * (a.qk_nope_head_dim + a.qk_rope_head_dim) + 2 * a.v_head_dim
            return a.heads * head // tp + (a.q_lora_rank or 0) + a.kv_lora_rank + a.qk_rope_head_dim
        case LinearAttention() as a:
            return 2 * (a.key_heads * a.key_head_dim + 2 * a.value_heads * a.value_head_dim) // tp
        case MambaMixer() as a:
            inner = a.heads * a.head_dim
            return (3 * inner + 2 * a.groups * a.state_size) // tp
    return 0


def _ffn_values(kind: Layer, hidden: int, parallelism: Parallelism) -> int:
    """Values a token needs in the feed-forward block: the wide product, its activation, the output."""
    match kind.ffn:
        case DenseFfn() as ffn:
            return _dense_values(ffn.intermediate, ffn.gated, parallelism.tp) + hidden
        case MoeFfn() as ffn:
            width = _expert_width(ffn, parallelism)
            row = max(_up_width(width, ffn.gated), ffn.latent or hidden) + width
            shared = _dense_values(ffn.shared_intermediate, ffn.gated, parallelism.tp)
            return ffn.experts_per_token * row + shared + hidden
    return 0


def _deep_gemm_peak(ffn: MoeFfn, hidden: int, parallelism: Parallelism) -> ForwardPeak:
    """Two 16-bit workspaces and the fp8 input, each over all routed rows padded per expert.

    vllm/model_executor/layers/fused_moe/deep_gemm_moe.py, workspace_shapes: `M_sum x max(2 I/tp, H)`.
    """
    row_values = max(_up_width(_expert_width(ffn, parallelism), ffn.gated), hidden)
    row_bytes = 2 * row_values * BYTES_PER_VALUE + hidden * FP8_BYTES_PER_VALUE
    local_experts = -(-ffn.experts // expert_ranks(parallelism)) if parallelism.ep else ffn.experts
    return ForwardPeak(
        ffn.experts_per_token * row_bytes + hidden * BYTES_PER_VALUE,
        local_experts * (EXPERT_BLOCK_ROWS - 1) * row_bytes,
    )


def _dense_values(intermediate: int, gated: bool, tp: int) -> int:
    return (_up_width(intermediate, gated) + intermediate) // tp


def _up_width(intermediate: int, gated: bool) -> int:
    return (2 if gated else 1) * intermediate


def _expert_width(ffn: MoeFfn, parallelism: Parallelism) -> int:
    """Intermediate width of an expert on one rank: whole with expert parallelism, else a slice."""
    return ffn.intermediate if parallelism.ep else -(-ffn.intermediate // expert_ranks(parallelism))
