"""Peak memory of a forward pass, as the engine's profiling run makes it: one batch of dummy tokens."""

from typing import NamedTuple

from planner.domain.deployment import EngineSettings, Parallelism
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
from planner.formulas.allocator import round_up
from planner.formulas.engine_defaults import EngineVersion, parse_version
from planner.formulas.gemms import Experts, layer_gemms, padded_vocab
from planner.formulas.moe_workspace import KernelSite, expert_memory

BYTES_PER_VALUE = 2
"""Activations are 16-bit."""
ROUTER_VALUES = 2
"""Router logits are fp32."""
LATENT_CONTEXT_TOKENS = 65_536
"""Earlier tokens that MLA brings back to full width at once, at most (mla_attention.py,
determine_chunked_prefill_workspace_size)."""
LATENT_CONTEXT_REQUESTS = 8
LATENT_CONTEXT_PAGES = 4
"""That is 8 sequences of full length, or 4 pages for each sequence where that is more."""
LATENT_CONTEXT_ALIGNED_SINCE = EngineVersion(0, 28, 0)
"""Before, there was a page for each sequence at least; from here on whole pages within the limit."""

SPARSE_CONTEXT_LENGTHS = 40
"""A sparse-attention indexer gathers the keys of this many sequences of full length at once
(vllm/v1/attention/backends/mla/indexer.py, get_max_prefill_buffer_size)."""
SPARSE_SCALE_BYTES = 4
SPARSE_KEYS_SINCE = EngineVersion(0, 13, 0)
SPARSE_LOGITS_BYTES = 512 << 20
"""VLLM_SPARSE_INDEXER_MAX_LOGITS_MB, made room for in the profiling run."""
SPARSE_LOGITS_SINCE = EngineVersion(0, 19, 0)


class Batch(NamedTuple):
    """The dummy batch of the profiling run."""

    tokens: int
    context_tokens: int = 0
    """Earlier tokens that MLA makes room for."""
    max_model_len: int = 0


class BlockShape(NamedTuple):
    """What the blocks of one kind of layer hold on one rank beside the residual stream."""

    mixer_bytes_per_token: int
    mixer_bytes_per_context_token: int
    """MLA in the profiling run makes room for a long context beside the batch."""
    ffn_bytes_per_token: int
    experts: Experts | None
    index_bytes_per_key: int = 0
    """What a sparse-attention indexer gathers of each cached token."""


class ForwardMemory(NamedTuple):
    """A forward pass's memory beside the weights [bytes]."""

    kept_bytes: int
    """Workspaces that outlive it."""
    passing_bytes: int
    """The most it holds at once beside those."""

    @property
    def size_bytes(self) -> int:
        """Both together."""
        return self.kept_bytes + self.passing_bytes


class ActivationShape(NamedTuple):
    """What of a model and its layout decides the memory of the profiling run; made once per layout."""

    model: Model
    blocks: tuple[BlockShape, ...]
    hidden_bytes_per_token: int
    vocab: int
    """Padded."""

    @property
    def architecture(self) -> str:
        """The class vLLM loads."""
        return self.model.architecture

    def forward(self, batch: Batch, site: KernelSite) -> ForwardMemory:
        """A pass over a batch: the residual stream and the widest block of any layer."""
        tokens, context_tokens = batch.tokens, batch.context_tokens
        kept = widest = 0
        for block in self.blocks:
            mixer = (
                tokens * block.mixer_bytes_per_token + context_tokens * block.mixer_bytes_per_context_token
            )
            ffn = tokens * block.ffn_bytes_per_token
            if block.index_bytes_per_key and site.target.version >= SPARSE_KEYS_SINCE:
                keys = SPARSE_CONTEXT_LENGTHS * batch.max_model_len
                kept = max(kept, keys * block.index_bytes_per_key)
                mixer += SPARSE_LOGITS_BYTES if site.target.version >= SPARSE_LOGITS_SINCE else 0
            if block.experts is not None:
                experts = expert_memory(block.experts, tokens, site)
                kept = max(kept, experts.kept_bytes)
                ffn += experts.passing_bytes
            widest = max(widest, mixer, ffn)
        return ForwardMemory(kept, tokens * self.hidden_bytes_per_token + widest)


