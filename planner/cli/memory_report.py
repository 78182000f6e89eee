"""The memory of one deployment on the screen: the card, what vLLM would log, and what would give more room."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from planner.cli.memory_detail import Detail
from planner.cli.screen import Json, note, records, say, show_json, show_table
from planner.domain.deployment import MemoryBudget
from planner.domain.units import bytes_to_gib
from planner.export.format import count, number, percent
from planner.export.memory import (
    DEPLOYMENT_COLUMNS,
    PART_COLUMNS,
    deployment_row,
    logged_lines,
    memory_parts,
    part_rows,
)
from planner.export.table import write_csv
from planner.formulas.engine_defaults import parse_version
from planner.formulas.engine_rules_text import named_rules
from planner.formulas.kv_offload import host_cache
from planner.formulas.memory import kv_tokens_interval
from planner.planning.memory_questions import (
    Change,
    changes,
    longest_context,
    sequences_held,
    smallest_tp,
)
from planner.planning.predict import Case, Sized
from planner.planning.sizing import Sizer

BAR_WIDTH = 40
LONGEST_BAR = 100
"""What runs over the card's end is cut here."""
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


class RoomAsked(NamedTuple):
    """The length and the batch for which the room in the KV cache is told."""

    context_tokens: int
    batch: int


class MemoryAnswer(NamedTuple):
    """One deployment, what its card holds, and what is asked about the room in it."""

    case: Case
    sized: Sized
    room: RoomAsked


def show_memory(answer: MemoryAnswer, sizer: Sizer, *, detail: bool, csv: Path | None, as_json: bool) -> None:
    """Prints and writes an answer; with `detail` tensor by tensor."""
    tensors = Detail(answer.case, answer.sized) if detail else None
    budget = answer.sized.budget
    if csv is not None:
        if tensors is not None:
            tensors.write(csv)
        else:
            write_csv(csv, PART_COLUMNS, part_rows(budget) if budget else [])
        note(f"wrote {csv}")
    if as_json:
        show_json(memory_json(answer, sizer) | (tensors.json() if tensors else {}))
        return
    _print(answer, sizer)
    if tensors is not None:
        tensors.show()


def memory_json(answer: MemoryAnswer, sizer: Sizer) -> dict[str, Json]:
    """The whole answer as one JSON object."""
    case, sized, room = answer
    budget, refusal, engine = sized.budget, sized.refusal, case.engine
    return {
        **_deployment_json(case),
        "fits": refusal is None,
        "reason": refusal.reason if refusal else None,
        "parts": records(PART_COLUMNS, part_rows(budget) if budget else []),
        **(_budget_json(case, sized, budget) if budget else {}),
        "context_tokens": room.context_tokens,
        "largest_batch": sequences_held(sized, room.context_tokens),
        "batch": room.batch,
        "longest_context_tokens": longest_context(case, sized, room.batch),
        **_host_json(case, sized),
        "smallest_tp_that_fits": smallest_tp(case, sizer),
        "changes": [_change_json(change) for change in changes(case, sizer)],
        "engine_rules": list(
            named_rules(case.model, case.gpu, engine, case.kv_dtype, parallelism=case.parallelism)
        ),
    }


def _print(answer: MemoryAnswer, sizer: Sizer) -> None:
    """The card as a table and a bar, the lines vLLM would log, and what helps where it does not fit."""
    case, sized, _ = answer
    if sized.budget is not None:
        _print_card(case, sized.budget)
        if sized.refusal is None:
            _print_logged(case, sized, sized.budget)
            _print_room(answer)
    if sized.refusal is not None:
        say(f"Does not start: {sized.refusal.reason}.")
        if sized.budget is not None:
            say(_missing(sized.budget))
    least = smallest_tp(case, sizer)
    say(f"The smallest TP that fits is {least}." if least else "No tensor-parallel degree up to 64 fits.")
    if sized.refusal is not None:
        _print_changes(changes(case, sizer))
    say()
    say(f"Rules of vLLM {parse_version(case.engine.engine_version)}:")
    for rule in named_rules(case.model, case.gpu, case.engine, case.kv_dtype, parallelism=case.parallelism):
        say(f"  {rule}")


