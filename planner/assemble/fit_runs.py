"""Fits every device of a folder of calibration runs, and says what that changes in predictions."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

from planner.assemble.fit_service import (
    Evidence,
    Start,
    benchmark_evidence,
    fit_service,
)
from planner.assemble.known import Known, kernels_known
from planner.assemble.question import unserved_facts
from planner.assemble.run_conditions import check_alike
from planner.assemble.run_serving import served_means, serving_step
from planner.assemble.served import MeasuredRun, runnable
from planner.calibrate.fit_steps import (
    MeasuredSteps,
    StepFit,
    fit_steps,
    median_error,
    region_errors,
    region_of,
    rounded,
)
from planner.calibrate.new_sizes import new_sizes
from planner.calibrate.step_deployment import measured_gpu, step_deployment
from planner.calibrate.step_unknowns import StepDeployment
from planner.calibrate.store import fitted_operators
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, ServingPoint
from planner.domain.hardware import Gpu
from planner.formulas.engine_defaults import parse_version
from planner.formulas.gpu_fit import GpuFit, NewSizes, RunSource
from planner.formulas.host_time import HostTime
from planner.formulas.operators import GpuOperators
from planner.formulas.shape_time import host_s, shape_columns, shapes_s
from planner.formulas.step import StepModel, compile_step
from planner.formulas.tuning import RunDeployment, ServingTuning, expert_kernel, model_shape, step_tuning


class Change(NamedTuple):
    """One prediction before and after a fit, beside what was measured [s]."""

    deployment: str
    what: str
    measured_s: float
    before_s: float
    after_s: float


class FittedGpu(NamedTuple):
    """A device's fit and what it changes."""

    fit: GpuFit
    changes: tuple[Change, ...]


class _Group(NamedTuple):
    """Runs of one engine on one device."""

    deployment: StepDeployment
    runs: tuple[CalibrationRun, ...]

    @property
    def measured(self) -> MeasuredSteps:
        return MeasuredSteps(self.deployment, tuple(point for run in self.runs for point in run.measured))


def fit_gpus(
    runs: Sequence[CalibrationRun], known: Known, benchmarks: Sequence[MeasuredRun] = ()
) -> list[FittedGpu]:
    """One fit for each device that was measured, in the order of their names.

    `benchmarks`: imported serving runs; those of devices without steps are not used.

    Raises:
        InputError: no run measured a step, a device has too few for a fit, or its runs are of different machines.
    """
    usable = [run for run in runs if run.engine is not None and run.measured]
    if not usable:
        raise InputError(f"{len(runs)} runs, but none measured a step")
    by_gpu: dict[str, list[CalibrationRun]] = {}
    for run in usable:
        by_gpu.setdefault(run.machine.gpu, []).append(run)
    for alike in by_gpu.values():
        check_alike(alike)
    return [
        _fitted(
            _with_one_datasheet(by_gpu[gpu]), known, [one for one in benchmarks if one.case.gpu.name == gpu]
        )
        for gpu in sorted(by_gpu)
    ]


def _fitted(runs: Sequence[CalibrationRun], known: Known, benchmarks: Sequence[MeasuredRun]) -> FittedGpu:
    gpu = measured_gpu(runs[0].machine)
    groups = list(_groups(runs, known.directories))
    measured = [group.measured for group in groups]
    found = fit_steps(measured)
    fit = GpuFit(
        gpu=gpu,
        in_catalog=runs[0].machine.datasheet is None,
        plain=groups[0].deployment.is_plain,
        engine_version=max((group.deployment.engine_version for group in groups), key=parse_version),
        fitted_on=datetime.now(UTC).date().isoformat(),
        scales=found.scales,
        host=found.host,
        new_sizes=new_sizes(runs) if groups[0].deployment.is_plain else NewSizes(),
        parameters=found.parameters,
        deployments=tuple(_deployments(groups, found, gpu)),
        regions=region_errors(measured, found),
        runs=tuple(_source(group.deployment.name, run) for group in groups for run in group.runs),
        left_out_median_ratio=median_error(found.solution.left_out_residuals),
        noise_ratio=rounded(median(point.spread_ratio for one in measured for point in one.points)),
    )
    served = _with_service(fit, groups, known, benchmarks)
    return FittedGpu(served, tuple(_changes(groups, served, known)))