def activation_shape(model: Model, parallelism: Parallelism) -> ActivationShape:
    """What the profiling run of this model will hold on one rank."""
    blocks = [
        _block_shape(kind, model.hidden, parallelism.tp, layer_gemms(model, index, parallelism).experts)
        for index, kind in enumerate(model.layer_kinds)
    ]
    return ActivationShape(
        model=model,
        blocks=tuple(dict.fromkeys(blocks)),
        hidden_bytes_per_token=model.hidden * BYTES_PER_VALUE,
        vocab=padded_vocab(model.vocab),
    )


def latent_context_tokens(engine: EngineSettings, block_size: int) -> int:
    """Context that MLA makes room for in the profiling run [tokens], with blocks as they are paged.

    The block size is the attention backend's: the platform sets it before the model is made, since 0.18 before
    it is profiled (platforms/interface.py, update_block_size_for_backend).
    """
    pages = engine.max_num_seqs * block_size
    wanted = max(LATENT_CONTEXT_REQUESTS * engine.max_model_len, LATENT_CONTEXT_PAGES * pages)
    limited = min(wanted, LATENT_CONTEXT_TOKENS)
    if parse_version(engine.engine_version) >= LATENT_CONTEXT_ALIGNED_SINCE:
        return round_up(max(limited, block_size), block_size)
    return max(limited, pages)


def _block_shape(kind: Layer, hidden: int, tp: int, experts: Experts | None) -> BlockShape:
    attention = kind.attention
    context = index = 0
    if isinstance(attention, LatentAttention):
        index = attention.indexer_head_dim + SPARSE_SCALE_BYTES if attention.indexer_heads else 0
        context = attention.heads // tp * (attention.qk_nope_head_dim + attention.v_head_dim)
    return BlockShape(
        mixer_bytes_per_token=_mixer_values(kind, hidden, tp) * BYTES_PER_VALUE,
        mixer_bytes_per_context_token=context * BYTES_PER_VALUE,
        ffn_bytes_per_token=_ffn_values(kind, hidden, tp) * BYTES_PER_VALUE,
        experts=experts,
        index_bytes_per_key=index,
    )


def _mixer_values(kind: Layer, hidden: int, tp: int) -> int:
    """Values a token needs in the attention block: each product reads one buffer and writes the next."""
    match kind.attention:
        case SoftmaxAttention() as a:
            queries = a.heads * a.head_dim // tp
            keys = max(1, a.kv_heads // tp) * a.head_dim
            values = max(1, a.kv_heads // tp) * a.v_head_dim
            made = queries * (2 if a.output_gate else 1) + keys + values
            mixed = a.heads * a.v_head_dim // tp
            return max(hidden + made, made + queries + keys + mixed, mixed + hidden, 2 * hidden)
        case LatentAttention() as a:
            latents = (a.q_lora_rank or 0) + a.kv_lora_rank + a.qk_rope_head_dim
            queries = a.heads * (a.qk_nope_head_dim + a.qk_rope_head_dim) // tp
            return max(hidden + latents, 2 * latents + queries + a.heads * a.v_head_dim // tp, 2 * hidden)
        case LinearAttention() as a:
            made = 2 * (a.key_heads * a.key_head_dim + a.value_heads * a.value_head_dim) // tp
            return max(hidden + made, 2 * made, 2 * hidden)
        case MambaMixer() as a:
            inner = a.heads * a.head_dim // tp
            made = 2 * inner + 2 * a.groups_on_rank(tp) * a.state_size
            return max(hidden + made, made + 2 * inner, 2 * hidden)
    return 0


def _ffn_values(kind: Layer, hidden: int, tp: int) -> int:
    """Values a token needs in the feed-forward block, those of the routed experts' kernels apart."""
    match kind.ffn:
        case DenseFfn() as ffn:
            return _dense_values(ffn.intermediate // tp, hidden, gated=ffn.gated)
        case MoeFfn() as ffn:
            beside = 0
            if ffn.shared_intermediate:
                beside = _dense_values(ffn.shared_intermediate // tp, hidden, gated=ffn.gated)
            if ffn.parallel_dense is not None:
                wide = ffn.parallel_dense
                beside = max(beside, _dense_values(wide.intermediate // tp, hidden, gated=wide.gated))
            return hidden + max(beside, ROUTER_VALUES * ffn.experts)
    return 0


def _dense_values(width: int, hidden: int, *, gated: bool) -> int:
    """The input and the wide product, then that and its activation, then this and the output."""
    wide = (2 if gated else 1) * width
    return max(hidden + wide, wide + width, width + hidden, 2 * hidden)
