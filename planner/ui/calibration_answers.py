"""From files of calibrations to what the Calibration page shows; a file is read and fitted once, until it changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import streamlit as st
from pydantic import ValidationError

from planner.assemble.fit_runs import stored_step
from planner.assemble.known import known_now
from planner.assemble.run_serving import ServedMeans, served_means
from planner.calibrate.fit_steps import MeasuredSteps, StepFit, median_error, region_errors, region_of
from planner.calibrate.operators import FitRow, fit_report
from planner.calibrate.step_deployment import operators_before
from planner.calibrate.step_unknowns import StepDeployment
from planner.calibrate.store import (
    calibration_directories,
    gpu_fits,
    table_operators_for,
)
from planner.catalog.calibration_runs import read_run, run_paths
from planner.catalog.load import find_gpu
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkRun
from planner.domain.calibration import CalibrationRun, ServingPoint
from planner.export.calibration_steps import Examined, examined
from planner.formulas.arrays import FloatArray
from planner.formulas.gpu_fit import GpuFit, RegionError
from planner.formulas.operators import GpuOperators
from planner.formulas.shape_time import host_s, shapes_s

RUNS_FOLDER = "runs"
MOST_FITTED = 12
"""Runs that are fitted for the table, newest first: each takes about a second the first time."""
BENCHMARK_FILES = "benchmark-*.json"
"""Of `calibrate import`."""


class ServedLoad(NamedTuple):
    """A closed loop that a run served, beside its prediction by the simulated scheduler."""

    point: ServingPoint
    predicted: ServedMeans


class RunAnswer(NamedTuple):
    """A run, and how far its steps are from predictions."""

    examined: Examined
    today_s: FloatArray | None = None
    """Time of every measured shape by the coefficients that predictions rest on now [N]."""
    regions: tuple[RegionError, ...] = ()
    """`before` is by today's coefficients where they predict the steps, as `validate --run` has it."""
    served: tuple[ServedLoad, ...] = ()
    """By a fit of the run's steps alone, of which serving is no part."""
    problems: tuple[str, ...] = ()
    """Why something is not predicted or not fitted."""
    fit: GpuFit | None = None
    """What today's coefficients of this GPU come from; None where runs have no part in them."""

    @property
    def run(self) -> CalibrationRun:
        """As it is on disk."""
        return self.examined.run

    @property
    def today_ratio(self) -> float | None:
        """Median of |predicted / measured - 1| by today's coefficients."""
        return None if self.today_s is None else _median_ratio(self.today_s, self.examined.measured_s)

    @property
    def left_out_ratio(self) -> float | None:
        """The same where each step is predicted by a fit of the run's other steps alone."""
        known = self.examined.predictions
        left_out_s = None if known is None else known.left_out_s
        return None if left_out_s is None else _median_ratio(left_out_s, self.examined.measured_s)

    @property
    def noise_ratio(self) -> float | None:
        """Median spread of a step's repetitions; None without steps."""
        points = self.examined.points
        return median(point.spread_ratio for point in points) if points else None


def _median_ratio(predicted_s: FloatArray, measured_s: FloatArray) -> float:
    return float(np.median(np.abs(predicted_s / measured_s - 1.0)))


class StoredRun(NamedTuple):
    """A run and its file."""

    path: Path
    modified_ns: int
    run: CalibrationRun


class Stored(NamedTuple):
    """What the calibration folders hold."""

    runs: tuple[StoredRun, ...]
    """Newest first."""
    benchmarks: tuple[BenchmarkRun, ...]
    fits: tuple[GpuFit, ...]
    """Those that count: a user's before a shipped one of the same GPU."""
    problems: tuple[str, ...]
    """A line for every file that cannot be read."""

    def fit_of(self, gpu: str) -> GpuFit | None:
        """What measured steps say of a GPU."""
        return next((fit for fit in self.fits if fit.gpu.name == gpu), None)


def stored() -> Stored:
    """Runs, imported benchmarks and fits of the user's and of the shipped calibration folder."""
    runs: dict[str, StoredRun] = {}
    benchmarks: dict[str, BenchmarkRun] = {}
    problems: list[str] = []
    for directory in calibration_directories():
        folder = directory / RUNS_FOLDER
        try:
            run_files = run_paths(folder) if folder.exists() else ()
            benchmark_files = sorted(folder.glob(BENCHMARK_FILES))
        except (InputError, OSError) as error:
            problems.append(str(error))
            continue
        for path in run_files:
            try:
                found = stored_run(path)
                runs.setdefault(found.run.run_id, found)
            except InputError as error:
                problems.append(str(error))
        for path in benchmark_files:
            try:
                record = _benchmark(str(path), _stamp(path))
                benchmarks.setdefault(record.run_id, record)
            except InputError as error:
                problems.append(str(error))
    try:
        fits = gpu_fits(calibration_directories())
    except InputError as error:
        fits = ()
        problems.append(str(error))
    newest = sorted(runs.values(), key=lambda one: one.run.started_at, reverse=True)
    return Stored(tuple(newest), tuple(benchmarks.values()), fits, tuple(problems))


