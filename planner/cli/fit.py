"""`fit`: coefficients from kernel tables, and the errors they leave on measured runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from planner.assemble.question import unserved_facts
from planner.calibrate.store import (
    ACCURACY_FILE,
    OPERATORS_FOLDER,
    calibration_directories,
    operators_path,
    read_accuracy,
    write_coefficients,
)
from planner.catalog.atomic import check_outputs, write_text
from planner.catalog.load import gpus
from planner.catalog.memory_coefficients import FILE_NAME as MEMORY_FILE
from planner.catalog.paths import default_calibration_dir
from planner.catalog.serving import FILE_NAME as SERVING_FILE
from planner.catalog.serving import read_serving
from planner.cli.options import AsJson, CsvFile, folder_path
from planner.cli.screen import fraction, note, records, show_json, show_table
from planner.domain.base import InputError
from planner.domain.evidence import Accuracy, Disagreement, ErrorBand, LatencyError
from planner.export.format import percent
from planner.export.table import Cell, write_csv

BAND_COLUMNS = (
    "basis",
    "latency",
    "median_error_ratio",
    "factor",
    "rough_kernels_factor",
    "unknown_budget_factor",
    "half_width_ratio",
    "coverage",
    "runs",
    "how",
)
"""Of the table that `fit errors` writes."""

app = typer.Typer(help="Fit coefficients and their errors from evidence.", rich_markup_mode=None)

OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--calibration-dir",
        parser=folder_path,
        metavar="DIR",
        help="Where to write; the checkout's or the user's if left out.",
    ),
]


@app.command("operators")
def operators(
    tables: Annotated[Path, typer.Argument(metavar="DIR", help="Kernel tables, a folder a GPU.")],
    calibration_dir: OutputDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Fit operator coefficients to kernel tables (about a minute)."""
    from planner.calibrate.operators import FitRow, fit_operators, fit_report

    folder = _writable_folder(calibration_dir)
    _made(folder / OPERATORS_FOLDER)
    check_outputs(*(operators_path(folder, gpu.name) for gpu in gpus()), csv)
    with fraction("fitting") as progress:
        fitted = fit_operators(tables, progress=progress)
    for coefficients in fitted:
        note(f"wrote {write_coefficients(coefficients, folder)}")
    rows = fit_report(fitted)
    if csv is not None:
        write_csv(csv, FitRow._fields, rows)
        note(f"wrote {csv}")
    if as_json:
        show_json(records(FitRow._fields, rows))
        return
    headers = ["GPU", "operator", "variant", "from", "rows", "fit", "held out"]
    shown = [
        [
            *(row.gpu, row.operator, row.variant, row.origin, str(row.rows or "")),
            _median_and_p90(row.median_ratio, row.p90_ratio),
            _median_and_p90(row.held_out_median_ratio, row.held_out_p90_ratio),
        ]
        for row in rows
    ]
    show_table("|predicted / measured - 1| of kernel times: median / 90th percentile", headers, shown)


