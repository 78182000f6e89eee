"""Fits the memory coefficients on vLLM start-up logs, and says how well they predict a model left out."""

import csv
import io
import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations
from math import log2
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from planner.catalog.load import find_gpu
from planner.catalog.models import load_model
from planner.catalog.table import LARGEST_BYTES, read_text
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.evidence import Estimate
from planner.domain.hardware import Gpu
from planner.domain.model import Model
from planner.domain.units import gib_to_bytes
from planner.formulas.activations import activation_shape
from planner.formulas.cuda_graphs import graph_bytes, kernels_of_model
from planner.formulas.engine_defaults import (
    EngineVersion,
    parse_version,
    server_defaults,
)
from planner.formulas.kv_cache import KvLayout, kv_layout
from planner.formulas.kv_paging import kv_paging
from planner.formulas.load_target import LoadTarget, load_target
from planner.formulas.memory import (
    Card,
    MeasuredRange,
    MemoryCoefficients,
    Resident,
    activation_peak_bytes,
    captured_graphs,
    cuda_graph_bytes,
    engine_profile_rules,
    has_fused_all_reduce,
    memory_budget,
)
from planner.formulas.profile_rules import FLASHINFER_FUSION_SINCE
from planner.formulas.weights import weights_bytes

GRAPHS_ESTIMATED_SINCE = EngineVersion(0, 18, 0)
"""Older logs report what was left over after capture, which can be negative."""
COVERAGE = 0.9
UTILIZATION_FLAG = re.compile(r"gpu-memory-utilization: ([0-9.]+)")

NOTHING = Estimate(value=0.0, low=0.0, high=0.0, n=0)
NOTHING_FITTED = MemoryCoefficients(
    non_torch_bytes=NOTHING,
    collective_bytes=NOTHING,
    fused_all_reduce_bytes=NOTHING,
    cuda_graph_bytes_per_kernel=NOTHING,
    overhead_relative_error=0.0,
    sibling_relative_error=0.0,
    untested_relative_error=0.0,
    measured=MeasuredRange(
        gpus=(),
        capabilities=(),
        tensor_parallel=(),
        max_num_seqs=(),
        max_num_batched_tokens=(),
        releases=((0, 0), (0, 0)),
    ),
    provenance="",
)


class StartupLog(NamedTuple):
    """What one engine logged when it started."""

    run_id: str
    model: Model
    card: Card
    engine: EngineSettings
    kv: KvLayout
    weights_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    cuda_graph_bytes: int

    @property
    def overhead_bytes(self) -> int:
        """What the engine's share holds beside weights and KV cache."""
        requested = math.ceil(self.card.gpu.memory_bytes * self.engine.gpu_memory_utilization)
        return requested - self.weights_bytes - self.kv_cache_bytes


class MemoryErrors(NamedTuple):
    """Relative errors of a prediction, one a run, in the order of the runs."""

    weights: tuple[float, ...]
    overhead: tuple[float, ...]
    """As a share of what was predicted."""
    kv_bytes: tuple[float, ...]
    kv_tokens: tuple[float, ...]


def read_startup_logs(path: Path) -> list[StartupLog]:
    """Start-up logs of a CSV in the columns of a runs table.

    Where a row notes the flag `gpu-memory-utilization` and its column differs, the flag counts: it is what was
    typed. Predictions and `validate` know no notes and read the column.

    Raises:
        InputError: the file cannot be read, or a row is no start-up log; file and line are named.
    """
    logs = []
    text = read_text(path, LARGEST_BYTES, "a table of start-up logs")
    try:
        for line, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
            try:
                logs.append(_startup_log(row))
            except KeyError as error:
                raise InputError(f"{path}: column {error} is missing") from None
            except (TypeError, ValueError) as error:
                raise InputError(f"{path}:{line}: {error}") from None
    except csv.Error as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return logs


class _LeftOver(NamedTuple):
    """What the formulas do not explain of one run."""

    doublings: float
    """Of one GPU, until all tensor-parallel ranks are there."""
    size_bytes: float
    is_fused: bool


