"""Room for LoRA adapters on one rank, as vLLM allocates it at load whether or not an adapter is there.

Every linear layer of the language model gets two stacked factors for each adapter slot: A maps its inputs to the
rank, B the rank to its outputs. Sources: vllm/lora/layers (create_lora_weights of each class) and
vllm/lora/model_manager.py (_create_lora_modules); before 0.14 the latter was vllm/lora/models.py.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

from planner.domain.deployment import EngineSettings, LoraSlots, Parallelism
from planner.domain.model import (
    GemmRole,
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
    MoeFfn,
)
from planner.formulas.engine_defaults import EngineVersion, parse_version
from planner.formulas.gemms import (
    REPLICATED,
    ROW_PARALLEL,
    Experts,
    Gemm,
    expert_ranks,
    layer_gemms,
    padded_vocab,
)
from planner.formulas.lora_support import (
    embedding_takes_adapters,
    head_takes_adapters,
    router_takes_adapters,
)
from planner.formulas.tensors import VALUE_BYTES, WeightTensor
from planner.formulas.weights import pipeline_layers

EXPERTS_SINCE = EngineVersion(0, 12, 0)
"""Releases between 0.11.0 and 0.12.0 were not read."""
EXTRA_VOCAB_BEFORE = EngineVersion(0, 12, 0)
EXTRA_VOCAB = 256
"""Rows that embedding and head kept free for an adapter's own tokens (lora_extra_vocab_size)."""
EXTRA_VOCAB_PADDING = 8
TOKEN_INDEX_BYTES = 4 * 8 + 2 * 2 * 4
"""Four int64 index vectors, and two kernel maps of two int32 vectors each."""
SEQUENCE_INDEX_BYTES = 3 * 8

_ONE_ADAPTER_FOR_FUSED = {
    "GPTNeoXForCausalLM": frozenset({GemmRole.QKV}),
    "GlmForCausalLM": frozenset({GemmRole.GATE_UP}),
    "InternLM2ForCausalLM": frozenset({GemmRole.QKV}),
    "Phi3ForCausalLM": frozenset({GemmRole.QKV, GemmRole.GATE_UP}),
}
"""Projections stored fused in the checkpoint (packed_modules_mapping of one name), so with a single A."""

_FUSED_EXPERT_ARCHITECTURES = frozenset(
    {
        "GptOssForCausalLM",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    }
)
"""Gate and up of the experts share one A (is_3d_moe_weight)."""


class _Module(NamedTuple):
    """One wrapped layer of one rank."""

    name: str
    copies: int
    """Layers of this kind on the rank, times experts."""
    slices: int
    """Adapters fused into it; each has its own A."""
    rank_in: int
    """Rows of A, the share of the rank that this rank computes."""
    inputs: int
    outputs: int
    """Of all slices together."""


class _Setting(NamedTuple):
    model: Model
    parallelism: Parallelism
    lora: LoraSlots
    version: EngineVersion

    def share(self, amount: int, ranks: int) -> int:
        """What one of `ranks` keeps of something that only fully sharded adapters divide."""
        return amount // ranks if self.lora.fully_sharded else amount


@lru_cache(maxsize=4096)
def lora_bytes(model: Model, parallelism: Parallelism, lora: LoraSlots, *, engine_version: str = "") -> int:
    """Bytes that the adapter slots take on the fullest rank [bytes].

    Raises `InputError` where `engine_version` is not a vLLM version.

    >>> from planner.catalog.models import load_model
    >>> lora_bytes(load_model("meta-llama/Llama-3.1-8B"), Parallelism(), LoraSlots(max_lora_rank=16))
    92356608
    """
    return max(
        sum(
            tensor.size_bytes
            for tensor in lora_tensors(
                model, parallelism, lora, pp_rank=pp_rank, engine_version=engine_version
            )
        )
        for pp_rank in range(parallelism.pp)
    )


def lora_index_bytes(engine: EngineSettings) -> int:
    """Which token uses which adapter, for the largest step (vllm/lora/punica_wrapper) [bytes]."""
    return (
        engine.max_num_batched_tokens * TOKEN_INDEX_BYTES + engine.max_num_seqs * SEQUENCE_INDEX_BYTES
        if engine.lora is not None
        else 0
    )


