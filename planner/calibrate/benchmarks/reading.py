"""What one load of a result file says, before anybody adds what it leaves out."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import JsonValue, ValidationError

from planner.calibrate.benchmarks.fields import Fields
from planner.catalog.nearest import fold, shown
from planner.domain.base import InputError
from planner.domain.benchmark import (
    BenchmarkFacts,
    BenchmarkMeasures,
    BenchmarkTool,
    LoadFacts,
    TokenLengths,
)

ALIASES: dict[str, tuple[str, ...]] = {
    "gpu": ("gpu", "gpu_type", "gpu_name", "gpu_model", "accelerator", "hardware"),
    "tp": ("tp", "tp_size", "tensor_parallel_size", "tensor_parallel"),
    "pp": ("pp", "pp_size", "pipeline_parallel_size", "pipeline_parallel"),
    "dp": ("dp", "dp_size", "data_parallel_size", "data_parallel"),
    "ep": ("ep", "enable_expert_parallel", "expert_parallel"),
    "weight_dtype": ("weight_dtype", "weights_dtype", "quantization"),
    "kv_dtype": ("kv_dtype", "kv_cache_dtype"),
    "engine": ("engine",),
    "engine_version": ("engine_version", "vllm_version", "version"),
    "max_num_batched_tokens": ("max_num_batched_tokens",),
    "max_num_seqs": ("max_num_seqs",),
    "max_model_len": ("max_model_len",),
    "gpu_memory_utilization": ("gpu_memory_utilization",),
    "enforce_eager": ("enforce_eager",),
    "async_scheduling": ("async_scheduling",),
    "prefix_hit_ratio": ("prefix_hit_ratio",),
    "length_low_ratio": ("length_low_ratio",),
}
"""How people spell what they note beside a benchmark, by the planner's name."""
_NAMES = {fold(alias): name for name, aliases in ALIASES.items() for alias in aliases}


class LoadSaid(NamedTuple):
    """A load as far as a file tells it."""

    input_tokens: TokenLengths | None = None
    output_tokens: TokenLengths | None = None
    tokens_per_request: float | None = None
    """Prompt and answer together, where they are not told apart."""
    concurrency: int | None = None
    requests_per_s: float | None = None
    arrival_cv: float = 1.0
    num_requests: int | None = None
    prefix_hit_ratio: float | None = None


class Reading(NamedTuple):
    """One load of a file."""

    tool: BenchmarkTool
    where: str
    """Names the file, and the load in it, in messages."""
    model: str
    facts: BenchmarkFacts
    load_facts: LoadFacts
    load: LoadSaid
    measures: BenchmarkMeasures
    unknown: dict[str, JsonValue]
    tool_version: str = ""
    measured_on: str = ""
    notes: tuple[str, ...] = ()


def noted_facts(fields: Fields, *keys: str) -> tuple[BenchmarkFacts, LoadFacts]:
    """What people noted beside the results, in the object under `keys`, by any of its usual names.

    Raises:
        InputError: a value that is not legal, or two that contradict each other.
    """
    found = fields.value(*keys) if keys else fields.whole
    noted: dict[str, str] = {}
    for key, value in found.items() if isinstance(found, Mapping) else ():
        name = _NAMES.get(fold(key))
        if name is None or not isinstance(value, (str, int, float, bool)) or value == "":
            continue
        fields.value(*keys, key)
        text = str(value).strip()
        if noted.setdefault(name, text) != text:
            raise InputError(f"{fields.where}: {name} is noted as {noted[name]} and as {text}")
    load = {name: noted.pop(name) for name in ("prefix_hit_ratio", "length_low_ratio") if name in noted}
    with problem_of(fields.where):
        return BenchmarkFacts.model_validate(noted), LoadFacts.model_validate(load)


@contextlib.contextmanager
def problem_of(where: str) -> Iterator[None]:
    """A value that no field can hold becomes one line: where, which field, which value.

    Raises:
        InputError: the block met such a value.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        words = first["msg"].removeprefix("Value error, ")
        said = f"{name} is {shown(str(first['input']))}: {words}" if name else words
        raise InputError(f"{where}: {said}") from None
