"""An engine that asks for less memory than one that did not start."""

import re

from planner.calibrate.measure.engine_protocol import Start
from planner.domain.calibration import Device

_FREE = re.compile(r"free memory on device[^(]*\(([\d.]+)/([\d.]+) gib\)", re.IGNORECASE)
_NO_CACHE = (
    "no available memory for the cache",
    "kv cache is needed, which is larger than",
    "maximum number of tokens that can be stored in kv cache",
)
"""Where what vLLM may take is too little (vllm/v1/core/kv_cache_utils.py): a smaller share would not help."""
LOWER_SHARE = 0.85
FREE_SHARE = 0.95
"""Of the memory that others left, where they left too little."""
LEAST_SHARE = 0.02
"""Of the card; nothing starts in less."""
SHORTEST_LEN, FEWEST_SEQS, FEWEST_BATCHED = 512, 8, 256


def lowered(start: Start, message: str, *, limits: bool) -> Start:
    """The engine with less memory, by what vLLM said of the first one; the same where nothing is left to lower.

    `limits`: whether the lengths and batches it takes may shrink too, which makes another engine of it.
    """
    free = _FREE.search(message)
    share = start.gpu_memory_utilization
    if free is not None and float(free[2]) > 0:
        ratio = FREE_SHARE * float(free[1]) / float(free[2])
        if ratio < LEAST_SHARE:
            return start
        return start.model_copy(update={"gpu_memory_utilization": round(min(ratio, LOWER_SHARE * share), 3)})
    changes: dict[str, object] = {}
    no_cache = any(words in message.lower() for words in _NO_CACHE)
    if start.device is Device.CPU:
        changes["cpu_cache_gib"] = max(start.cpu_cache_gib // 2, 1)
    elif not no_cache:
        changes["gpu_memory_utilization"] = round(LOWER_SHARE * share, 3)
    if limits:
        changes["max_num_seqs"] = _half(start.max_num_seqs, FEWEST_SEQS)
        changes["max_num_batched_tokens"] = _half(start.max_num_batched_tokens, FEWEST_BATCHED)
        if no_cache or start.device is Device.CPU:
            changes["max_model_len"] = _half(start.max_model_len, SHORTEST_LEN)
    return start.model_copy(update=changes)


def _half(value: int, least: int) -> int:
    """Half of it, not below `least`, or as it is where it is below that already."""
    return max(value // 2, min(value, least))


def what_changed(before: Start, after: Start) -> str:
    """What of two engines to start differs, in words; empty where nothing does.

    >>> one = Start(config_dir="", stored_dtype="bf16", weight_dtype="bf16", device="cuda", max_model_len=64,
    ...             max_num_seqs=8, max_num_batched_tokens=64)
    >>> what_changed(one, one.model_copy(update={"gpu_memory_utilization": 0.7}))
    'gpu_memory_utilization 0.7'
    """
    ours, theirs = before.model_dump(mode="json"), after.model_dump(mode="json")
    return ", ".join(f"{name} {theirs[name]}" for name in ours if ours[name] != theirs[name])
