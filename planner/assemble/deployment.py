"""One deployment as options describe it, with vLLM's defaults for what they leave out."""

from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from planner.assemble.question import first_problem, kv_dtype_named, weight_dtype_named
from planner.calibrate.store import calibration_directories, gpu_fits
from planner.catalog.load import find_gpu
from planner.catalog.models import load_model
from planner.catalog.nearest import fold
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, LoraSlots, Parallelism, Speculation
from planner.domain.hardware import Gpu
from planner.domain.model import Model
from planner.domain.units import gib_to_bytes
from planner.formulas.engine_defaults import engine_rules, server_defaults
from planner.planning.predict import Case
from planner.planning.sizing import check_extras, check_length

MAX_MEMORY_GIB = 100_000
"""More than any host has; larger is a slip of the pen."""
UNRECORDED_TOKENS = 2048
"""Of one step, assumed of a run that was measured and tells no limit of its scheduler: vLLM's default for engines that
are not started by `vllm serve`. Of the two defaults it is the one that the 30 training runs of which no limit is
recorded can have had (docs/accuracy.md)."""


class Engine(NamedTuple):
    """Engine flags as given; None is vLLM's default."""

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool = False
    async_scheduling: bool | None = None
    long_prefill_token_threshold: int | None = None
    engine_version: str = ""
    block_size: int | None = None
    prefix_caching: bool = True
    hybrid_kv_cache_manager: bool = True
    multimodal: bool = True
    kv_cache_memory_gib: float | None = None
    kv_offloading_gib: float | None = None
    enable_lora: bool = False
    max_loras: int | None = None
    max_lora_rank: int | None = None
    fully_sharded_loras: bool = False
    draft_model: str | None = None
    num_speculative_tokens: int | None = None


def engine_settings(given: Engine, model: Model, gpu: Gpu) -> EngineSettings:
    """The flags that the server would run with.

    Raises:
        InputError: a flag is out of range or lacks its partner, the draft model is unknown, or the version is
            not one of vLLM.
    """
    longest = _given(given.max_model_len, model.max_position)
    threshold = _given(given.long_prefill_token_threshold, 0)
    if threshold > longest:
        raise InputError(
            f"long_prefill_token_threshold is {threshold}: vLLM takes none above max_model_len, {longest}"
        )
    defaults = server_defaults(gpu, given.engine_version)
    tokens = _given(given.max_num_batched_tokens, defaults.max_num_batched_tokens)
    seqs = _given(given.max_num_seqs, min(defaults.max_num_seqs, max(tokens, 1)))
    try:
        return EngineSettings(
            max_num_seqs=seqs,
            max_num_batched_tokens=tokens,
            max_model_len=longest,
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
            long_prefill_token_threshold=threshold,
            block_size=_given(given.block_size, defaults.block_size),
            engine_version=given.engine_version,
            enable_prefix_caching=given.prefix_caching,
            hybrid_kv_cache_manager=given.hybrid_kv_cache_manager,
            multimodal=given.multimodal,
            kv_cache_memory_bytes=memory_bytes("kv_cache_memory_gib", given.kv_cache_memory_gib),
            kv_offload_bytes=memory_bytes("kv_offloading_gib", given.kv_offloading_gib) or 0,
            lora=_lora(given),
            speculation=_speculation(given),
        )
    except ValidationError as error:
        raise InputError(first_problem(error)) from None


def _lora(given: Engine) -> LoraSlots | None:
    if not given.enable_lora:
        if given.max_loras is not None or given.max_lora_rank is not None or given.fully_sharded_loras:
            raise InputError(
                "max_loras, max_lora_rank and fully_sharded_loras need enable_lora, which is not given"
            )
        return None
    defaults = LoraSlots()
    return LoraSlots(
        max_loras=_given(given.max_loras, defaults.max_loras),
        max_lora_rank=_given(given.max_lora_rank, defaults.max_lora_rank),
        fully_sharded=given.fully_sharded_loras,
    )


def _speculation(given: Engine) -> Speculation | None:
    if (given.draft_model is None) != (given.num_speculative_tokens is None):
        raise InputError("draft_model and num_speculative_tokens must be given together")
    if given.draft_model is None or given.num_speculative_tokens is None:
        return None
    return Speculation(
        draft=load_model(given.draft_model), num_speculative_tokens=given.num_speculative_tokens
    )


def memory_bytes(name: str, size_gib: float | None) -> int | None:
    """An amount of memory as typed, in bytes; None where none is given.

    Raises:
        InputError: it is no amount that a host has.
    """
    if size_gib is None:
        return None
    if not 0 < size_gib <= MAX_MEMORY_GIB:
        raise InputError(f"{name} must be above 0 and at most {MAX_MEMORY_GIB:,}, got {size_gib:g}")
    return gib_to_bytes(size_gib)


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def parallelism_of(tp: int, pp: int = 1, dp: int = 1, *, ep: bool = False) -> Parallelism:
    """How a replica is spread. Raises InputError where a degree is out of range."""
    try:
        return Parallelism(tp=tp, pp=pp, dp=dp, ep=ep)
    except ValidationError as error:
        raise InputError(first_problem(error)) from None


def gpu_named(name: str, memory_gib: float | None = None, *, calibration_dir: Path | None = None) -> Gpu:
    """A GPU by name, with the memory its driver reports where the user knows better.

    One that the catalog does not have is known from the fit to its runs, if there is one.

    Raises:
        InputError: an unknown name, or a memory that no card has.
    """
    try:
        gpu = find_gpu(name)
    except InputError:
        fitted = _fitted_gpu(name, calibration_dir)
        if fitted is None:
            raise
        gpu = fitted
    if memory_gib is None:
        return gpu
    if not 1 <= memory_gib <= 10_000:
        raise InputError(f"gpu_memory_gib must be from 1 to 10,000, got {memory_gib:g}")
    return gpu.model_copy(update={"memory_bytes": gib_to_bytes(memory_gib), "memory_observed": True})


def _fitted_gpu(name: str, calibration_dir: Path | None) -> Gpu | None:
    """A device of no catalog whose steps were measured."""
    fits = gpu_fits(calibration_directories(calibration_dir))
    named = fold(name)
    return next((fit.gpu for fit in fits if named in map(fold, (fit.gpu.name, *fit.gpu.aliases))), None)


class Formats(NamedTuple):
    """Weight and KV-cache format by name."""

    weight: str = "auto"
    kv: str = "auto"


def deployment(model: str, gpu: Gpu, parallelism: Parallelism, formats: Formats, engine: Engine) -> Case:
    """A deployment without traffic, for questions about memory.

    Raises:
        InputError: an unknown name, a value out of range, or a length, adapters or a draft that vLLM refuses.
    """
    loaded = load_model(model, weight_dtype=weight_dtype_named(formats.weight))
    settings = engine_settings(engine, loaded, gpu)
    check_length(settings.max_model_len, loaded)
    check_extras(loaded, parallelism, settings)
    return Case(
        model=loaded,
        gpu=gpu,
        parallelism=parallelism,
        kv_dtype=kv_dtype_named(formats.kv),
        engine=settings,
        workload=None,
    )