def _with_one_datasheet(runs: Sequence[CalibrationRun]) -> list[CalibrationRun]:
    """Factors are relative to a datasheet; one that was worked out differs a little from run to run."""
    same = {"datasheet": runs[0].machine.datasheet}
    return [run.model_copy(update={"machine": run.machine.model_copy(update=same)}) for run in runs]


def _with_service(
    fit: GpuFit, groups: Sequence[_Group], known: Known, benchmarks: Sequence[MeasuredRun]
) -> GpuFit:
    """The fit with what serving runs say beyond steps."""
    operators = fitted_operators(fit, known.directories)
    facts = unserved_facts()._replace(
        operators_for=lambda gpu: operators if gpu.name == fit.gpu.name else kernels_known(gpu, known)
    )
    evidence = [one for group in groups for one in _evidence(group, fit, known)]
    evidence += benchmark_evidence(runnable(benchmarks, facts))
    tuning = _tuning_with(fit, known)
    start = Start(fit.host.on(known.host), fit.host, tuning, fit.deployments)
    found = fit_service(evidence, start)
    return fit.model_copy(
        update={
            "host": found.host,
            "deployments": found.deployments,
            "parameters": (*fit.parameters, *found.parameters),
        }
    )


def _tuning_with(fit: GpuFit, known: Known) -> ServingTuning:
    """What is known of deployments, with this fit's in place of an earlier one's."""
    others = tuple(one for one in known.tuning.deployments if not (one.steps and one.gpu == fit.gpu.name))
    return known.tuning.model_copy(update={"deployments": (*others, *fit.deployments)})


def _evidence(group: _Group, fit: GpuFit, known: Known) -> Iterator[Evidence]:
    """The group's serving runs."""
    one = group.deployment
    for run in group.runs:
        for point in run.serving:
            tpot_s = point.tpot_s_mean if point.requests else None
            if tpot_s is None:
                continue

            def predict(
                host: HostTime,
                tuning: ServingTuning,
                run: CalibrationRun = run,
                point: ServingPoint = point,
            ) -> tuple[float, float]:
                step = fitted_step(one, fit, tuning, known)
                means = served_means(run, point, one, serving_step(step, fit.new_sizes), host)
                return means.ttft_s, means.tpot_s

            yield Evidence(
                name=one.name,
                deployment=(model_shape(one.model), one.model.weight_dtype, one.parallelism.tp),
                ttft_s=point.ttft_s_mean,
                tpot_s=tpot_s,
                asynchronous=point.async_scheduling,
                through_server=False,
                disturbed=bool(point.disturbed),
                predict=predict,
            )


def fitted_step(one: StepDeployment, fit: GpuFit, tuning: ServingTuning, known: Known) -> StepModel:
    """A deployment's step model as a fit has it."""
    return _step(one, fitted_operators(fit, known.directories), tuning)


def _step(one: StepDeployment, operators: GpuOperators, tuning: ServingTuning) -> StepModel:
    tuned = operators._replace(
        tuning=step_tuning(one.model, operators.gpu, one.parallelism, tuning, one.engine_version)
    )
    return compile_step(
        one.model, one.parallelism, one.kv_dtype, tuned, one.cluster, engine_version=one.engine_version
    )


def _groups(runs: Sequence[CalibrationRun], directories: Sequence[Path]) -> Iterator[_Group]:
    """Runs whose steps are predicted alike, together."""
    alike: dict[tuple[object, ...], list[tuple[StepDeployment, CalibrationRun]]] = {}
    for run in runs:
        one = step_deployment(run, directories)
        key = (one.model, one.parallelism, one.kv_dtype, one.captured_tokens, one.engine_version)
        alike.setdefault(key, []).append((one, run))
    for members in alike.values():
        largest = max(one.largest_tokens for one, _ in members)
        yield _Group(members[0][0]._replace(largest_tokens=largest), tuple(run for _, run in members))


