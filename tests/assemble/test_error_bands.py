"""Bands of runs whose errors are known: who is left out where, what is counted, and what is wider."""

from collections.abc import Sequence

import numpy as np
import pytest

from planner.assemble import error_bands
from planner.assemble.error_bands import (
    MODEL,
    ROUGH_KERNELS_TPOT,
    TP,
    UNKNOWN_BUDGET_ELSE,
    UNKNOWN_BUDGET_TTFT,
    fit_error_bands,
)
from planner.assemble.fit_serving import ServingFit
from planner.assemble.question import facts_for
from planner.assemble.served import Runnable, simulated
from planner.assemble.serving_errors import model_name, tp_name
from planner.calibrate.conformal import conformal_quantile
from planner.domain.evidence import Accuracy, Basis
from planner.formulas.tuning import NO_TUNING
from tests.assemble.worlds import HOST, measured_in, unmeasured

TRUTH = ServingFit(HOST, NO_TUNING)
SIBLINGS, STRANGERS = "H200-SXM-141GB", ("A100-SXM-80GB", "L40S", "B200")


@pytest.fixture(name="runs", scope="module")
def _runs() -> list[Runnable]:
    """Four runs of each of two models at two degrees, each off by a random factor; none tells its token budget."""
    return measured_in(unmeasured((True,), says_batch=False), *TRUTH, noise=0.1)


@pytest.fixture(name="known", scope="module")
def _known(runs: list[Runnable]) -> Accuracy:
    """The fit itself has its own tests; here it knows the truth, so that errors are the factors drawn."""

    def truth(_runs: Sequence[Runnable]) -> ServingFit:
        return TRUTH

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(error_bands, "fit_serving", truth)
        patch.setattr(error_bands, "FEWEST_RUNS", 5)
        return fit_error_bands(runs, facts_for(), "made.csv")


def logs(runs: list[Runnable]) -> np.ndarray:
    """|log(measured / predicted)| of TPOT."""
    predicted = simulated(runs, *TRUTH).tpot
    return np.abs(np.log([one.run.tpot_s for one in runs] / predicted))


def test_the_range_of_plain_models_is_the_quantile_of_what_was_left_out(
    known: Accuracy, runs: list[Runnable]
) -> None:
    errors = logs(runs)
    # Each run was left out twice for `calibrated`: with its model, and with its TP.
    plain = {Basis.MEASURED: errors, Basis.CALIBRATED: np.concatenate([errors, errors])}
    for basis, scores in plain.items():
        band = known.band(basis)
        assert band is not None
        assert band.runs == 16
        assert band.tpot.factor >= np.exp(conformal_quantile(scores)) - 6e-4
        assert band.tpot.median_error_ratio == pytest.approx(np.median(np.abs(np.expm1(errors))), abs=0.02)


def test_a_run_counts_as_held_by_a_bound_made_without_its_group(
    known: Accuracy, runs: list[Runnable]
) -> None:
    """Both ways of leaving out give the same errors here, so a run is held where the others' bound holds it. These are
    enough (85 %) to leave the bound as it is.
    """
    errors = logs(runs)
    band = known.band(Basis.CALIBRATED)
    assert band is not None
    for kind, name_of in ((MODEL, model_name), (TP, tp_name)):
        names = np.array([name_of(one) for one in runs])
        held = [
            error <= conformal_quantile(np.repeat(errors[names != name], 2))
            for error, name in zip(errors, names, strict=True)
        ]
        assert band.tpot.coverage_ratio[kind] == pytest.approx(np.mean(held), abs=1e-3)


def test_worse_evidence_is_never_narrower_and_doubts_are_stored(known: Accuracy) -> None:
    assert [band.basis for band in known.bands] == list(Basis)
    for better, worse in zip(known.bands, known.bands[1:], strict=False):
        assert better.tpot.factor <= worse.tpot.factor
        assert better.ttft.factor <= worse.ttft.factor
    for band in known.bands:
        assert band.tpot.rough_kernels_scale == ROUGH_KERNELS_TPOT[band.basis]
        assert band.ttft.unknown_budget_scale == UNKNOWN_BUDGET_TTFT.get(band.basis, UNKNOWN_BUDGET_ELSE)
        assert band.tpot.unknown_budget_scale == 1.0
        # Every run here lacks its token budget and no model has rough kernels.
        wide = np.log(band.ttft.factor) * band.ttft.unknown_budget_scale
        assert band.ttft.half_width_ratio == pytest.approx(np.sinh(wide), abs=1e-3)
        assert band.tpot.half_width_ratio == pytest.approx(np.sinh(np.log(band.tpot.factor)), abs=1e-3)


def test_kernels_of_other_gpus_are_tested_by_architecture(known: Accuracy) -> None:
    transferred, datasheet = known.bands[3:]
    assert SIBLINGS in transferred.note
    assert not any(donor in transferred.note for donor in STRANGERS)
    assert all(donor in datasheet.note for donor in STRANGERS)
    assert SIBLINGS not in datasheet.note
    for band in (transferred, datasheet):
        assert band.tpot.coverage_ratio.keys() == {MODEL, TP}
