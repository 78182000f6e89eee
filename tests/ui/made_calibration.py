"""Calibration runs made up from the step model itself, with kernels that take other times than tables say."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from planner.calibrate.step_deployment import deployment_of, operators_before
from planner.calibrate.step_unknowns import StepDeployment, tuned_step
from planner.calibrate.store import calibration_directories
from planner.catalog.models import model_config
from planner.domain.calibration import (
    CalibrationRun,
    CalibrationTarget,
    Device,
    EngineSetup,
    Machine,
    RunEnd,
    ServedRequest,
    ServingLoad,
    ServingPoint,
    StepPoint,
    StepShape,
)
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.operators.scales import KernelScales
from planner.formulas.shape_time import host_s, shape_columns, shapes_s

GPU, MODEL = "H100-SXM-80GB", "Qwen/Qwen3-0.6B"
TRUE_SCALES = KernelScales(weights=1.5, compute=1.3, decode_cache=1.6)
TRUE_HOST = NO_HOST_TIME.model_copy(update={"sync_step_s": 2e-3, "sync_per_sequence_s": 4e-5})
REPETITIONS = (0.998, 1.0, 1.002)
WHEN = "2026-11-20T10:00:00+00:00"
SHAPES = (
    *(
        StepShape(decodes=batch, context_tokens=context)
        for batch in (1, 4, 16, 64)
        for context in (16, 512, 4000)
    ),
    *(
        StepShape(prompts=1, prompt_tokens=tokens, past_tokens=past)
        for tokens in (16, 256, 1024, 4096)
        for past in (0, 4096)
    ),
    StepShape(prompts=1, prompt_tokens=512, decodes=8, context_tokens=512),
)


def deployment(run: CalibrationRun) -> StepDeployment:
    """The run's engine with what tables say."""
    assert run.engine is not None
    return deployment_of(run.target, run.engine, operators_before(run.machine, calibration_directories()))


def true_s(run: CalibrationRun, shapes: Sequence[StepShape]) -> list[float]:
    """What steps take on the made-up device."""
    one = deployment(run)
    step = tuned_step(one, TRUE_SCALES, np.zeros(len(one.knots)))
    columns = shape_columns(shapes)
    times_s = shapes_s(step, columns, one.captured_tokens) + host_s(TRUE_HOST, columns)
    return [float(time_s) for time_s in times_s]


def made_run(run_id: str = "made", *, steps: int = len(SHAPES), served: bool = False) -> CalibrationRun:
    """A run with so many steps, one of them disturbed and another failed."""
    files = model_config(MODEL)
    empty = CalibrationRun(
        run_id=run_id,
        planner_version="1",
        started_at=WHEN,
        ended_at=WHEN,
        end=RunEnd.FINISHED,
        budget_s=90.0,
        target=CalibrationTarget(
            model=MODEL,
            config=json.loads(json.dumps(files.config)),
            weight_dtype=WeightDtype.BF16,
            kv_dtype=KvDtype.AUTO,
            tp=1,
        ),
        machine=Machine(
            device=Device.CUDA,
            gpu=GPU,
            device_name="NVIDIA H100",
            cpu_name="cpu",
            cpu_count=8,
            platform="Linux",
        ),
        engine=EngineSetup(
            engine_version="0.32.0",
            torch_version="2",
            python_version="3.12",
            max_model_len=16_384,
            max_num_seqs=256,
            max_num_batched_tokens=8192,
            block_size=16,
            enforce_eager=False,
            async_scheduling=False,
            cuda_graph_sizes=(1, 2, 4, 8, 16, 32, 64),
        ),
        notes=("power cannot be read",),
    )
    shapes = SHAPES[:steps]
    points = [
        StepPoint(
            shape=shape,
            times_s=tuple(time_s * factor for factor in REPETITIONS),
            measured_at=WHEN,
            disturbed=("others used the GPU",) if at == 0 else (),
        )
        for at, (shape, time_s) in enumerate(zip(shapes, true_s(empty, shapes), strict=True))
    ]
    too_large = StepShape(decodes=256, context_tokens=16_000)
    points.append(StepPoint(shape=too_large, measured_at=WHEN, failed="out of memory"))
    return empty.model_copy(update={"points": tuple(points), "serving": (_served(),) if served else ()})


def _served() -> ServingPoint:
    requests = tuple(
        ServedRequest(input_tokens=256, output_tokens=16, sent_s=0.0, ttft_s=0.02, e2e_s=0.02 + 15 * 0.004)
        for _ in range(4)
    )
    load = ServingLoad(concurrency=2, input_tokens=256, output_tokens=16, num_requests=4)
    return ServingPoint(load=load, async_scheduling=False, submit_s=1e-4, requests=requests, measured_at=WHEN)


def kept_in(folder: Path, run: CalibrationRun) -> Path:
    """The run as a file of a folder of runs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"run-{run.run_id}.json"
    path.write_text(run.model_dump_json())
    return path
