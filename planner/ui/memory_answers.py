"""From the fields of the Memory page to its answers; equal fields are answered once."""

from typing import NamedTuple

import streamlit as st

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.log_check import LogCheck, check_log
from planner.assemble.logged_deployment import Given, gpu_logged
from planner.calibrate.startup_log import read_startup_log
from planner.catalog.load import gpus
from planner.domain.base import InputError
from planner.planning.memory_questions import (
    Change,
    changes,
    gpu_options,
    smallest_tp,
    tensor_parallel_options,
)
from planner.planning.predict import Case, Sized, size
from planner.planning.sizing import Sizer
from planner.ui.answers import facts

Options = tuple[tuple[Case, Sized], ...]


class MemoryAsk(NamedTuple):
    """One deployment as the fields describe it."""

    model: str
    gpu: str
    tp: int | None
    """None: the smallest degree that fits, else the largest that divides the model."""
    pp: int
    ep: bool
    formats: Formats
    engine: Engine


class MemoryAnswer(NamedTuple):
    """What one GPU holds, what would change it, and the same on other degrees and GPUs."""

    case: Case
    sized: Sized
    smallest_tp: int | None
    changes: tuple[Change, ...]
    by_tp: Options
    by_gpu: Options


class LogAsk(NamedTuple):
    """A start-up log, and what counts where it is silent."""

    text: str
    gpu: str | None
    """For a log that names no GPU."""
    model: str
    """For a log that names no model."""
    own_model: bool
    """`model` counts before the one that the log names."""


@st.cache_resource(ttl="1h", max_entries=24, show_spinner=False)
def memory_answered(ask: MemoryAsk) -> MemoryAnswer:
    """The answer for a deployment. Raises `InputError` where a field is not legal."""
    sizer = Sizer(facts(False, None))
    case = case_of(ask, ask.gpu, ask.tp or 1)
    by_tp = tensor_parallel_options(case, sizer)
    least = smallest_tp(case, sizer)
    if ask.tp is None:
        case = case_of(ask, ask.gpu, least or max((one.parallelism.tp for one, _ in by_tp), default=1))
    tp = case.parallelism.tp
    cards = [case_of(ask, gpu.name, tp) for gpu in gpus() if gpu.vllm_backend]
    return MemoryAnswer(
        case, size(case, sizer), least, changes(case, sizer), by_tp, gpu_options(cards, sizer)
    )


def case_of(ask: MemoryAsk, gpu: str, tp: int) -> Case:
    """The deployment on this GPU at this degree. Raises `InputError` where a field is not legal."""
    return deployment(
        ask.model, gpu_named(gpu), parallelism_of(tp, ask.pp, ep=ask.ep), ask.formats, ask.engine
    )


@st.cache_resource(ttl="1h", max_entries=8, show_spinner=False)
def log_checked(ask: LogAsk) -> LogCheck:
    """A log beside the prediction for what it describes. Raises `InputError` where that is not known."""
    if "\0" in ask.text:
        raise InputError("binary, not a start-up log")
    logged = read_startup_log(ask.text)
    ours = ask.own_model or logged.flags.model is None
    given = Given(
        model=ask.model if ours else None,
        gpu=ask.gpu if gpu_logged(logged) is None else None,
    )
    return check_log(logged, given, facts(False, None))
