"""Ranges of a GPU of which there is a fit: no narrower than its own steps say, by hand and as predictions have it."""

from math import hypot, log
from pathlib import Path

import pytest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.fit_runs import fit_gpus
from planner.assemble.known import known_now
from planner.assemble.question import Ask, facts_for, question_from
from planner.assemble.step_errors import with_step_errors
from planner.calibrate.store import read_accuracy, write_gpu_fit
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.evidence import Accuracy, Basis, ErrorBand
from planner.domain.workload import Slo, Workload
from planner.export.evidence import band_of, how_tested
from planner.export.predictions import Outcome, Status, latency_ranges
from planner.formulas.gpu_fit import GpuFit, RegionError
from planner.planning.predict import Prediction
from planner.planning.predict_simulated import predict_simulated
from planner.planning.recommend import recommend
from planner.planning.simulate import drawn_traffic, simulated
from tests.assemble.device_runs import MODEL, RELEASE, gpu_run
from tests.calibrate.made_gpu import GPU

SHIPPED = read_accuracy((shipped_calibration_dir(),))


@pytest.fixture(scope="module")
def fit() -> GpuFit:
    """Of a GPU whose steps the fit predicts almost exactly."""
    (one,) = fit_gpus([gpu_run()], known_now())
    return one.fit


def region(
    name: str, *, steps: int = 10, median: float, p90: float, left_out: tuple[float, float]
) -> RegionError:
    return RegionError(
        deployment="m",
        region=name,
        steps=steps,
        median_ratio=median,
        p90_ratio=p90,
        bias_ratio=0.0,
        left_out_median_ratio=left_out[0],
        left_out_p90_ratio=left_out[1],
        before_median_ratio=1.0,
    )


ROUGH_FIT = (
    # 90 % within 0.25 in sample, within less left out.
    region("decode, up to 64 tokens", median=0.04, p90=0.25, left_out=(0.05, 0.12)),
    region("decode, up to 512 tokens", steps=30, median=0.02, p90=0.06, left_out=(0.03, 0.08)),
    # Left out it is more than in sample.
    region("prefill, up to 512 tokens", median=0.12, p90=0.3, left_out=(0.2, 0.488)),
)


GOOD_FIT = tuple(
    region(f"{kind}, up to 64 tokens", median=0.005, p90=0.01, left_out=(0.005, 0.01))
    for kind in ("decode", "mixed", "prefill")
)


def band(known: Accuracy, basis: Basis, gpu: str = GPU, *, simulated: bool = True) -> ErrorBand:
    found = known.band(basis, gpu=gpu, simulated=simulated)
    assert found is not None
    return found


@pytest.mark.parametrize("basis", [Basis.MEASURED, Basis.CALIBRATED])
def test_the_worst_region_counts_where_it_is_wider(fit: GpuFit, basis: Basis) -> None:
    known = with_step_errors(SHIPPED, [fit.model_copy(update={"regions": ROUGH_FIT})])
    own, others = band(known, basis), band(SHIPPED, basis)
    assert own.tpot.factor == pytest.approx(1.25)
    assert own.ttft.factor == pytest.approx(1.488)
    # Half of 1.25 - 0.8.
    assert own.tpot.half_width_ratio == pytest.approx(0.225)
    # Ten steps at 0.05 and 30 at 0.03.
    assert own.tpot.median_error_ratio == pytest.approx(max(0.035, others.tpot.median_error_ratio))
    assert own.ttft.median_error_ratio == pytest.approx(0.2)
    assert own.tpot.rough_kernels_scale == others.tpot.rough_kernels_scale
    assert (own.basis, own.steps, own.runs) == (basis, 50, others.runs)
    assert own.note.startswith(others.note)
    assert how_tested(own).endswith(", no narrower than 50 steps of this GPU")
    assert how_tested(own).startswith(f"on {others.runs} runs TPOT 0.80 to 1.25 and TTFT 0.67 to 1.49 times")


def test_steps_that_fit_well_narrow_nothing(fit: GpuFit) -> None:
    """Served runs of other machines were further off, and service has more to it than steps."""
    known = with_step_errors(SHIPPED, [fit.model_copy(update={"regions": GOOD_FIT})])
    for basis in (Basis.MEASURED, Basis.CALIBRATED):
        own, others = band(known, basis), band(SHIPPED, basis)
        assert own.tpot == others.tpot
        assert own.ttft == others.ttft


def test_steps_of_a_kind_that_was_not_measured_say_nothing(fit: GpuFit) -> None:
    known = with_step_errors(SHIPPED, [fit.model_copy(update={"regions": ROUGH_FIT[:2]})])
    assert band(known, Basis.MEASURED).tpot.factor == pytest.approx(1.25)
    assert band(known, Basis.MEASURED).ttft == band(SHIPPED, Basis.MEASURED).ttft


