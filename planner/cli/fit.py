"""`fit`: coefficients from kernel tables, and the errors they leave on measured runs."""

from pathlib import Path
from typing import Annotated

import typer

from planner.assemble.question import facts_for
from planner.calibrate.store import ACCURACY_FILE, write_coefficients
from planner.catalog.host_time import FILE_NAME as SERVING_FILE
from planner.catalog.memory_coefficients import FILE_NAME as MEMORY_FILE
from planner.catalog.paths import default_calibration_dir
from planner.cli.error_bands import fit_error_bands
from planner.cli.options import AsJson, CsvFile
from planner.cli.screen import fraction, note, records, show_json, show_table, working
from planner.domain.base import InputError
from planner.domain.evidence import ErrorBand
from planner.export.atomic import check_outputs, check_writable, write_text
from planner.export.format import percent
from planner.export.table import Cell, write_csv

app = typer.Typer(help="Fit coefficients and their errors from evidence.", rich_markup_mode=None)

OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--calibration-dir", metavar="DIR", help="Where to write; the checkout's or the user's if left out."
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
    check_outputs(csv)
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
    """Store how far predictions lie from measured runs."""
    folder = _writable_folder(calibration_dir)
    check_outputs(csv, inputs=(measured,))
    with working("predicting measured runs from every GPU's tables"):
        accuracy = fit_error_bands(measured, facts_for(calibration_dir=calibration_dir))
    write_text(folder / ACCURACY_FILE, accuracy.model_dump_json(indent=2) + "\n")
    columns = tuple(ErrorBand.model_fields)
    rows = [tuple(band.model_dump(mode="json").values()) for band in accuracy.bands]
    if csv is not None:
        write_csv(csv, columns, rows)
        note(f"wrote {csv}")
    if as_json:
        show_json(records(columns, rows))
    else:
        headers = ["basis", "runs", "TPOT error", "TTFT error", "TPOT 90 %", "TTFT 90 %", "how"]
        show_table(
            "Median error, and where 90 % of measured / predicted lie", headers, _band_rows(accuracy.bands)
        )
    note(f"wrote {folder / ACCURACY_FILE}")


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

    folder = _writable_folder(calibration_dir)
    check_outputs(csv, inputs=(logs,))
    fitted, errors = fit_and_test(logs)
    path = folder / MEMORY_FILE
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
    from planner.assemble.fit_serving import check_enough, fitted_host_time, runnable
    from planner.assemble.host_time_errors import SPREADS, HostTimeRow, Spread, fit_and_test
    from planner.cli.measured_runs import measured_serving_runs

    folder = _writable_folder(calibration_dir)
    check_outputs(csv, inputs=(measured,))
    found, others = measured_serving_runs(measured)
    runs = runnable(found, facts_for(calibration_dir=calibration_dir))
    check_enough(runs)
    left = others + len(found) - len(runs)
    if left:
        note(
            f"{measured}: {left} rows have no single load, no TTFT or TPOT, or an engine that would not start"
        )
    with fraction("fitting") as progress:
        host, tested = fit_and_test(runs, progress)
    path = folder / SERVING_FILE
    write_text(path, fitted_host_time(host, runs, source=measured.name).model_dump_json(indent=2) + "\n")
    columns = (*HostTimeRow._fields[:3], *(f"{name}_{field}" for name in SPREADS for field in Spread._fields))
    rows: list[list[Cell]] = [
        [row.left_out, row.group, row.runs, *(value for spread in row.spreads for value in spread)]
        for row in tested
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
            for row in tested
        ]
        show_table("|simulated / measured - 1|, without host time and with it: median / p90", headers, shown)
    note(f"wrote {path}")


def _median_and_p90(median_ratio: float | None, p90_ratio: float | None) -> str:
    if median_ratio is None or p90_ratio is None:
        return ""
    return f"{percent(median_ratio)} / {percent(p90_ratio)}"


def _band_rows(bands: tuple[ErrorBand, ...]) -> list[list[str]]:
    """Bands as rows for a screen."""
    return [
        [
            band.basis.value,
            str(band.runs),
            percent(band.tpot_median_error_ratio),
            percent(band.ttft_median_error_ratio),
            f"{band.tpot_factor_low:.2f} to {band.tpot_factor_high:.2f}",
            f"{band.ttft_factor_low:.2f} to {band.ttft_factor_high:.2f}",
            band.note,
        ]
        for band in bands
    ]


def _writable_folder(calibration_dir: Path | None) -> Path:
    """Where coefficients are written, made if it is not there."""
    folder = calibration_dir or default_calibration_dir()
    if folder is None:
        raise InputError("there is no folder of yours to write in: name one with --calibration-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {folder}: {error.strerror or error}") from None
    check_writable(folder / ACCURACY_FILE)
    return folder