@app.command("errors")
def errors(
    measured: Annotated[
        Path, typer.Argument(metavar="MEASURED.csv", help="A runs table with measured times.")
    ],
    calibration_dir: OutputDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Store how far predictions lie from measured runs that they did not know (some minutes)."""
    from planner.assemble.error_bands import fit_error_bands
    from planner.assemble.served import runnable
    from planner.cli.measured_runs import measured_serving_runs

    path = _writable_folder(calibration_dir) / ACCURACY_FILE
    check_outputs(path, csv, inputs=(measured,))
    found, others = measured_serving_runs(measured)
    stored = read_serving(calibration_dir)
    facts = unserved_facts(calibration_dir=calibration_dir)._replace(
        host=stored.host, tuning=stored.tuning, accuracy=_known_errors(calibration_dir, path)
    )
    runs = runnable(found, facts)
    with fraction("fitting") as progress:
        accuracy = fit_error_bands(runs, facts, measured.name, progress)
    _note_left_out(measured, others + len(found) - len(runs))
    write_text(path, accuracy.model_dump_json(indent=2) + "\n")
    rows = [
        (basis, latency, *_error_cells(error), runs, how)
        for basis, errors, runs, how in _tested_errors(accuracy)
        for latency, error in (("tpot", errors.tpot), ("ttft", errors.ttft))
    ]
    if csv is not None:
        write_csv(csv, BAND_COLUMNS, rows)
        note(f"wrote {csv}")
    if as_json:
        show_json(records(BAND_COLUMNS, rows))
    else:
        headers = ["basis", "", "runs", "error", "90 % within", "experts, 4-bit", "no token budget"]
        headers += ["half-width / error", "held", "how"]
        shown = [
            [
                *(basis, latency.upper(), str(runs), percent(error.median_error_ratio)),
                *(f"x {factor:.2f}" for factor in _factors(error)),
                f"{error.half_width_ratio / error.median_error_ratio:.2f}"
                if error.median_error_ratio
                else "",
                ", ".join(percent(share) for share in error.coverage_ratio.values()),
                how if latency == "tpot" else "",
            ]
            for basis, errors, runs, how in _tested_errors(accuracy)
            for latency, error in (("tpot", errors.tpot), ("ttft", errors.ttft))
        ]
        show_table(
            "Median |predicted / measured - 1|, and the factor either way that holds 90 % of measured means; "
            "held: of runs whose model, TP (measured: deployment) was left out of the factor",
            headers,
            shown,
        )
    note(f"wrote {path}")


@app.command("memory")
def memory(
    logs: Annotated[Path, typer.Argument(metavar="LOGS.csv", help="A runs table of vLLM start-up logs.")],
    calibration_dir: OutputDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Fit what vLLM holds besides weights and KV cache."""
    import numpy as np

    from planner.calibrate.fit_memory import COVERAGE, fit_and_test

    path = _writable_folder(calibration_dir) / MEMORY_FILE
    check_outputs(path, csv, inputs=(logs,))
    fitted, errors = fit_and_test(logs)
    write_text(path, fitted.model_dump_json(indent=2) + "\n")
    columns = ("measure", "runs", "median_ratio", "within_ratio")
    rows = [
        (name, len(values), float(np.median(np.abs(values))), float(np.quantile(np.abs(values), COVERAGE)))
        for name, values in errors._asdict().items()
    ]
    if csv is not None:
        write_csv(csv, columns, rows)
        note(f"wrote {csv}")
    if as_json:
        show_json(records(columns, rows))
    else:
        shown = [[name, str(runs), percent(middle), percent(within)] for name, runs, middle, within in rows]
        headers = ["measure", "runs", "median", "90 % within"]
        show_table("|predicted / measured - 1| with each model left out of the fit", headers, shown)
    note(f"wrote {path}")


@app.command("serving")
def serving(
    measured: Annotated[
        Path, typer.Argument(metavar="RUNS.csv", help="A runs table with measured TTFT and TPOT.")
    ],
    calibration_dir: OutputDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Fit the engine's host time to measured serving runs (some minutes)."""
    from planner.assemble.fit_serving import check_enough, check_unit, drawn_to, fitted_serving
    from planner.assemble.served import runnable, simulated
    from planner.assemble.serving_errors import SPREADS, ServingRow, Spread, fit_and_test, serving_rows
    from planner.cli.measured_runs import measured_serving_runs

    path = _writable_folder(calibration_dir) / SERVING_FILE
    check_outputs(path, csv, inputs=(measured,))
    found, others = measured_serving_runs(measured)
    runs = runnable(found, unserved_facts(calibration_dir=calibration_dir))
    check_enough(runs)
    _note_left_out(measured, others + len(found) - len(runs))
    check_unit(runs, simulated(runs, *drawn_to()))
    with fraction("fitting") as progress:
        tested = fit_and_test(runs, progress)
    write_text(path, fitted_serving(tested.fit, runs, source=measured.name).model_dump_json(indent=2) + "\n")
    columns = (*ServingRow._fields[:3], *(f"{name}_{field}" for name in SPREADS for field in Spread._fields))
    rows: list[list[Cell]] = [
        [row.left_out, row.group, row.runs, *(value for spread in row.spreads for value in spread)]
        for row in serving_rows(runs, tested)
    ]
    if csv is not None:
        write_csv(csv, columns, rows)
        note(f"wrote {csv}")
    if as_json:
        show_json(records(columns, rows))
    else:
        headers = ["left out", "runs of", "runs", "TPOT before", "TPOT", "TTFT before", "TTFT"]
        shown = [
            [row.left_out, row.group, str(row.runs), *(_median_and_p90(*spread) for spread in row.spreads)]
            for row in serving_rows(runs, tested)
        ]
        show_table("|simulated / measured - 1|, before the fit and with it: median / p90", headers, shown)
    note(f"wrote {path}")


@app.command("runs")
def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Runs of `calibrate`, one file each.")],
    calibration_dir: OutputDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Fit a device's kernels and host time to the steps that `calibrate` measured."""
    from planner.cli.fit_runs import fit_folder

    fit_folder(folder, _writable_folder(calibration_dir), csv=csv, as_json=as_json)


def _median_and_p90(median_ratio: float | None, p90_ratio: float | None) -> str:
    if median_ratio is None or p90_ratio is None:
        return ""
    return f"{percent(median_ratio)} / {percent(p90_ratio)}"


def _tested_errors(accuracy: Accuracy) -> Iterator[tuple[str, ErrorBand | Disagreement, int, str]]:
    """Every band, and what the closed form adds."""
    for band in accuracy.bands:
        yield band.basis.value, band, band.runs, band.note
    if accuracy.closed_form is not None:
        runs = max(band.runs for band in accuracy.bands)
        yield "closed form", accuracy.closed_form, runs, "closed form against simulation, added in quadrature"


def _error_cells(error: LatencyError) -> tuple[Cell, ...]:
    held = "; ".join(f"{kind} left out {share:g}" for kind, share in error.coverage_ratio.items())
    return error.median_error_ratio, *_factors(error), error.half_width_ratio, held


def _factors(error: LatencyError) -> tuple[float, float, float]:
    """Of models without rough kernels, of those with them, and where the token budget is not recorded."""
    doubts = (error.rough_kernels_scale, error.unknown_budget_scale)
    return error.factor, *(round(error.factor**scale, 3) for scale in doubts)


def _writable_folder(calibration_dir: Path | None) -> Path:
    """Where coefficients are written, made if it is not there."""
    folder = calibration_dir or default_calibration_dir()
    if folder is None:
        raise InputError("there is no folder of yours to write in: name one with --calibration-dir")
    return _made(folder)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {folder}: {error.strerror or error}") from None
    return folder


def _known_errors(calibration_dir: Path | None, replaced: Path) -> Accuracy:
    """Bands that are kept where the runs cannot test theirs; a damaged file that is replaced anyway has none."""
    directories = calibration_directories(calibration_dir)
    try:
        return read_accuracy(directories)
    except InputError as error:
        others = [
            folder for folder in directories if (folder / ACCURACY_FILE).resolve() != replaced.resolve()
        ]
        if len(others) == len(directories):
            raise
        note(f"{error}; it is replaced and none of its bands is kept")
        return read_accuracy(others)


def _note_left_out(measured: Path, rows: int) -> None:
    if rows:
        note(
            f"{measured}: {rows} rows have no single load, no TTFT or TPOT, or an engine that would not "
            "start or could not take their requests"
        )
