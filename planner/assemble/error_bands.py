"""How far simulated predictions lie from measured runs that were left out of every fit, as bands by basis.

| basis | predicted how |
|---|---|
| measured | half of each deployment's loads left out |
| calibrated | each model left out, and each TP |
| operators | each model left out; what is fitted besides kernels is not of one GPU |
| transferred | each model left out, and each TP, kernels of a GPU of the same architecture on this one's datasheet |
| datasheet | the same with kernels of other architectures |

A bound made of two models says little of a third whose kernels are of another kind, and three models are too few to
learn the kinds from. So what is wider, and by how much, is set beforehand from kernel tables (`ROUGH_KERNELS_TPOT`).
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
from planner.calibrate.conformal import LeftOut, conformal_quantile, half_width
from planner.catalog.load import gpus
from planner.domain.base import InputError
from planner.domain.evidence import (
    Accuracy,
    Basis,
    Disagreement,
    ErrorBand,
    LatencyError,
)
from planner.domain.hardware import Gpu
from planner.formulas.arrays import BoolArray, FloatArray
from planner.formulas.operators import GpuOperators, transfer
from planner.planning.basis import has_rough_kernels
from planner.planning.facts import Facts
from planner.planning.predict import Prediction, predict
from planner.planning.predict_simulated import predict_simulated

Progress = Callable[[str, float], object]
MODEL, TP, DEPLOYMENT = "each model", "each TP", "each deployment"
UNSEEN: dict[str, Callable[[Runnable], str]] = {MODEL: model_name, TP: tp_name}
LOAD_PARTS_NAMED = np.array(["one half of the loads", "the other half"])

ROUGH_KERNELS_TPOT = {
    Basis.MEASURED: 1.0,
    Basis.CALIBRATED: 1.5,
    Basis.OPERATORS: 1.5,
    Basis.TRANSFERRED: 2.5,
    Basis.DATASHEET: 2.5,
}
"""How much wider TPOT is, in logarithms, for models with experts or 4-bit weights. The forms of experts' kernels are
1.7 to 3.0 times as far from held-out rows of tables as those of linear layers, and a step is not kernels alone. Another
GPU's kernels are 1.9 (same architecture) and 2.5 (others) times as far off for such models as for others, besides the
shift that all share: 95 models, 20 pairs of GPUs with tables. A deployment that was run has that in its ratios."""
ROUGH_KERNELS_TTFT = {Basis.DATASHEET: 1.5}
"""The same of TTFT, of which kernels are the smaller part of the error as long as they are of the same architecture."""
UNKNOWN_BUDGET_TTFT = {Basis.MEASURED: 2.5}
UNKNOWN_BUDGET_ELSE = 1.25
"""How much wider TTFT is, in logarithms, where the token budget is not recorded. TTFT of such runs is not fitted, so
having run the deployment does not help them."""


class _Doubt(NamedTuple):
    """How much wider the range of one latency is, in logarithms."""

    rough_kernels: float = 1.0
    unknown_budget: float = 1.0


class _Doubts(NamedTuple):
    """Of both latencies."""

    tpot: _Doubt
    ttft: _Doubt


def _doubts(basis: Basis) -> _Doubts:
    budget = UNKNOWN_BUDGET_TTFT.get(basis, UNKNOWN_BUDGET_ELSE)
    return _Doubts(_Doubt(ROUGH_KERNELS_TPOT[basis]), _Doubt(ROUGH_KERNELS_TTFT.get(basis, 1.0), budget))


class _Residuals(NamedTuple):
    """Predictions of left-out runs: logarithms of measured / predicted, which run each is of, and what was left out."""

    ttft: FloatArray
    tpot: FloatArray
    run: np.ndarray
    left_out: np.ndarray
    """MODEL, TP or DEPLOYMENT."""

    def joined(self, other: "_Residuals") -> "_Residuals":
        return _Residuals(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


NONE = _Residuals(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.str_))


class _Known(NamedTuple):
    """The measured runs."""

    runs: list[Runnable]
    rough_kernels: BoolArray
    """Models with experts or 4-bit weights."""
    budget_known: BoolArray
    source: str

    def names(self, of: Callable[[Runnable], str]) -> np.ndarray:
        return np.array([of(one) for one in self.runs])

    def doubted(self, run: np.ndarray, doubt: _Doubt) -> FloatArray:
        """How far each of these runs may be beside those without doubt."""
        rough = np.where(self.rough_kernels[run], doubt.rough_kernels, 1.0)
        return np.asarray(rough * np.where(self.budget_known[run], 1.0, doubt.unknown_budget))


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
        np.array([has_rough_kernels(one.run.case.model) for one in runs]),
        np.array([one.run.says_batch for one in runs]),
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
    everything = _Predicted(known.runs, np.ones(len(known.runs), dtype=np.bool_))
    by_model = _left_out(known, fits, MODEL, [everything])
    by_tp = _left_out(known, fits, TP, [everything])
    by_loads = _left_out(known, fits, DEPLOYMENT, [everything])
    others = _of_others(known, facts, fits)
    tested = (
        (Basis.MEASURED, by_loads, {DEPLOYMENT: deployment_name}, "half of each deployment's loads left out"),
        (Basis.CALIBRATED, by_model.joined(by_tp), UNSEEN, "each model left out, and each TP"),
        (
            Basis.OPERATORS,
            by_model,
            UNSEEN,
            "each model left out; how kernel tables of GPUs that never ran differ was not measured",
        ),
        (
            Basis.TRANSFERRED,
            others.siblings,
            UNSEEN,
            f"each model left out, and each TP, with kernels of {others.named(siblings=True)} scaled by datasheet",
        ),
        (
            Basis.DATASHEET,
            others.strangers,
            UNSEEN,
            f"each model left out, and each TP, with kernels of {others.named(siblings=False)} scaled by datasheet",
        ),
    )
    bands: list[ErrorBand] = []
    for basis, residuals, groups, how in tested:
        if residuals.run.size < FEWEST_RUNS:
            continue
        tests = {kind: _left_out_by(kind, known.names(of), residuals) for kind, of in groups.items()}
        doubts = _doubts(basis)
        least = bands[-1] if bands else None
        bands.append(
            ErrorBand(
                basis=basis,
                tpot=_error(
                    _Scaled(residuals.tpot, doubts.tpot, known.doubted(residuals.run, doubts.tpot)),
                    tests,
                    least.tpot.factor if least else 1.0,
                ),
                ttft=_error(
                    _Scaled(residuals.ttft, doubts.ttft, known.doubted(residuals.run, doubts.ttft)),
                    tests,
                    least.ttft.factor if least else 1.0,
                ),
                runs=np.unique(residuals.run).size,
                note=f"{known.source}, {how}",
            )
        )
    return bands


def _left_out_by(kind: str, names: np.ndarray, residuals: _Residuals) -> LeftOut:
    """Where no run was predicted without its group of this kind, all are counted."""
    without = np.asarray(residuals.left_out == kind)
    return LeftOut(names[residuals.run], without if without.any() else np.ones_like(without))


class _Scaled(NamedTuple):
    """Residuals of one latency, and how far each may be beside the others."""

    residuals: FloatArray
    doubt: _Doubt
    scales: FloatArray


def _error(scaled: _Scaled, tests: dict[str, LeftOut], least_factor: float) -> LatencyError:
    """A range no narrower than that of better evidence, `least_factor`."""
    residuals, doubt, scales = scaled
    found = half_width(np.abs(residuals) / scales, tests)
    factor = max(_rounded(np.exp(found.value)), least_factor)
    return LatencyError(
        median_error_ratio=_rounded(np.median(np.abs(np.expm1(-residuals)))),
        factor=factor,
        rough_kernels_scale=doubt.rough_kernels,
        unknown_budget_scale=doubt.unknown_budget,
        half_width_ratio=_rounded(np.median(np.sinh(np.log(factor) * scales))),
        coverage_ratio={kind: _rounded(share) for kind, share in found.coverage_ratio.items()},
    )


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


class _Predicted(NamedTuple):
    """The runs with the kernels of one GPU, and which of them are asked."""

    runs: list[Runnable]
    asked: BoolArray


def _left_out(known: _Known, fits: _Fits, kind: str, predicted: Sequence[_Predicted]) -> _Residuals:
    names = LOAD_PARTS_NAMED[load_part(known.runs)] if kind == DEPLOYMENT else known.names(UNSEEN[kind])
    found = NONE
    for name in np.unique(names):
        rows = np.asarray(names == name)
        fit = fits.without(rows, str(name))
        if fit is None:
            continue
        for one in predicted:
            found = found.joined(_residuals(one.runs, rows & one.asked, fit, kind))
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


def _of_others(known: _Known, facts: Facts, fits: _Fits) -> _OfOthers:
    """Residuals with each model, and each TP, left out, with every other GPU's kernels."""
    own = [found for gpu in gpus() if (found := facts.operators_for(gpu)).basis is Basis.OPERATORS]
    measured = {one.run.case.gpu.name for one in known.runs}
    donors = [donor for donor in own if {donor.gpu.name} != measured]
    moved = [(donor, _with_kernels_of(donor, known, facts)) for donor in donors]

    def related(relation: str) -> _Residuals:
        predicted = [
            _Predicted(runs, np.array([_relation(donor, one) == relation for one in known.runs]))
            for donor, runs in moved
        ]
        by_model = _left_out(known, fits, MODEL, predicted)
        return by_model.joined(_left_out(known, fits, TP, predicted)) if by_model.run.size else NONE

    architectures = frozenset(one.run.case.gpu.architecture for one in known.runs)
    return _OfOthers(related(SIBLING), related(STRANGER), tuple(donor.gpu for donor in donors), architectures)


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


def _residuals(runs: Sequence[Runnable], rows: BoolArray, fit: ServingFit, left_out: str) -> _Residuals:
    errors = relative_errors(_chosen(runs, rows), *fit)
    run = np.flatnonzero(rows)
    return _Residuals(-np.log1p(errors.ttft), -np.log1p(errors.tpot), run, np.full(run.size, left_out))


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
