"""How far simulated predictions lie from measured runs that were left out of every fit, as bands by basis.

| basis | predicted how |
|---|---|
| measured | half of each deployment's loads left out |
| calibrated | each model left out, and each TP |
| operators | each model left out; what is fitted besides kernels is not of one GPU |
| transferred | each model left out, kernels of another GPU of the same architecture on this one's datasheet |
| datasheet | the same with kernels of other architectures |
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from planner.assemble.fit_serving import (
    FEWEST_RUNS,
    ServingFit,
    check_enough,
    check_unit,
    deployment_name,
    fit_serving,
)
from planner.assemble.served import Means, Runnable, relative_errors, runnable
from planner.assemble.serving_errors import load_part, model_name, tp_name
from planner.calibrate.conformal import conformal_quantile, half_width
from planner.catalog.load import gpus
from planner.domain.base import InputError
from planner.domain.evidence import (
    Accuracy,
    Basis,
    Disagreement,
    ErrorBand,
    LatencyError,
    ttft_scale,
)
from planner.domain.hardware import Gpu
from planner.formulas.arrays import BoolArray, FloatArray
from planner.formulas.operators import GpuOperators, transfer
from planner.planning.facts import Facts
from planner.planning.predict import Prediction, predict
from planner.planning.predict_simulated import predict_simulated

Progress = Callable[[str, float], object]
MODEL, TP, DEPLOYMENT = "each model", "each TP", "each deployment"
LOAD_PARTS_NAMED = np.array(["one half of the loads", "the other half"])


class _Residuals(NamedTuple):
    """Predictions of left-out runs: logarithms of measured / predicted, and which run each is of."""

    ttft: FloatArray
    tpot: FloatArray
    run: np.ndarray

    def joined(self, other: "_Residuals") -> "_Residuals":
        return _Residuals(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


NONE = _Residuals(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.intp))


class _Known(NamedTuple):
    """The measured runs."""

    runs: list[Runnable]
    ttft_scale: FloatArray
    """How much more uncertain each run's TTFT is than where the token budget is known."""
    source: str

    def names(self, of: Callable[[Runnable], str]) -> np.ndarray:
        return np.array([of(one) for one in self.runs])


def fit_error_bands(
    runs: list[Runnable],
    facts: Facts,
    source: str,
    progress: Progress = lambda _what, _share: None,
) -> Accuracy:
    """Bands of every basis that the runs can test; those of the others stay as they are in `facts`.

    `source` names the table. Raises `InputError` where there are too few runs, or no part of them can be left out.
    """
    check_enough(runs)
    cases = [one.run.case for one in runs]
    simulated = predict_simulated(cases, facts)
    check_unit(runs, _means(simulated))
    known = _Known(
        runs,
        np.array([ttft_scale(budget_known=one.run.says_batch) for one in runs]),
        f"{source} ({', '.join(dict.fromkeys(case.gpu.name for case in cases))})",
    )
    found = _tested(known, facts, progress)
    if not found:
        raise InputError(
            f"{source}: no model, TP or half of the loads can be left out with {FEWEST_RUNS} runs to fit"
        )
    bands = {band.basis: band for band in (*facts.accuracy.bands, *found)}
    return Accuracy(
        source=f"{source}: measured runs, each predicted by fits that did not see it",
        fitted_on=datetime.now(UTC).date().isoformat(),
        bands=tuple(bands[basis] for basis in Basis if basis in bands),
        closed_form=_disagreement(predict(cases, facts), simulated),
    )


def _means(simulated: Sequence[Prediction]) -> Means:
    found = [one.latency for one in simulated if one.latency is not None]
    return Means(np.array([one.ttft_mean_s for one in found]), np.array([one.tpot_mean_s for one in found]))


def _tested(known: _Known, facts: Facts, progress: Progress) -> list[ErrorBand]:
    fits = _Fits(known.runs, progress)
    by_model, others = _by_model(known, facts, fits)
    by_tp = _left_out(known, fits, known.names(tp_name))
    by_loads = _left_out(known, fits, LOAD_PARTS_NAMED[load_part(known.runs)])
    unseen = {MODEL: model_name, TP: tp_name}
    tested = (
        (Basis.MEASURED, by_loads, {DEPLOYMENT: deployment_name}, "half of each deployment's loads left out"),
        (Basis.CALIBRATED, by_model.joined(by_tp), unseen, "each model left out, and each TP"),
        (
            Basis.OPERATORS,
            by_model,
            unseen,
            "each model left out; how kernel tables of GPUs that never ran differ was not measured",
        ),
        (
            Basis.TRANSFERRED,
            others.siblings,
            unseen,
            f"each model left out, with kernels of {others.named(siblings=True)} scaled by datasheet",
        ),
        (
            Basis.DATASHEET,
            others.strangers,
            unseen,
            f"each model left out, with kernels of {others.named(siblings=False)} scaled by datasheet",
        ),
    )
    bands: list[ErrorBand] = []
    for basis, residuals, groups, how in tested:
        if residuals.run.size < FEWEST_RUNS:
            continue
        of_run = {kind: known.names(of)[residuals.run] for kind, of in groups.items()}
        band = ErrorBand(
            basis=basis,
            tpot=_error(residuals.tpot, np.ones(residuals.run.size), of_run),
            ttft=_error(residuals.ttft, known.ttft_scale[residuals.run], of_run),
            runs=np.unique(residuals.run).size,
            note=f"{known.source}, {how}",
        )
        bands.append(_at_least(band, bands[-1]) if bands else band)
    return bands


