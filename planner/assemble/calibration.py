"""Turns what was asked of `calibrate` into a target and an engine to start."""

import json
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from planner.assemble.question import kv_dtype_named, weight_dtype_named
from planner.calibrate.measure.cpu_load import usable_core_count
from planner.calibrate.measure.design import EngineLimits, candidate_shapes
from planner.calibrate.measure.engine_arguments import weight_arguments
from planner.calibrate.measure.engine_failures import StartError
from planner.calibrate.measure.engine_protocol import Start
from planner.calibrate.step_deployment import measured_gpu, measured_model
from planner.catalog.model_config import parse_model, with_weight_dtype
from planner.catalog.models import model_config
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationTarget, Device, Machine
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import Model
from planner.domain.units import bytes_to_gib
from planner.formulas.gemms import check_parallelism
from planner.formulas.load_target import load_target
from planner.formulas.weights import weights_bytes

MAX_LEN = {Device.CUDA: 16_384, Device.CPU: 4096}
MAX_SEQS = {Device.CUDA: 256, Device.CPU: 64}
MAX_BATCHED = {Device.CUDA: 8192, Device.CPU: 2048}
"""Flags of the engine that is measured, unless asked otherwise: wide enough for what servers meet, and on a CPU small
enough that one step takes no minute."""
UTILIZATION = 0.9
LARGEST = 10**7
MOST_THREADS, LARGEST_SEED = 4096, 10**9
BLOCK_TOKENS = {Device.CUDA: 16, Device.CPU: 128}
"""Assumed until the engine says."""
CPU_CACHE_GIB = 2
NOT_ON_CPU = frozenset({WeightDtype.FP8, WeightDtype.FP8_BLOCK, WeightDtype.MXFP4, WeightDtype.NVFP4})


class Wanted(NamedTuple):
    """What was asked for beside the model."""

    device: Device
    tp: int = 1
    weight_dtype: str = "auto"
    kv_dtype: str = "auto"
    weights: Path | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool = False
    threads: int = 0
    seed: int = 0


def target_of(model: str, wanted: Wanted) -> CalibrationTarget:
    """The deployment that is measured.

    Raises:
        InputError: model, format, degree or limits are not understood, or do not go together.
    """
    files = model_config(model)
    parsed = parse_model(files.config, name=files.name, hf_quant=files.hf_quant, source=files.source)
    dtype = weight_dtype_named(wanted.weight_dtype)
    try:
        target = CalibrationTarget(
            model=files.name,
            config=json.loads(json.dumps(files.config)),
            hf_quant=None if files.hf_quant is None else json.loads(json.dumps(files.hf_quant)),
            weight_dtype=dtype or parsed.weight_dtype,
            kv_dtype=kv_dtype_named(wanted.kv_dtype),
            tp=wanted.tp,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"--{where.replace('_', '-')}: {first['msg']}") from None
    with_weight_dtype(parsed, dtype)
    flags_of(parsed, wanted)
    return target


class Flags(NamedTuple):
    """Limits the engine is started with."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int


def flags_of(model: Model, wanted: Wanted) -> Flags:
    """As asked, else wide ones within the model's length. Raises InputError where one is out of range."""
    flags = Flags(
        _or(wanted.max_model_len, min(MAX_LEN[wanted.device], model.max_position)),
        _or(wanted.max_num_seqs, MAX_SEQS[wanted.device]),
        _or(wanted.max_num_batched_tokens, MAX_BATCHED[wanted.device]),
    )
    for name, value in flags._asdict().items():
        if not 1 <= value <= LARGEST:
            raise InputError(f"--{name.replace('_', '-')}: a whole number from 1 to {LARGEST:,}, got {value}")
    if flags.max_model_len > model.max_position:
        raise InputError(
            f"--max-model-len: at most {model.max_position:,} for {model.name}, got {flags.max_model_len:,}"
        )
    if flags.max_num_seqs > flags.max_num_batched_tokens:
        raise InputError(
            f"--max-num-seqs: at most --max-num-batched-tokens, {flags.max_num_batched_tokens:,}, "
            f"got {flags.max_num_seqs:,}"
        )
    share = wanted.gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        raise InputError(f"--gpu-memory-utilization: above 0 up to 1, got {share:g}")
    if not (0 <= wanted.threads <= MOST_THREADS and 0 <= wanted.seed <= LARGEST_SEED):
        raise InputError(
            f"--threads: a whole number from 0 to {MOST_THREADS:,}; --seed: one from 0 to {LARGEST_SEED:,}"
        )
    return flags


