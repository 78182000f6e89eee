"""Calibration: what was measured on real GPUs, what was fitted to it, and how to measure another."""

from collections.abc import Sequence

import streamlit as st

from planner.catalog.load import gpus
from planner.domain.base import InputError
from planner.domain.evidence import Basis
from planner.domain.units import bytes_to_gib
from planner.export.calibration_run_figures import parameters
from planner.export.format import count
from planner.formulas.gpu_fit import GpuFit
from planner.ui import calibration_tables as tables
from planner.ui.calibration_answers import (
    MOST_FITTED,
    Stored,
    run_answered,
    stored,
    table_answered,
)
from planner.ui.calibration_details import details, draw, frame, heading, plain, problem
from planner.ui.calibration_inputs import benchmark_facts, fit_command, measure_command, runs_folder
from planner.ui.calibration_upload import BenchmarkAnswer, said_here, uploaded
from planner.ui.format import percent
from planner.ui.memory_inputs import DEFAULT_GPU
from planner.ui.uploads import kept

UPLOAD_MB = 64


def runs_tab(found: Stored) -> None:
    """Every stored run, and one of them in detail."""
    for line in found.problems:
        st.warning(problem(line), icon=":material/warning:")
    if found.runs:
        judged = [
            run_answered(one, found.fit_of(one.run.machine.gpu)) if at < MOST_FITTED else None
            for at, one in enumerate(found.runs)
        ]
        frame(tables.run_table(zip(found.runs, judged, strict=True)), "calibration_runs")
        by_id = {one.run.run_id: one for one in found.runs}
        name = st.selectbox(
            "Run",
            list(by_id),
            key="calibration_run",
            bind="query-params",
            help="Shown below; the newest at first.",
        )
        chosen = by_id[name]
        details(run_answered(chosen, found.fit_of(chosen.run.machine.gpu)), "stored")
    else:
        st.info(
            f"No run is stored yet. *Measure a GPU* has the command; its runs are kept in `{runs_folder()}`.",
            icon=":material/straighten:",
        )
    if found.benchmarks:
        heading("Imported benchmarks", "Records of `calibrate import`; `fit runs` and `validate` read them.")
        frame(tables.benchmark_table(found.benchmarks), "calibration_benchmarks")


def upload_tab(found: Stored) -> None:
    """A file of the user's, shown and predicted."""
    st.markdown(
        "A run of `calibrate`, or a result of `vllm bench serve`, `latency` or `throughput`, guidellm or "
        "inference-perf, is shown beside its prediction. **Nothing is stored, and no prediction changes by it** "
        f"until the file lies in `{runs_folder()}` (a benchmark by way of `calibrate import`) and this is run:"
    )
    st.code(fit_command(), language="bash", wrap_lines=True)
    left, right = st.columns(2, gap="medium")
    with left:
        upload = st.file_uploader(
            "Run or benchmark",
            type=["json", "yaml", "yml"],
            key="calibration_upload",
            max_upload_size=UPLOAD_MB,
            help="It is read as data; nothing in it is executed.",
        )
    try:
        with right:
            given = benchmark_facts()
        if upload is None:
            return
        shown = uploaded(kept(upload.getvalue(), upload.name.rpartition("/")[2]), given)
    except InputError as error:
        st.error(said_here(problem(error)), icon=":material/error:")
        return
    if isinstance(shown, BenchmarkAnswer):
        benchmark(shown)
    else:
        details(run_answered(shown, found.fit_of(shown.run.machine.gpu)), "upload")


def benchmark(answer: BenchmarkAnswer) -> None:
    """Loads of a benchmark, measured and predicted."""
    heading(
        count(len(answer.loads), "load"),
        "Means over requests. Predicted by the simulated scheduler, as `validate` does.",
    )
    frame(tables.load_table(answer.loads), "calibration_loads")
    for line in dict.fromkeys(one.problem for one in answer.loads if one.problem):
        st.warning(said_here(problem(f"No prediction: {line}.")), icon=":material/info:")
    for note in answer.notes:
        st.caption(problem(f"{note[:1].upper()}{note[1:]}."))


