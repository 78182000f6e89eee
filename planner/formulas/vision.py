"""What one rank holds of a vision tower, tensor by tensor, as vLLM's model classes allocate it."""

from collections.abc import Iterator
from functools import lru_cache

from planner.domain.deployment import EngineSettings
from planner.domain.dtypes import WeightDtype
from planner.domain.model import Model, TowerFamily, TowerLinear, TowerSplit, VisionTower
from planner.formulas.engine_defaults import EngineVersion, parse_version
from planner.formulas.tensors import PlainTensor, WeightTensor, plain

VISION = "vision"
EVERY_TOWER_SKIPPED_SINCE = EngineVersion(0, 16, 0)
SKIPPED_EARLIER = frozenset(
    {
        TowerFamily.LLAMA4,
        TowerFamily.PIXTRAL,
        TowerFamily.QWEN2_VL,
        TowerFamily.QWEN2_5_VL,
        TowerFamily.QWEN3_VL,
    }
)
"""Families that left their tower out before one rule did it for all."""


def loaded_model(model: Model, engine: EngineSettings) -> Model:
    """The model as the engine loads it: without its tower where it takes no images (--limit-mm-per-prompt 0).

    Sources: SupportsMultiModal._mark_tower_model in vllm/model_executor/models/interfaces.py, before 0.16 the
    constructors of the models themselves.
    """
    if model.vision is None or engine.multimodal:
        return model
    return _without_tower(model) if _is_skipped(model.vision.family, engine.engine_version) else model


def _is_skipped(family: TowerFamily, engine_version: str) -> bool:
    return family in SKIPPED_EARLIER or parse_version(engine_version) >= EVERY_TOWER_SKIPPED_SINCE


@lru_cache(maxsize=256)
def _without_tower(model: Model) -> Model:
    return model.model_copy(update={"vision": None})


def tower_ranks(tower: VisionTower, tp: int) -> int:
    """Ranks that share the tower's split products: 1 where each rank holds all of it.

    vLLM also keeps the tower whole where its heads do not divide by `tp`
    (vllm/model_executor/models/vision.py, is_vit_use_data_parallel).
    """
    return 1 if tower.replicated or tower.heads % tp else tp


@lru_cache(maxsize=1024)
def vision_tensors(tower: VisionTower, tp: int, dtype: WeightDtype) -> tuple[WeightTensor, ...]:
    """The tower and its projector on one of `tp` ranks, all in the model's own dtype; every pipeline stage has them.

    Published quantised checkpoints leave the tower as it is. Sources: the classes named in
    planner/catalog/architectures/towers.py.
    """
    ranks = tower_ranks(tower, tp)
    tensors = [(tensor, tower.layers) for tensor in _block_tensors(tower, ranks, dtype)]
    for linear in tower.linears:
        tensors += [(tensor, linear.copies) for tensor in _linear_tensors(linear, ranks, dtype)]
    tensors += [(PlainTensor(VISION, vector.name, (vector.values,), dtype), 1) for vector in tower.vectors]
    return tuple(_repeated(plain(tensor), copies) for tensor, copies in tensors)


def head_width(tower: VisionTower) -> int:
    """Values of one attention head."""
    return tower.head_dim or tower.hidden // tower.heads


def _repeated(tensor: WeightTensor, copies: int) -> WeightTensor:
    return tensor._replace(copies=copies, size_bytes=tensor.size_bytes * copies)


def _block_tensors(tower: VisionTower, ranks: int, dtype: WeightDtype) -> Iterator[PlainTensor]:
    block, hidden = tower.block, tower.hidden
    queries = tower.heads * head_width(tower)
    qkv = queries + 2 * (tower.kv_heads or tower.heads) * head_width(tower)
    up = (2 if block.gated else 1) * block.intermediate
    products = (
        TowerLinear(
            name="qkv", inputs=hidden, outputs=qkv, split=TowerSplit.COLUMN, bias=block.attention_bias
        ),
        TowerLinear(
            name="attention_out",
            inputs=queries,
            outputs=hidden,
            split=TowerSplit.ROW,
            bias=block.attention_bias,
        ),
        TowerLinear(name="up", inputs=hidden, outputs=up, split=TowerSplit.COLUMN, bias=block.mlp_bias),
        TowerLinear(
            name="down",
            inputs=block.intermediate,
            outputs=hidden,
            split=TowerSplit.ROW,
            bias=block.mlp_bias,
        ),
    )
    for product in products:
        yield from _linear_tensors(product, ranks, dtype)
    yield PlainTensor(VISION, "norms", (block.norm_values,), dtype)


def _linear_tensors(linear: TowerLinear, ranks: int, dtype: WeightDtype) -> Iterator[PlainTensor]:
    outputs = linear.outputs // (ranks if linear.split is TowerSplit.COLUMN else 1)
    inputs = linear.inputs // (ranks if linear.split is TowerSplit.ROW else 1)
    yield PlainTensor(VISION, linear.name, (outputs, inputs), dtype)
    if linear.bias:
        yield PlainTensor(VISION, f"{linear.name}_bias", (outputs,), dtype)
