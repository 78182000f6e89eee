"""What an engine process wrote to its log: the memory it speaks of, and why it died."""

import re
from collections.abc import Iterable

from planner.calibrate.log_wordings import find_all
from planner.calibrate.measure.engine_protocol import one_line
from planner.calibrate.startup_log import read_startup_log
from planner.domain.calibration import MemoryFacts
from planner.domain.units import GIB_BYTES

MOST_LINES = 40
MOST_CHARS = 4_000_000
"""Of a log's end that are read."""
_MEMORY_FACTS = re.compile(r"_gib$|^kv_cache_tokens$|^num_gpu_blocks$|^max_concurrency$")
_CHATTER = re.compile(r"^(?:\S+ )?\([^)]*\bpid=\d+\)(?: (?:INFO|WARNING|ERROR|DEBUG) \S+ \S+ \[[^\]]*\])?\s*")
_ERROR = re.compile(
    r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)(?:: |$)|^(?:Fatal|Killed|terminate called|Segmentation)"
)
_POINTERS = (
    "see stack trace",
    "see root cause above",
    "background process",
    "engine core initialization failed",
)
"""A message that only points at another one."""


def memory_from_log(text: str, known: MemoryFacts) -> MemoryFacts:
    """Adds what the log says of memory to what the engine process knows itself, and the log's own lines."""
    memory = read_startup_log(text).memory
    said = {
        "weights_bytes": _bytes(memory.weights_gib),
        "activation_peak_bytes": _bytes(memory.activation_gib),
        "non_torch_bytes": _bytes(memory.non_torch_gib),
        "cuda_graph_bytes": _bytes(memory.cuda_graph_gib),
        "kv_cache_bytes": _bytes(memory.kv_cache_gib),
        "kv_cache_tokens": None if memory.kv_cache_tokens is None else memory.kv_cache_tokens.value,
    }
    missing = {name: value for name, value in said.items() if getattr(known, name) is None}
    return known.model_copy(update=missing | {"log_lines": tuple(_memory_lines(text))})


def _bytes(seen: object) -> int | None:
    value = getattr(seen, "value", None)
    return None if value is None else max(round(value * GIB_BYTES), 0)


def _memory_lines(text: str) -> Iterable[str]:
    found = 0
    for line in dict.fromkeys(_CHATTER.sub("", line).strip() for line in text.splitlines()):
        if found < MOST_LINES and any(_MEMORY_FACTS.search(fact.name) for fact in find_all(line)):
            found += 1
            yield one_line(line)


def reason_in_log(text: str) -> str:
    """The line that says best why a process died; empty where none does.

    An error that only points at another is passed over; of the rest the last one counts.
    """
    lines = [_CHATTER.sub("", line).strip() for line in text.splitlines()]
    errors = [line for line in lines if _ERROR.search(line) and not only_points(line)]
    return one_line(errors[-1]) if errors else ""


def only_points(message: str) -> bool:
    """Whether a message only says where the reason stands."""
    lower = message.lower()
    return any(words in lower for words in _POINTERS)
