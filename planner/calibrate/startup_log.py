"""Reads a pasted vLLM start-up log, whatever its release, prefixes, colours and number of ranks."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from planner.calibrate.log_flags import (
    ARGUMENTS_ANCHOR,
    Speculation,
    find_command_flags,
    find_flags,
    switch,
    whole,
    word,
)
from planner.calibrate.log_wordings import find_all

Value_co = TypeVar("Value_co", covariant=True)

_COLOUR = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]|\\u001b\[[0-9;?]{0,20}[A-Za-z]")
_BANNER = "server version "
_BANNER_CHARS = len("vLLM API ")
"""What of the banner stands before that."""
MOST_GPU_NAMES = 20


class Seen(NamedTuple, Generic[Value_co]):
    """A value and the line of the log that says it, counted from 1."""

    value: Value_co
    line: int


class LoggedFlags(NamedTuple):
    """How the engine was started, as far as its log tells; what was resolved counts before what was asked."""

    engine_version: Seen[str] | None = None
    model: Seen[str] | None = None
    """A hub id, or a path on the machine that wrote the log."""
    dtype: Seen[str] | None = None
    quantization: Seen[str] | None = None
    kv_cache_dtype: Seen[str] | None = None
    tp: Seen[int] | None = None
    pp: Seen[int] | None = None
    dp: Seen[int] | None = None
    dcp: Seen[int] | None = None
    """Ranks that share one sequence's cache (decode context parallel)."""
    enable_expert_parallel: Seen[bool] | None = None
    max_model_len: Seen[int] | None = None
    max_num_batched_tokens: Seen[int] | None = None
    max_num_seqs: Seen[int] | None = None
    gpu_memory_utilization: Seen[float] | None = None
    enforce_eager: Seen[bool] | None = None
    block_size: Seen[int] | None = None
    async_scheduling: Seen[bool] | None = None
    enable_prefix_caching: Seen[bool] | None = None
    hybrid_kv_cache_manager: Seen[bool] | None = None
    multimodal: Seen[bool] | None = None
    speculation: Seen[Speculation] | None = None
    enable_lora: Seen[bool] | None = None
    max_loras: Seen[int] | None = None
    max_lora_rank: Seen[int] | None = None
    fully_sharded_loras: Seen[bool] | None = None
    kv_cache_memory_bytes: Seen[int] | None = None
    kv_offloading_gib: Seen[float] | None = None
    num_gpu_blocks_override: Seen[int] | None = None
    graphs_charged: Seen[bool] | None = None
    """Whether estimated CUDA graphs come off the KV cache, where the log says so."""
    device: Seen[str] | None = None
    """What torch calls the device: cuda, cpu."""


class LoggedMemory(NamedTuple):
    """What the engine logged of one GPU's memory; of several ranks the fullest."""

    ranks: int = 0
    """Ranks that logged what loading took."""
    total_memory_gib: Seen[float] | None = None
    free_memory_gib: Seen[float] | None = None
    """Before the engine took anything."""
    weights_gib: Seen[float] | None = None
    """What loading took: weights, draft model and adapter slots."""
    non_torch_gib: Seen[float] | None = None
    activation_gib: Seen[float] | None = None
    cuda_graph_gib: Seen[float] | None = None
    """What capturing took; releases before 0.18 log what it left over, which can be negative."""
    cuda_graph_estimate_gib: Seen[float] | None = None
    """What the profiling run expected it to take."""
    kv_cache_gib: Seen[float] | None = None
    kv_cache_memory_gib: Seen[float] | None = None
    """As given by `--kv-cache-memory-bytes`."""
    frontend_gib: Seen[float] | None = None
    """Taken off the KV cache for decoding images in the API server."""
    kv_cache_tokens: Seen[int] | None = None
    num_gpu_blocks: Seen[int] | None = None
    block_tokens: Seen[int] | None = None
    """Tokens of a block, where a model with recurrent layers made the engine choose."""
    max_concurrency: Seen[float] | None = None


