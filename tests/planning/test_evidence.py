"""Error bands: ranges hold their prediction, widen with worse evidence, and the shipped ones say what they cover."""

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.calibrate.store import read_accuracy
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.evidence import LARGEST_FACTOR, Accuracy, Basis, Disagreement, ErrorBand, LatencyError
from planner.domain.workload import Slo, Workload
from planner.export.predictions import Outcome, Status, latency_ranges
from planner.planning.predict_simulated import predict_simulated
from planner.planning.simulate import drawn_traffic, simulated

factors = st.floats(1.0, 4.0)
ROUGH, UNKNOWN = 2.0, 1.25


def error(factor: float) -> LatencyError:
    return LatencyError(
        median_error_ratio=0.1,
        factor=factor,
        rough_kernels_scale=ROUGH,
        unknown_budget_scale=UNKNOWN,
        half_width_ratio=(factor - 1.0 / factor) / 2.0,
    )


def band(basis: Basis, tpot: float, ttft: float) -> ErrorBand:
    return ErrorBand(basis=basis, tpot=error(tpot), ttft=error(ttft), runs=12, note="made up")


@given(factors, factors, st.floats(1e-4, 1e3), st.booleans())
def test_a_range_holds_its_prediction_in_the_middle_of_the_logarithm(
    tpot: float, ttft: float, predicted_s: float, budget_known: bool
) -> None:
    ranges = band(Basis.MEASURED, tpot, ttft).ranges(
        ttft_s=predicted_s, tpot_s=predicted_s, budget_known=budget_known
    )
    for low_s, high_s in ranges:
        assert low_s <= predicted_s <= high_s
        assert low_s * high_s == pytest.approx(predicted_s**2)


@given(factors, factors)
def test_rough_kernels_and_unknown_budgets_widen_ranges_in_logarithms(tpot: float, ttft: float) -> None:
    known = Accuracy(source="", fitted_on="", bands=(band(Basis.OPERATORS, tpot, ttft),))
    wider = known.band(Basis.OPERATORS, rough_kernels=True)
    assert wider is not None
    ranges = wider.ranges(ttft_s=1.0, tpot_s=1.0, budget_known=False)
    assert log(ranges.tpot.high_s) == pytest.approx(ROUGH * log(tpot))
    assert log(ranges.ttft.high_s) == pytest.approx(ROUGH * UNKNOWN * log(ttft))
    assert known.band(Basis.OPERATORS) == known.bands[0]


@given(factors, factors, factors, factors)
def test_rough_kernels_widen_what_the_closed_form_adds_nothing_to(
    a: float, b: float, c: float, d: float
) -> None:
    """Own error, widened, and disagreement in quadrature, whichever is asked for first."""
    known = Accuracy(
        source="",
        fitted_on="",
        bands=(band(Basis.OPERATORS, a, b),),
        closed_form=Disagreement(tpot=error(c), ttft=error(d)),
    )
    for found in (
        known.band(Basis.OPERATORS, simulated=False, rough_kernels=True),
        known.of_rough_kernels.band(Basis.OPERATORS, simulated=False),
        known.of_closed_form.band(Basis.OPERATORS, rough_kernels=True),
    ):
        assert found is not None
        assert log(found.tpot.factor) ** 2 == pytest.approx((ROUGH * log(a)) ** 2 + log(c) ** 2, abs=1e-9)
        assert log(found.ttft.factor) ** 2 == pytest.approx((ROUGH * log(b)) ** 2 + log(d) ** 2, abs=1e-9)


@given(factors, factors, factors, factors)
def test_the_closed_form_adds_its_own_disagreement_in_quadrature(
    a: float, b: float, c: float, d: float
) -> None:
    known = Accuracy(
        source="",
        fitted_on="",
        bands=(band(Basis.OPERATORS, a, b),),
        closed_form=Disagreement(tpot=error(c), ttft=error(d)),
    )
    wider = known.band(Basis.OPERATORS, simulated=False)
    assert wider is not None
    assert log(wider.tpot.factor) ** 2 == pytest.approx(log(a) ** 2 + log(c) ** 2, abs=1e-9)
    assert log(wider.ttft.factor) ** 2 == pytest.approx(log(b) ** 2 + log(d) ** 2, abs=1e-9)


