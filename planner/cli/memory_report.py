"""The memory of one deployment on the screen: the card, what vLLM would log, and what would give more room."""

from collections.abc import Sequence

from planner.cli.screen import Json, note, records, say, show_table
from planner.domain.deployment import MemoryBudget
from planner.domain.units import bytes_to_gib
from planner.export.format import count, number, percent
from planner.export.memory import DEPLOYMENT_COLUMNS, PART_COLUMNS, deployment_row, memory_parts, part_rows
from planner.formulas.memory import kv_tokens_interval
from planner.planning.memory_questions import (
    Change,
    changes,
    longest_context,
    sequences_held,
    shortfall_bytes,
    smallest_tp,
)
from planner.planning.predict import Case, Sized
from planner.planning.sizing import Sizer

BAR_WIDTH = 40
MARKS = {
    "weights": "W",
    "draft model": "D",
    "LoRA slots": "L",
    "activations": "a",
    "CUDA graphs": "g",
    "non-torch": "n",
    "KV cache": "K",
    "outside the engine": ".",
}
"""What stands for each part of a card in the bar."""


class Room:
    """How many sequences of which length the KV cache holds, for the lengths and batches asked about."""

    def __init__(self, case: Case, sized: Sized, *, context_tokens: int | None, batch: int | None) -> None:
        self.context_tokens = context_tokens or case.engine.max_model_len
        self.batch = batch or case.engine.max_num_seqs
        self.largest_batch = sequences_held(sized, self.context_tokens)
        self.longest_context_tokens = longest_context(case, sized, self.batch)

    def lines(self) -> tuple[str, str]:
        """The two answers in words."""
        return (
            f"Largest batch at {self.context_tokens:,} tokens a sequence: {self.largest_batch:,}",
            f"Longest sequences at a batch of {self.batch:,}: {count(self.longest_context_tokens, 'token')} each",
        )

    def json(self) -> dict[str, Json]:
        """The same for a program."""
        return {
            "context_tokens": self.context_tokens,
            "largest_batch": self.largest_batch,
            "batch": self.batch,
            "longest_context_tokens": self.longest_context_tokens,
        }


def memory_json(case: Case, sized: Sized, sizer: Sizer, room: Room) -> dict[str, Json]:
    """The whole answer as one JSON object."""
    budget, refusal = sized.budget, sized.refusal
    return {
        **_deployment_json(case),
        "fits": refusal is None,
        "reason": refusal.reason if refusal else None,
        "parts": records(PART_COLUMNS, part_rows(budget) if budget else []),
        **(_budget_json(case, sized, budget) if budget else {}),
        **room.json(),
        "smallest_tp_that_fits": smallest_tp(case, sizer),
        "changes": [_change_json(change) for change in changes(case, sizer)],
    }


def print_memory(case: Case, sized: Sized, sizer: Sizer, room: Room) -> None:
    """The card as a table and a bar, the lines vLLM would log, and what helps where it does not fit."""
    if sized.budget is not None:
        _print_card(case, sized.budget)
        if sized.refusal is None:
            _print_logged(case, sized, sized.budget)
            for line in room.lines():
                say(line)
    if sized.refusal is not None:
        say(f"Does not start: {sized.refusal.reason}.")
        if sized.budget is not None:
            say(f"{number(bytes_to_gib(shortfall_bytes(case, sized)))} GiB per GPU are missing.")
    least = smallest_tp(case, sizer)
    say(f"The smallest TP that fits is {least}." if least else "No tensor-parallel degree up to 64 fits.")
    if sized.refusal is not None:
        _print_changes(changes(case, sizer))


def bar(budget: MemoryBudget) -> str:
    """The card as a row of letters; what does not fit runs over its end.

    A part is never narrower than its share by more than one letter.
    """
    text, end_bytes = "", 0
    for part in memory_parts(budget):
        end_bytes += max(part.size_bytes, 0)
        text += MARKS[part.name] * (round(BAR_WIDTH * end_bytes / budget.total_bytes) - len(text))
    return text


def title(case: Case) -> str:
    """The deployment in one line."""
    layout = case.parallelism
    degrees = f"TP {layout.tp}" + "".join(
        f", {name} {degree}" for name, degree in (("PP", layout.pp), ("DP", layout.dp)) if degree > 1
    )
    return f"{case.model.name} on {case.gpu.name}, {degrees}" + (", expert parallel" if layout.ep else "")