def coefficients_tab(found: Stored) -> None:
    """What predictions for one GPU rest on."""
    fitted = [fit.gpu.name for fit in found.fits]
    others = [gpu.name for gpu in gpus() if gpu.vllm_backend and gpu.name not in fitted]
    names = [*fitted, *others]
    name = st.selectbox(
        "GPU",
        names,
        index=0 if fitted else names.index(DEFAULT_GPU),
        key="calibration_gpu",
        bind="query-params",
        help="Those with measured steps first.",
    )
    fit = found.fit_of(name)
    if fit is not None:
        fitted_coefficients(fit)
        return
    try:
        answer = table_answered(name)
    except InputError as error:
        st.error(problem(error), icon=":material/error:")
        return
    operators = answer.operators
    donor = "" if operators.donor == name else f" of {operators.donor}, scaled by data sheet"
    rests = {
        Basis.DATASHEET: "No table covers its architecture: every time is a data sheet's rate at the efficiencies",
        Basis.TRANSFERRED: "Its coefficients are those",
    }.get(operators.basis, "Its coefficients come from operator tables, timed kernel by kernel")
    st.markdown(
        f"No run on {name} was fitted. {rests}{donor}. Errors are |predicted / measured − 1| of kernel times; "
        "held out: shapes that the fit did not see."
    )
    frame(tables.kernel_table(answer.rows), "calibration_kernels")


def fitted_coefficients(fit: GpuFit) -> None:
    """Coefficients, errors and sources of a stored fit."""
    steps = sum(one.steps for one in fit.runs)
    before = "assumed efficiencies" if fit.plain else "operator tables"
    st.markdown(
        f"Fitted on {fit.fitted_on} to {count(steps, 'step')} of {count(len(fit.runs), 'run')} with vLLM "
        f"{plain(fit.engine_version)}, starting from {before}. Each step predicted without it: "
        f"{percent(fit.left_out_median_ratio)} off in the median; repetitions of one step spread "
        f"{percent(fit.noise_ratio)}."
    )
    if not fit.in_catalog:
        st.caption(
            f"{plain(fit.gpu.name)} is in no catalog: "
            f"{bytes_to_gib(fit.gpu.memory_bytes):.1f} GiB and rates as the device tells of itself, so only runs "
            "of it are predicted."
        )
    heading("Coefficients", "Factors multiply the time of a kind of work as it was known before any run.")
    frame(tables.parameter_table(fit.parameters), "calibration_parameters")
    draw(parameters(tables.titled(fit.parameters)), "parameters")
    heading(
        "|Predicted / measured − 1| of steps", "Medians; left out: each step predicted by a fit without it."
    )
    frame(tables.region_table(fit.regions, named=True), "calibration_regions")
    heading("Runs it rests on")
    frame(tables.source_table(fit), "calibration_sources")


def measure_tab() -> None:
    """The command for a GPU box."""
    st.markdown(
        "Run this where the GPU is, beside an installed vLLM. The real engine runs with made-up weights, its steps are "
        "timed, and one file records all of it."
    )
    try:
        command = measure_command()
    except InputError as error:
        st.error(problem(error), icon=":material/error:")
        return
    st.code(command, language="bash", wrap_lines=True)
    st.markdown(
        f"Then bring the file into `{runs_folder()}` of this machine and fit. From there on, every prediction for that "
        "GPU rests on it, and prints its error; a running dashboard within the hour."
    )
    st.code(fit_command(), language="bash", wrap_lines=True)


TABS: Sequence[str] = ("Runs", "Your file", "Coefficients", "Measure a GPU")
known = stored()
first = TABS[0] if known.runs or known.benchmarks or known.problems else TABS[-1]
runs_at, upload_at, coefficients_at, measure_at = st.tabs(list(TABS), default=first)
with runs_at:
    runs_tab(known)
with upload_at:
    upload_tab(known)
with coefficients_at:
    coefficients_tab(known)
with measure_at:
    measure_tab()
