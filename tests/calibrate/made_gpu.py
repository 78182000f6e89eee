"""Calibrations of a GPU that the catalog has, with times from its kernel tables."""

from collections.abc import Iterable

from planner.calibrate.step_deployment import deployment_of, operators_before
from planner.calibrate.step_unknowns import StepDeployment
from planner.calibrate.store import calibration_directories
from planner.catalog.models import model_config
from planner.domain.calibration import (
    CalibrationRun,
    CalibrationTarget,
    Device,
    EngineSetup,
    Machine,
    RunEnd,
    StepPoint,
    StepShape,
)
from planner.domain.dtypes import KvDtype, WeightDtype

GPU = "H100-SXM-80GB"
REPETITIONS = (0.998, 1.0, 1.002)
WHEN = "2026-11-20T10:00:00+00:00"


def gpu_run(run_id: str, model: str, release: str, **changed: object) -> CalibrationRun:
    """A run of a bundled model in which nothing was measured yet, with fields replaced."""
    run = CalibrationRun(
        run_id=run_id,
        planner_version="1",
        started_at=WHEN,
        ended_at=WHEN,
        end=RunEnd.FINISHED,
        budget_s=90.0,
        target=CalibrationTarget(
            model=model,
            config=dict(model_config(model).config),
            weight_dtype=WeightDtype.BF16,
            kv_dtype=KvDtype.AUTO,
            tp=1,
        ),
        machine=Machine(
            device=Device.CUDA,
            gpu=GPU,
            device_name="NVIDIA H100",
            cpu_name="cpu",
            cpu_count=16,
            platform="Linux",
        ),
        engine=EngineSetup(
            engine_version=release,
            torch_version="2",
            python_version="3.12",
            max_model_len=16_384,
            max_num_seqs=256,
            max_num_batched_tokens=8192,
            block_size=16,
            enforce_eager=False,
            async_scheduling=False,
            cuda_graph_sizes=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        ),
    )
    return run.model_copy(update=changed)


def deployment(run: CalibrationRun) -> StepDeployment:
    """The run's engine with what tables say."""
    assert run.engine is not None
    return deployment_of(run.target, run.engine, operators_before(run.machine, calibration_directories()))


def points(shapes: Iterable[StepShape], times_s: Iterable[float]) -> tuple[StepPoint, ...]:
    """Each step measured three times, 0.2 % apart."""
    return tuple(
        StepPoint(shape=shape, times_s=tuple(time_s * factor for factor in REPETITIONS), measured_at=WHEN)
        for shape, time_s in zip(shapes, times_s, strict=True)
    )