def fit_memory(logs: Sequence[StartupLog], provenance: str) -> MemoryCoefficients:
    """Medians of what the formulas leave unexplained, with 90 % intervals over the runs.

    One after the other: a line over the doublings of ranks where all-reduces are not fused, then what fusing adds.
    The errors of the whole are not set: `fit_and_test` tells them.
    """
    graphs = [
        _graph_bytes_per_kernel(log)
        for log in logs
        if parse_version(log.engine.engine_version) >= GRAPHS_ESTIMATED_SINCE and log.cuda_graph_bytes > 0
    ]
    coefficients = NOTHING_FITTED.model_copy(
        update={
            "cuda_graph_bytes_per_kernel": _estimate(graphs) if graphs else NOTHING,
            "measured": _measured(logs),
            "provenance": provenance,
        }
    )
    left_over = [
        _LeftOver(
            log2(log.card.parallelism.tp),
            log.overhead_bytes - _known_bytes(log, coefficients),
            has_fused_all_reduce(log.card, log.engine),
        )
        for log in logs
    ]
    plain = [each for each in left_over if not each.is_fused]
    slope = _slope(plain)
    base = _estimate(each.size_bytes - each.doublings * slope for each in plain or left_over)
    per_doubling = [(each.size_bytes - base.value) / each.doublings for each in plain if each.doublings]
    collective = _estimate(per_doubling).model_copy(update={"value": slope}) if slope else NOTHING
    fused = [
        max(0.0, each.size_bytes - base.value - each.doublings * slope) for each in left_over if each.is_fused
    ]
    return coefficients.model_copy(
        update={
            "non_torch_bytes": base,
            "collective_bytes": collective,
            "fused_all_reduce_bytes": _estimate(fused) if plain and fused else NOTHING,
        }
    )


def leave_one_model_out(logs: Sequence[StartupLog]) -> MemoryErrors:
    """Errors on each run with its model's runs left out of the fit."""
    return leave_group_out(logs, lambda log: log.model.name)


def leave_group_out(logs: Sequence[StartupLog], group: Callable[[StartupLog], Hashable]) -> MemoryErrors:
    """Errors on each run with the runs of its group left out of the fit."""
    fits = {
        left_out: fit_memory([log for log in logs if group(log) != left_out], "left out")
        for left_out in {group(log) for log in logs}
    }
    budgets = [
        memory_budget(
            log.card,
            Resident(weights_bytes(log.model, log.card.parallelism, _target(log))),
            log.kv,
            log.engine,
            fits[group(log)],
        )
        for log in logs
    ]
    pairs = list(zip(budgets, logs, strict=True))
    return MemoryErrors(
        weights=tuple(budget.weights_bytes / log.weights_bytes - 1 for budget, log in pairs),
        overhead=tuple(log.overhead_bytes / budget.overhead_bytes - 1 for budget, log in pairs),
        kv_bytes=tuple(budget.kv_cache_bytes / log.kv_cache_bytes - 1 for budget, log in pairs),
        kv_tokens=tuple(budget.kv_cache_tokens / log.kv_cache_tokens - 1 for budget, log in pairs),
    )


def _target(log: StartupLog) -> LoadTarget:
    return load_target(log.card.gpu, log.engine.engine_version, log.engine.max_num_batched_tokens)


def _slope(runs: Sequence[_LeftOver]) -> float:
    """Bytes a doubling of ranks adds: the middle of the slopes between the medians of each number of ranks."""
    medians = {
        doublings: median(each.size_bytes for each in runs if each.doublings == doublings)
        for doublings in {each.doublings for each in runs}
    }
    slopes = [(medians[b] - medians[a]) / (b - a) for a, b in combinations(sorted(medians), 2)]
    return max(0.0, round(median(slopes))) if slopes else 0.0


def _known_bytes(log: StartupLog, coefficients: MemoryCoefficients) -> int:
    rules = engine_profile_rules(log.card, log.engine)
    graphs = cuda_graph_bytes(log.card, log.engine, coefficients) if rules.charges_cuda_graphs else 0
    return activation_peak_bytes(log.card, log.engine) + graphs


def _graph_bytes_per_kernel(log: StartupLog) -> float:
    """Bytes of one kernel in one graph, the floor of a graph's size left aside."""
    kernels = kernels_of_model(log.model, log.card.parallelism)
    plan = captured_graphs(log.card, log.engine)
    pool = cuda_graph_bytes(log.card, log.engine, NOTHING_FITTED) - graph_bytes(plan, kernels, 0.0)
    return max(0.0, log.cuda_graph_bytes - pool) / (plan.counted * kernels)


def _estimate(values: Iterable[float]) -> Estimate:
    known = list(values)
    low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(value=round(median(known)), low=math.floor(low), high=math.ceil(high), n=len(known))


def _utilization(row: dict[str, str]) -> float:
    flag = UTILIZATION_FLAG.search(row["notes"])
    return float(flag[1] if flag is not None else row["gpu_memory_utilization"])


