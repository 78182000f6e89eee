"""`fit runs`: what a folder of calibrations says of each device, and what that changes in predictions."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from planner.assemble.fit_runs import Change, FittedGpu, fit_gpus
from planner.assemble.known import known_now
from planner.assemble.served import MeasuredRun
from planner.calibrate.benchmarks.reading import problem_of
from planner.calibrate.store import GPU_FITS_FOLDER, calibration_directories, gpu_fit, write_gpu_fit
from planner.catalog.atomic import check_outputs
from planner.catalog.calibration_runs import read_run, run_paths
from planner.cli.measured_runs import measured_serving_runs
from planner.cli.screen import Json, note, records, say, show_json, show_table
from planner.domain.base import InputError
from planner.domain.benchmark import RUNS_COLUMNS, BenchmarkRun
from planner.domain.units import seconds_to_ms
from planner.export.format import percent, relative_error
from planner.export.table import Cell, write_csv
from planner.formulas.gpu_fit import FittedParameter

CHANGE_COLUMNS = ("gpu", "deployment", "what", "measured_ms", "before_ms", "after_ms")


def fit_folder(folder: Path, calibration_dir: Path, *, csv: Path | None, as_json: bool) -> None:
    """Fits every device of a folder of runs, stores the fits and shows them.

    Raises:
        InputError: a run cannot be read, there is none, or a device has too few steps for a fit.
    """
    paths = run_paths(folder)
    if not paths:
        raise InputError(f"{folder}: no run of `calibrate` (run-*.json)")
    check_outputs(csv, inputs=paths)
    runs, benchmarks = [read_run(path) for path in paths], imported_runs(folder)
    measured = {run.machine.gpu for run in runs}
    known = known_now(calibration_dir, without=_damaged(measured, calibration_dir))
    unused = sum(one.case.gpu.name not in measured for one in benchmarks)
    if unused:
        note(
            f"{unused} imported benchmarks are of GPUs without a run here: `fit serving` takes them from a table"
        )
    fitted = fit_gpus(runs, known, benchmarks)
    rows = [_change_cells(one, change) for one in fitted for change in one.changes]
    if csv is not None:
        # First, so that a table that cannot be written leaves the stored fit as it was.
        write_csv(csv, CHANGE_COLUMNS, rows)
        note(f"wrote {csv}")
    for one in fitted:
        note(f"wrote {write_gpu_fit(one.fit, calibration_dir)}")
    if as_json:
        show_json(
            {
                GPU_FITS_FOLDER: [
                    one.fit.model_dump(mode="json", exclude={"gpu"}) | _named(one) for one in fitted
                ],
                "changes": records(CHANGE_COLUMNS, rows),
            }
        )
        return
    for one in fitted:
        _show(one)


def _damaged(names: Iterable[str], calibration_dir: Path) -> list[str]:
    """GPUs whose stored fit cannot be read; the one that is made now takes its place."""
    damaged = []
    for name in sorted(names):
        try:
            gpu_fit(name, calibration_directories(calibration_dir))
        except InputError as error:
            note(f"left aside, to be replaced: {error}")
            damaged.append(name)
    return damaged


def imported_runs(folder: Path) -> list[MeasuredRun]:
    """Benchmarks that `calibrate import` left in a folder and that measured TTFT and TPOT of one load.

    Raises:
        InputError: one cannot be read.
    """
    paths = sorted(folder.glob("benchmark-*.json"))
    if not paths:
        return []
    rows = [_benchmark(path).as_runs_row() for path in paths]
    with TemporaryDirectory(prefix="planner-") as name:
        table = Path(name) / "imported.csv"
        write_csv(table, RUNS_COLUMNS, [[row[column] for column in RUNS_COLUMNS] for row in rows])
        found, others = measured_serving_runs(table)
    if others:
        note(
            f"{others} of {len(rows)} imported benchmarks are not used: they have no TTFT and TPOT of one load, or do "
            "not name a known model, GPU and vLLM release"
        )
    return found


def _benchmark(path: Path) -> BenchmarkRun:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    with problem_of(str(path)):
        return BenchmarkRun.model_validate_json(text)


def _named(one: FittedGpu) -> dict[str, Json]:
    return {"gpu": one.fit.gpu.name}


def _change_cells(one: FittedGpu, change: Change) -> list[Cell]:
    times = (change.measured_s, change.before_s, change.after_s)
    return [one.fit.gpu.name, change.deployment, change.what, *(seconds_to_ms(time) for time in times)]


def _doubt(parameter: FittedParameter) -> str:
    if parameter.identified:
        return ""
    kept = parameter.estimate.value == parameter.prior.value
    return "not told by these runs: stays as before" if kept else "hardly told by these runs"


def _show(one: FittedGpu) -> None:
    fit = one.fit
    base = "typical efficiencies" if fit.plain else "kernel tables"
    rows = [
        [
            parameter.name,
            f"{parameter.estimate.value:.4g}",
            f"{parameter.estimate.low:.4g} to {parameter.estimate.high:.4g}",
            f"{parameter.prior.value:.4g}",
            _doubt(parameter),
        ]
        for parameter in fit.parameters
    ]
    show_table(
        f"{fit.gpu.name}, vLLM {fit.engine_version}: factors on the time of {base}, host time in seconds",
        ["parameter", "value", "90 % range", "before", ""],
        rows,
    )
    rows = [
        [
            row.deployment,
            row.region,
            str(row.steps),
            *map(percent, (row.before_median_ratio, row.median_ratio, row.left_out_median_ratio)),
        ]
        for row in fit.regions
    ]
    headers = ["deployment", "steps", "shapes", "before", "fitted", "left out"]
    show_table("|predicted / measured - 1| of steps, medians", headers, rows)
    rows = [
        [
            change.deployment,
            change.what,
            *(f"{seconds_to_ms(time):,.2f}" for time in (change.measured_s, change.before_s, change.after_s)),
            relative_error(change.after_s / change.measured_s - 1.0),
        ]
        for change in one.changes
    ]
    headers = ["deployment", "prediction", "measured [ms]", "before [ms]", "after [ms]", "error"]
    show_table("What the fit changes", headers, rows)
    say(
        f"Steps left out are predicted {percent(fit.left_out_median_ratio)} off (median); repetitions of one step "
        f"differ {percent(fit.noise_ratio)}."
    )
