"""What a card holds tensor by tensor, for somebody who checks it against a checkpoint."""

from collections.abc import Iterable, Iterator, Sequence

from planner.export.table import Cell
from planner.formulas.draft import draft_parallelism
from planner.formulas.kv_cache import KvGroupRow, kv_report, resolve_kv_dtype
from planner.formulas.lora import lora_index_bytes, lora_tensors
from planner.formulas.tensors import WeightTensor, total_bytes
from planner.formulas.vision import loaded_model
from planner.formulas.weights import fullest_rank_tensors
from planner.planning.predict import Case
from planner.planning.sizing import Placed, loading_target

TENSOR_COLUMNS = ("part", "group", "name", "shape_per_rank", "copies", "dtype", "bytes_per_gpu")
KV_GROUP_COLUMNS = (
    "kind",
    "layers",
    "block_tokens",
    "page_bytes_per_layer",
    "padding_bytes_per_block",
    "window_tokens",
    "state_blocks",
)

Row = tuple[Cell, ...]


def tensor_rows(case: Case, placed: Placed, kv_cache_bytes: int) -> list[Row]:
    """Every tensor of the fullest rank (`TENSOR_COLUMNS`); `copies` of one shape are one row.

    `bytes_per_gpu` is of all copies, scales and zero points included. The KV cache is one row: its blocks.
    """
    engine, layout = case.engine, case.parallelism
    target = loading_target(placed, engine)
    weights = fullest_rank_tensors(loaded_model(case.model, engine), layout, target)
    rows = list(_rows("weights", weights))
    if engine.speculation is not None:
        draft = engine.speculation.draft
        of_draft = draft_parallelism(draft, layout, target.version)
        rows += _rows("draft model", fullest_rank_tensors(draft, of_draft, target))
    if engine.lora is not None:
        version = engine.engine_version
        slots = (
            lora_tensors(case.model, layout, engine.lora, pp_rank=rank, engine_version=version)
            for rank in range(layout.pp)
        )
        rows += _rows("LoRA slots", max(slots, key=total_bytes))
        index_bytes = lora_index_bytes(engine)
        rows.append(("LoRA slots", "lora", "token_index", str(index_bytes), 1, "byte", index_bytes))
    return [*rows, _pool_row(case, placed, kv_cache_bytes)]


def kv_group_rows(placed: Placed) -> list[Row]:
    """Layers that share a block table (`KV_GROUP_COLUMNS`)."""
    return [_kv_row(group) for group in kv_report(placed.kv)]


def group_rows(rows: Sequence[Row]) -> list[tuple[str, str, int, int]]:
    """Part, group, tensors and bytes, in the order in which they come."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for part, group, _, _, copies, _, size_bytes in rows:
        tensors, total_bytes = sums.get((str(part), str(group)), (0, 0))
        sums[str(part), str(group)] = tensors + int(copies or 0), total_bytes + int(size_bytes or 0)
    return [(part, group, tensors, total) for (part, group), (tensors, total) in sums.items()]


def _rows(part: str, tensors: Iterable[WeightTensor]) -> Iterator[Row]:
    for tensor in tensors:
        shape = " x ".join(map(str, tensor.shape))
        yield part, tensor.group, tensor.name, shape, tensor.copies, tensor.dtype, tensor.size_bytes


def _pool_row(case: Case, placed: Placed, kv_cache_bytes: int) -> Row:
    kv = placed.kv
    blocks = kv.blocks(kv_cache_bytes)
    dtype = resolve_kv_dtype(case.model, case.kv_dtype, case.engine.engine_version)
    shape = f"{blocks} x {kv.block_bytes}"
    return "KV cache", "blocks", "pool", shape, 1, dtype, blocks * kv.block_bytes


def _kv_row(group: KvGroupRow) -> Row:
    pages = " or ".join(map(str, group.page_bytes))
    return (
        group.kind.value,
        group.layers,
        group.block_tokens,
        pages,
        group.padding_bytes,
        group.window_tokens,
        group.state_blocks or None,
    )
