"""Calibration runs of devices whose step times are known."""

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
    MemoryFacts,
    StepPoint,
    StepShape,
)
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.formulas.operators.scales import KernelScales
from planner.formulas.shape_time import shape_columns, shapes_s
from tests.calibrate import made_steps as made
from tests.export.made_run import SHAPES, WHEN, made_run

MODEL, GPU, RELEASE = "meta-llama/Llama-3.1-8B", "H100-SXM-80GB", "0.12.0"
SLOWER = 1.6
"""What every step takes on the GPU below, over what its kernel tables say."""
GPU_SHAPES = (
    *(StepShape(decodes=batch, context_tokens=context) for batch in (1, 8, 64) for context in (512, 4096)),
    *(StepShape(prompts=1, prompt_tokens=tokens) for tokens in (256, 1024, 4096)),
    StepShape(prompts=1, prompt_tokens=512, decodes=16, context_tokens=1024),
)


def device_run(
    run_id: str = "made", shapes: tuple[StepShape, ...] = SHAPES, **changed: object
) -> CalibrationRun:
    """A run on the made-up processor of `made_steps`."""
    fields: dict[str, object] = {
        "run_id": run_id,
        "target": made.target(),
        "machine": made.MACHINE,
        "engine": made.ENGINE,
        "memory": made.MEMORY,
        "points": made.points(made.deployment(), shapes),
        "serving": (),
    }
    return made_run(**(fields | changed))


def gpu_run(run_id: str = "gpu") -> CalibrationRun:
    """A run on a GPU of the catalog all of whose steps take SLOWER times what its tables say."""
    target = CalibrationTarget(
        model=MODEL,
        config=dict(model_config(MODEL).config),
        weight_dtype=WeightDtype.BF16,
        kv_dtype=KvDtype.AUTO,
        tp=1,
    )
    machine = Machine(
        device=Device.CUDA, gpu=GPU, device_name="NVIDIA H100", cpu_name="x", cpu_count=16, platform="Linux"
    )
    engine = EngineSetup(
        engine_version=RELEASE,
        torch_version="2",
        python_version="3.12",
        max_model_len=16_384,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        block_size=16,
        enforce_eager=False,
        async_scheduling=False,
        cuda_graph_sizes=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    )
    one = deployment_of(target, engine, operators_before(machine, calibration_directories()))
    return made_run(
        run_id=run_id,
        target=target,
        machine=machine,
        engine=engine,
        memory=MemoryFacts(kv_cache_tokens=400_000),
        points=tuple(
            StepPoint(shape=shape, times_s=(0.999 * time_s, time_s, 1.001 * time_s), measured_at=WHEN)
            for shape, time_s in zip(GPU_SHAPES, gpu_times_s(one), strict=True)
        ),
        serving=(),
    )


def gpu_times_s(one: StepDeployment) -> list[float]:
    """Of GPU_SHAPES [s]."""
    step = tuned_step(one, KernelScales(), np.zeros(len(one.knots)))
    return (SLOWER * shapes_s(step, shape_columns(GPU_SHAPES), one.captured_tokens)).tolist()
