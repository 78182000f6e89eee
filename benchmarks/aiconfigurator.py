"""Error and speed against aiconfigurator 0.12.0: TPOT and TTFT of the same measured runs, and predictions a second.

Its predictions stand in a table by `run_id`, under two ways of naming a model's quantisation (a and b); where it gives
none, a run is left out of that comparison for both. Ours are simulated, in sample: with `--left-out` also by serving
fits without the run's model, and without its deployment.
"""

import csv
import tempfile
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.inputs import Inputs
from benchmarks.measure import Row, Timing, best_of, figure, not_measured, rates
from benchmarks.predictions import timed_runs, write_table
from planner.assemble.question import facts_for
from planner.assemble.served import runnable
from planner.assemble.serving_errors import fit_and_test
from planner.cli.measured_runs import measured_serving_runs
from planner.cli.outcomes import Method, outcomes
from planner.cli.predict import facts_of
from planner.cli.runs import open_runs
from planner.cli.validate import examine
from planner.domain.base import InputError

PEER_S = 9e-3
"""One prediction of aiconfigurator 0.12.0 at its best, from this project's survey of other programs (November 2026);
as shipped it takes 1.3 to 3 s."""
VARIANTS = ("a", "b")
MEASURES = {"TPOT": "tpot_ms", "TTFT": "ttft_ms"}
SIMULATED_ROWS, STEADY_ROWS = 200, 4000
LEFT_OUT = {"each model": "model left out", "each deployment": "deployment left out"}
"""By kind of part (`serving_errors.KINDS`), how a comparison is named."""

Errors = Mapping[str, Mapping[str, float]]
"""Predicted / measured - 1 by measure (a key of MEASURES) and run."""


class Spread(NamedTuple):
    """Median and 90th percentile of |predicted / measured - 1| of so many runs."""

    runs: int
    median_ratio: float
    p90_ratio: float


def rows(inputs: Inputs) -> Iterator[Row]:
    """Errors where the tables are there, then speed."""
    if inputs.measured is None or inputs.peer is None:
        yield not_measured(
            "TPOT and TTFT error against aiconfigurator", "--measured RUNS.csv, --aiconfigurator FILE"
        )
    else:
        ours = errors_in_sample(inputs.measured)
        yield from compared(ours, inputs.peer, "in sample")
        if inputs.left_out:
            for how, errors in errors_left_out(inputs.measured).items():
                yield from compared(errors, inputs.peer, how)
    yield from speed_rows(inputs.repeats)


def errors_in_sample(measured: Path) -> dict[str, dict[str, float]]:
    """Ours with what is shipped, as `validate --method simulate` has them."""
    exam = examine(measured, facts_of(Method.SIMULATE, None), None, Method.SIMULATE)
    return {
        name: {run.run: run.figures[key].error_ratio for run in exam.runs if key in run.figures}
        for name, measure in MEASURES.items()
        if (key := f"{measure}_mean")
    }


def errors_left_out(measured: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Ours by a serving fit that did not see the run's model, or its deployment: by the names in LEFT_OUT.

    Runs without which too few were left for a fit are not among them.

    Raises:
        InputError: a row of the table cannot be simulated, or there are too few.
    """
    found, others = measured_serving_runs(measured)
    runs = runnable(found, facts_for())
    names = run_ids(measured)
    if others or len(runs) < len(names):
        raise InputError(f"{measured}: {len(names) - len(runs)} rows cannot be simulated; all are needed")
    tested = fit_and_test(runs)
    return {
        how: {
            measure: {
                name: error for name, error in zip(names, errors.tolist(), strict=True) if isfinite(error)
            }
            for measure, errors in (
                ("TPOT", tested.left_out[kind].tpot),
                ("TTFT", tested.left_out[kind].ttft),
            )
        }
        for kind, how in LEFT_OUT.items()
    }


def run_ids(measured: Path) -> list[str]:
    """The names of a table's rows, in their order."""
    with measured.open(newline="") as source:
        return [line["run_id"] for line in csv.DictReader(source)]


def errors_of_peer(peer: Path, variant: str) -> dict[str, dict[str, float]]:
    """Theirs where they answer."""
    with peer.open(newline="") as source:
        lines = list(csv.DictReader(source))
    return {
        name: {
            line["run_id"]: float(line[cell]) / float(line[f"{measure}_mean"]) - 1.0
            for line in lines
            if line[cell := f"aic_{variant}_{measure}"]
        }
        for name, measure in MEASURES.items()
    }


def compared(ours: Errors, peer: Path, how: str) -> Iterator[Row]:
    """Rows answered, then our error over theirs on the runs that both answer."""
    for variant in VARIANTS:
        theirs = errors_of_peer(peer, variant)
        answered, other = len(ours["TPOT"]), len(theirs["TPOT"])
        what = f"rows answered ({how}, naming {variant})"
        yield Row(
            what, f"{answered} rows", f"aiconfigurator: {other} rows", answered / other, answered >= other
        )
        for name in MEASURES:
            both = sorted(ours[name].keys() & theirs[name].keys())
            if not both:
                yield not_measured(f"{name} error ({how}, naming {variant})", "no run that both answer")
                continue
            mine, other_spread = (spread([errors[name][run] for run in both]) for errors in (ours, theirs))
            yield from error_rows(
                f"{name} error, {len(both)} runs ({how}, naming {variant})", mine, other_spread
            )


def spread(errors: list[float]) -> Spread:
    """Of signed errors.

    >>> spread([-0.1, 0.2, 0.4])
    Spread(runs=3, median_ratio=0.2, p90_ratio=0.36)
    """
    size = np.abs(errors)
    return Spread(size.size, float(np.median(size)), round(float(np.quantile(size, 0.9)), 12))


def error_rows(what: str, ours: Spread, theirs: Spread) -> Iterator[Row]:
    """Median, then 90th percentile; below 1 is better than theirs."""
    for part, mine, other in (
        ("median", ours.median_ratio, theirs.median_ratio),
        ("p90", ours.p90_ratio, theirs.p90_ratio),
    ):
        ratio = mine / other
        shown, against = f"{figure(100 * mine)} %", f"aiconfigurator: {figure(100 * other)} %"
        yield Row(f"{what}, {part}", shown, against, ratio, ratio < 1.0)


def speed_rows(repeats: int, steady: int = STEADY_ROWS, simulated: int = SIMULATED_ROWS) -> Iterator[Row]:
    """Predictions a second in process, layouts compiled within the timed run, a different deployment or load each."""
    with tempfile.TemporaryDirectory() as folder:
        for method, count in ((Method.STEADY, steady), (Method.SIMULATE, simulated)):
            table = Path(folder) / f"{method.value}.csv"
            write_table(table, timed_runs(count))
            facts = facts_of(method, None)
            with open_runs(table) as opened:
                runs = list(opened.runs)
            timing = best_of(repeats, lambda: outcomes(runs, facts, method))  # noqa: B023
            yield speed_row(f"`predict` in process, method {method.value}", count, timing)


def speed_row(what: str, count: int, timing: Timing) -> Row:
    """Predictions a second, and how many times as fast as theirs; from 1 is as good."""
    ratio = PEER_S * count / timing.best_s
    against = f"aiconfigurator: {1e3 * PEER_S:g} ms, {figure(1.0 / PEER_S)}/s"
    return Row(what, rates(count, timing, "predictions/s"), against, ratio, ratio >= 1.0)
