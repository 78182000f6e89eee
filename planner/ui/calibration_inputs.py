"""Fields of the Calibration page: the command for a GPU box, and what a benchmark's file does not say."""

import shlex
from pathlib import Path

import streamlit as st

from planner.assemble.calibration import Wanted, target_of
from planner.assemble.question import AUTO
from planner.calibrate.benchmarks.complete import Given
from planner.calibrate.benchmarks.reading import problem_of
from planner.catalog.load import gpus
from planner.catalog.models import bundled_models
from planner.catalog.paths import default_calibration_dir
from planner.domain.benchmark import BenchmarkFacts, LoadFacts
from planner.domain.calibration import Device
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.ui import answers
from planner.ui.calibration_answers import RUNS_FOLDER
from planner.ui.uploads import is_kept

OWN_CONFIG = "path/to/config.json"
BUDGETS = ("2m", "6m", "10m", "20m", "1h")
USUAL_BUDGET = "6m"


def runs_folder() -> str:
    """Where `calibrate` keeps runs on this machine, as short as it can be written."""
    folder = default_calibration_dir()
    if folder is None:
        return RUNS_FOLDER
    runs = folder / RUNS_FOLDER
    here = Path.cwd()
    return str(runs.relative_to(here) if runs.is_relative_to(here) else runs)


def fit_command() -> str:
    """What makes predictions rest on the runs that are kept here."""
    return f"python -m planner fit runs {shlex.quote(runs_folder())}"


def measure_command() -> str:
    """The command to run on a GPU box, from a few fields.

    Raises:
        InputError: model, format and degree do not go together.
    """
    left, middle, right, last = st.columns([3, 1, 2, 1], vertical_alignment="bottom")
    own = str(st.session_state[answers.FIELDS_KEY].get("model", ""))
    models = left.multiselect(
        "Models",
        [model.name for model in bundled_models()],
        key="calibration_models",
        bind="query-params",
        accept_new_options=True,
        placeholder="the sidebar's model",
        help="They share the budget. Empty: the sidebar's model. No checkpoint is downloaded: made-up weights have the "
        "true shapes.",
    ) or [own]
    tp = middle.number_input(
        "TP",
        min_value=1,
        max_value=64,
        value=1,
        key="calibration_tp",
        bind="query-params",
        help="Tensor-parallel degree: GPUs of the box that share every layer.",
    )
    with right:
        weights_at, cache_at = st.columns(2)
    weights = weights_at.selectbox(
        "Weights",
        (AUTO, *(dtype.value for dtype in WeightDtype)),
        key="calibration_weight_dtype",
        bind="query-params",
        help=f"`{AUTO}`: as the checkpoint is.",
    )
    cache = cache_at.selectbox(
        "KV cache",
        tuple(dtype.value for dtype in KvDtype),
        key="calibration_kv_dtype",
        bind="query-params",
        help=f"`{AUTO}`: as the model computes.",
    )
    budget = last.selectbox(
        "Budget",
        BUDGETS,
        index=BUDGETS.index(USUAL_BUDGET),
        key="calibration_budget",
        bind="query-params",
        help="For all models together, the engine's start included. The shapes that tell most come first.",
    )
    for name in models:
        target_of(name, Wanted(Device.CUDA, tp=int(tp), weight_dtype=weights, kv_dtype=cache))
    return command_of(models, int(tp), weights, cache, budget)


def command_of(models: list[str], tp: int, weights: str, cache: str, budget: str) -> str:
    """The command line; what is its own default is left out.

    >>> command_of(["meta-llama/Llama-3.1-8B"], 2, "fp8", "auto", "6m")
    'python -m planner calibrate --model meta-llama/Llama-3.1-8B --tp 2 --weight-dtype fp8 --budget 6m'
    """
    words = ["python", "-m", "planner", "calibrate"]
    for name in models:
        words += ["--model", OWN_CONFIG if is_kept(name) else name]
    words += ["--tp", str(tp)]
    words += ["--weight-dtype", weights] if weights != AUTO else []
    words += ["--kv-dtype", cache] if cache != AUTO else []
    return shlex.join([*words, "--budget", budget])


def benchmark_facts() -> Given:
    """What the user says of a benchmark whose file leaves it out.

    Raises:
        InputError: a field that no deployment can have.
    """
    st.caption("For a benchmark whose file does not say it. A calibration run needs none of them.")
    first, second = st.columns(2)
    model = first.text_input(
        "Model",
        key="calibration_bench_model",
        placeholder="as the file has it",
        help="A bundled name, a Hugging Face id or the path of a config.json; a file has the name it was served under.",
    )
    gpu = second.selectbox(
        "GPU",
        [gpu.name for gpu in gpus() if gpu.vllm_backend],
        index=None,
        key="calibration_bench_gpu",
        placeholder="as the file has it",
        help="No tool records it by itself.",
    )
    one, two, three = st.columns(3)
    tp = one.number_input(
        "TP",
        min_value=1,
        max_value=64,
        value=None,
        key="calibration_bench_tp",
        placeholder="file",
        help="Tensor-parallel degree.",
    )
    weights = two.selectbox(
        "Weights",
        (AUTO, *(dtype.value for dtype in WeightDtype)),
        key="calibration_bench_weights",
        help=f"`{AUTO}`: as the checkpoint has them.",
    )
    version = three.text_input(
        "vLLM version",
        key="calibration_bench_version",
        placeholder="of the day",
        help="For example 0.11.0. Empty: what the file says, else the newest release of the day of the run.",
    )
    one, two, three = st.columns(3)
    lengths = [
        column.number_input(
            label,
            min_value=1,
            max_value=10_000_000,
            value=None,
            key=f"calibration_bench_{key}",
            placeholder="file",
            help=about,
        )
        for column, label, key, about in (
            (one, "Prompt tokens", "input", "Mean length."),
            (two, "Answer tokens", "output", "Mean length."),
            (
                three,
                "Requests at once",
                "concurrency",
                "Of a closed loop; the batch of `vllm bench latency`.",
            ),
        )
    ]
    with problem_of("fields"):
        return Given(
            BenchmarkFacts(
                model=(model or "").strip(),
                gpu=gpu or "",
                tp=None if tp is None else int(tp),
                weight_dtype=weights,
                engine_version=(version or "").strip(),
            ),
            LoadFacts(input_tokens=lengths[0], output_tokens=lengths[1], concurrency=lengths[2]),
        )
