"""Engine flags as a start-up log repeats them: the engine's own config, the arguments given, a command line."""

import ast
import json
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

CONFIG_ANCHOR = " with config: "
"""`Initializing a V1 LLM engine (v0.26.0) with config: model='...', ...` (vllm/config/vllm.py, __str__)."""
ARGUMENTS_ANCHOR = "non-default args: {"
COMMAND = re.compile(r"vllm serve |vllm\.entrypoints\.openai\.api_server ")
CONFIG_CHARS = 8_000
"""What is asked of the config stands before its compilation part, which can be long."""
ARGUMENTS_CHARS = 20_000
COMMAND_CHARS = 8_000
MOST_PLACES = 32
DEEPEST = 8

_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_COUNT = re.compile(r"(\d[\d,]{0,18}(?:\.\d{1,6})?)([kmgKMG]?)(?:\.0)?")
_SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "dcp": "decode-context-parallel-size",
}
_SPECULATION = re.compile(r"\w{0,60}\(method=(.{1,60}?), model=(.{1,300}?), num_spec_tokens=(\d{1,4})")


class Speculation(NamedTuple):
    """`--speculative-config` as a log shows it."""

    method: str
    model: str
    num_speculative_tokens: int


class FoundFlag(NamedTuple):
    """One flag by the name of `LoggedFlags`, its value, and where in the log it stands."""

    name: str
    value: object
    position: int


def whole(value: object) -> int | None:
    """A count above 0 as Python or a shell writes it (`8192`, `8,192`, `32k`, `32K`); None for anything else.

    >>> whole("131,072"), whole("32k"), whole("32K"), whole(-1), whole(True)
    (131072, 32000, 32768, None, None)
    """
    if isinstance(value, bool | float):
        return None
    match = _COUNT.fullmatch(str(value)[:40])
    if match is None:
        return None
    count = int(float(match[1].replace(",", "")) * _SUFFIXES.get(match[2], 1))
    return count if 0 < count < 10**15 else None


def switch(value: object) -> bool | None:
    """On or off."""
    return {"true": True, "false": False, "enabled": True, "disabled": False}.get(str(value).lower())


def word(value: object) -> str | None:
    """A short printable text; None for nothing."""
    text = str(value).strip().strip("'\"") if isinstance(value, str) else ""
    return text if text not in ("", "None") and len(text) <= 300 and text.isprintable() else None


def _number(value: object) -> float | None:
    try:
        number = float(str(value)[:40]) if not isinstance(value, bool) else 0.0
    except ValueError:
        return None
    return number if 0 < number < 1e9 else None


def _ratio(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and number <= 1 else None


def _dtype(value: object) -> str | None:
    text = word(value)
    return None if text is None else text.removeprefix("torch.")


def _speculation(value: object) -> Speculation | None:
    if isinstance(value, str):
        match = _SPECULATION.match(value)
        if match is not None:
            return Speculation(word(match[1]) or "", word(match[2]) or "", int(match[3]))
        try:
            value = json.loads(value[:4_000])
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, dict):
        return None
    method, model = word(value.get("method")) or "", word(value.get("model")) or ""
    return Speculation(method, model, whole(value.get("num_speculative_tokens")) or 0)


def _takes_no_images(value: object) -> bool | None:
    """False for `--limit-mm-per-prompt` with nothing but zeros."""
    if isinstance(value, str):
        try:
            value = json.loads(value[:4_000])
        except (ValueError, RecursionError):
            return None
    return any(value.values()) if isinstance(value, dict) and value else None


def _not(value: object) -> bool | None:
    on = switch(value)
    return None if on is None else not on


class Flag(NamedTuple):
    """What a vLLM flag is called here, and how its value is read."""

    name: str
    read: Callable[[object], object | None]


FLAGS: dict[str, Flag] = {
    "model": Flag("model", word),
    "model_tag": Flag("model", word),
    "dtype": Flag("dtype", _dtype),
    "quantization": Flag("quantization", word),
    "kv_cache_dtype": Flag("kv_cache_dtype", _dtype),
    "tensor_parallel_size": Flag("tp", whole),
    "pipeline_parallel_size": Flag("pp", whole),
    "data_parallel_size": Flag("dp", whole),
    "decode_context_parallel_size": Flag("dcp", whole),
    "enable_expert_parallel": Flag("enable_expert_parallel", switch),
    "max_seq_len": Flag("max_model_len", whole),
    "max_model_len": Flag("max_model_len", whole),
    "max_num_batched_tokens": Flag("max_num_batched_tokens", whole),
    "max_num_seqs": Flag("max_num_seqs", whole),
    "gpu_memory_utilization": Flag("gpu_memory_utilization", _ratio),
    "enforce_eager": Flag("enforce_eager", switch),
    "block_size": Flag("block_size", whole),
    "async_scheduling": Flag("async_scheduling", switch),
    "enable_prefix_caching": Flag("enable_prefix_caching", switch),
    "disable_hybrid_kv_cache_manager": Flag("hybrid_kv_cache_manager", _not),
    "language_model_only": Flag("multimodal", _not),
    "limit_mm_per_prompt": Flag("multimodal", _takes_no_images),
    "speculative_config": Flag("speculation", _speculation),
    "enable_lora": Flag("enable_lora", switch),
    "max_loras": Flag("max_loras", whole),
    "max_lora_rank": Flag("max_lora_rank", whole),
    "fully_sharded_loras": Flag("fully_sharded_loras", switch),
    "kv_cache_memory_bytes": Flag("kv_cache_memory_bytes", whole),
    "kv_cache_memory": Flag("kv_cache_memory_bytes", whole),
    "kv_offloading_size": Flag("kv_offloading_gib", _number),
    "num_gpu_blocks_override": Flag("num_gpu_blocks_override", whole),
    "device_config": Flag("device", word),
}