def _startup_log(row: dict[str, str]) -> StartupLog:
    gpu = _with_memory(find_gpu(row["gpu"]), float(row["gpu_memory_gib"]))
    parallelism = Parallelism(tp=int(row["tp"]), pp=int(row["pp"]))
    model = load_model(row["model"])
    kv_dtype = KvDtype(row["kv_dtype"] or "auto")
    defaults = server_defaults(gpu, row["engine_version"])
    engine = EngineSettings(
        max_num_seqs=int(row["max_num_seqs"] or defaults.max_num_seqs),
        max_num_batched_tokens=int(row["max_num_batched_tokens"] or defaults.max_num_batched_tokens),
        max_model_len=int(float(row["max_model_len"])),
        gpu_memory_utilization=_utilization(row),
        enforce_eager=row["enforce_eager"] == "True",
        async_scheduling=defaults.async_scheduling,
        engine_version=row["engine_version"],
    )
    kv = kv_layout(model, parallelism, kv_dtype, kv_paging(engine, gpu, model, kv_dtype))
    return StartupLog(
        run_id=row["run_id"],
        model=model,
        card=Card(gpu, parallelism, activation_shape(model, parallelism), kv.block_size),
        engine=engine,
        kv=kv,
        weights_bytes=gib_to_bytes(float(row["weights_gib_per_gpu"])),
        kv_cache_bytes=gib_to_bytes(float(row["kv_cache_gib_per_gpu"])),
        kv_cache_tokens=int(float(row["kv_cache_tokens"])),
        cuda_graph_bytes=gib_to_bytes(float(row["cudagraph_gib"])),
    )


def _with_memory(gpu: Gpu, memory_gib: float) -> Gpu:
    return gpu.model_copy(update={"memory_bytes": gib_to_bytes(memory_gib)})


def fit_and_test(table: Path) -> tuple[MemoryCoefficients, MemoryErrors]:
    """Coefficients of a table of start-up logs, with the errors they leave on models left out of the fit.

    Raises:
        InputError: the table cannot be read as start-up logs of two models or more.
    """
    logs = read_startup_logs(table)
    models = sorted({log.model.name for log in logs})
    if len(models) < 2:
        raise InputError(f"{table}: start-up logs of two models or more are needed, got {len(models)}")
    errors = leave_one_model_out(logs)
    fitted = fit_memory(logs, f"{len(logs)} vLLM start-up logs ({', '.join(models)})")
    within = max(
        _spread(errors),
        _spread(_left_out_or(logs, lambda log: log.card.parallelism.tp, errors)),
        _spread(_left_out_or(logs, _release, errors)),
    )
    siblings = max(within, _spread(_left_out_or(logs, lambda log: log.card.gpu.name, errors)))
    beyond = max(siblings, _spread(_left_out_or(logs, _generation, errors)))
    return fitted.model_copy(
        update={
            "overhead_relative_error": within,
            "sibling_relative_error": siblings,
            "untested_relative_error": beyond,
        }
    ), errors


def _measured(logs: Sequence[StartupLog]) -> MeasuredRange:
    return MeasuredRange(
        gpus=tuple(sorted({log.card.gpu.name for log in logs})),
        capabilities=tuple(sorted({log.card.gpu.compute_capability for log in logs})),
        tensor_parallel=tuple(sorted({log.card.parallelism.tp for log in logs})),
        max_num_seqs=tuple(sorted({log.engine.max_num_seqs for log in logs})),
        max_num_batched_tokens=tuple(sorted({log.engine.max_num_batched_tokens for log in logs})),
        releases=(min(map(_release, logs)), max(map(_release, logs))),
    )


def _release(log: StartupLog) -> tuple[int, int]:
    version = parse_version(log.engine.engine_version)
    return version.major, version.minor


def _generation(log: StartupLog) -> bool:
    """Releases before and since FlashInfer fuses all-reduces and a kernel filters the logits."""
    return parse_version(log.engine.engine_version) >= FLASHINFER_FUSION_SINCE


def _left_out_or(
    logs: Sequence[StartupLog], group: Callable[[StartupLog], Hashable], otherwise: MemoryErrors
) -> MemoryErrors:
    return leave_group_out(logs, group) if len({group(log) for log in logs}) > 1 else otherwise


def _spread(errors: MemoryErrors) -> float:
    return round(float(np.quantile(np.abs(errors.overhead), COVERAGE)), 3)
