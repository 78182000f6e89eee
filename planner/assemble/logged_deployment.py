"""The deployment that a start-up log describes, where its user says more or knows better."""

from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pydantic import ValidationError

from planner.assemble.deployment import Engine, engine_settings
from planner.assemble.question import first_problem, kv_dtype_named, weight_dtype_named
from planner.calibrate.startup_log import LoggedFlags, LoggedStartup, Seen
from planner.catalog.load import find_gpu, gpus
from planner.catalog.model_config import with_weight_dtype
from planner.catalog.models import bundled_models, load_model
from planner.catalog.nearest import shown
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, LoraSlots, Parallelism, Speculation
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.hardware import Gpu
from planner.domain.model import Model
from planner.domain.units import bytes_to_gib, gib_to_bytes
from planner.planning.predict import Case

ASSUMABLE = (
    *("engine_version", "tp", "max_model_len", "max_num_seqs", "max_num_batched_tokens"),
    "gpu_memory_utilization",
)

SAME_CARD_RATIO, OTHER_CARD_RATIO = 0.005, 0.1
"""Drivers report the memory of one kind of card within the first; a card that differs by the second is another."""


class Given(NamedTuple):
    """What the user says of the deployment; it counts before the log."""

    model: str | None = None
    gpu: str | None = None
    gpu_memory_gib: float | None = None
    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    engine_version: str | None = None
    ep: bool | None = None
    enforce_eager: bool | None = None
    block_size: int | None = None
    enable_prefix_caching: bool | None = None
    hybrid_kv_cache_manager: bool | None = None
    multimodal: bool | None = None
    kv_cache_memory_bytes: int | None = None


def deployment_logged(logged: LoggedStartup, given: Given) -> tuple[Case, list[str]]:
    """The deployment of a log, and what of it was assumed."""
    flags = logged.flags
    notes: list[str] = []
    gpu = _gpu(logged, given, notes)
    model = _model(flags, given, notes)
    told = _told(logged, given)
    engine = _engine(told, flags, model, gpu, notes)
    defaults = {"tp": 1} | engine.model_dump(include=set(ASSUMABLE))
    assumed = [f"{name} {defaults[name] or 'the newest known'}" for name in ASSUMABLE if name not in told]
    if assumed:
        notes.append(f"assumed, as neither the log nor an option says it: {', '.join(assumed)}")
    try:
        parallelism = Parallelism(
            **{name: told[name] for name in ("tp", "pp", "dp") if name in told},
            ep=bool(given.ep) or value_or(flags.enable_expert_parallel, False),
        )
    except ValidationError as error:
        raise InputError(first_problem(error)) from None
    kv_dtype = _kv_dtype(flags, given, notes)
    return Case(model, gpu, parallelism, kv_dtype, engine, None), notes


def _told(logged: LoggedStartup, given: Given) -> dict[str, Any]:
    """Numbers that the user or the log gives, by name."""
    told = {name: seen.value for name, seen in logged.flags._asdict().items() if seen is not None}
    size = logged.memory.kv_cache_memory_gib
    if told.get("device") == "cpu":
        size = logged.memory.kv_cache_gib or size
    if size is not None and size.value > 0:
        told.setdefault("kv_cache_memory_bytes", gib_to_bytes(size.value))
    return told | {name: value for name, value in given._asdict().items() if value not in (None, "")}


def value_or(seen: Seen[Any] | None, otherwise: Any) -> Any:
    """What was seen, or something else where nothing was."""
    return otherwise if seen is None else seen.value


def _gpu(logged: LoggedStartup, given: Given, notes: list[str]) -> Gpu:
    """The GPU, with the total memory that the log or the user reports."""
    if given.gpu:
        gpu = find_gpu(given.gpu)
        named = gpu_logged(logged)
        if named is not None and named.value.name != gpu.name:
            notes.append(
                f"line {named.line} of the log names another GPU, {named.value.name}: is {gpu.name} right?"
            )
    else:
        found = gpu_logged(logged)
        if found is None:
            raise InputError(f"the log does not say which GPU: add --gpu{_cards_of(logged)}")
        gpu = found.value
        notes.append(f"the log names the GPU on line {found.line}: {gpu.name}")
    total_gib = given.gpu_memory_gib or value_or(logged.memory.total_memory_gib, None)
    if total_gib is None:
        notes.append(
            f"total memory is not in the log: {bytes_to_gib(gpu.memory_bytes):.1f} GiB are taken, "
            f"what the driver of {gpu.name} {'usually reports' if gpu.memory_observed else 'should report'}"
        )
        return gpu
    if not 1 <= total_gib <= 10_000:
        raise InputError(f"gpu_memory_gib must be from 1 to 10,000, got {total_gib:g}")
    if abs(gib_to_bytes(total_gib) / gpu.memory_bytes - 1.0) > OTHER_CARD_RATIO:
        usual_gib = bytes_to_gib(gpu.memory_bytes)
        notes.append(
            f"{total_gib:g} GiB in all are taken, where {gpu.name} has {usual_gib:.1f}: is the GPU right?"
        )
    return gpu.model_copy(update={"memory_bytes": gib_to_bytes(total_gib), "memory_observed": True})