_CONFIG_FLAGS = {
    name: re.compile(rf"(?<![\w.]){name}=(\w{{1,60}}\([^()]{{0,600}}\)|'[^']{{0,300}}'|[^,\s]{{1,300}})")
    for name in (
        *("model", "dtype", "max_seq_len", "tensor_parallel_size", "pipeline_parallel_size"),
        *(
            "data_parallel_size",
            "decode_context_parallel_size",
            "quantization",
            "enforce_eager",
            "kv_cache_dtype",
            "enable_prefix_caching",
        ),
        *("speculative_config", "device_config"),
    )
}


def find_flags(text: str) -> Iterator[FoundFlag]:
    """Flags of a log whose line ends are spaces; what the engine resolved comes before what was asked of it."""
    for position in _places(text, CONFIG_ANCHOR):
        config = text[position : position + CONFIG_CHARS]
        for name, pattern in _CONFIG_FLAGS.items():
            match = pattern.search(config)
            if match is not None:
                yield from _read(name, match[1], position)
    for position in _places(text, ARGUMENTS_ANCHOR):
        start = position + len(ARGUMENTS_ANCHOR) - 1
        for name, value in dict_items(text[start : start + ARGUMENTS_CHARS]):
            yield from _read(name, value, position)


def find_command_flags(lines: str) -> Iterator[FoundFlag]:
    """Flags of `vllm serve` command lines in a log as it was pasted."""
    for index, match in enumerate(COMMAND.finditer(lines)):
        if index == MOST_PLACES:
            return
        for name, value in _command(lines[match.start() : match.start() + COMMAND_CHARS]).items():
            yield from _read(name, value, match.start())


def _read(name: str, text: object, position: int) -> Iterator[FoundFlag]:
    flag = FLAGS.get(name)
    value = None if flag is None or text is None else flag.read(text)
    if flag is not None and value is not None:
        yield FoundFlag(flag.name, value, position)


def _places(text: str, anchor: str) -> Iterator[int]:
    position = text.find(anchor)
    for _ in range(MOST_PLACES):
        if position < 0:
            return
        yield position
        position = text.find(anchor, position + len(anchor))


def dict_items(text: str) -> Iterator[tuple[str, object]]:
    """Items of a dictionary printed by Python at the start of `text`; a value that is no literal is left out.

    >>> list(dict_items("{'model': 'a/b', 'mode': <Mode.FULL: 2>, 'max_num_seqs': 16} and more"))
    [('model', 'a/b'), ('max_num_seqs', 16)]
    """
    start, depth, quote, escaped = 1, 0, "", False
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "'\"":
            quote = char
        elif char in "{[(":
            depth += 1
            if depth > DEEPEST:
                return
        elif char in "}])" or (char == "," and depth == 1):
            depth -= char != ","
            if depth <= 1 and (char == "," or depth == 0):
                yield from _item(text[start:index])
                start = index + 1
            if depth == 0:
                return


def _item(text: str) -> Iterator[tuple[str, object]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            item = ast.literal_eval("{" + text + "}")
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return
    if isinstance(item, dict):
        yield from ((name, value) for name, value in item.items() if isinstance(name, str))


def _command(text: str) -> Mapping[str, object]:
    """Options of one command line, which ends where no backslash continues it."""
    lines = text.split("\n")
    count = next((i for i, line in enumerate(lines) if not line.rstrip().endswith("\\")), len(lines) - 1)
    command = " ".join(line.rstrip().removesuffix("\\") for line in lines[: count + 1])
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    found: dict[str, object] = {}
    first = 2 if words[1:2] == ["serve"] else 1
    if first == 2 and len(words) > 2 and not words[2].startswith("-"):
        found["model"] = words[2]
    for option, following in pairwise([*words[first:], "-"]):
        if not option.startswith("-"):
            continue
        name, equals, value = option.lstrip("-").partition("=")
        name = _SHORT.get(name, name).replace("-", "_")
        if equals or not following.startswith("-"):
            found[name] = value if equals else following
        else:
            found[name.removeprefix("no_")] = "false" if name.startswith("no_") else "true"
    return found
