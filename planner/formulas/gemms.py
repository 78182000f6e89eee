"""What one rank multiplies in one layer: the single source of weight bytes and of step time.

Sharding follows vLLM's model classes (vllm/model_executor/models): column-parallel projections split their
outputs over the tensor-parallel ranks, row-parallel ones their inputs, routers and latents are whole everywhere.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import ceil, gcd
from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import (
    Attention,
    DenseFfn,
    GemmRole,
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
    MoeFfn,
    Quantization,
    SoftmaxAttention,
)

__all__ = [
    "Experts",
    "Gemm",
    "GemmRole",
    "LayerGemms",
    "check_parallelism",
    "expert_block",
    "expert_ranks",
    "head_gemm",
    "layer_gemms",
    "padded_vocab",
]

FP8_BLOCK = 128
"""Side of the blocks of fp8 weights that share a scale."""
FP8_BLOCK_MIN = 32
"""Smallest side vLLM refines the blocks of routed experts to."""
VOCAB_PADDING = 64
"""vLLM pads embeddings and head to this many rows (vllm/.../vocab_parallel_embedding.py)."""
MXFP4_PADDING = 32
"""Expert widths are padded to whole mxfp4 groups on every rank (vllm/.../fused_moe/oracle/mxfp4.py)."""


class Gemm(NamedTuple):
    """One projection on one rank: `n` outputs from `k` inputs."""

    role: GemmRole
    n: int
    k: int
    dtype: WeightDtype
    stored: Quantization | None = None
    """None: in the model's own dtype."""
    bias: bool = False


class Experts(NamedTuple):
    """The routed experts of one layer on one rank."""

    experts: int
    """In the whole model's layer."""
    local_experts: int
    """On this rank; the fullest rank where they do not divide."""
    experts_per_token: int
    inputs: int
    """Width of an expert's input and output: hidden, or the latent width."""
    intermediate: int
    """Of one expert on this rank, padding included."""
    gated: bool
    dtype: WeightDtype
    ep: bool
    stored: Quantization | None = None
    bias: bool = False

    @property
    def up_width(self) -> int:
        """Outputs of the first product: gate and up, or up alone."""
        return self.intermediate * (2 if self.gated else 1)


class LayerGemms(NamedTuple):
    """All products of one layer on one rank, in the order they run."""

    gemms: tuple[Gemm, ...]
    experts: Experts | None


class _Rank(NamedTuple):
    """What every projection of a layer needs to know of its surroundings."""

    hidden: int
    dtype: WeightDtype
    tp: int
    layer: Layer

    def gemm(self, role: GemmRole, n: int, k: int, *, bias: bool = False) -> Gemm:
        stored = self.layer.stored(role)
        return Gemm(role, n, k, self.dtype if stored is None else stored.dtype, stored, bias)

    def plain(self, role: GemmRole, n: int, k: int, *, bias: bool = False) -> Gemm:
        """A projection that vLLM never quantises."""
        return Gemm(role, n, k, self.dtype, None, bias)


def padded_vocab(vocab: int) -> int:
    """Rows of embeddings and head after vLLM's padding.

    >>> padded_vocab(128257)
    128320
    """
    return ceil(vocab / VOCAB_PADDING) * VOCAB_PADDING


def expert_ranks(parallelism: Parallelism) -> int:
    """Ranks the routed experts are spread over: vLLM joins tensor and data parallel ranks for them."""
    return parallelism.tp * parallelism.dp


def head_gemm(model: Model, parallelism: Parallelism) -> Gemm:
    """The output projection of one rank: `[vocab / tp, hidden]`, vocabulary padded to 64."""
    stored = model.head_quantization
    return Gemm(
        GemmRole.HEAD,
        padded_vocab(model.vocab) // parallelism.tp,
        model.hidden,
        model.activation_dtype if stored is None else stored.dtype,
        stored,
        model.lm_head_bias,
    )


@lru_cache(maxsize=4096)
def layer_gemms(model: Model, kind_index: int, parallelism: Parallelism) -> LayerGemms:
    """Every matrix product of one layer of kind `model.layer_kinds[kind_index]` on one rank."""
    layer = model.layer_kinds[kind_index]
    rank = _Rank(model.hidden, model.activation_dtype, parallelism.tp, layer)
    mixer = () if layer.attention is None else _attention_gemms(layer.attention, rank)
    ffn = layer.ffn
    if ffn is None:
        return LayerGemms(mixer, None)
    if isinstance(ffn, DenseFfn):
        return LayerGemms(mixer + _dense_gemms(ffn, rank), None)
    return LayerGemms(mixer + _moe_gemms(ffn, rank), _experts(ffn, rank, parallelism))


