"""Memory answers as rows that screens and files share: the parts of a card, deployments side by side, tensors."""

from typing import NamedTuple

from planner.domain.deployment import MemoryBudget
from planner.domain.units import bytes_to_gib
from planner.export.table import Cell
from planner.formulas.kv_cache import resolve_kv_dtype
from planner.planning.predict import Case, Sized

PART_COLUMNS = ("part", "gib", "share_ratio")
DEPLOYMENT_COLUMNS = (
    "gpu",
    "tp",
    "weight_dtype",
    "kv_dtype",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "fits",
    "weights_gib_per_gpu",
    "kv_cache_gib_per_gpu",
    "kv_cache_tokens",
    "max_concurrency",
    "shortfall_gib",
    "reason",
)


class MemoryPart(NamedTuple):
    """One share of a card."""

    name: str
    size_bytes: int


def memory_parts(budget: MemoryBudget) -> tuple[MemoryPart, ...]:
    """The parts of a card; they add up to it, KV cache being negative where the model does not fit.

    Draft model and adapter slots are listed where there are any.
    """
    asked = (MemoryPart("draft model", budget.draft_bytes), MemoryPart("LoRA slots", budget.lora_bytes))
    return (
        MemoryPart("weights", budget.weights_bytes),
        *(part for part in asked if part.size_bytes),
        MemoryPart("activations", budget.activation_bytes),
        MemoryPart("CUDA graphs", budget.cuda_graph_bytes),
        MemoryPart("non-torch", budget.non_torch_bytes),
        MemoryPart("KV cache", budget.kv_cache_bytes),
        MemoryPart("outside the engine", budget.outside_bytes),
    )


def part_rows(budget: MemoryBudget) -> list[tuple[str, float, float]]:
    """Part, GiB and share of the card, the card itself last (`PART_COLUMNS`)."""
    rows = [*memory_parts(budget), MemoryPart("card", budget.total_bytes)]
    return [(part.name, bytes_to_gib(part.size_bytes), part.size_bytes / budget.total_bytes) for part in rows]


def logged_lines(budget: MemoryBudget) -> tuple[str, ...]:
    """What vLLM logs at start-up where the model fits, without its timings."""
    return (
        f"Model loading took {bytes_to_gib(budget.loaded_bytes):.2f} GiB",
        f"Available KV cache memory: {bytes_to_gib(budget.kv_cache_bytes):.2f} GiB",
        f"GPU KV cache size: {budget.kv_cache_tokens:,} tokens",
        f"Maximum concurrency for {budget.max_model_len:,} tokens per request: {budget.max_concurrency:.2f}x",
    )


def deployment_row(case: Case, sized: Sized) -> tuple[Cell, ...]:
    """One deployment and what its card holds (`DEPLOYMENT_COLUMNS`); empty where it cannot even be laid out."""
    engine, budget, refusal = case.engine, sized.budget, sized.refusal
    return (
        case.gpu.name,
        case.parallelism.tp,
        case.model.weight_dtype,
        resolve_kv_dtype(case.model, case.kv_dtype, engine.engine_version),
        engine.max_model_len,
        engine.max_num_seqs,
        engine.max_num_batched_tokens,
        engine.gpu_memory_utilization,
        refusal is None,
        budget.weights_gib if budget else None,
        bytes_to_gib(budget.kv_cache_bytes) if budget else None,
        budget.kv_cache_tokens if budget else None,
        budget.max_concurrency if budget else None,
        bytes_to_gib(budget.shortfall_bytes) if budget else None,
        refusal.reason if refusal else None,
    )
