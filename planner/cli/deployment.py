"""One deployment as options describe it, with vLLM's defaults for what they leave out."""

from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from planner.assemble import first_problem, kv_dtype_named, weight_dtype_named
from planner.catalog.load import find_gpu
from planner.catalog.models import load_model
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.hardware import Gpu
from planner.domain.model import Model
from planner.domain.units import gib_to_bytes
from planner.formulas.engine_defaults import engine_rules, server_defaults
from planner.planning.predict import Case
from planner.planning.sizing import check_length


class Engine(NamedTuple):
    """Engine flags as given; None is vLLM's default."""

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool = False
    async_scheduling: bool | None = None
    engine_version: str = ""


def engine_settings(given: Engine, model: Model, gpu: Gpu) -> EngineSettings:
    """The flags that the server would run with.

    Raises:
        InputError: a flag is out of range, or the version is not one of vLLM.
    """
    defaults = server_defaults(gpu, given.engine_version)
    tokens = _given(given.max_num_batched_tokens, defaults.max_num_batched_tokens)
    seqs = _given(given.max_num_seqs, min(defaults.max_num_seqs, max(tokens, 1)))
    try:
        return EngineSettings(
            max_num_seqs=seqs,
            max_num_batched_tokens=tokens,
            max_model_len=_given(given.max_model_len, model.max_position),
            gpu_memory_utilization=(
                defaults.gpu_memory_utilization
                if given.gpu_memory_utilization is None
                else given.gpu_memory_utilization
            ),
            enforce_eager=given.enforce_eager,
            async_scheduling=(
                engine_rules(given.engine_version).async_scheduling
                if given.async_scheduling is None
                else given.async_scheduling
            ),
            block_size=defaults.block_size,
            engine_version=given.engine_version,
        )
    except ValidationError as error:
        raise InputError(first_problem(error)) from None


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def parallelism_of(tp: int, pp: int = 1, dp: int = 1, *, ep: bool = False) -> Parallelism:
    """How a replica is spread. Raises InputError where a degree is out of range."""
    try:
        return Parallelism(tp=tp, pp=pp, dp=dp, ep=ep)
    except ValidationError as error:
        raise InputError(first_problem(error)) from None


def gpu_named(name: str, memory_gib: float | None = None) -> Gpu:
    """A GPU by name, with the memory its driver reports where the user knows better.

    Raises:
        InputError: an unknown name, or a memory that no card has.
    """
    gpu = find_gpu(name)
    if memory_gib is None:
        return gpu
    if not 1 <= memory_gib <= 10_000:
        raise InputError(f"gpu_memory_gib must be from 1 to 10,000, got {memory_gib:g}")
    return gpu.model_copy(update={"memory_bytes": gib_to_bytes(memory_gib), "memory_observed": True})


def model_files(reference: str) -> tuple[Path, ...]:
    """The files that a model given as a path may be read from."""
    path = Path(reference.strip())
    return (path, path / "config.json", path / "hf_quant_config.json")


class Formats(NamedTuple):
    """Weight and KV-cache format by name."""

    weight: str = "auto"
    kv: str = "auto"


def deployment(model: str, gpu: Gpu, parallelism: Parallelism, formats: Formats, engine: Engine) -> Case:
    """A deployment without traffic, for questions about memory.

    Raises:
        InputError: an unknown name, a value out of range, or a length that vLLM refuses.
    """
    loaded = load_model(model, weight_dtype=weight_dtype_named(formats.weight))
    settings = engine_settings(engine, loaded, gpu)
    check_length(settings.max_model_len, loaded)
    return Case(
        model=loaded,
        gpu=gpu,
        parallelism=parallelism,
        kv_dtype=kv_dtype_named(formats.kv),
        engine=settings,
        workload=None,
    )