def _attention_gemms(attention: Attention, rank: _Rank) -> tuple[Gemm, ...]:
    if isinstance(attention, SoftmaxAttention):
        return _softmax_gemms(attention, rank)
    if isinstance(attention, LatentAttention):
        return _latent_gemms(attention, rank)
    if isinstance(attention, LinearAttention):
        return _linear_gemms(attention, rank)
    return _mamba_gemms(attention, rank)


def _softmax_gemms(attention: SoftmaxAttention, rank: _Rank) -> tuple[Gemm, ...]:
    heads = attention.heads // rank.tp
    kv_heads = max(1, attention.kv_heads // rank.tp)
    queries = heads * attention.head_dim * (2 if attention.output_gate else 1)
    keys_and_values = kv_heads * (attention.head_dim + attention.v_head_dim)
    return (
        rank.gemm(GemmRole.QKV, queries + keys_and_values, rank.hidden, bias=attention.qkv_bias),
        rank.gemm(
            GemmRole.ATTENTION_OUT, rank.hidden, heads * attention.v_head_dim, bias=attention.output_bias
        ),
    )


def _latent_gemms(attention: LatentAttention, rank: _Rank) -> tuple[Gemm, ...]:
    heads = attention.heads // rank.tp
    qk_head_dim = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    latents = attention.kv_lora_rank + attention.qk_rope_head_dim + (attention.q_lora_rank or 0)
    gemms = [
        rank.gemm(GemmRole.MLA_DOWN, latents, rank.hidden),
        rank.gemm(GemmRole.MLA_Q_UP, heads * qk_head_dim, attention.q_lora_rank or rank.hidden),
        rank.gemm(
            GemmRole.MLA_KV_UP,
            heads * (attention.qk_nope_head_dim + attention.v_head_dim),
            attention.kv_lora_rank,
        ),
        rank.gemm(GemmRole.ATTENTION_OUT, rank.hidden, heads * attention.v_head_dim),
    ]
    if attention.indexer_heads:
        index_queries = attention.indexer_heads * attention.indexer_head_dim
        gemms += [
            rank.gemm(GemmRole.INDEXER, index_queries, attention.q_lora_rank or rank.hidden),
            rank.plain(GemmRole.INDEXER, attention.indexer_head_dim + attention.indexer_heads, rank.hidden),
        ]
    return tuple(gemms)


def _linear_gemms(attention: LinearAttention, rank: _Rank) -> tuple[Gemm, ...]:
    keys = attention.key_heads * attention.key_head_dim // rank.tp
    values = attention.value_heads * attention.value_head_dim // rank.tp
    gates = 2 * attention.value_heads // rank.tp
    return (
        rank.gemm(GemmRole.LINEAR_IN, 2 * keys + 2 * values, rank.hidden),
        rank.gemm(GemmRole.LINEAR_GATES, gates, rank.hidden),
        rank.gemm(GemmRole.LINEAR_OUT, rank.hidden, values),
    )


def _mamba_gemms(mixer: MambaMixer, rank: _Rank) -> tuple[Gemm, ...]:
    heads = mixer.heads // rank.tp
    width = heads * mixer.head_dim
    outputs = 2 * width + 2 * mixer.groups_on_rank(rank.tp) * mixer.state_size + heads
    return (
        rank.gemm(GemmRole.MAMBA_IN, outputs, rank.hidden, bias=mixer.projection_bias),
        rank.gemm(GemmRole.MAMBA_OUT, rank.hidden, width, bias=mixer.projection_bias),
    )


def _dense_gemms(ffn: DenseFfn, rank: _Rank) -> tuple[Gemm, ...]:
    width = ffn.intermediate // rank.tp
    return (
        rank.gemm(GemmRole.GATE_UP, width * (2 if ffn.gated else 1), rank.hidden, bias=ffn.bias),
        rank.gemm(GemmRole.DOWN, rank.hidden, width, bias=ffn.bias),
    )


def _moe_gemms(ffn: MoeFfn, rank: _Rank) -> tuple[Gemm, ...]:
    gemms = [rank.plain(GemmRole.ROUTER, ffn.experts, rank.hidden, bias=ffn.bias)]
    if ffn.shared_intermediate:
        width = ffn.shared_intermediate // rank.tp
        gemms += [
            rank.gemm(GemmRole.SHARED_GATE_UP, width * (2 if ffn.gated else 1), rank.hidden),
            rank.gemm(GemmRole.SHARED_DOWN, rank.hidden, width),
        ]
        if ffn.shared_gate:
            gemms.append(rank.plain(GemmRole.ROUTER, 1, rank.hidden))
    if ffn.latent:
        gemms += [
            rank.gemm(GemmRole.LATENT_IN, ffn.latent, rank.hidden),
            rank.gemm(GemmRole.LATENT_OUT, rank.hidden, ffn.latent),
        ]
    if ffn.parallel_dense is not None:
        gemms += _dense_gemms(ffn.parallel_dense, rank)
    return tuple(gemms)


def _experts(ffn: MoeFfn, rank: _Rank, parallelism: Parallelism) -> Experts:
    ranks = expert_ranks(parallelism)
    ep = parallelism.ep and ranks > 1
    stored = rank.layer.stored(GemmRole.EXPERTS)
    dtype = rank.dtype if stored is None else stored.dtype
    intermediate = ffn.intermediate if ep else ffn.intermediate // ranks
    if dtype is WeightDtype.MXFP4:
        intermediate = ceil(intermediate / MXFP4_PADDING) * MXFP4_PADDING
    return Experts(
        experts=ffn.experts,
        local_experts=ceil(ffn.experts / ranks) if ep else ffn.experts,
        experts_per_token=ffn.experts_per_token,
        inputs=ffn.latent or rank.hidden,
        intermediate=intermediate,
        gated=ffn.gated,
        dtype=dtype,
        ep=ep,
        stored=stored,
        bias=ffn.bias,
    )


def expert_block(experts: Experts) -> int:
    """Side of an fp8 scale block of routed experts.

    vLLM refines the checkpoint's 128 where a rank's slice is not a multiple of it
    (vllm/model_executor/layers/fused_moe/oracle/fp8.py, refine_fp8_moe_block_shape).
    """
    if experts.intermediate % FP8_BLOCK == 0:
        return FP8_BLOCK
    return gcd(FP8_BLOCK, experts.intermediate, experts.inputs)


@lru_cache(maxsize=4096)
def check_parallelism(model: Model, parallelism: Parallelism) -> str | None:
    """Why vLLM would refuse to split `model` this way, None where it would not.

    Sources: vllm/config/model.py (verify_with_parallel_config), the divisions in its parallel layers,
    vllm/model_executor/layers/quantization (group and block alignment).
    """
    if parallelism.pp > model.layers:
        return f"pipeline parallel size {parallelism.pp} exceeds the {model.layers} layers"
    if parallelism.ep and not model.has_moe:
        return "expert parallelism needs a mixture of experts"
    if padded_vocab(model.vocab) % parallelism.tp:
        return _undivided(parallelism.tp, "padded vocabulary", padded_vocab(model.vocab))
    for index, layer in enumerate(model.layer_kinds):
        problem = next(_layer_problems(layer, parallelism), None)
        if problem is None:
            problem = next(_alignment_problems(layer_gemms(model, index, parallelism), parallelism), None)
        if problem is not None:
            return problem
    return None


def check_unrefined_blocks(model: Model, parallelism: Parallelism) -> str | None:
    """Why a release that takes the checkpoint's fp8 blocks as they are refuses this split, None where it does not.

    Until 0.29 an expert's slice had to hold whole blocks (vllm/model_executor/layers/quantization/fp8.py,
    create_weights); since 0.30 they are refined.
    """
    for index in range(len(model.layer_kinds)):
        experts = layer_gemms(model, index, parallelism).experts
        if experts is None or experts.stored is None or experts.dtype is not WeightDtype.FP8_BLOCK:
            continue
        if experts.intermediate % FP8_BLOCK:
            width = experts.intermediate
            return f"expert width of one rank, {width}, is not a multiple of the fp8 block {FP8_BLOCK}"
    return None


def _undivided(ranks: int, what: str, amount: int) -> str:
    return f"tensor parallel size {ranks} does not divide {what} {amount}"


def _layer_problems(layer: Layer, parallelism: Parallelism) -> Iterator[str]:
    """Amounts that do not divide over the ranks."""
    tp = parallelism.tp
    for what, amount in _divided(layer):
        if amount % tp:
            yield _undivided(tp, what, amount)
    if isinstance(layer.attention, SoftmaxAttention) and layer.attention.kv_heads % tp:
        kv_heads = layer.attention.kv_heads
        if kv_heads > tp or tp % kv_heads:
            yield f"tensor parallel size {tp} and key-value heads {kv_heads} are not multiples of each other"
    if isinstance(layer.attention, MambaMixer) and layer.attention.groups > 1 and layer.attention.groups % tp:
        yield _undivided(tp, "mamba groups", layer.attention.groups)
    if isinstance(layer.ffn, MoeFfn):
        ranks = expert_ranks(parallelism)
        if tp > layer.ffn.experts:
            yield f"tensor parallel size {tp} exceeds the {layer.ffn.experts} experts"
        if not parallelism.ep and layer.ffn.intermediate % ranks:
            yield f"{ranks} ranks do not divide expert width {layer.ffn.intermediate}"
        if parallelism.ep and ranks > layer.ffn.experts:
            yield f"{ranks} expert parallel ranks exceed the {layer.ffn.experts} experts"


def _divided(layer: Layer) -> Iterator[tuple[str, int]]:
    """What every tensor-parallel rank takes an equal share of."""
    match layer.attention:
        case SoftmaxAttention() | LatentAttention():
            yield "attention heads", layer.attention.heads
        case LinearAttention():
            yield "linear attention key heads", layer.attention.key_heads
            yield "linear attention value heads", layer.attention.value_heads
        case MambaMixer():
            yield "mamba heads", layer.attention.heads
    match layer.ffn:
        case DenseFfn():
            yield "feed-forward width", layer.ffn.intermediate
        case MoeFfn():
            yield "shared expert width", layer.ffn.shared_intermediate
            if layer.ffn.parallel_dense is not None:
                yield "feed-forward width", layer.ffn.parallel_dense.intermediate


ROW_PARALLEL = frozenset(
    {
        GemmRole.ATTENTION_OUT,
        GemmRole.DOWN,
        GemmRole.SHARED_DOWN,
        GemmRole.LINEAR_OUT,
        GemmRole.MAMBA_OUT,
    }
)
MERGED = frozenset({GemmRole.QKV, GemmRole.GATE_UP, GemmRole.SHARED_GATE_UP, GemmRole.LINEAR_IN})
"""Column-parallel projections made of several tensors of the checkpoint."""
REPLICATED = frozenset(
    {GemmRole.MLA_DOWN, GemmRole.INDEXER, GemmRole.ROUTER, GemmRole.LATENT_IN, GemmRole.LATENT_OUT}
)


def _alignment_problems(products: LayerGemms, parallelism: Parallelism) -> Iterator[str]:
    """Quantised weights whose slices do not hold whole scale groups or blocks.

    vLLM takes merged projections whose parts end within a block (vllm/model_executor/layers/linear.py,
    `_maybe_allow_fp8_block_shape_mismatch`).
    """
    for gemm in products.gemms:
        if gemm.stored is None or gemm.role in REPLICATED:
            continue
        if gemm.dtype is WeightDtype.FP8_BLOCK:
            size = gemm.k if gemm.role in ROW_PARALLEL else gemm.n
            if gemm.role not in MERGED and size % FP8_BLOCK and parallelism.tp > 1:
                yield f"{gemm.role} of one rank is not a multiple of the fp8 block {FP8_BLOCK}"
        elif gemm.stored.group_size and gemm.role in ROW_PARALLEL and gemm.k % gemm.stored.group_size:
            yield f"{gemm.role} inputs of one rank, {gemm.k}, are not a multiple of the {gemm.dtype} group"
    experts = products.experts
    if experts is None or experts.stored is None:
        return
    if experts.dtype is WeightDtype.FP8_BLOCK and expert_block(experts) < FP8_BLOCK_MIN:
        yield f"expert width of one rank, {experts.intermediate}, does not hold whole fp8 blocks"
    elif experts.stored.group_size and experts.intermediate % experts.stored.group_size:
        yield f"expert width of one rank, {experts.intermediate}, is not a multiple of the {experts.dtype} group"
