"""Fits of devices whose step times are known: what is stored predicts them, and says what it rests on."""

from pathlib import Path

import pytest

from planner.assemble.fit_runs import FittedGpu, fit_gpus, stored_step
from planner.assemble.fit_service import Evidence, Start, fit_service
from planner.assemble.known import known_now
from planner.calibrate.step_deployment import step_deployment
from planner.calibrate.store import operators_for, write_gpu_fit
from planner.catalog.load import find_gpu
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, StepShape
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.evidence import Basis
from planner.formulas.arrays import FloatArray
from planner.formulas.host_time import NO_HOST_TIME, HostTime, MeasuredHost
from planner.formulas.shape_time import host_s, shape_columns, shapes_s
from planner.formulas.tuning import NO_TUNING, ServingTuning
from planner.planning.basis import basis_detail, basis_of
from tests.assemble.device_runs import GPU_SHAPES, RELEASE, device_run, gpu_run
from tests.calibrate import made_steps as made
from tests.calibrate.made_gpu import GPU
from tests.export.made_run import SHAPES, serving_point


def stored(run: CalibrationRun, folder: Path) -> FittedGpu:
    """The run's fit, written."""
    (one,) = fit_gpus([run], known_now(folder))
    write_gpu_fit(one.fit, folder)
    return one


def predicted_s(run: CalibrationRun, folder: Path, shapes: tuple[StepShape, ...]) -> FloatArray:
    """Of steps of the run's deployment, by what is stored [N]."""
    known = known_now(folder)
    one = step_deployment(run, known.directories)
    host, step = stored_step(one, known)
    columns = shape_columns(shapes)
    return shapes_s(step, columns, one.captured_tokens) + host_s(host, columns)


def test_the_stored_fit_predicts_the_device(tmp_path: Path) -> None:
    """Repetitions differ by 2 %, so a median of five by about 1 %; kernels compute in twice the assumed time."""
    run = device_run()
    truth = made.true_s(made.deployment(), SHAPES)
    before = predicted_s(run, tmp_path, SHAPES)
    assert abs(before / truth - 1.0).max() > 0.25
    one = stored(run, tmp_path)
    after = predicted_s(run, tmp_path, SHAPES)
    assert abs(after / truth - 1.0).max() < 0.04
    assert one.fit.plain
    assert not one.fit.in_catalog
    assert one.fit.engine_version == "0.32.0"
    assert [(source.run_id, source.steps) for source in one.fit.runs] == [("made", len(SHAPES))]
    assert one.fit.left_out_median_ratio < 0.04
    assert one.fit.noise_ratio == pytest.approx(0.0135, abs=0.008)


def test_changes_are_what_was_stored_before_and_is_now(tmp_path: Path) -> None:
    run = device_run()
    shapes = {shape.label: (at, shape) for at, shape in enumerate(SHAPES)}
    before = predicted_s(run, tmp_path, SHAPES)
    one = stored(run, tmp_path)
    after = predicted_s(run, tmp_path, SHAPES)
    assert len(one.changes) == len(one.fit.regions) == 5
    for change in one.changes:
        at, _ = shapes[change.what]
        assert change.measured_s == run.points[at].median_s
        assert (change.before_s, change.after_s) == pytest.approx((before[at], after[at]), rel=1e-6)


def test_runs_of_one_device_are_fitted_together(tmp_path: Path) -> None:
    """One fit for each device, in the order of names; runs of one deployment share a curve."""
    half = len(SHAPES) // 2
    runs = [device_run("b", SHAPES[half:]), gpu_run(), device_run("a", SHAPES[:half])]
    fitted = fit_gpus(runs, known_now(tmp_path))
    assert [one.fit.gpu.name for one in fitted] == [GPU, "made-cpu"]
    assert [source.run_id for source in fitted[1].fit.runs] == ["b", "a"]
    (deployment,) = fitted[1].fit.deployments
    assert deployment.steps == len(SHAPES)


def test_too_few_steps_or_none_are_refused(tmp_path: Path) -> None:
    known = known_now(tmp_path)
    with pytest.raises(InputError, match=r"^5 measured steps; a fit needs 6$"):
        fit_gpus([device_run("few", SHAPES[:5])], known)
    with pytest.raises(InputError, match=r"^2 runs, but none measured a step$"):
        fit_gpus([device_run("a", points=()), device_run("b", engine=None)], known)
    assert len(fit_gpus([device_run("six", SHAPES[:6])], known)) == 1