def lora_tensors(
    model: Model,
    parallelism: Parallelism,
    lora: LoraSlots,
    *,
    pp_rank: int = 0,
    engine_version: str = "",
) -> tuple[WeightTensor, ...]:
    """What the adapter slots take on one rank of pipeline stage `pp_rank`, as rows of group `lora`.

    Raises `InputError` where `engine_version` is not a vLLM version.
    """
    setting = _Setting(model, parallelism, lora, parse_version(engine_version))
    first, last = pipeline_layers(model.layers, parallelism.pp, pp_rank)
    part = model.layer_pattern[first:last]
    rows: list[WeightTensor] = []
    for kind_index in range(len(model.layer_kinds)):
        layers = part.count(kind_index)
        for module in _layer_modules(setting, kind_index) if layers else ():
            rows += _factors(setting, module._replace(copies=module.copies * layers))
        if layers and _wraps_experts(setting, model.layer_kinds[kind_index]):
            rows.append(_int32("experts_enabled", (lora.max_loras + 1,), layers))
    rows += _vocabulary_rows(setting, pp_rank)
    return tuple(rows)


def _factors(setting: _Setting, module: _Module) -> Iterator[WeightTensor]:
    lora = setting.lora
    copies = module.copies * lora.max_loras
    shape_a = (module.slices, module.rank_in, module.inputs)
    yield _row(setting, f"{module.name}_lora_a", shape_a, copies)
    yield _row(setting, f"{module.name}_lora_b", (module.outputs, lora.max_lora_rank), copies)


def _row(setting: _Setting, name: str, shape: tuple[int, ...], copies: int) -> WeightTensor:
    dtype = setting.model.activation_dtype
    return WeightTensor("lora", name, shape, copies, dtype, round(prod(shape) * copies * VALUE_BYTES[dtype]))


def _int32(name: str, shape: tuple[int, ...], copies: int) -> WeightTensor:
    return WeightTensor("lora", name, shape, copies, "int32", 4 * prod(shape) * copies)


def _layer_modules(setting: _Setting, kind_index: int) -> Iterator[_Module]:
    layer = setting.model.layer_kinds[kind_index]
    products = layer_gemms(setting.model, kind_index, setting.parallelism)
    for gemm in products.gemms:
        if not _is_left_out(setting, gemm, layer):
            yield _gemm_module(setting, gemm, layer)
    yield from _convolution(setting, layer)
    if products.experts is not None and _wraps_experts(setting, layer):
        yield from _expert_modules(setting, products.experts)


def _is_left_out(setting: _Setting, gemm: Gemm, layer: Layer) -> bool:
    """The manager passes over the router of experts without a gate projection (Nemotron-H).

    It has no fully sharded wrapper for layers of three outputs or more.
    """
    if gemm.role is GemmRole.ROUTER:
        gated = isinstance(layer.ffn, MoeFfn) and layer.ffn.gated
        return not (gated and router_takes_adapters(setting.model, gemm.n, setting.version))
    return gemm.role is GemmRole.MAMBA_IN and _is_split_mixer_left_out(setting, layer)


def _is_split_mixer_left_out(setting: _Setting, layer: Layer) -> bool:
    return setting.lora.fully_sharded and _splits_groups(layer, setting.parallelism.tp)


def _wraps_experts(setting: _Setting, layer: Layer) -> bool:
    return isinstance(layer.ffn, MoeFfn) and setting.version >= EXPERTS_SINCE


def _gemm_module(setting: _Setting, gemm: Gemm, layer: Layer) -> _Module:
    tp, rank = setting.parallelism.tp, setting.lora.max_lora_rank
    if gemm.role in ROW_PARALLEL:
        return _Module(gemm.role, 1, 1, rank, gemm.k, setting.share(gemm.n, tp))
    slices = _slices(setting.model, gemm, layer, tp)
    rank_in = rank if gemm.role in REPLICATED else setting.share(rank, tp)
    return _Module(gemm.role, 1, slices, rank_in, gemm.k, gemm.n)


