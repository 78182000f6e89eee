"""Calibration runs made up from the step model itself, with kernels that take other times than tables say."""

from pathlib import Path

from planner.domain.calibration import (
    CalibrationRun,
    ServedRequest,
    ServingLoad,
    ServingPoint,
    StepPoint,
    StepShape,
)
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.operators.scales import KernelScales
from tests.calibrate.made_gpu import WHEN, deployment, gpu_run, points
from tests.calibrate.made_steps import true_s

MODEL = "Qwen/Qwen3-0.6B"
TRUE_SCALES = KernelScales(weights=1.5, compute=1.3, decode_cache=1.6)
TRUE_HOST = NO_HOST_TIME.model_copy(update={"sync_step_s": 2e-3, "sync_per_sequence_s": 4e-5})
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


def made_run(run_id: str = "made", *, steps: int = len(SHAPES), served: bool = False) -> CalibrationRun:
    """A run with so many steps, one of them disturbed and another failed."""
    empty = gpu_run(run_id, MODEL, "0.32.0", notes=("power cannot be read",))
    times_s = true_s(deployment(empty), SHAPES[:steps], TRUE_SCALES, TRUE_HOST).tolist()
    measured = points(SHAPES[:steps], times_s)
    disturbed = tuple(
        point.model_copy(update={"disturbed": ("others used the GPU",)}) for point in measured[:1]
    )
    too_large = StepPoint(
        shape=StepShape(decodes=256, context_tokens=16_000), measured_at=WHEN, failed="out of memory"
    )
    serving = (_served(),) if served else ()
    return empty.model_copy(update={"points": (*disturbed, *measured[1:], too_large), "serving": serving})


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
