"""The parts of a card under one budget, by the names that screens and files share."""

from typing import NamedTuple

from planner.domain.deployment import MemoryBudget


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
