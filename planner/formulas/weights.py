"""Weight bytes of one rank, tensor by tensor, as vLLM's model classes allocate them."""

from collections.abc import Iterator
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import DenseFfn, GemmRole, Layer, Model, MoeFfn, OuterTensor
from planner.formulas.buffers import buffer_tensors, grows_with_batch, has_attention_scales
from planner.formulas.gemms import Experts, Gemm, expert_block, head_gemm, layer_gemms, padded_vocab
from planner.formulas.load_order import LoadOrder, rounding_tensor
from planner.formulas.load_target import LoadTarget
from planner.formulas.post_load import post_load_tensors
from planner.formulas.small_tensors import small_tensors
from planner.formulas.tensors import (
    EXPERT_SHAPE_BYTES,
    FP32,
    FUSED_PARTS,
    SHAPE_BYTES,
    PlainTensor,
    WeightTensor,
    plain,
    stored_bytes,
    total_bytes,
    value_bytes,
)
from planner.formulas.vision import VISION, vision_tensors


class ParameterCount(NamedTuple):
    """Parameters of the whole model, without scales and padding."""

    total: int
    active: int
    """Those one token passes through."""


def pipeline_layers(layers: int, pp: int, pp_rank: int) -> tuple[int, int]:
    """First layer and one past the last of a pipeline rank (vllm/distributed/utils.py, get_pp_indices).

    Layers left over go to the ranks before the last, one each, from the back.

    >>> [pipeline_layers(61, 4, rank) for rank in range(4)]
    [(0, 15), (15, 30), (30, 46), (46, 61)]
    """
    share, left_over = divmod(layers, pp)
    sizes = [share] * pp
    for i in range(2, left_over + 2):
        sizes[-i] += 1
    first = sum(sizes[:pp_rank])
    return first, first + sizes[pp_rank]


def weight_tensors(
    model: Model, parallelism: Parallelism, pp_rank: int = 0, *, target: LoadTarget | None = None
) -> tuple[WeightTensor, ...]:
    """Everything one rank of pipeline stage `pp_rank` holds for `model` on `target`.

    With post-load tensors, buffers and what torch's allocator rounds up; without a target the parameters alone.
    """
    first, last = pipeline_layers(model.layers, parallelism.pp, pp_rank)
    part = model.layer_pattern[first:last]
    outer = list(_outer_tensors(model, parallelism, pp_rank))
    kinds = {index: _layer_tensors(model, index, parallelism, target) for index in sorted(set(part))}
    tensors = outer + [tensor.times(part.count(index)) for index, layer in kinds.items() for tensor in layer]
    if target is None:
        return tuple(tensors)
    attention_layers = sum(has_attention_scales(model, index) for index in part)
    tensors += (buffers := list(buffer_tensors(model, attention_layers, target)))
    whole = LoadOrder(outer, buffers, [kinds[index] for index in part])
    return (*tensors, rounding_tensor(whole))


def fullest_rank_tensors(
    model: Model, parallelism: Parallelism, target: LoadTarget | None = None
) -> tuple[WeightTensor, ...]:
    """The tensors of the rank that holds most."""
    ranks = (weight_tensors(model, parallelism, rank, target=target) for rank in range(parallelism.pp))
    return max(ranks, key=total_bytes)


def weights_bytes(model: Model, parallelism: Parallelism, target: LoadTarget | None = None) -> int:
    """Weight bytes of the fullest rank, as vLLM reports after loading on `target` [bytes].

    Without a target the parameters alone.
    """
    if target is not None and not grows_with_batch(model):
        target = target._replace(batched_tokens=0)
    return _weights_bytes(model, parallelism, target)


@lru_cache(maxsize=4096)
def _weights_bytes(model: Model, parallelism: Parallelism, target: LoadTarget | None) -> int:
    return total_bytes(fullest_rank_tensors(model, parallelism, target))


def parameter_bytes(model: Model, parallelism: Parallelism, pp_rank: int = 0) -> int:
    """Bytes of the parameters vLLM's model class allocates before it loads the checkpoint [bytes]."""
    return total_bytes(weight_tensors(model, parallelism, pp_rank))


def parameter_count(model: Model) -> ParameterCount:
    """Parameters of the whole model and those one token passes through; the vision tower counts as inactive."""
    whole = Parallelism()
    total = active = 0
    for tensor in _outer_tensors(model, whole, 0):
        values = prod(tensor.shape) * tensor.copies
        total += values
        active += 0 if tensor.group == VISION else values
    padding = (padded_vocab(model.vocab) - model.vocab) * model.hidden * (1 if model.tied_embeddings else 2)
    for kind_index, layer in enumerate(model.layer_kinds):
        count = model.layer_pattern.count(kind_index)
        for tensor in _layer_tensors(model, kind_index, whole):
            values = prod(tensor.shape) * tensor.copies * count
            total += values
            active += _active_values(values, tensor, layer)
    return ParameterCount(total - padding, active - padding)


def _active_values(values: int, tensor: WeightTensor, layer: Layer) -> int:
    if tensor.group == "experts" and isinstance(layer.ffn, MoeFfn):
        return values * layer.ffn.experts_per_token // layer.ffn.experts
    return values