def _or(asked: int | None, usual: int) -> int:
    """What was asked for, 0 too, which is refused like any other number out of range."""
    return usual if asked is None else asked


def check_startable(target: CalibrationTarget, wanted: Wanted, machine: Machine) -> None:
    """Refuses what an engine would refuse after it was waited for, or the operating system would kill.

    Raises:
        InputError: the model cannot be split so, its format does not run there, its weights are larger than the
            device's memory, no step fits the limits, or the checkpoint is not there.
    """
    model = measured_model(target)
    problem = check_parallelism(model, Parallelism(tp=target.tp))
    if problem is not None:
        raise InputError(f"--tp {target.tp}: {problem}")
    if wanted.device is Device.CPU and target.weight_dtype in NOT_ON_CPU:
        raise InputError(f"--weight-dtype {target.weight_dtype}: vLLM for CPUs has no kernels for it")
    try:
        weight_arguments(engine_start(target, wanted, ""))
    except StartError as error:
        raise InputError(f"--weight-dtype {target.weight_dtype}: {error}") from None
    if wanted.weights is not None and not wanted.weights.is_dir():
        raise InputError(f"--weights {wanted.weights}: not a folder with a checkpoint")
    if not candidate_shapes(expected_limits(target, wanted)):
        raise InputError(
            f"--max-model-len {flags_of(model, wanted).max_model_len}: too short for any step; cached tokens are "
            f"kept in blocks of {BLOCK_TOKENS[wanted.device]}, and sequences grow while they are timed"
        )
    held = weights_bytes(model, Parallelism(tp=target.tp), load_target(measured_gpu(machine), ""))
    ranks = target.tp if wanted.device is Device.CPU else 1
    if machine.device_memory_bytes and ranks * held > machine.device_memory_bytes:
        raise InputError(
            f"{target.model}: its weights take {bytes_to_gib(held):,.1f} GiB a rank at TP {target.tp}, "
            f"{machine.device_name} has {bytes_to_gib(machine.device_memory_bytes):,.1f} GiB"
        )


def expected_limits(target: CalibrationTarget, wanted: Wanted) -> EngineLimits:
    """What the engine will take, before it has said so; its cache is assumed to hold all sequences at full length."""
    flags = flags_of(measured_model(target), wanted)
    return EngineLimits(
        *flags,
        kv_cache_tokens=flags.max_num_seqs * flags.max_model_len,
        block_size=BLOCK_TOKENS[wanted.device],
    )


def engine_start(target: CalibrationTarget, wanted: Wanted, config_dir: str) -> Start:
    """The engine to start."""
    stored = parse_model(target.config, name=target.model, hf_quant=target.hf_quant).weight_dtype
    flags = flags_of(measured_model(target), wanted)
    return Start(
        config_dir=config_dir,
        weights="" if wanted.weights is None else str(wanted.weights),
        stored_dtype=stored,
        weight_dtype=target.weight_dtype,
        kv_dtype=target.kv_dtype,
        tp=target.tp,
        device=wanted.device,
        max_model_len=flags.max_model_len,
        max_num_seqs=flags.max_num_seqs,
        max_num_batched_tokens=flags.max_num_batched_tokens,
        gpu_memory_utilization=wanted.gpu_memory_utilization or UTILIZATION,
        enforce_eager=wanted.enforce_eager or wanted.device is Device.CPU,
        seed=wanted.seed,
        threads=engine_threads(wanted),
        cpu_cache_gib=CPU_CACHE_GIB,
    )


def engine_threads(wanted: Wanted) -> int:
    """Threads of the engine's kernels; on a CPU one core is left to the rest, on a GPU 0 leaves it to the engine."""
    if wanted.threads or wanted.device is not Device.CPU:
        return wanted.threads
    return max(1, usable_core_count() - 1)


def write_config(target: CalibrationTarget, folder: Path) -> None:
    """The checkpoint's config files, for an engine to read; code that a config points to is left out."""
    config = {name: value for name, value in target.config.items() if name != "auto_map"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if target.hf_quant is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(target.hf_quant), encoding="utf-8")
