"""Weight bytes of one rank, tensor by tensor, as vLLM's model classes allocate them."""

from collections.abc import Iterator
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import GemmRole, Layer, Model, MoeFfn
from planner.formulas.gemms import Experts, Gemm, expert_block, head_gemm, layer_gemms, padded_vocab
from planner.formulas.post_load import POST_LOAD, post_load_tensors
from planner.formulas.small_tensors import small_tensors
from planner.formulas.tensors import FP32, FUSED_PARTS, PlainTensor, WeightTensor, plain, stored_bytes


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


def weight_tensors(model: Model, parallelism: Parallelism, pp_rank: int = 0) -> tuple[WeightTensor, ...]:
    """Everything one rank of pipeline stage `pp_rank` holds for `model`, including what appears after loading."""
    first, last = pipeline_layers(model.layers, parallelism.pp, pp_rank)
    part = model.layer_pattern[first:last]
    tensors = list(_outer_tensors(model, parallelism, pp_rank))
    for kind_index in range(len(model.layer_kinds)):
        count = part.count(kind_index)
        if count:
            tensors += [
                tensor._replace(copies=tensor.copies * count, size_bytes=tensor.size_bytes * count)
                for tensor in _layer_tensors(model, kind_index, parallelism)
            ]
    return tuple(tensors)


@lru_cache(maxsize=4096)
def weights_bytes(model: Model, parallelism: Parallelism) -> int:
    """Weight bytes of the fullest rank, as vLLM reports after loading [bytes]."""
    return max(
        sum(tensor.size_bytes for tensor in weight_tensors(model, parallelism, pp_rank))
        for pp_rank in range(parallelism.pp)
    )


def parameter_bytes(model: Model, parallelism: Parallelism, pp_rank: int = 0) -> int:
    """Bytes of the parameters vLLM's model class allocates before it loads the checkpoint [bytes]."""
    tensors = weight_tensors(model, parallelism, pp_rank)
    return sum(tensor.size_bytes for tensor in tensors if tensor.group != POST_LOAD)


def parameter_count(model: Model) -> ParameterCount:
    """Parameters of the whole model and those one token passes through; the vision tower counts as inactive."""
    whole = Parallelism()
    total = active = 0
    for tensor in _outer_tensors(model, whole, 0):
        values = prod(tensor.shape) * tensor.copies
        total += values
        active += 0 if tensor.group == "vision" else values
    padding = (padded_vocab(model.vocab) - model.vocab) * model.hidden * (1 if model.tied_embeddings else 2)
    for kind_index, layer in enumerate(model.layer_kinds):
        count = model.layer_pattern.count(kind_index)
        for tensor in _layer_tensors(model, kind_index, whole):
            if tensor.group == POST_LOAD:
                continue
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
    head = head_gemm(model, parallelism)
    if first or (last and model.tied_embeddings):
        yield plain(
            PlainTensor("embedding", "embed_tokens", (padded_vocab(model.vocab) // tp, model.hidden), dtype)
        )
    if first and model.position_embeddings:
        yield plain(PlainTensor("embedding", "positions", (model.position_embeddings, model.hidden), dtype))
    if last and not model.tied_embeddings:
        yield _gemm_tensor(head)
    if last and head.bias:
        yield plain(PlainTensor("head", "head_bias", (head.n,), dtype))
    if last and model.final_norm:
        yield plain(PlainTensor("norm", "final_norm", (1 + model.norm_bias, model.hidden), dtype))
    if first and model.vision is not None:
        parameters = ceil(model.vision.parameters / tp) if model.vision.sharded else model.vision.parameters
        yield plain(PlainTensor("vision", "vision_tower", (parameters,), dtype))


@lru_cache(maxsize=4096)
def _layer_tensors(model: Model, kind_index: int, parallelism: Parallelism) -> tuple[WeightTensor, ...]:
    layer = model.layer_kinds[kind_index]
    products = layer_gemms(model, kind_index, parallelism)
    tensors: list[WeightTensor] = []
    for gemm in products.gemms:
        tensors.append(_gemm_tensor(gemm, fp32=_is_fp32_router(gemm, layer)))
        if gemm.bias:
            tensors.append(
                plain(PlainTensor(_group(gemm.role), f"{gemm.role}_bias", (gemm.n,), model.activation_dtype))
            )
    if products.experts is not None:
        tensors += _expert_tensors(products.experts, model.activation_dtype)
    tensors += [plain(small) for small in small_tensors(model, layer, parallelism)]
    tensors += post_load_tensors(model, layer, products.experts, parallelism)
    return tuple(tensors)


def _is_fp32_router(gemm: Gemm, layer: Layer) -> bool:
    return gemm.role is GemmRole.ROUTER and isinstance(layer.ffn, MoeFfn) and layer.ffn.router_fp32


def _gemm_tensor(gemm: Gemm, *, fp32: bool = False) -> WeightTensor:
    size_bytes = (
        gemm.n * gemm.k * 4
        if fp32
        else stored_bytes(gemm.n, gemm.k, gemm.dtype, gemm.stored, FUSED_PARTS.get(gemm.role, 1))
    )
    dtype = FP32 if fp32 else gemm.dtype
    return WeightTensor(_group(gemm.role), gemm.role, (gemm.n, gemm.k), 1, dtype, size_bytes)


def _group(role: GemmRole) -> str:
    if role is GemmRole.HEAD:
        return "head"
    return "ffn" if role in _FFN_ROLES else "attention"


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
    return WeightTensor("experts", f"experts_{name}", shape, 1, experts.dtype, count * one_bytes)
