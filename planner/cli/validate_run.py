"""`validate --run`: a calibration run as an exam of what is stored."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from planner.assemble.exam_runs import Exam, ExaminedServing, ExaminedStep, examine
from planner.assemble.known import known_now
from planner.calibrate.store import gpu_fit
from planner.catalog.calibration_runs import RUN_PREFIX, read_run
from planner.cli.calibrate_import import RUNS_FOLDER
from planner.cli.screen import Json, note, records, say, show_json, show_table
from planner.domain.calibration import CalibrationRun
from planner.domain.units import seconds_to_ms
from planner.export.format import percent, relative_error
from planner.export.table import Cell, write_csv
from planner.formulas.gpu_fit import GpuFit

REGION_COLUMNS = (
    "steps",
    "shapes",
    "median_error_ratio",
    "p90_error_ratio",
    "bias_ratio",
    "mean_guess_median_error_ratio",
    "nearest_guess_median_error_ratio",
)
STEP_COLUMNS = ("step", "kind", "measured_ms", "predicted_ms", "error_ratio", "known")
ALL = "all"


def validate_run(path: Path, calibration_dir: Path | None, *, csv: Path | None, as_json: bool) -> None:
    """Predicts a run's steps and serving runs and prints the errors.

    Raises:
        InputError: the run cannot be read, or measured nothing.
    """
    run = read_run(path)
    known = known_now(calibration_dir)
    fit = gpu_fit(run.machine.gpu, known.directories)
    exam = examine(run, known, _fitted_on(path, fit, known.directories))
    regions = [_region_cells(name, steps) for name, steps in _by_region(exam.steps)]
    steps = [_step_cells(step) for step in exam.steps]
    if csv is not None:
        write_csv(csv, STEP_COLUMNS, steps)
        note(f"wrote {csv}")
    basis = _basis(run, fit)
    if as_json:
        show_json(
            {
                "run": run.run_id,
                "deployment": exam.deployment,
                "basis": basis,
                "regions": records(REGION_COLUMNS, regions),
                "serving": [_serving_json(one) for one in exam.serving],
                "steps": records(STEP_COLUMNS, steps),
            }
        )
        return
    _show(exam, regions, basis)


def _fitted_on(path: Path, fit: GpuFit | None, directories: Sequence[Path]) -> list[CalibrationRun]:
    """Runs of the fit that lie beside this one or are kept with the fit; itself among them where it was fitted."""
    if fit is None:
        return []
    folders = [path.parent, *(folder / RUNS_FOLDER for folder in directories)]
    wanted = {f"{RUN_PREFIX}{source.run_id}.json" for source in fit.runs}
    found: dict[str, Path] = {}
    for folder in folders:
        for name in wanted:
            if (folder / name).is_file():
                found.setdefault(name, folder / name)
    return [read_run(found[name]) for name in sorted(found)]


def _basis(run: CalibrationRun, fit: GpuFit | None) -> str:
    if fit is None:
        return f"no steps of {run.machine.gpu} are stored: predicted as before any run (`fit runs DIR` stores them)"
    if run.run_id in {source.run_id for source in fit.runs}:
        return f"the fit of {fit.fitted_on} knew this run: errors are in sample"
    return f"predicted by the fit of {fit.fitted_on} to {len(fit.runs)} other runs"


def _by_region(steps: Sequence[ExaminedStep]) -> list[tuple[str, list[ExaminedStep]]]:
    regions = sorted({step.region for step in steps})
    found = [(region, [step for step in steps if step.region == region]) for region in regions]
    new = [step for step in steps if not step.known]
    everything = [(ALL, list(steps))] if steps else []
    return (
        found + ([("all that the fit did not know", new)] if 0 < len(new) < len(steps) else []) + everything
    )


def _region_cells(name: str, steps: Sequence[ExaminedStep]) -> list[Cell]:
    errors = np.array([step.predicted_s / step.measured_s - 1.0 for step in steps])
    return [
        name,
        len(steps),
        float(np.median(np.abs(errors))),
        float(np.quantile(np.abs(errors), 0.9)),
        float(np.median(errors)),
        _guess([(step.mean_s, step.measured_s) for step in steps]),
        _guess([(step.nearest_s, step.measured_s) for step in steps if not step.known]),
    ]


def _guess(pairs: Sequence[tuple[float | None, float]]) -> float | None:
    errors = [abs(guess / measured - 1.0) for guess, measured in pairs if guess is not None]
    return median(errors) if errors else None


def _step_cells(step: ExaminedStep) -> list[Cell]:
    return [
        step.shape.label,
        step.shape.kind.value,
        seconds_to_ms(step.measured_s),
        seconds_to_ms(step.predicted_s),
        step.predicted_s / step.measured_s - 1.0,
        "yes" if step.known else "",
    ]


def _serving_json(one: ExaminedServing) -> dict[str, Json]:
    return {
        "concurrency": one.concurrency,
        "requests": one.requests,
        "ttft_ms_mean": seconds_to_ms(one.ttft_measured_s),
        "pred_ttft_ms_mean": seconds_to_ms(one.ttft_predicted_s),
        "ttft_error_ratio": one.ttft_predicted_s / one.ttft_measured_s - 1.0,
        "tpot_ms_mean": None if one.tpot_measured_s is None else seconds_to_ms(one.tpot_measured_s),
        "pred_tpot_ms_mean": seconds_to_ms(one.tpot_predicted_s),
        "tpot_error_ratio": _tpot_error(one),
    }


def _tpot_error(one: ExaminedServing) -> float | None:
    return one.tpot_predicted_s / one.tpot_measured_s - 1.0 if one.tpot_measured_s else None


def _show(exam: Exam, regions: Sequence[Sequence[Cell]], basis: str) -> None:
    rows = [
        [str(name), str(shapes), *("" if value is None else percent(float(value)) for value in rest)]
        for name, shapes, *rest in regions
    ]
    headers = ["steps", "shapes", "error", "p90", "bias", "guess: mean", "guess: nearest new"]
    show_table(f"{exam.deployment}: |predicted / measured - 1|, medians", headers, rows)
    rows = [
        [
            str(one.concurrency),
            str(one.requests),
            *(f"{seconds_to_ms(time):,.2f}" for time in (one.ttft_measured_s, one.ttft_predicted_s)),
            relative_error(one.ttft_predicted_s / one.ttft_measured_s - 1.0),
            "" if one.tpot_measured_s is None else f"{seconds_to_ms(one.tpot_measured_s):,.2f}",
            f"{seconds_to_ms(one.tpot_predicted_s):,.2f}",
            relative_error(_tpot_error(one)),
        ]
        for one in exam.serving
    ]
    if rows:
        headers = ["users", "requests", "TTFT [ms]", "predicted", "error", "TPOT [ms]", "predicted", "error"]
        show_table("Served in the engine's process, and simulated", headers, rows)
    say(f"{basis[0].upper()}{basis[1:]}.")