class LoggedFailure(NamedTuple):
    """Why the engine did not start."""

    kind: str
    """`one_request`, `no_cache`, `not_free` or `out_of_memory`."""
    line: int
    max_model_len: int | None = None
    needed_gib: float | None = None
    """KV cache of one request of `max_model_len` tokens."""
    available_gib: float | None = None
    """KV cache there was."""
    longest_model_len: int | None = None
    """What would have fitted, as vLLM estimates it."""
    allocation: str = ""
    """What torch could not have: "448.00 MiB"; empty where it does not say."""


class LoggedStartup(NamedTuple):
    """Everything a start-up log says of a deployment and its memory; every field is optional."""

    flags: LoggedFlags = LoggedFlags()
    memory: LoggedMemory = LoggedMemory()
    failure: LoggedFailure | None = None
    gpu_names: tuple[Seen[str], ...] = ()
    """What may name the GPU: nvidia-smi above the log, files of tuned kernels; the likeliest first."""
    starts: int = 1
    """How often the engine starts in this text; the last time is read."""

    @property
    def is_empty(self) -> bool:
        """True where no line was recognised."""
        nothing = (LoggedFlags(), LoggedMemory(), None)
        return (self.flags, self.memory, self.failure) == nothing


def read_startup_log(text: str) -> LoggedStartup:
    """What a start-up log says. Never raises: text that is no log gives an empty answer.

    Lines may carry prefixes (process, container, journal), colours and CRLF, be wrapped between words, and come
    in any order. Time grows with the length of the text alone.
    """
    clean = _COLOUR.sub("", text.replace("\r\n", "\n")).replace("\r", " ")
    flat = clean.replace("\n", " ")
    starts, begin = _last_start(flat)
    ends = [end.start() for end in re.finditer("\n", clean)]

    def line(position: int) -> int:
        return bisect_right(ends, position) + 1

    known: dict[str, list[Seen[str]]] = {}
    for fact in find_all(flat):
        if fact.position >= begin or fact.name == "gpu":
            known.setdefault(fact.name, []).append(Seen(fact.text, line(fact.position)))
    flags: dict[str, Seen[Any]] = {}
    asked = reversed(list(find_command_flags(clean)))
    for flag in (*(one for one in find_flags(flat) if one.position >= begin), *asked):
        flags.setdefault(flag.name, Seen(flag.value, line(flag.position)))
    return LoggedStartup(
        flags=_flags(known, flags),
        memory=_memory(known),
        failure=_failure(known),
        gpu_names=tuple(dict.fromkeys(known.get("gpu", [])))[:MOST_GPU_NAMES],
        starts=starts,
    )


def _last_start(flat: str) -> tuple[int, int]:
    """How many starts a log holds, and where the last one begins."""
    last = flat.rfind(ARGUMENTS_ANCHOR)
    before = flat.rfind(ARGUMENTS_ANCHOR, 0, max(last, 0))
    if before < 0:
        return 1, 0
    banner = flat.rfind(_BANNER, before, last)
    return flat.count(ARGUMENTS_ANCHOR), last if banner < 0 else banner - _BANNER_CHARS


_READERS: Mapping[str, Callable[[object], object | None]] = {
    "engine_version": word,
    "model": word,
    "max_model_len": whole,
    "max_num_batched_tokens": whole,
    "num_gpu_blocks_override": whole,
    "async_scheduling": switch,
    "graphs_charged": switch,
}


