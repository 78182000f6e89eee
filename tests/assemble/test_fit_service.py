"""Imported benchmarks of a GPU whose steps were measured move what steps do not show, of their own deployment."""

from pathlib import Path

import pytest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.fit_runs import fit_gpus
from planner.assemble.known import Known, known_now
from planner.assemble.question import facts_for
from planner.assemble.served import Means, MeasuredRun, runnable, simulated
from planner.calibrate.store import write_gpu_fit
from planner.domain.workload import Workload
from planner.formulas.gpu_fit import GpuFit
from tests.assemble.device_runs import MODEL, RELEASE, gpu_run
from tests.calibrate.made_gpu import GPU

USERS = (1, 4, 16, 64)


def fitted(known: Known, benchmarks: list[MeasuredRun]) -> GpuFit:
    (one,) = fit_gpus([gpu_run()], known, benchmarks)
    return one.fit


def served_by(fit: GpuFit, folder: Path, runs: list[MeasuredRun]) -> Means:
    """Mean TTFT and TPOT of the runs' loads, by a fit that is stored."""
    write_gpu_fit(fit, folder)
    facts = facts_for(calibration_dir=folder)
    ready = runnable(runs, facts)
    assert len(ready) == len(runs)
    return simulated(ready, fit.host.on(facts.host), facts.tuning)


def benchmarks(
    folder: Path, alone: GpuFit, *, tpot: float, gpu: str = GPU, model: str = MODEL
) -> list[MeasuredRun]:
    """Closed loops whose TTFT is as the fit to steps has it, and whose TPOT is so many times that."""
    engine = Engine(max_model_len=8192, engine_version=RELEASE)
    case = deployment(model, gpu_named(gpu), parallelism_of(1), Formats(), engine)
    runs = [
        MeasuredRun(
            case._replace(
                workload=Workload(
                    input_tokens=512, output_tokens=128, concurrency=users, num_requests=3 * users
                )
            ),
            ttft_s=1.0,
            tpot_s=1.0,
            says_batch=True,
        )
        for users in USERS
    ]
    means = served_by(alone, folder / "alone", runs)
    return [
        run._replace(ttft_s=ttft_s, tpot_s=tpot * tpot_s)
        for run, ttft_s, tpot_s in zip(runs, means.ttft.tolist(), means.tpot.tolist(), strict=True)
    ]


def test_service_that_is_slower_than_its_steps_raises_the_decode_ratio(tmp_path: Path) -> None:
    """8 % more a token at every load, nothing more to the first: host time a step would show at few users most."""
    known = known_now(tmp_path)
    alone = fitted(known, [])
    runs = benchmarks(tmp_path, alone, tpot=1.08)
    found = fitted(known, runs)
    (before,), (after,) = alone.deployments, found.deployments
    assert (before.decode_ratio, before.prompt_ratio) == (1.0, 1.0)
    assert 1.03 < after.decode_ratio < 1.12
    assert after.prompt_ratio == pytest.approx(1.0, abs=0.1)
    names = {parameter.name for parameter in found.parameters} - {
        parameter.name for parameter in alone.parameters
    }
    assert {
        f"decode_ratio, {MODEL} bf16 TP 1",
        f"prompt_ratio, {MODEL} bf16 TP 1",
        "front_s",
        "reply_s",
    } <= names
    # Steps are as they were measured.
    assert found.scales == alone.scales
    assert found.host.sync_step_s == alone.host.sync_step_s
    assert after.log_ratio == before.log_ratio
    measured_s = [run.tpot_s for run in runs]
    errors = [
        abs(served_by(fit, tmp_path / "now", runs).tpot / measured_s - 1.0).max() for fit in (alone, found)
    ]
    assert errors[0] == pytest.approx(1.0 - 1.0 / 1.08, rel=1e-6)
    assert errors[1] < 0.4 * errors[0]


def test_service_as_its_steps_say_changes_nothing_much(tmp_path: Path) -> None:
    known = known_now(tmp_path)
    alone = fitted(known, [])
    found = fitted(known, benchmarks(tmp_path, alone, tpot=1.0))
    (after,) = found.deployments
    assert after.decode_ratio == pytest.approx(1.0, abs=0.005)
    assert after.prompt_ratio == pytest.approx(1.0, abs=0.01)


def test_another_models_service_moves_host_time_and_no_ratio(tmp_path: Path) -> None:
    """Of this GPU, but of a model whose steps were not measured: it has no ratios to move."""
    known = known_now(tmp_path)
    alone = fitted(known, [])
    found = fitted(known, benchmarks(tmp_path, alone, tpot=1.08, model="Qwen/Qwen3-8B"))
    assert found.deployments == alone.deployments
    assert {parameter.name for parameter in found.parameters} > {
        parameter.name for parameter in alone.parameters
    }
    assert not [parameter for parameter in found.parameters if "ratio" in parameter.name]


def test_a_format_of_its_own_is_a_deployment_of_its_own(tmp_path: Path) -> None:
    """The same model in FP8: its steps were not measured, so the ratios of bf16 stay."""
    known = known_now(tmp_path)
    alone = fitted(known, [])
    runs = benchmarks(tmp_path, alone, tpot=1.08)
    engine = Engine(max_model_len=8192, engine_version=RELEASE)
    case = deployment(MODEL, gpu_named(GPU), parallelism_of(1), Formats(weight="fp8"), engine)
    found = fitted(known, [run._replace(case=case._replace(workload=run.case.workload)) for run in runs])
    assert found.deployments == alone.deployments


def test_benchmarks_of_another_gpu_are_left(tmp_path: Path) -> None:
    known = known_now(tmp_path)
    alone = fitted(known, [])
    assert fitted(known, benchmarks(tmp_path, alone, tpot=1.5, gpu="A100-SXM-80GB")) == alone