def test_other_gpus_and_bases_keep_theirs(fit: GpuFit) -> None:
    known = with_step_errors(SHIPPED, [fit.model_copy(update={"regions": ROUGH_FIT})])
    for basis in Basis:
        for simulates in (True, False):
            assert band(known, basis, "L4", simulated=simulates) == band(SHIPPED, basis, simulated=simulates)
    assert band(known, Basis.OPERATORS) == band(SHIPPED, Basis.OPERATORS)
    assert (
        with_step_errors(Accuracy(source="", fitted_on="", bands=()), [fit]).band(Basis.MEASURED, gpu=GPU)
        is None
    )


def test_what_else_widens_a_range_comes_on_top(fit: GpuFit) -> None:
    """The closed form adds its disagreement in quadrature; experts scale the logarithm."""
    known = with_step_errors(SHIPPED, [fit.model_copy(update={"regions": ROUGH_FIT})])
    assert SHIPPED.closed_form is not None
    for name, factor in (("tpot", 1.25), ("ttft", 1.488)):
        added = log(getattr(SHIPPED.closed_form, name).factor)
        error = getattr(band(known, Basis.CALIBRATED, simulated=False), name)
        assert log(error.factor) == pytest.approx(hypot(log(factor), added))
        assert getattr(band(known.of_closed_form, Basis.CALIBRATED), name) == error
    rough = known.band(Basis.CALIBRATED, gpu=GPU, rough_kernels=True)
    assert rough is not None
    scale = band(SHIPPED, Basis.CALIBRATED).tpot.rough_kernels_scale
    assert log(rough.tpot.factor) == pytest.approx(scale * log(1.25))


def test_they_are_not_stored_with_the_errors_of_served_runs(fit: GpuFit) -> None:
    known = with_step_errors(SHIPPED, [fit.model_copy(update={"regions": ROUGH_FIT})])
    assert Accuracy.model_validate_json(known.model_dump_json()) == SHIPPED


def predicted(folder: Path) -> tuple[Prediction, float]:
    """Eight users of the measured model on the measured GPU, and half the logarithm of its range of TPOT."""
    engine = Engine(max_model_len=8192, engine_version=RELEASE)
    case = deployment(MODEL, gpu_named(GPU), parallelism_of(1), Formats(), engine)
    workload = Workload(input_tokens=512, output_tokens=64, concurrency=8, num_requests=16)
    facts = facts_for(calibration_dir=folder)
    (found,) = predict_simulated([case._replace(workload=workload)], facts)
    ranges = latency_ranges(Outcome(found, Status.OK), facts.accuracy)
    assert ranges is not None
    return found, log(ranges.tpot.high_s / ranges.tpot.low_s) / 2


def test_a_stored_fit_widens_the_range_of_a_prediction(fit: GpuFit, tmp_path: Path) -> None:
    """By as much as its steps tell: a good fit leaves the range of served runs."""
    write_gpu_fit(fit.model_copy(update={"regions": GOOD_FIT}), tmp_path)
    good, half_width = predicted(tmp_path)
    assert good.basis is Basis.MEASURED
    assert half_width == pytest.approx(log(band(SHIPPED, Basis.MEASURED).tpot.factor))
    write_gpu_fit(fit.model_copy(update={"regions": ROUGH_FIT}), tmp_path)
    bad, half_width = predicted(tmp_path)
    assert half_width == pytest.approx(log(1.25))
    assert bad.latency == good.latency


def test_plans_and_simulations_tell_the_same(fit: GpuFit, tmp_path: Path) -> None:
    """Of the fitted GPU the range is its own, of another that of served runs."""
    write_gpu_fit(fit.model_copy(update={"regions": ROUGH_FIT}), tmp_path)
    facts = facts_for(calibration_dir=tmp_path)
    ask = Ask(model=MODEL, preset="chat", requests_per_s=1.0, provider=("aws",), region=("us-east-1",))
    plans = recommend(question_from(ask), facts).plans
    assert {plan.candidate.instance.gpu for plan in plans} > {GPU}
    for plan in plans:
        found = band_of(plan, facts.accuracy)
        assert found is not None
        assert plan.ranges is not None
        assert bool(found.steps) is (plan.candidate.instance.gpu == GPU)
        assert log(plan.ranges.tpot.high_s / plan.ranges.tpot.low_s) / 2 == pytest.approx(
            log(found.tpot.factor)
        )
        assert plan.expected_error_ratio == found.tpot.median_error_ratio
    engine = Engine(max_model_len=8192, engine_version=RELEASE)
    case = deployment(MODEL, gpu_named(GPU), parallelism_of(1), Formats(), engine)
    workload = Workload(input_tokens=512, output_tokens=64, concurrency=8, num_requests=16)
    ranges = simulated(case, drawn_traffic(workload, 0), Slo(), facts).ranges
    assert ranges is not None
    assert log(ranges.ttft.high_s / ranges.ttft.low_s) / 2 == pytest.approx(log(1.488))
