"""A start-up log against the prediction for the deployment it describes: shared by CLI and dashboard."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from planner.assemble.logged_deployment import Given, deployment_logged, value_or
from planner.calibrate.startup_log import LoggedStartup, Seen
from planner.domain.base import InputError
from planner.domain.deployment import MemoryBudget
from planner.domain.units import bytes_to_gib
from planner.formulas.profile_rules import profile_rules
from planner.planning.facts import Facts
from planner.planning.predict import Case, Sized, size
from planner.planning.sizing import Sizer

GIB = "GiB"
TAKEN_BEFORE_GIB = 2.0
"""A CUDA context and NCCL's buffers take about this much before the engine looks; more is somebody else's."""


class LogRow(NamedTuple):
    """One figure as predicted and as logged; None where there is none."""

    what: str
    predicted: float | None
    actual: float | None
    unit: str
    error_ratio: float | None
    """predicted / actual - 1."""
    line_number: int | None


class LogCheck(NamedTuple):
    """The comparison, and what a reader must know of it."""

    case: Case
    rows: tuple[LogRow, ...]
    notes: tuple[str, ...]


def check_log(logged: LoggedStartup, given: Given, facts: Facts) -> LogCheck:
    """Predicts the deployment that a log describes and sets the figures side by side.

    Raises:
        InputError: the text is no start-up log, it and the user leave out the model or the GPU, or what they say
            is not legal.
    """
    if logged.is_empty:
        raise InputError("no line of a vLLM start-up log was recognised")
    case, notes = deployment_logged(logged, given)
    sized = size(case, Sizer(facts))
    rows = tuple(_rows(logged, case, sized))
    notes.extend(_notes(logged, case, sized))
    return LogCheck(case, rows, tuple(notes))


def _rows(logged: LoggedStartup, case: Case, sized: Sized) -> Iterator[LogRow]:
    memory, failure, budget = logged.memory, logged.failure, sized.budget
    kv = memory.kv_cache_gib
    if kv is None and failure is not None and failure.available_gib is not None:
        kv = Seen(failure.available_gib, failure.line)
    yield _row("weights", _gib(budget, "loaded_bytes"), memory.weights_gib, GIB)
    yield _row("non-torch", _gib(budget, "non_torch_bytes"), memory.non_torch_gib, GIB)
    yield _row("activation peak", _gib(budget, "activation_bytes"), memory.activation_gib, GIB)
    charged = _gib(budget, "cuda_graph_bytes") or None
    graphs = memory.cuda_graph_estimate_gib or memory.cuda_graph_gib
    yield _row("CUDA graphs", charged, graphs, GIB)
    if case.engine.kv_cache_memory_bytes is None:
        yield _row("all overhead", _gib(budget, "overhead_bytes"), _overhead(logged, budget), GIB)
    yield _row("KV cache", _gib(budget, "kv_cache_bytes"), kv, GIB)
    if failure is not None and failure.needed_gib is not None:
        yield _row(
            "KV cache of one request",
            _gib(budget, "request_bytes"),
            Seen(failure.needed_gib, failure.line),
            GIB,
        )
    for what, field, seen, unit in (
        ("KV cache tokens", "kv_cache_tokens", memory.kv_cache_tokens, "tokens"),
        ("KV cache blocks", "kv_blocks", memory.num_gpu_blocks, "blocks"),
        ("tokens of a block", "block_size", memory.block_tokens, "tokens"),
        ("maximum concurrency", "max_concurrency", memory.max_concurrency, "x"),
    ):
        if seen is not None or field != "block_size":
            yield _row(what, None if budget is None else float(getattr(budget, field)), seen, unit)


def _gib(budget: MemoryBudget | None, field: str) -> float | None:
    return None if budget is None else bytes_to_gib(getattr(budget, field))


def _row(what: str, predicted: float | None, actual: Seen[Any] | None, unit: str) -> LogRow:
    value = None if actual is None else float(actual.value)
    error = predicted / value - 1.0 if predicted is not None and value else None
    return LogRow(what, predicted, value, unit, error, None if actual is None else actual.line)


def _overhead(logged: LoggedStartup, budget: MemoryBudget | None) -> Seen[float] | None:
    """What the engine's share of the card holds beside weights and KV cache."""
    weights, kv = logged.memory.weights_gib, logged.memory.kv_cache_gib
    if budget is None or weights is None or kv is None:
        return None
    return Seen(bytes_to_gib(budget.requested_bytes) - weights.value - kv.value, kv.line)