def test_a_stored_fit_is_what_predictions_rest_on(tmp_path: Path) -> None:
    """The steps of a GPU of the catalog take 1.6 times what its tables say; another release is not measured."""
    gpu = find_gpu(GPU)
    run = gpu_run()
    tables = operators_for(gpu, known_now(tmp_path).directories)
    assert tables.basis is Basis.OPERATORS
    one = stored(run, tmp_path)
    assert one.fit.in_catalog
    assert not one.fit.plain
    known = known_now(tmp_path)
    operators = operators_for(gpu, known.directories)
    assert operators.basis is Basis.CALIBRATED
    assert operators.host == one.fit.host
    model = step_deployment(run, known.directories).model
    deployments = one.fit.deployments
    tp1, tp2 = Parallelism(tp=1), Parallelism(tp=2)
    assert basis_of(model, tp1, operators, deployments, RELEASE) is Basis.MEASURED
    assert basis_of(model, tp1, operators, deployments, "0.12.1") is Basis.MEASURED
    assert basis_of(model, tp1, operators, deployments, "0.14.0") is Basis.CALIBRATED
    assert basis_of(model, tp2, operators, deployments, RELEASE) is Basis.CALIBRATED
    assert basis_of(model, tp1, tables, (), RELEASE) is Basis.OPERATORS
    words = basis_detail(model, tp1, operators, deployments, RELEASE)
    assert words == f"steps measured on {GPU}: {len(GPU_SHAPES)} of this model, format and TP, vLLM {RELEASE}"
    other = find_gpu("A100-SXM-80GB")
    assert operators_for(other, known.directories).basis is Basis.OPERATORS
    medians = [point.median_s for point in run.points]
    assert predicted_s(run, tmp_path, GPU_SHAPES).tolist() == pytest.approx(medians, rel=0.04)


def test_a_served_run_moves_its_ratio_toward_what_it_shows(tmp_path: Path) -> None:
    """10 ms a token, which is not what its steps alone say."""
    alone = stored(device_run(), tmp_path).fit
    known = known_now(tmp_path)
    slow = device_run("slow", serving=(serving_point(),))
    (served,) = fit_gpus([slow], known)
    predictions = {change.what: change for change in served.changes}
    tpot = predictions["TPOT, 2 users"]
    assert tpot.measured_s == pytest.approx(0.01)
    assert abs(tpot.after_s / tpot.measured_s - 1.0) < abs(tpot.before_s / tpot.measured_s - 1.0)
    assert [deployment.decode_ratio for deployment in alone.deployments] == [1.0]
    assert served.fit.deployments[0].runs == 1
    assert served.fit.runs[0].serving_runs == 1
    names = {parameter.name for parameter in served.fit.parameters}
    assert {"decode_ratio, tiny bf16 TP 1", "prompt_ratio, tiny bf16 TP 1"} <= names
    faster = tpot.measured_s < tpot.before_s
    assert (served.fit.deployments[0].decode_ratio < 1.0) is faster


HOST = NO_HOST_TIME.model_copy(update={"step_s": 1e-3, "chain_s": 1e-3, "front_s": 2e-3, "reply_s": 1e-3})


def evidence(tpot_s: float, ttft_s: float, *, asynchronous: bool, through_server: bool) -> Evidence:
    """A run whose TPOT is 10 ms and the host's time of a step, and whose TTFT is 50 ms and the front end's."""

    def predict(host: HostTime, _: ServingTuning) -> tuple[float, float]:
        return 0.05 + host.front_s, 0.01 + host.step_s

    return Evidence(
        name="m",
        deployment=("m", WeightDtype.BF16, 1),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        asynchronous=asynchronous,
        through_server=through_server,
        disturbed=False,
        predict=predict,
    )


@pytest.fixture
def start() -> Start:
    """Nothing measured, no deployment of its own."""
    return Start(HOST, MeasuredHost(sync_step_s=5e-4), NO_TUNING, ())


def test_host_time_is_fitted_to_those_runs_that_show_it(start: Start) -> None:
    """20 runs that are 12 ms a token and 56 ms to the first: step_s 2 ms, front_s 6 ms, whatever was known."""
    runs = [evidence(0.012, 0.056, asynchronous=True, through_server=True)] * 20
    found = fit_service(runs, start)
    assert found.host.step_s == pytest.approx(2e-3, rel=0.1)
    assert found.host.front_s == pytest.approx(6e-3, rel=0.2)
    assert found.host.sync_step_s == 5e-4
    known = {parameter.name: parameter for parameter in found.parameters}
    assert known["step_s"].identified
    assert known["step_s"].prior.value == pytest.approx(1e-3)
    # Nothing in the prediction rests on it.
    assert not known["chain_s"].identified
    assert known["chain_s"].estimate.value == pytest.approx(1e-3, rel=1e-3)


def test_what_runs_do_not_show_is_left(start: Start) -> None:
    in_process = fit_service([evidence(0.012, 0.056, asynchronous=True, through_server=False)], start)
    assert {parameter.name for parameter in in_process.parameters} == {"step_s", "chain_s"}
    assert in_process.host.front_s is None
    plain = fit_service([evidence(0.012, 0.056, asynchronous=False, through_server=True)], start)
    assert {parameter.name for parameter in plain.parameters} == {"front_s", "reply_s"}
    nothing = fit_service([evidence(0.0, 0.056, asynchronous=True, through_server=True)], start)
    assert nothing == (start.measured, (), ())