def _deployments(groups: Sequence[_Group], found: StepFit, gpu: Gpu) -> Iterator[RunDeployment]:
    """Each measured deployment with its curve; of those that differ in flags alone, the one with most steps."""
    kept: dict[tuple[object, ...], RunDeployment] = {}
    for group, curve in zip(groups, found.curves, strict=True):
        one = group.deployment
        deployment = RunDeployment(
            model_shape=model_shape(one.model),
            weight_dtype=one.model.weight_dtype,
            gpu=gpu.name,
            gpu_architecture=gpu.architecture,
            tp=one.parallelism.tp,
            expert_kernel=expert_kernel(one.model, gpu, one.engine_version),
            runs=sum(len(run.serving) for run in group.runs),
            decode_ratio=1.0,
            prompt_ratio=1.0,
            steps=len(group.measured.points),
            log2_tokens=one.knots,
            log_ratio=tuple(round(value, 4) for value in curve.tolist()),
            engine_version=one.engine_version,
        )
        key = (deployment.model_shape, deployment.weight_dtype, deployment.tp)
        if key not in kept or kept[key].steps < deployment.steps:
            kept[key] = deployment
    yield from kept.values()


def _source(deployment: str, run: CalibrationRun) -> RunSource:
    return RunSource(
        run_id=run.run_id,
        deployment=deployment,
        steps=len(run.measured),
        serving_runs=sum(bool(point.requests) for point in run.serving),
        measured_at=run.started_at,
    )


def stored_step(one: StepDeployment, known: Known) -> tuple[HostTime, StepModel]:
    """Host time and step model of a deployment as predictions have them now."""
    operators = known_operators(one, known)
    return operators.host_on(known.host), _step(one, operators, known.tuning)


def known_operators(one: StepDeployment, known: Known) -> GpuOperators:
    """Its device's kernels: as a stored fit has them, else as they are known without any."""
    gpu = one.operators.gpu
    if one.is_plain and known.fit_of(gpu.name) is None:
        return one.operators
    return kernels_known(gpu, known)


def _changes(groups: Sequence[_Group], fit: GpuFit, known: Known) -> Iterator[Change]:
    """The middle step of every region, and every serving run."""
    tuning, after_host = _tuning_with(fit, known), fit.host.on(known.host)
    stored = known.fit_of(fit.gpu.name)
    before_sizes = NewSizes() if stored is None else stored.new_sizes
    for group in groups:
        one = group.deployment
        before_host, before = stored_step(one, known)
        after = fitted_step(one, fit, tuning, known)
        points = sorted(group.measured.points, key=lambda point: point.median_s)
        for region in dict.fromkeys(region_of(point) for point in points):
            mine = [point for point in points if region_of(point) == region]
            middle = mine[len(mine) // 2]
            columns = shape_columns([middle.shape])
            times = [
                float(shapes_s(step, columns, one.captured_tokens)[0] + host_s(beside, columns)[0])
                for step, beside in ((before, before_host), (after, after_host))
            ]
            yield Change(one.name, middle.shape.label, middle.median_s, *times)
        for run in group.runs:
            for point in run.serving:
                tpot_s = point.tpot_s_mean if point.requests else None
                if tpot_s is None:
                    continue
                earlier = served_means(run, point, one, serving_step(before, before_sizes), before_host)
                later = served_means(run, point, one, serving_step(after, fit.new_sizes), after_host)
                users = f"{point.load.concurrency} users"
                yield Change(one.name, f"TTFT, {users}", point.ttft_s_mean, earlier.ttft_s, later.ttft_s)
                yield Change(one.name, f"TPOT, {users}", tpot_s, earlier.tpot_s, later.tpot_s)