def stored_run(path: Path) -> StoredRun:
    """A run as it is on disk now. Raises InputError where it is none."""
    modified_ns = _stamp(path)
    return StoredRun(path, modified_ns, _run(str(path), modified_ns))


def _stamp(path: Path) -> int:
    """Changes whenever the file does."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


@st.cache_resource(ttl="1h", max_entries=256, show_spinner=False)
def _run(path: str, modified_ns: int) -> CalibrationRun:  # noqa: ARG001
    return read_run(Path(path))


@st.cache_resource(ttl="1h", max_entries=256, show_spinner=False)
def _benchmark(path: str, modified_ns: int) -> BenchmarkRun:  # noqa: ARG001
    try:
        return BenchmarkRun.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise InputError(f"{path}: {where}: {first['msg']}; import it anew with --replace") from None


def run_answered(one: StoredRun, fit: GpuFit | None) -> RunAnswer:
    """The run with its predictions; what cannot be predicted or fitted is said in `problems`."""
    return _answered(str(one.path), one.modified_ns, fit)


@st.cache_resource(ttl="1h", max_entries=64, show_spinner="Fitting the run alone.")
def _answered(path: str, modified_ns: int, fit: GpuFit | None) -> RunAnswer:
    run = _run(path, modified_ns)
    problems: list[str] = []
    answer = RunAnswer(Examined(run, (), None, None, None, ()), fit=fit)
    with np.errstate(all="ignore"), _said_in(problems):
        found = examined(run, operators_before(run.machine, calibration_directories()))
        answer = answer._replace(examined=found)
        problems += found.missing
        if found.steps is not None:
            with _said_in(problems):
                answer = answer._replace(today_s=_today_s(found.steps))
        if found.steps is not None and found.fit is not None:
            regions = region_errors((found.steps,), found.fit)
            if answer.today_s is not None:
                regions = _by_today(regions, found.steps, answer.today_s)
            answer = answer._replace(regions=regions)
            answer = answer._replace(served=_served(run, found.steps.deployment, found.fit))
    return answer._replace(problems=tuple(problems))


@contextmanager
def _said_in(problems: list[str]) -> Iterator[None]:
    """What cannot be predicted is a line among the problems."""
    try:
        yield
    except InputError as error:
        problems.append(str(error))
    except (ValueError, ArithmeticError) as error:
        # Figures of the right kind that no engine can have had, in a file that somebody wrote by hand.
        problems.append(f"figures that cannot be predicted: {' '.join(str(error).split())[:200]}")


def _served(run: CalibrationRun, deployment: StepDeployment, fit: StepFit) -> tuple[ServedLoad, ...]:
    """Those loads whose requests the engine can have taken."""
    host, (step,) = fit.unknowns.steps(fit.solution.values)
    longest = 0 if run.engine is None else run.engine.max_model_len
    return tuple(
        ServedLoad(point, served_means(run, point, deployment, step, host))
        for point in run.serving
        if point.requests and max(one.input_tokens + one.output_tokens for one in point.requests) <= longest
    )


def _today_s(measured: MeasuredSteps) -> FloatArray:
    """Time of every step as predictions have it now [N]."""
    one, shapes = measured.deployment, measured.shapes
    host, step = stored_step(one, known_now())
    return np.asarray(shapes_s(step, shapes, one.captured_tokens) + host_s(host, shapes))


def _by_today(
    regions: tuple[RegionError, ...], measured: MeasuredSteps, today_s: FloatArray
) -> tuple[RegionError, ...]:
    """The same with today's coefficients in place of what was known before any run."""
    residuals = measured.log_s - np.log(today_s)
    names = np.array([region_of(point) for point in measured.points])
    return tuple(
        row.model_copy(update={"before_median_ratio": median_error(residuals[names == row.region])})
        for row in regions
    )


class TableAnswer(NamedTuple):
    """What a GPU without measured steps rests on."""

    operators: GpuOperators
    rows: tuple[FitRow, ...]
    """A line for each kernel, with its errors."""


@st.cache_resource(ttl="1h", max_entries=64, show_spinner=False)
def table_answered(gpu: str) -> TableAnswer:
    """Coefficients from kernel tables. Raises InputError where there are none, or the GPU is not known."""
    operators = table_operators_for(find_gpu(gpu), calibration_directories())
    return TableAnswer(operators, tuple(fit_report([operators.coefficients])))
