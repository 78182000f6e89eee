"""Calibration runs of devices whose step times are known."""

from planner.domain.calibration import CalibrationRun, MemoryFacts, StepShape
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.operators.scales import KernelScales
from tests.calibrate import made_gpu
from tests.calibrate import made_steps as made
from tests.export.made_run import SHAPES, made_run

MODEL, RELEASE = "meta-llama/Llama-3.1-8B", "0.12.0"
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
    empty = made_gpu.gpu_run(run_id, MODEL, RELEASE, memory=MemoryFacts(kv_cache_tokens=400_000))
    times_s = SLOWER * made.true_s(made_gpu.deployment(empty), GPU_SHAPES, KernelScales(), NO_HOST_TIME)
    return empty.model_copy(update={"points": made_gpu.points(GPU_SHAPES, times_s.tolist())})
