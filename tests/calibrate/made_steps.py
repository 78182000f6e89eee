"""A made-up device whose steps take what the step model says with factors that are known, and a little noise."""

from collections.abc import Iterable, Sequence

import numpy as np

from planner.calibrate.fit_steps import MeasuredSteps
from planner.calibrate.step_deployment import deployment_of, operators_before
from planner.calibrate.step_unknowns import StepDeployment, tuned_step
from planner.domain.calibration import (
    CalibrationTarget,
    Device,
    EngineSetup,
    Machine,
    MemoryFacts,
    StepPoint,
    StepShape,
)
from planner.domain.dtypes import ComputeDtype, KvDtype, WeightDtype
from planner.domain.hardware import Confidence, Gpu
from planner.formulas.arrays import FloatArray
from planner.formulas.host_time import NO_HOST_TIME, HostTime
from planner.formulas.operators.scales import KernelScales
from planner.formulas.shape_time import host_s, shape_columns, shapes_s

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
SHEET = Gpu(
    name="made-cpu",
    vendor="Made",
    architecture="CPU",
    compute_capability="",
    memory_bytes=16 * 2**30,
    memory_observed=True,
    memory_bandwidth_bytes_per_s=20e9,
    peak_flop_per_s=dict.fromkeys((ComputeDtype.FP32, ComputeDtype.BF16, ComputeDtype.FP16), 160e9),
    nvlink_bytes_per_s=0.0,
    pcie_bytes_per_s=20e9,
    source="made up",
    as_of="2026-01-01",
    confidence=Confidence.LOW,
)
MACHINE = Machine(
    device=Device.CPU,
    gpu="made-cpu",
    device_name="A processor",
    device_memory_bytes=16 * 2**30,
    cpu_name="A processor",
    cpu_count=2,
    platform="Linux",
    datasheet=SHEET,
)
ENGINE = EngineSetup(
    engine_version="0.32.0",
    torch_version="2.8.0",
    python_version="3.11",
    max_model_len=4096,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
    block_size=16,
    enforce_eager=True,
    async_scheduling=False,
)
MEMORY = MemoryFacts(kv_cache_tokens=200_000)
TRUE_SCALES = KernelScales(
    compute=0.7, weights=1.6, launch=3.0, elementwise=1.4, decode_cache=2.2, prompt_pairs=3.0, logit_s=2e-9
)
TRUE_HOST = NO_HOST_TIME.model_copy(update={"sync_step_s": 8e-4, "sync_per_sequence_s": 2e-5})

NOISE = 0.02
"""Standard deviation of the logarithm of each repetition."""


def target(**changed: object) -> CalibrationTarget:
    """A small Llama; keyword arguments replace fields of its config."""
    return CalibrationTarget(
        model="tiny",
        config=CONFIG | changed,  # type: ignore[arg-type]
        weight_dtype=WeightDtype.BF16,
        kv_dtype=KvDtype.AUTO,
        tp=1,
    )


def deployment(**changed: object) -> StepDeployment:
    """The same as its steps are predicted before any run."""
    return deployment_of(target(**changed), ENGINE, operators_before(MACHINE, ()))


def true_s(
    one: StepDeployment,
    shapes: Iterable[StepShape],
    scales: KernelScales = TRUE_SCALES,
    host: HostTime = TRUE_HOST,
) -> FloatArray:
    """What steps take on the made-up device [N]."""
    step = tuned_step(one, scales, np.zeros(len(one.knots)))
    columns = shape_columns(shapes)
    return shapes_s(step, columns, one.captured_tokens) + host_s(host, columns)


def points(
    one: StepDeployment,
    shapes: Sequence[StepShape],
    *,
    seed: int = 0,
    scales: KernelScales = TRUE_SCALES,
) -> tuple[StepPoint, ...]:
    """Steps measured five times each, with NOISE."""
    normal = np.random.default_rng(seed).standard_normal((len(shapes), 5))
    times = true_s(one, shapes, scales)[:, None] * np.exp(NOISE * normal)
    return tuple(
        StepPoint(shape=shape, times_s=tuple(row), measured_at="2026-01-01T00:00:00+00:00")
        for shape, row in zip(shapes, times.tolist(), strict=True)
    )


def measured(
    one: StepDeployment, shapes: Sequence[StepShape], *, seed: int = 0, scales: KernelScales = TRUE_SCALES
) -> MeasuredSteps:
    """The same with the deployment they are of."""
    return MeasuredSteps(one, points(one, shapes, seed=seed, scales=scales))