def _missing(budget: MemoryBudget) -> str:
    """By how much a deployment does not fit, and what of it one request takes."""
    missing = f"{number(bytes_to_gib(budget.shortfall_bytes))} GiB per GPU are missing"
    if budget.shortfall_bytes > budget.request_bytes > 0 and budget.outside_bytes >= 0:
        return f"{missing}, the cache of one request ({number(bytes_to_gib(budget.request_bytes))} GiB) among them."
    return f"{missing}."


def _print_room(answer: MemoryAnswer) -> None:
    """How many sequences of which length the KV cache holds, on the card and on the host."""
    case, sized, room = answer
    held = sequences_held(sized, room.context_tokens)
    longest = longest_context(case, sized, room.batch)
    say(f"Largest batch at {room.context_tokens:,} tokens a sequence: {held:,}")
    say(f"Longest sequences at a batch of {room.batch:,}: {count(longest, 'token')} each")
    host = _host_json(case, sized)
    if host:
        say(
            f"Offloaded to the host: {host['offloaded_tokens']:,} tokens in {host['offloaded_blocks']:,} blocks, "
            f"{number(host['host_memory_gib_per_gpu'])} GiB of host memory per GPU"
        )


def _host_json(case: Case, sized: Sized) -> dict[str, int | float]:
    """What host memory holds of the KV cache, where it is offloaded."""
    if not case.engine.kv_offload_bytes or sized.placed is None:
        return {}
    host = host_cache(case.model, sized.placed.kv, case.parallelism, case.engine)
    return {
        "offloaded_blocks": host.blocks,
        "offloaded_tokens": host.tokens,
        "host_memory_gib_per_gpu": bytes_to_gib(host.bytes_per_rank),
    }


def bar(budget: MemoryBudget) -> str:
    """The card as a row of letters; what does not fit runs over its end.

    A part is never narrower than its share by more than one letter.
    """
    text, end_bytes = "", 0
    for part in memory_parts(budget):
        end_bytes += max(part.size_bytes, 0)
        end = min(round(BAR_WIDTH * end_bytes / budget.total_bytes), LONGEST_BAR)
        text += MARKS[part.name] * (end - len(text))
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
        "shortfall_gib": bytes_to_gib(budget.shortfall_bytes),
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
    shown = [part for part in memory_parts(budget) if MARKS[part.name] in bar(budget)]
    say(f"  {', '.join(f'{MARKS[part.name]} {part.name}' for part in shown)}")
    say()


def _print_logged(case: Case, sized: Sized, budget: MemoryBudget) -> None:
    """What vLLM logs at start-up, and the same in its own units of pages."""
    engine = case.engine
    low, high = _tokens_interval(case, sized, budget)
    for line in logged_lines(budget):
        say(line)
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
        [change.what, change.flags, *deployment_cells(change.sized)]
        for change in sorted(found, key=lambda change: change.sized.refusal is not None)
    ]
    if rows:
        show_table("What would give room", ["change", "flags", *DEPLOYMENT_HEADERS], rows)


DEPLOYMENT_HEADERS = ("weights GiB", "KV GiB", "KV tokens", "concurrency", "missing GiB")


def deployment_cells(sized: Sized) -> list[str]:
    """What tells deployments apart once the change is named (`DEPLOYMENT_HEADERS`)."""
    budget = sized.budget
    if budget is None:
        return ["", "", "", "", ""]
    return [
        number(budget.weights_gib),
        number(bytes_to_gib(budget.kv_cache_bytes)),
        f"{budget.kv_cache_tokens:,}",
        f"{budget.max_concurrency:.2f}",
        "" if budget.fits else number(bytes_to_gib(budget.shortfall_bytes)),
    ]