def _slices(model: Model, gemm: Gemm, layer: Layer, tp: int) -> int:
    """Adapters that a fused projection takes, one for each checkpoint tensor in it."""
    if gemm.role in _ONE_ADAPTER_FOR_FUSED.get(model.architecture, ()):
        return 1
    gated = layer.ffn is not None and layer.ffn.gated
    low_rank_queries = isinstance(layer.attention, LatentAttention) and layer.attention.q_lora_rank
    split_linear = model.architecture.startswith("Qwen3_5")
    slices = {
        GemmRole.QKV: 3,
        GemmRole.GATE_UP: 2 if gated else 1,
        GemmRole.SHARED_GATE_UP: 2 if gated else 1,
        GemmRole.MLA_DOWN: 2 if low_rank_queries else 1,
        GemmRole.LINEAR_IN: 4 if split_linear else 1,
        GemmRole.LINEAR_GATES: 2 if split_linear else 1,
        GemmRole.MAMBA_IN: 5 if _splits_groups(layer, tp) else 1,
    }
    return slices.get(gemm.role, 1)


def _splits_groups(layer: Layer, tp: int) -> bool:
    """vLLM's mixer keeps its five outputs apart where the B/C groups divide over the ranks."""
    return isinstance(layer.attention, MambaMixer) and layer.attention.groups % tp == 0


def _convolution(setting: _Setting, layer: Layer) -> Iterator[_Module]:
    """The short convolution is a linear layer to vLLM: kernel in, channels out."""
    tp, rank = setting.parallelism.tp, setting.lora.max_lora_rank
    mixer = layer.attention
    if isinstance(mixer, LinearAttention):
        keys, values = mixer.key_heads * mixer.key_head_dim, mixer.value_heads * mixer.value_head_dim
        yield _Module("conv1d", 1, 1, setting.share(rank, tp), mixer.conv_kernel, (2 * keys + values) // tp)
    elif isinstance(mixer, MambaMixer) and not _is_split_mixer_left_out(setting, layer):
        channels = mixer.heads // tp * mixer.head_dim + 2 * mixer.groups_on_rank(tp) * mixer.state_size
        slices = 3 if _splits_groups(layer, tp) else 1
        yield _Module("conv1d", 1, slices, setting.share(rank, tp), mixer.conv_kernel, channels)


def _expert_modules(setting: _Setting, experts: Experts) -> Iterator[_Module]:
    ranks = 1 if experts.ep else expert_ranks(setting.parallelism)
    rank = setting.lora.max_lora_rank
    fused = setting.model.architecture in _FUSED_EXPERT_ARCHITECTURES
    slices = 2 if experts.gated and not fused else 1
    local = experts.local_experts
    yield _Module("experts_up", local, slices, setting.share(rank, ranks), experts.inputs, experts.up_width)
    down = setting.share(experts.inputs, ranks)
    yield _Module("experts_down", local, 1, rank, experts.intermediate, down)


def _vocabulary_rows(setting: _Setting, pp_rank: int) -> Iterator[WeightTensor]:
    """Embedding and head, whole on every tensor-parallel rank, where the architecture names them."""
    model, parallelism, lora, version = setting
    first, last = pp_rank == 0, pp_rank == parallelism.pp - 1
    extra = EXTRA_VOCAB if version < EXTRA_VOCAB_BEFORE else 0
    if embedding_takes_adapters(model, version) and (first or (last and model.tied_embeddings)):
        module = _Module("embedding", 1, 1, lora.max_lora_rank, model.vocab + extra, model.hidden)
        yield from _factors(setting, module)
        if extra:
            yield _row(setting, "embedding_extra_tokens", (extra, model.hidden), lora.max_loras)
            yield _row(setting, "embedding_extra_rows", (extra // parallelism.tp, model.hidden), 1)
    if not (head_takes_adapters(model, version) and last):
        return
    if extra:
        vocab = ceil((model.vocab + extra) / EXTRA_VOCAB_PADDING) * EXTRA_VOCAB_PADDING
        yield _row(setting, "head_extra_tokens", (extra, model.hidden), lora.max_loras)
        if not model.tied_embeddings:
            rows = (vocab - padded_vocab(model.vocab)) // parallelism.tp
            yield _row(setting, "head_extra_rows", (rows, model.hidden), 1)
    else:
        vocab = model.vocab
    yield from _factors(setting, _Module("head", 1, 1, lora.max_lora_rank, model.hidden, vocab))
    if parallelism.tp > 1:
        size_bytes = 8 * (padded_vocab(model.vocab) + extra)
        yield WeightTensor("lora", "head_order", (size_bytes // 8,), 1, "int64", size_bytes)