def _notes(logged: LoggedStartup, case: Case, sized: Sized) -> Iterator[str]:
    memory, flags, engine = logged.memory, logged.flags, case.engine
    rules = profile_rules(case.model, engine.engine_version, drafts=engine.speculation is not None)
    if logged.starts > 1:
        yield f"the engine starts {logged.starts} times in this log: the last time is compared"
    if sized.budget is not None and (text := _too_much(logged, case, sized.budget)):
        yield text
    if memory.ranks > 1:
        yield f"{memory.ranks} ranks are in the log: the most weights and the least KV cache are compared"
    if value_or(flags.device, "cuda") == "cpu":
        yield "the engine of this log ran on a CPU, which profiles nothing and pages its cache otherwise"
    if not rules.charges_cuda_graphs and not engine.enforce_eager:
        runner = " on Model Runner V2" if rules.v2_runner else ""
        yield (
            f"vLLM {rules.version}{runner} does not charge CUDA graphs to the KV cache: they take what "
            "gpu_memory_utilization leaves free"
        )
    elif rules.charges_cuda_graphs and value_or(flags.graphs_charged, True) is False:
        yield "CUDA graphs are not charged in this log, so its KV cache is larger by them than ours"
    if memory.frontend_gib is not None:
        yield f"{memory.frontend_gib.value:g} GiB for decoding images in the API server are not in the prediction"
    if value_or(flags.dcp, 1) > 1:
        yield f"{value_or(flags.dcp, 1)} ranks share each sequence's cache (dcp), which is not in the prediction"
    if flags.num_gpu_blocks_override is not None:
        yield "num_gpu_blocks_override is set: tokens and concurrency follow it, not the memory"
    if memory.total_memory_gib is not None and memory.free_memory_gib is not None:
        taken_gib = memory.total_memory_gib.value - memory.free_memory_gib.value
        if taken_gib > TAKEN_BEFORE_GIB:
            yield f"{taken_gib:.1f} GiB of the card were taken before the engine started"
    if engine.max_model_len > case.model.max_position:
        yield f"max_model_len is beyond the model's {case.model.max_position} tokens"
    yield from _failure_notes(logged, sized)


def _too_much(logged: LoggedStartup, case: Case, budget: MemoryBudget) -> str:
    """What cannot be on this card, empty where all can."""
    parts = [
        part.value for part in (logged.memory.weights_gib, logged.memory.kv_cache_gib) if part is not None
    ]
    card_gib = bytes_to_gib(budget.total_bytes)
    if sum(parts) <= card_gib:
        return ""
    return (
        f"weights and KV cache of the log are {sum(parts):.1f} GiB, more than the {card_gib:.1f} GiB of one "
        f"{case.gpu.name}: is the GPU right?"
    )


def _failure_notes(logged: LoggedStartup, sized: Sized) -> Iterator[str]:
    """What was missing, according to the log and to us."""
    failure, budget = logged.failure, sized.budget
    if failure is None:
        if sized.refusal is not None:
            yield f"by our count it does not start: {sized.refusal.reason}"
        return
    yield f"line {failure.line}: {_failure_text(logged)}"
    if sized.refusal is not None:
        yield f"by our count: {sized.refusal.reason}"
    elif budget is not None:
        yield (
            f"by our count it starts: {bytes_to_gib(budget.kv_cache_bytes):.1f} GiB are left for KV cache, "
            f"{budget.max_concurrency:.2f} requests of {budget.max_model_len} tokens"
        )


def _failure_text(logged: LoggedStartup) -> str:
    failure, memory = logged.failure, logged.memory
    assert failure is not None
    match failure.kind:
        case "one_request" if failure.needed_gib is not None and failure.available_gib is not None:
            missing_gib = failure.needed_gib - failure.available_gib
            longest = failure.longest_model_len
            return (
                f"one request of {failure.max_model_len} tokens needs {failure.needed_gib:g} GiB of KV cache, "
                f"{failure.available_gib:g} GiB are left: {missing_gib:.2f} GiB are missing"
                + ("" if longest is None else f"; vLLM estimates that {longest} tokens fit")
            )
        case "one_request":
            return f"{failure.max_model_len} tokens are more than the {failure.longest_model_len} the cache holds"
        case "no_cache":
            return "nothing is left for the KV cache"
        case "not_free" if memory.free_memory_gib is not None and memory.total_memory_gib is not None:
            return (
                f"only {memory.free_memory_gib.value:g} of {memory.total_memory_gib.value:g} GiB were free, less "
                "than gpu_memory_utilization asks for: another process holds the rest"
            )
        case "not_free":
            return "less memory was free than gpu_memory_utilization asks for"
        case _:
            return f"torch ran out of memory when it wanted {failure.allocation or 'still'} more"
