"""A run or a benchmark's result that somebody uploads: told apart, and loads of a benchmark predicted; not stored."""

from datetime import date
from pathlib import Path
from typing import NamedTuple

import streamlit as st
from pydantic import ValidationError

from planner.assemble.deployment import (
    UNRECORDED_TOKENS,
    Engine,
    engine_settings,
    gpu_named,
    parallelism_of,
)
from planner.assemble.question import first_problem, kv_dtype_named, weight_dtype_named
from planner.calibrate.benchmarks.complete import Given, benchmark_runs
from planner.calibrate.benchmarks.documents import read_documents
from planner.calibrate.benchmarks.read import read_benchmarks
from planner.catalog.models import load_model
from planner.catalog.releases import newest_on
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkFacts, BenchmarkRun
from planner.domain.workload import Workload
from planner.planning.predict import Case, Prediction
from planner.planning.predict_simulated import predict_simulated
from planner.ui.answers import facts
from planner.ui.calibration_answers import StoredRun, stored_run

RUN_FIELDS = frozenset({"run_id", "target", "points"})
"""That tell a calibration run from a benchmark's result."""
MOST_PREDICTED = 40
"""Loads of one file; a sweep has about ten."""
OPTIONS = {
    "--model": "the model",
    "--gpu": "the GPU",
    "--tp": "TP",
    "--input-tokens": "prompt tokens",
    "--output-tokens": "answer tokens",
    "--concurrency": "requests at once",
}
"""What the command line calls the fields beside the upload."""


class JudgedLoad(NamedTuple):
    """One load of a benchmark beside its prediction."""

    run: BenchmarkRun
    prediction: Prediction | None
    problem: str = ""
    """Why there is no latency."""


class BenchmarkAnswer(NamedTuple):
    """Every load of a file; only the first are predicted."""

    loads: tuple[JudgedLoad, ...]
    notes: tuple[str, ...]


def is_run(path: Path) -> bool:
    """Whether a file is a calibration run. Raises InputError where it is no JSON or YAML at all."""
    documents = read_documents(path).documents
    return len(documents) == 1 and isinstance(documents[0], dict) and set(documents[0]).issuperset(RUN_FIELDS)


def uploaded(path: Path, given: Given) -> StoredRun | BenchmarkAnswer:
    """What a kept file holds.

    Raises:
        InputError: it is neither a run nor a benchmark's result, or a benchmark lacks facts that `given` has not.
    """
    if is_run(path):
        return stored_run(path)
    return benchmark_answered(str(path), given)


@st.cache_resource(ttl="1h", max_entries=16, show_spinner="Simulating the loads of the file.")
def benchmark_answered(path: str, given: Given) -> BenchmarkAnswer:
    """The loads of a benchmark's result beside their predictions. Raises InputError as `uploaded` does."""
    runs = benchmark_runs(read_benchmarks(Path(path)), given)
    loads = tuple(
        _judged(run) if at < MOST_PREDICTED else JudgedLoad(run, None, "not predicted here")
        for at, run in enumerate(runs)
    )
    notes = [note for run in runs for note in run.notes]
    if any(_budget_unknown(run.facts) for run in runs):
        notes.append(f"no limit of the scheduler is told: {UNRECORDED_TOKENS:,} tokens a step are assumed")
    if len(runs) > MOST_PREDICTED:
        notes.append(
            f"the first {MOST_PREDICTED} of {len(runs):,} loads are predicted; `validate` predicts them all"
        )
    return BenchmarkAnswer(loads, tuple(dict.fromkeys(notes)))


def _judged(run: BenchmarkRun) -> JudgedLoad:
    """The tightest limit of the load decides, as in `validate`."""
    try:
        found = predict_simulated(_cases(run), facts(False, None))
    except InputError as error:
        return JudgedLoad(run, None, str(error))
    tightest = min(found, key=lambda one: one.output_tokens_per_s)
    refusal = next((one.refusal for one in found if one.refusal is not None), None)
    return JudgedLoad(run, tightest, "" if refusal is None else refusal.reason)


def _cases(run: BenchmarkRun) -> list[Case]:
    said, load = run.facts, run.load
    if said.engine not in ("", "vllm"):
        raise InputError(f"measured on {said.engine}; only vLLM is predicted here")
    model = load_model(said.model, weight_dtype=weight_dtype_named(said.weight_dtype))
    gpu = gpu_named(said.gpu)
    engine = Engine(
        max_model_len=said.max_model_len,
        max_num_seqs=said.max_num_seqs,
        max_num_batched_tokens=(UNRECORDED_TOKENS if _budget_unknown(said) else said.max_num_batched_tokens),
        gpu_memory_utilization=said.gpu_memory_utilization,
        enforce_eager=bool(said.enforce_eager),
        async_scheduling=said.async_scheduling,
        engine_version=said.engine_version or _release_of(run),
    )
    settings = engine_settings(engine, model, gpu)
    lengths = {
        "input_tokens": load.longest(load.input_tokens),
        "output_tokens": load.longest(load.output_tokens),
        "length_low_ratio": load.length_low_ratio,
        "prefix_hit_ratio": load.prefix_hit_ratio or 0.0,
        "num_requests": load.num_requests,
    }
    kinds: list[dict[str, float | int]] = []
    if load.concurrency is not None:
        kinds.append({"concurrency": load.concurrency})
    if load.requests_per_s is not None:
        kinds.append({"requests_per_s": load.requests_per_s, "arrival_cv": load.arrival_cv})
    try:
        workloads = [Workload.model_validate(lengths | kind) for kind in kinds]
    except ValidationError as error:
        raise InputError(first_problem(error)) from None
    return [
        Case(
            model=model,
            gpu=gpu,
            parallelism=parallelism_of(said.tp or 1, said.pp or 1, said.dp or 1, ep=bool(said.ep)),
            kv_dtype=kv_dtype_named(said.kv_dtype),
            engine=settings,
            workload=workload,
        )
        for workload in workloads
    ]


def _budget_unknown(said: BenchmarkFacts) -> bool:
    limits = (said.max_num_batched_tokens, said.max_num_seqs, said.max_model_len)
    return all(limit is None for limit in limits)


def _release_of(run: BenchmarkRun) -> str:
    """The newest release on the day of the run; empty, for the newest of all, where no day is told."""
    day = run.source.measured_on[:10]
    return newest_on(date.fromisoformat(day)) if day else ""


def said_here(message: str) -> str:
    """A message of the command line in the words of this page."""
    for option, field in OPTIONS.items():
        message = message.replace(option, field)
    return message