def gpu_logged(logged: LoggedStartup) -> Seen[Gpu] | None:
    """The first GPU of the catalog that the log names; None where it names none."""
    known = ((_known_gpu(seen.value), seen.line) for seen in logged.gpu_names)
    return next((Seen(gpu, line) for gpu, line in known if gpu is not None), None)


def _cards_of(logged: LoggedStartup) -> str:
    """Which GPUs have as much memory as the log reports, to name in a message."""
    total = logged.memory.total_memory_gib
    if total is None or total.value <= 0:
        return ""
    near = [
        gpu.name
        for gpu in gpus()
        if abs(bytes_to_gib(gpu.memory_bytes) / total.value - 1.0) < SAME_CARD_RATIO
    ]
    return f" ({total.value:g} GiB have {', '.join(near[:4])})" if near else ""


def _known_gpu(name: str) -> Gpu | None:
    try:
        return find_gpu(name)
    except InputError:
        return None


def _model(flags: LoggedFlags, given: Given, notes: list[str]) -> Model:
    """The model, in the weight format that the engine was told to make while loading."""
    if given.model:
        model = load_model(given.model)
    elif flags.model is None:
        raise InputError("the log does not say which model: add --model")
    else:
        model = _model_named(flags.model.value, notes)
    if given.weight_dtype:
        return with_weight_dtype(model, weight_dtype_named(given.weight_dtype))
    how = value_or(flags.quantization, "")
    if how and model.quantization is None:
        if how == WeightDtype.FP8:
            return with_weight_dtype(model, WeightDtype.FP8)
        notes.append(
            f"the log says quantization={shown(how)}, the config of {model.name} says none: "
            "add --weight-dtype or the checkpoint's own --model"
        )
    return model


def _model_named(reference: str, notes: list[str]) -> Model:
    """A hub id as it is; for a path on the machine of the log, the bundled model of that name."""
    path = PurePosixPath(reference)
    is_path = reference.startswith(("/", ".", "~")) or len(path.parts) > 2 or "://" in reference
    if not is_path or _is_here(reference):
        return load_model(reference)
    hub = next((part for part in path.parts if part.startswith("models--")), "")
    name = hub.removeprefix("models--").rpartition("--")[2] or path.name
    for bundled in bundled_models():
        for known in (bundled.name, *bundled.aliases):
            if name and known.rpartition("/")[2].casefold() == name.casefold():
                notes.append(f'"{shown(reference)}" is not on this machine: {known} is taken, as bundled')
                return load_model(known)
    raise InputError(
        f'the log\'s model "{shown(reference)}" is not on this machine, and no bundled model has that name: add --model'
    )


def _is_here(reference: str) -> bool:
    try:
        return Path(reference).exists()
    except (OSError, ValueError):
        return False


def _kv_dtype(flags: LoggedFlags, given: Given, notes: list[str]) -> KvDtype:
    if given.kv_dtype:
        return kv_dtype_named(given.kv_dtype)
    text = value_or(flags.kv_cache_dtype, "auto")
    if text in ("fp8_e5m2", "fp8_inc"):
        return KvDtype.FP8
    try:
        return kv_dtype_named(text)
    except InputError:
        notes.append(f"the log says kv_cache_dtype={shown(text)}, which is not modelled: auto is taken")
        return KvDtype.AUTO


def _engine(
    told: dict[str, Any], flags: LoggedFlags, model: Model, gpu: Gpu, notes: list[str]
) -> EngineSettings:
    """The flags that the server ran with: as told, else the defaults of its release on this GPU."""
    tokens, version = told.get("max_num_batched_tokens"), told.get("engine_version", "")
    defaults = engine_settings(Engine(max_num_batched_tokens=tokens, engine_version=version), model, gpu)
    taken = set(EngineSettings.model_fields) - {"lora", "speculation"}
    settings = {name: getattr(defaults, name) for name in taken}
    settings |= {name: value for name, value in told.items() if name in taken}
    settings["kv_offload_bytes"] = gib_to_bytes(value_or(flags.kv_offloading_gib, 0.0))
    try:
        return EngineSettings.model_validate(
            settings | {"lora": _lora(flags), "speculation": _speculation(flags, notes)}
        )
    except ValidationError as error:
        raise InputError(first_problem(error)) from None


def _lora(flags: LoggedFlags) -> LoraSlots | None:
    if not value_or(flags.enable_lora, False):
        return None
    return LoraSlots(
        max_loras=value_or(flags.max_loras, 1),
        max_lora_rank=value_or(flags.max_lora_rank, 16),
        fully_sharded=value_or(flags.fully_sharded_loras, False),
    )


def _speculation(flags: LoggedFlags, notes: list[str]) -> Speculation | None:
    """A draft model is predicted; n-grams take no memory; other drafts are named as missing."""
    asked = value_or(flags.speculation, None)
    if asked is None or asked.method in ("ngram", "ngram_gpu", "suffix"):
        return None
    if asked.method == "draft_model" and asked.model:
        return Speculation(
            draft=_model_named(asked.model, notes),
            num_speculative_tokens=max(asked.num_speculative_tokens, 1),
        )
    notes.append(
        f"speculative decoding ({shown(asked.method) or 'method unknown'}): the draft's weights and cache are not "
        "in the prediction"
    )
    return None
