"""A calibration of a small model on a processor, with times from known rates."""

from planner.calibrate.step_deployment import operators_before
from planner.domain.calibration import (
    CalibrationRun,
    MemoryFacts,
    RunEnd,
    ServedRequest,
    ServingLoad,
    ServingPoint,
    StepPoint,
    StepShape,
    Telemetry,
    TelemetrySeries,
)
from planner.formulas.operators import GpuOperators
from tests.calibrate import made_steps as made

WHEN = "2026-01-01T00:00:00+00:00"
SHAPES = (
    *(StepShape(decodes=batch, context_tokens=context) for batch in (1, 4, 16, 64) for context in (16, 1024)),
    *(StepShape(prompts=1, prompt_tokens=tokens) for tokens in (16, 64, 256, 1024, 2048)),
    StepShape(prompts=1, prompt_tokens=256, past_tokens=2048),
    StepShape(prompts=1, prompt_tokens=64, decodes=8, context_tokens=256),
)
FAILED = StepShape(prompts=16, prompt_tokens=128, past_tokens=3000)


def time_s(shape: StepShape) -> float:
    """3 ms, 300 us a token, 10 ns a cached token of a decoding sequence."""
    return 3e-3 + 3e-4 * shape.scheduled_tokens + 1e-8 * shape.decodes * shape.context_tokens


def point(shape: StepShape, *, disturbed: tuple[str, ...] = ()) -> StepPoint:
    """Three repetitions 2 % apart, slower by half where something disturbed them."""
    middle_s = time_s(shape) * (1.5 if disturbed else 1.0)
    return StepPoint(
        shape=shape,
        times_s=(0.98 * middle_s, middle_s, 1.02 * middle_s),
        measured_at=WHEN,
        disturbed=disturbed,
        telemetry=Telemetry(seconds=1.0, samples=10, power_w_mean=100.0, throttle_reasons=("power cap",)),
    )


def serving_point() -> ServingPoint:
    """Four requests that took 50 ms to their first token and 10 ms to each other one."""
    requests = tuple(
        ServedRequest(input_tokens=100, output_tokens=11, sent_s=0.1 * i, ttft_s=0.05, e2e_s=0.15)
        for i in range(4)
    )
    return ServingPoint(
        load=ServingLoad(concurrency=2, input_tokens=100, output_tokens=11, num_requests=4),
        async_scheduling=False,
        submit_s=1e-4,
        requests=requests,
        measured_at=WHEN,
        telemetry=Telemetry(seconds=0.45, samples=5, power_w_mean=100.0, energy_j=44.0),
    )


def made_run(**changed: object) -> CalibrationRun:
    """The whole of it, with fields replaced."""
    run = CalibrationRun(
        run_id="made",
        planner_version="1",
        started_at=WHEN,
        ended_at=WHEN,
        end=RunEnd.FINISHED,
        budget_s=60.0,
        target=made.target(),
        machine=made.MACHINE,
        engine=made.ENGINE.model_copy(update={"block_size": 128, "threads": 2}),
        memory=MemoryFacts(kv_cache_bytes=2**31, kv_cache_tokens=1_048_576, log_lines=("KV cache: 2 GiB",)),
        points=(
            *(point(shape) for shape in SHAPES),
            point(StepShape(decodes=2, context_tokens=64), disturbed=("others used 40 % of the cores",)),
            StepPoint(shape=FAILED, measured_at=WHEN, failed="out of memory"),
        ),
        serving=(serving_point(),),
        series=TelemetrySeries(
            seconds=(0.0, 0.5, 1.0),
            sm_clock_mhz=(None, None, None),
            power_w=(90.0, None, 110.0),
            temperature_c=(None, None, None),
            utilization_ratio=(0.5, 1.0, 1.0),
            memory_used_bytes=(2**30, 2**31, 2**31),
        ),
        notes=("the clock of the cores cannot be read",),
    )
    return run.model_copy(update=changed)


def made_operators(run: CalibrationRun) -> GpuOperators:
    """What is assumed of its processor."""
    return operators_before(run.machine, [])