def _outer_tensors(model: Model, parallelism: Parallelism, pp_rank: int) -> Iterator[WeightTensor]:
    """Embeddings, head, final norm and vision tower."""
    tp = parallelism.tp
    dtype = model.activation_dtype
    first, last = pp_rank == 0, pp_rank == parallelism.pp - 1
    embeds = first or OuterTensor.EMBEDDING in model.every_stage
    head = head_gemm(model, parallelism)
    if embeds or (last and model.tied_embeddings):
        yield plain(
            PlainTensor("embedding", "embed_tokens", (padded_vocab(model.vocab) // tp, model.hidden), dtype)
        )
    if embeds and model.position_embeddings:
        yield plain(PlainTensor("embedding", "positions", (model.position_embeddings, model.hidden), dtype))
    predicts = last or OuterTensor.HEAD in model.every_stage
    if predicts and not model.tied_embeddings:
        yield _gemm_tensor(head)
    if predicts and head.bias:
        yield plain(PlainTensor("head", "head_bias", (head.n,), dtype))
    if (last or OuterTensor.FINAL_NORM in model.every_stage) and model.final_norm:
        yield plain(PlainTensor("norm", "final_norm", (1 + model.norm_bias, model.hidden), dtype))
    if model.vision is not None:
        yield from vision_tensors(model.vision, tp, dtype)


@lru_cache(maxsize=4096)
def _layer_tensors(
    model: Model, kind_index: int, parallelism: Parallelism, target: LoadTarget | None = None
) -> tuple[WeightTensor, ...]:
    layer = model.layer_kinds[kind_index]
    products = layer_gemms(model, kind_index, parallelism)
    tensors: list[WeightTensor] = []
    for gemm in products.gemms:
        tensors.append(_gemm_tensor(gemm, layer))
        if gemm.bias:
            tensors.append(
                plain(PlainTensor(_group(gemm.role), f"{gemm.role}_bias", (gemm.n,), model.activation_dtype))
            )
    if products.experts is not None:
        tensors += _expert_tensors(products.experts, model.activation_dtype)
    tensors += [plain(small) for small in small_tensors(model, layer, parallelism)]
    if target is not None:
        tensors += post_load_tensors(model, layer, products, parallelism, target)
    return tuple(tensors)


def _is_fp32_router(gemm: Gemm, layer: Layer) -> bool:
    return gemm.role is GemmRole.ROUTER and isinstance(layer.ffn, MoeFfn) and layer.ffn.router_fp32


def _fused_parts(gemm: Gemm, layer: Layer) -> int:
    ungated = isinstance(layer.ffn, DenseFfn | MoeFfn) and not layer.ffn.gated
    return 1 if ungated and gemm.role in _GATE_ROLES else FUSED_PARTS.get(gemm.role, 1)


def _gemm_tensor(gemm: Gemm, layer: Layer | None = None) -> WeightTensor:
    shape = (gemm.n, gemm.k)
    parts = 1 if layer is None else _fused_parts(gemm, layer)
    if layer is not None and _is_fp32_router(gemm, layer):
        return WeightTensor(_group(gemm.role), gemm.role, shape, 1, FP32, 4 * gemm.n * gemm.k)
    size_bytes = stored_bytes(gemm.n, gemm.k, gemm.dtype, gemm.stored, parts)
    scales = size_bytes - value_bytes(gemm.n, gemm.k, gemm.dtype)
    return WeightTensor(_group(gemm.role), gemm.role, shape, 1, gemm.dtype, size_bytes, scales)


def _group(role: GemmRole) -> str:
    if role is GemmRole.HEAD:
        return "head"
    return "ffn" if role in _FFN_ROLES else "attention"


_GATE_ROLES = frozenset({GemmRole.GATE_UP, GemmRole.SHARED_GATE_UP})
_FFN_ROLES = frozenset(
    {
        GemmRole.GATE_UP,
        GemmRole.DOWN,
        GemmRole.SHARED_GATE_UP,
        GemmRole.SHARED_DOWN,
        GemmRole.ROUTER,
        GemmRole.LATENT_IN,
        GemmRole.LATENT_OUT,
    }
)


def _expert_tensors(experts: Experts, activation_dtype: WeightDtype) -> list[WeightTensor]:
    up = (experts.local_experts, experts.up_width, experts.inputs)
    down = (experts.local_experts, experts.inputs, experts.intermediate)
    tensors = [
        _expert_tensor("up", up, experts, parts=2 if experts.gated else 1),
        _expert_tensor("down", down, experts, parts=1),
    ]
    if experts.bias:
        tensors += [
            plain(PlainTensor("experts", "experts_up_bias", up[:2], activation_dtype)),
            plain(PlainTensor("experts", "experts_down_bias", down[:2], activation_dtype)),
        ]
    return tensors


def _expert_tensor(name: str, shape: tuple[int, int, int], experts: Experts, *, parts: int) -> WeightTensor:
    count, n, k = shape
    one_bytes = stored_bytes(n, k, experts.dtype, experts.stored, parts)
    if experts.dtype is WeightDtype.FP8_BLOCK:
        block = expert_block(experts)
        one_bytes = n * k + 4 * ceil(n / block) * ceil(k / block)
    elif experts.dtype is WeightDtype.INT4:
        one_bytes += EXPERT_SHAPE_BYTES - SHAPE_BYTES
    scales = count * (one_bytes - value_bytes(n, k, experts.dtype))
    if experts.dtype is WeightDtype.NVFP4 and experts.stored and not experts.stored.dynamic_activations:
        # Every rank keeps the activation scales of all experts.
        scales += 4 * parts * (experts.experts - count)
    size_bytes = count * value_bytes(n, k, experts.dtype) + scales
    return WeightTensor("experts", f"experts_{name}", shape, 1, experts.dtype, size_bytes, scales)