def _error(residuals: FloatArray, scales: FloatArray, groups: dict[str, np.ndarray]) -> LatencyError:
    found = half_width(np.abs(residuals) / scales, groups)
    return LatencyError(
        median_error_ratio=_rounded(np.median(np.abs(np.expm1(-residuals)))),
        factor=_rounded(np.exp(found.value)),
        half_width_ratio=_rounded(np.median(np.sinh(found.value * scales))),
        coverage_ratio={kind: _rounded(share) for kind, share in found.coverage_ratio.items()},
    )


def _at_least(band: ErrorBand, better: ErrorBand) -> ErrorBand:
    """A band no narrower than that of better evidence."""
    wider = {
        name: mine.model_copy(
            update={
                "factor": max(mine.factor, theirs.factor),
                "half_width_ratio": max(mine.half_width_ratio, theirs.half_width_ratio),
            }
        )
        for name, mine, theirs in (("tpot", band.tpot, better.tpot), ("ttft", band.ttft, better.ttft))
    }
    return band.model_copy(update=wider)


class _Fits:
    """Serving fits without some of the runs; the same runs are left out once."""

    def __init__(self, runs: Sequence[Runnable], progress: Progress) -> None:
        self._runs, self._progress = runs, progress
        self._found: dict[bytes, ServingFit] = {}
        self._expected = len({model_name(one) for one in runs}) + len({tp_name(one) for one in runs}) + 2

    def without(self, rows: BoolArray, name: str) -> ServingFit | None:
        """None where too few are left."""
        if (~rows).sum() < FEWEST_RUNS:
            return None
        key = rows.tobytes()
        if key not in self._found:
            self._progress(f"without {name}", len(self._found) / self._expected)
            self._found[key] = fit_serving(_chosen(self._runs, ~rows))
        return self._found[key]


def _left_out(known: _Known, fits: _Fits, names: np.ndarray) -> _Residuals:
    found = NONE
    for name in np.unique(names):
        rows = np.asarray(names == name)
        fit = fits.without(rows, str(name))
        if fit is not None:
            found = found.joined(_residuals(known.runs, rows, fit))
    return found


class _OfOthers(NamedTuple):
    """Residuals with the kernels of other GPUs, of the same architecture and not."""

    siblings: _Residuals
    strangers: _Residuals
    donors: tuple[Gpu, ...]
    architectures: frozenset[str]

    def named(self, *, siblings: bool) -> str:
        return ", ".join(
            donor.name for donor in self.donors if (donor.architecture in self.architectures) is siblings
        )


def _by_model(known: _Known, facts: Facts, fits: _Fits) -> tuple[_Residuals, _OfOthers]:
    """Residuals with each model left out: with the GPU's own kernels, and with every other GPU's."""
    own = [found for gpu in gpus() if (found := facts.operators_for(gpu)).basis is Basis.OPERATORS]
    measured = {one.run.case.gpu.name for one in known.runs}
    donors = [donor for donor in own if {donor.gpu.name} != measured]
    moved = [_with_kernels_of(donor, known, facts) for donor in donors]
    names = known.names(model_name)
    mine, siblings, strangers = NONE, NONE, NONE
    for name in np.unique(names):
        rows = np.asarray(names == name)
        fit = fits.without(rows, str(name))
        if fit is None:
            continue
        mine = mine.joined(_residuals(known.runs, rows, fit))
        for donor, runs in zip(donors, moved, strict=True):
            related = np.array([_relation(donor, one) for one in known.runs])
            siblings = siblings.joined(_residuals(runs, rows & (related == SIBLING), fit))
            strangers = strangers.joined(_residuals(runs, rows & (related == STRANGER), fit))
    architectures = frozenset(one.run.case.gpu.architecture for one in known.runs)
    return mine, _OfOthers(siblings, strangers, tuple(donor.gpu for donor in donors), architectures)


SAME, SIBLING, STRANGER = "same", "sibling", "stranger"


def _relation(donor: GpuOperators, one: Runnable) -> str:
    gpu = one.run.case.gpu
    if donor.gpu.name == gpu.name:
        return SAME
    return SIBLING if donor.gpu.architecture == gpu.architecture else STRANGER


def _with_kernels_of(donor: GpuOperators, known: _Known, facts: Facts) -> list[Runnable]:
    """The runs as if `donor` alone had kernel tables."""

    def operators_for(gpu: Gpu) -> GpuOperators:
        return donor if gpu.name == donor.gpu.name else transfer(donor, gpu)

    return runnable([one.run for one in known.runs], facts._replace(operators_for=operators_for))


def _residuals(runs: Sequence[Runnable], rows: BoolArray, fit: ServingFit) -> _Residuals:
    errors = relative_errors(_chosen(runs, rows), *fit)
    return _Residuals(-np.log1p(errors.ttft), -np.log1p(errors.tpot), np.flatnonzero(rows))


def _disagreement(steady: Sequence[Prediction], simulated: Sequence[Prediction]) -> Disagreement:
    """The closed form against the simulation of the same loads."""
    logs = np.log(
        [
            (b.latency.ttft_mean_s / a.latency.ttft_mean_s, b.latency.tpot_mean_s / a.latency.tpot_mean_s)
            for a, b in zip(steady, simulated, strict=True)
            if a.latency is not None and b.latency is not None
        ]
    )
    ttft, tpot = (
        LatencyError(
            median_error_ratio=_rounded(np.median(np.abs(np.expm1(-found)))),
            factor=_rounded(np.exp(width)),
            half_width_ratio=_rounded(np.sinh(width)),
        )
        for found in logs.T
        for width in [conformal_quantile(np.abs(found))]
    )
    return Disagreement(tpot=tpot, ttft=ttft)


def _chosen(runs: Sequence[Runnable], rows: BoolArray) -> list[Runnable]:
    return [one for one, wanted in zip(runs, rows, strict=True) if wanted]


def _rounded(value: float) -> float:
    """Three digits after the point: more is noise, and files stay readable."""
    return round(float(value), 3)