def _flags(known: Mapping[str, list[Seen[str]]], repeated: Mapping[str, Seen[Any]]) -> LoggedFlags:
    """Flags from the lines that state one, then from those that repeat many."""
    stated: dict[str, Seen[Any]] = {}
    for name, read in _READERS.items():
        for seen in known.get(name, []):
            value = read(seen.value)
            if value is not None:
                stated.setdefault(name, Seen(value, seen.line))
    for ratio in _numbers(known.get("gpu_memory_utilization", [])):
        if 0 < ratio.value <= 1 and "gpu_memory_utilization" not in repeated:
            stated.setdefault("gpu_memory_utilization", ratio)
    if "model" in repeated:
        stated.pop("model", None)
    return LoggedFlags(**{**repeated, **stated})


def _numbers(seen: Iterable[Seen[str]]) -> list[Seen[float]]:
    return [Seen(float(one.value.replace(",", "")), one.line) for one in seen]


def _memory(known: Mapping[str, list[Seen[str]]]) -> LoggedMemory:
    def all_of(name: str) -> list[Seen[float]]:
        return _numbers(known.get(name, []))

    def most(name: str) -> Seen[float] | None:
        return max(all_of(name), key=lambda seen: seen.value, default=None)

    def least(name: str) -> Seen[float] | None:
        return min(all_of(name), key=lambda seen: seen.value, default=None)

    def count(name: str) -> Seen[int] | None:
        seen = least(name)
        return None if seen is None else Seen(int(seen.value), seen.line)

    weights = most("loaded_gib") or most("weights_gib")
    estimate = most("cuda_graph_estimate_gib")
    charged = all(seen.value != "disabled" for seen in known.get("graphs_charged", []))
    consumed, peak = most("consumed_gib"), most("activation_and_graphs_gib")
    with_graphs = _minus(peak, estimate if charged else None) if estimate else peak
    return LoggedMemory(
        ranks=len(known.get("loaded_gib", [])),
        total_memory_gib=least("total_memory_gib"),
        free_memory_gib=least("free_memory_gib"),
        weights_gib=weights,
        non_torch_gib=most("non_torch_gib") or (_minus(consumed, weights) if weights else None),
        activation_gib=(
            most("activation_gib")
            or (_minus(most("non_kv_gib"), consumed) if consumed else None)
            or with_graphs
        ),
        cuda_graph_gib=most("cuda_graph_gib"),
        cuda_graph_estimate_gib=estimate,
        kv_cache_gib=least("kv_cache_gib"),
        kv_cache_memory_gib=least("kv_cache_memory_gib"),
        frontend_gib=most("frontend_gib"),
        kv_cache_tokens=count("kv_cache_tokens"),
        num_gpu_blocks=count("num_gpu_blocks"),
        block_tokens=count("attention_block_tokens"),
        max_concurrency=least("max_concurrency"),
    )


def _minus(seen: Seen[float] | None, less: Seen[float] | None) -> Seen[float] | None:
    """A figure without the part that another line gives."""
    if seen is None or less is None:
        return seen
    return Seen(round(seen.value - less.value, 4), seen.line)


_FAILURES = {
    "needed_gib": "one_request",
    "storable_tokens": "one_request",
    "no_cache_blocks": "no_cache",
    "not_enough_free": "not_free",
    "allocation": "out_of_memory",
    "warm_up": "out_of_memory",
}
"""The fact that tells each kind of failure."""


def _failure(known: Mapping[str, list[Seen[str]]]) -> LoggedFailure | None:
    """The first failure: what follows it is its consequence."""
    found = [(known[name][0].line, name) for name in _FAILURES if name in known]
    if not found:
        return None
    line, name = min(found)

    def figure(fact: str) -> float | None:
        numbers = _numbers(known.get(fact, []))
        return numbers[0].value if numbers else None

    length, longest = figure("refused_model_len"), figure("longest_model_len") or figure("storable_tokens")
    return LoggedFailure(
        kind=_FAILURES[name],
        line=line,
        max_model_len=None if length is None else int(length),
        needed_gib=figure("needed_gib"),
        available_gib=figure("available_gib"),
        longest_model_len=None if longest is None else int(longest),
        allocation=known[name][0].value if name == "allocation" else "",
    )
