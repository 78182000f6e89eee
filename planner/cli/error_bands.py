"""How far predictions of each basis lie from measured runs, as bands that later predictions carry."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from planner.catalog.load import gpus
from planner.cli.error_table import measured
from planner.cli.outcomes import outcomes
from planner.cli.runs import Run, open_runs
from planner.domain.base import InputError
from planner.domain.evidence import Accuracy, Basis, ErrorBand
from planner.domain.hardware import Gpu
from planner.export.predictions import Status, predicted
from planner.formulas.operators import GpuOperators, transfer
from planner.planning.facts import Facts

LOWEST, HIGHEST = 0.05, 0.95
"""Quantiles between which 90 % lie; a band is widened to hold the prediction itself."""
FEWEST_RUNS = 10


class Ratios(NamedTuple):
    """Measured / predicted, one number a prediction, and the GPUs that were measured."""

    tpot: list[float]
    ttft: list[float]
    gpus: set[str]


class MeasuredRuns(NamedTuple):
    """A measured table in memory."""

    columns: tuple[str, ...]
    runs: Sequence[Run]


def fit_error_bands(path: Path, facts: Facts) -> Accuracy:
    """Bands of basis `operators`, as it is, and of `transferred`, with every other GPU's tables in turn.

    Raises:
        InputError: the table cannot be read, or has too few timed runs on GPUs with kernel tables.
    """
    with open_runs(path) as table:
        return _accuracy(path, MeasuredRuns(table.columns, list(table.runs)), facts)


def _accuracy(path: Path, known: MeasuredRuns, facts: Facts) -> Accuracy:
    donors = [found for gpu in gpus() if (found := facts.operators_for(gpu)).basis is Basis.OPERATORS]
    own = _ratios(known, facts, Basis.OPERATORS)
    runs = min(len(own.tpot), len(own.ttft))
    if runs < FEWEST_RUNS:
        raise InputError(
            f"{path}: {runs} runs with TTFT and TPOT on GPUs that have kernel tables; {FEWEST_RUNS} are needed"
        )
    table_of = f"{path.name} ({', '.join(sorted(own.gpus))})"
    bands = [_band(Basis.OPERATORS, own, runs, f"{table_of}, from each GPU's own kernel tables")]
    if len(donors) > 1:
        moved = Ratios([], [], set())
        for donor in donors:
            one = _ratios(known, _with_tables_of(donor, facts), Basis.TRANSFERRED)
            moved.tpot.extend(one.tpot)
            moved.ttft.extend(one.ttft)
        names = ", ".join(operators.gpu.name for operators in donors)
        note = f"{table_of}, from the kernel tables of every other GPU of {names}, scaled by datasheet"
        bands.append(_band(Basis.TRANSFERRED, moved, runs, note))
    return Accuracy(
        source=f"{path.name}: measured runs that no operator was fitted on",
        fitted_on=datetime.now(UTC).date().isoformat(),
        bands=tuple(bands),
    )


def _with_tables_of(donor: GpuOperators, facts: Facts) -> Facts:
    """The facts as if `donor` alone had kernel tables."""

    def operators_for(gpu: Gpu) -> GpuOperators:
        return donor if gpu.name == donor.gpu.name else transfer(donor, gpu)

    return facts._replace(operators_for=operators_for)


def _ratios(known: MeasuredRuns, facts: Facts, basis: Basis) -> Ratios:
    """Measured over predicted, of the runs that were predicted on this basis."""
    ratios = Ratios([], [], set())
    for run, outcome in zip(known.runs, outcomes(known.runs, facts), strict=True):
        if run.asks is None or outcome.status is not Status.OK or outcome.prediction.basis is not basis:
            continue
        actual, values = measured(known.columns, run), predicted(outcome.prediction)
        for measure, found in (("tpot_ms_mean", ratios.tpot), ("ttft_ms_mean", ratios.ttft)):
            value = values[measure]
            if value and measure in actual:
                found.append(actual[measure] / value)
                ratios.gpus.add(run.asks.cases[0].gpu.name)
    return ratios


def _band(basis: Basis, ratios: Ratios, runs: int, note: str) -> ErrorBand:
    tpot, ttft = np.array(ratios.tpot), np.array(ratios.ttft)
    try:
        return ErrorBand(
            basis=basis,
            tpot_median_error_ratio=_rounded(np.median(np.abs(1.0 / tpot - 1.0))),
            ttft_median_error_ratio=_rounded(np.median(np.abs(1.0 / ttft - 1.0))),
            tpot_factor_low=_rounded(min(1.0, np.quantile(tpot, LOWEST))),
            tpot_factor_high=_rounded(max(1.0, np.quantile(tpot, HIGHEST))),
            ttft_factor_low=_rounded(min(1.0, np.quantile(ttft, LOWEST))),
            ttft_factor_high=_rounded(max(1.0, np.quantile(ttft, HIGHEST))),
            runs=runs,
            note=note,
        )
    except ValidationError:
        raise InputError(
            f"{note}: measured times are less than a thousandth of the predicted ones; are they in ms?"
        ) from None


def _rounded(value: float) -> float:
    """Three digits after the point: more is noise, and files stay readable."""
    return round(float(value), 3)