def test_without_a_tested_disagreement_the_closed_form_has_no_band() -> None:
    known = Accuracy(source="", fitted_on="", bands=(band(Basis.OPERATORS, 1.1, 1.2),))
    assert known.band(Basis.OPERATORS, simulated=False) is None


def test_a_basis_that_was_not_tested_takes_the_next_worse_one() -> None:
    known = Accuracy(source="", fitted_on="", bands=(band(Basis.TRANSFERRED, 1.5, 2.0),))
    assert known.band(Basis.MEASURED) == known.bands[0]
    assert known.band(Basis.DATASHEET) is None


@pytest.mark.parametrize(("model", "rough"), [("Qwen/Qwen3-30B-A3B", True), ("Qwen/Qwen3-8B", False)])
def test_tables_and_simulations_give_one_deployment_the_same_ranges(model: str, rough: bool) -> None:
    """On a GPU without tables, where experts are the least sure."""
    facts = facts_for()
    case = deployment(model, gpu_named("H20"), parallelism_of(2), Formats(), Engine(max_model_len=4096))
    workload = Workload(input_tokens=500, output_tokens=50, concurrency=4, num_requests=8)
    row = predict_simulated([case._replace(workload=workload)], facts)[0]
    run = simulated(case, drawn_traffic(workload, 0), Slo(), facts)
    found = latency_ranges(Outcome(row, Status.OK), facts.accuracy)
    assert found is not None
    assert found == run.ranges
    assert row.latency is not None
    error = facts.accuracy.bands[list(Basis).index(Basis.TRANSFERRED)].tpot
    factor = error.factor ** (error.rough_kernels_scale if rough else 1.0)
    assert found.tpot.high_s == pytest.approx(row.latency.tpot_mean_s * factor)


def test_what_is_shipped_covers_every_basis_and_widens_with_worse_evidence() -> None:
    shipped = read_accuracy((shipped_calibration_dir(),))
    assert [one.basis for one in shipped.bands] == list(Basis)
    for better, worse in zip(shipped.bands, shipped.bands[1:], strict=False):
        assert better.tpot.factor <= worse.tpot.factor
        assert better.ttft.factor <= worse.ttft.factor
    assert shipped.bands[0].tpot.factor < shipped.bands[-1].tpot.factor
    for one in shipped.bands:
        for latency in (one.tpot, one.ttft):
            assert latency.coverage_ratio, "the share of unseen groups' runs that were held is stated"
            assert all(0.6 <= share <= 1.0 for share in latency.coverage_ratio.values())
    assert shipped.closed_form is not None
    assert facts_for().accuracy.bands


@pytest.mark.parametrize("basis", list(Basis))
def test_runs_of_unseen_models_degrees_and_deployments_are_held(basis: Basis) -> None:
    found = read_accuracy((shipped_calibration_dir(),)).band(basis)
    assert found is not None
    for latency in (found.tpot, found.ttft):
        assert all(0.85 <= share <= 0.95 for share in latency.coverage_ratio.values())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("factor", 1e300),
        ("factor", float("inf")),
        ("factor", float("nan")),
        ("factor", 0.9),
        ("rough_kernels_scale", 0.9),
        ("unknown_budget_scale", float("nan")),
        ("median_error_ratio", 1e300),
        ("half_width_ratio", float("inf")),
        ("coverage_ratio", {"each model": 1.5}),
        ("coverage_ratio", {"each model": float("nan")}),
    ],
)
def test_an_error_that_cannot_be_is_refused(field: str, value: object) -> None:
    sound = {"median_error_ratio": 0.1, "factor": 1.2, "half_width_ratio": 0.2}
    LatencyError.model_validate(sound)
    with pytest.raises(ValidationError):
        LatencyError.model_validate({**sound, field: value})


def test_the_widest_errors_that_are_read_can_be_added() -> None:
    widest = band(Basis.MEASURED, LARGEST_FACTOR, LARGEST_FACTOR)
    known = Accuracy(
        source="a test",
        fitted_on="2001-01-01",
        bands=(widest,),
        closed_form=Disagreement(tpot=widest.tpot, ttft=widest.ttft),
    )
    assert known.of_closed_form.bands[0].ttft.factor == LARGEST_FACTOR