def _deployment_json(case: Case) -> dict[str, Json]:
    layout, engine = case.parallelism, case.engine
    return {
        "model": case.model.name,
        "gpu": case.gpu.name,
        "tp": layout.tp,
        "pp": layout.pp,
        "dp": layout.dp,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
    }


def _budget_json(case: Case, sized: Sized, budget: MemoryBudget) -> dict[str, Json]:
    """What vLLM logs about a budget, by the names of the runs table where it has them."""
    low, high = _tokens_interval(case, sized, budget)
    return {
        "weights_bytes_per_gpu": budget.weights_bytes,
        "weights_gib_per_gpu": budget.weights_gib,
        "loaded_gib_per_gpu": bytes_to_gib(budget.loaded_bytes),
        "kv_cache_gib_per_gpu": bytes_to_gib(budget.kv_cache_bytes),
        "kv_cache_tokens": budget.kv_cache_tokens,
        "kv_cache_tokens_low": low,
        "kv_cache_tokens_high": high,
        "kv_bytes_per_token": budget.kv_bytes_per_token,
        "kv_blocks": budget.kv_blocks,
        "block_size": budget.block_size,
        "max_concurrency": budget.max_concurrency,
        "max_model_len": budget.max_model_len,
        "shortfall_gib": bytes_to_gib(shortfall_bytes(case, sized)),
    }


def _change_json(change: Change) -> dict[str, Json]:
    row = dict(zip(DEPLOYMENT_COLUMNS, deployment_row(change.case, change.sized), strict=True))
    return {"change": change.what, "flags": change.flags, **row}


def _tokens_interval(case: Case, sized: Sized, budget: MemoryBudget) -> tuple[int, int]:
    if sized.placed is None:
        return budget.kv_cache_tokens, budget.kv_cache_tokens
    return kv_tokens_interval(budget, sized.placed.kv, case.engine)


def _print_card(case: Case, budget: MemoryBudget) -> None:
    rows = [[name, number(gib), percent(share)] for name, gib, share in part_rows(budget)]
    show_table(f"{title(case)}: one GPU", ["part", "GiB", "share"], rows)
    say(f"  [{bar(budget)}]")
    say(f"  {', '.join(f'{MARKS[part.name]} {part.name}' for part in memory_parts(budget))}")
    say()


def _print_logged(case: Case, sized: Sized, budget: MemoryBudget) -> None:
    """What vLLM logs at start-up, and the same in its own units of pages."""
    engine = case.engine
    low, high = _tokens_interval(case, sized, budget)
    say(f"Model loading took {bytes_to_gib(budget.loaded_bytes):.2f} GiB")
    say(f"Available KV cache memory: {bytes_to_gib(budget.kv_cache_bytes):.2f} GiB")
    say(f"GPU KV cache size: {budget.kv_cache_tokens:,} tokens")
    say(f"Maximum concurrency for {budget.max_model_len:,} tokens per request: {budget.max_concurrency:.2f}x")
    say()
    say(
        f"{budget.kv_bytes_per_token:,.0f} bytes of KV cache per token and GPU, "
        f"{budget.kv_blocks:,} blocks of {budget.block_size} tokens; "
        f"90 % interval {low:,} to {high:,} tokens"
    )
    note(
        f"settings: max_num_seqs {engine.max_num_seqs}, max_num_batched_tokens {engine.max_num_batched_tokens}, "
        f"gpu_memory_utilization {engine.gpu_memory_utilization:g}"
    )


def _print_changes(found: Sequence[Change]) -> None:
    rows = [
        [change.what, change.flags, *deployment_cells(change.case, change.sized)]
        for change in sorted(found, key=lambda change: change.sized.refusal is not None)
    ]
    if rows:
        show_table("What would give room", ["change", "flags", *DEPLOYMENT_HEADERS], rows)


DEPLOYMENT_HEADERS = ("weights GiB", "KV GiB", "KV tokens", "concurrency", "missing GiB")


def deployment_cells(case: Case, sized: Sized) -> list[str]:
    """What tells deployments apart once the change is named (`DEPLOYMENT_HEADERS`)."""
    budget = sized.budget
    if budget is None:
        return ["", "", "", "", ""]
    missing = shortfall_bytes(case, sized)
    return [
        number(budget.weights_gib),
        number(bytes_to_gib(budget.kv_cache_bytes)),
        f"{budget.kv_cache_tokens:,}",
        f"{budget.max_concurrency:.2f}",
        number(bytes_to_gib(missing)) if missing else "",
    ]
