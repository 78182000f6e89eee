"""What one calibration measured: an engine on one machine, step by step, as it is kept on disk."""

from enum import StrEnum
from statistics import fmean, median
from typing import Annotated

from pydantic import Field, JsonValue, model_validator

from planner.domain.base import Frozen
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.evidence import StepKind
from planner.domain.hardware import Gpu

RUN_FORMAT = 1
"""Raised whenever a field changes meaning, so that an older program refuses a newer file and does not misread it."""
LARGEST = 10**9
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Bytes = Annotated[int, Field(ge=0, le=10**15)]
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Measured = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
"""Seconds that something took."""
Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Reading = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class Device(StrEnum):
    """What the engine computes on."""

    CUDA = "cuda"
    CPU = "cpu"


class StepShape(Frozen):
    """What one engine step computes: prompt chunks of one length and decoding sequences of one context."""

    prompts: Count = 0
    """Sequences of which a chunk of the prompt is computed."""
    prompt_tokens: Count = 0
    """New tokens of each chunk."""
    past_tokens: Count = 0
    """Tokens of each such prompt that were cached before."""
    decodes: Count = 0
    """Sequences that decode one token."""
    context_tokens: Count = 0
    """Cached tokens of each of them before the step."""

    @model_validator(mode="after")
    def _does_something(self) -> "StepShape":
        if bool(self.prompts) != bool(self.prompt_tokens) or not (self.prompts or self.decodes):
            raise ValueError("a step needs prompts of at least one token, or decoding sequences, or both")
        if (not self.prompts and self.past_tokens) or (not self.decodes and self.context_tokens):
            raise ValueError("a step without prompts has no past, one without decoding sequences no context")
        return self

    @property
    def kind(self) -> StepKind:
        """Whether prompts, decoding sequences or both are computed."""
        if not self.decodes:
            return StepKind.PREFILL
        return StepKind.MIXED if self.prompts else StepKind.DECODE

    @property
    def scheduled_tokens(self) -> int:
        """Tokens computed in the step."""
        return self.prompts * self.prompt_tokens + self.decodes

    @property
    def cached_tokens(self) -> int:
        """Tokens of KV cache needed once the step has run."""
        prompt = self.prompts * (self.past_tokens + self.prompt_tokens)
        return prompt + self.decodes * (self.context_tokens + 1)

    @property
    def label(self) -> str:
        """The shape in words.

        >>> StepShape(prompts=2, prompt_tokens=512, decodes=8, context_tokens=1000).label
        '2 x 512 prompt tokens, 8 decoding at 1,000'
        """
        past = f" after {self.past_tokens:,}" if self.past_tokens else ""
        prompt = f"{self.prompts:,} x {self.prompt_tokens:,} prompt tokens{past}" if self.prompts else ""
        decode = f"{self.decodes:,} decoding at {self.context_tokens:,}" if self.decodes else ""
        return ", ".join(part for part in (prompt, decode) if part)


class Telemetry(Frozen):
    """What the device's sensors said while something ran; None where one is missing."""

    seconds: Seconds
    samples: Count
    sm_clock_mhz_mean: Reading | None = None
    sm_clock_mhz_min: Reading | None = None
    memory_clock_mhz_mean: Reading | None = None
    power_w_mean: Reading | None = None
    power_w_max: Reading | None = None
    energy_j: Reading | None = None
    """All GPUs of the engine together."""
    temperature_c_max: Reading | None = None
    utilization_ratio_mean: Ratio | None = None
    """Share of time with a kernel running; on a CPU the share of its cores that were busy."""
    memory_used_bytes_max: Bytes | None = None
    throttle_reasons: tuple[str, ...] = ()
    other_processes: Count = 0
    """Processes of others that used the device."""
    other_use_ratio: Ratio | None = None
    """Share of the device (a CPU's cores) that others used."""


class TelemetrySeries(Frozen):
    """The sensors over a whole calibration, a few readings a second at most: columns of one length."""

    seconds: tuple[Seconds, ...] = ()
    """Since the calibration began."""
    sm_clock_mhz: tuple[Reading | None, ...] = ()
    power_w: tuple[Reading | None, ...] = ()
    temperature_c: tuple[Reading | None, ...] = ()
    utilization_ratio: tuple[Ratio | None, ...] = ()
    memory_used_bytes: tuple[Bytes | None, ...] = ()

    @model_validator(mode="after")
    def _columns_are_of_one_length(self) -> "TelemetrySeries":
        if len({len(getattr(self, name)) for name in type(self).model_fields}) != 1:
            raise ValueError("the columns of a series must be of one length")
        return self


class StepPoint(Frozen):
    """One shape, measured or tried."""

    shape: StepShape
    times_s: tuple[Measured, ...] = ()
    """Wall time of each repetition, warm-up left out, in the order they ran; empty where it failed."""
    warmup_s: tuple[Seconds, ...] = ()
    """Of the warm-ups before them."""
    measured_at: str
    """ISO date and time, UTC."""
    attempt: int = Field(default=1, ge=1, le=100)
    """How often it had been tried, this one included: disturbed points are measured again."""
    disturbed: tuple[str, ...] = ()
    """Why the times may not be the engine's alone; empty where nothing was seen."""
    failed: str = ""
    """Why there are no times."""
    telemetry: Telemetry | None = None

    @property
    def median_s(self) -> float:
        """Median over repetitions [s]."""
        return median(self.times_s)

    @property
    def spread_ratio(self) -> float:
        """Median absolute deviation of the repetitions from their median, over it."""
        middle = self.median_s
        return median(abs(time - middle) for time in self.times_s) / middle if middle else 0.0


class ServedRequest(Frozen):
    """One request of a serving run, as whoever sent it saw it."""

    input_tokens: Positive
    output_tokens: Positive
    sent_s: Seconds
    """Since the run began."""
    ttft_s: Measured
    e2e_s: Measured

    @model_validator(mode="after")
    def _ends_after_its_first_token(self) -> "ServedRequest":
        if self.e2e_s < self.ttft_s:
            raise ValueError("a request cannot end before its first token")
        return self

    @property
    def tpot_s(self) -> float | None:
        """(end - first token) / (output tokens - 1); None where there is one token."""
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


class ServingLoad(Frozen):
    """A closed loop: every user sends the next request when the last one ended."""

    concurrency: int = Field(ge=1, le=100_000)
    input_tokens: int = Field(ge=1, le=LARGEST)
    output_tokens: int = Field(ge=1, le=LARGEST)
    length_low_ratio: float = Field(default=1.0, gt=0, le=1)
    """Lengths are uniform from this share of the stated ones."""
    num_requests: int = Field(ge=1, le=10**6)
    seed: Count = 0


class ServingPoint(Frozen):
    """One serving run in the engine's own process: no HTTP, no tokenising."""

    load: ServingLoad
    async_scheduling: bool
    submit_s: Seconds
    """Median time of handing one request to the engine."""
    requests: tuple[ServedRequest, ...] = ()
    steps: Count = 0
    measured_at: str
    disturbed: tuple[str, ...] = ()
    failed: str = ""
    telemetry: Telemetry | None = None

    @property
    def ttft_s_mean(self) -> float:
        """Mean over requests [s]."""
        return fmean(one.ttft_s for one in self.requests)

    @property
    def tpot_s_mean(self) -> float | None:
        """Mean over the requests of more than one token [s]; None where there is none."""
        found = [one.tpot_s for one in self.requests if one.tpot_s is not None]
        return fmean(found) if found else None


class Machine(Frozen):
    """Where it was measured."""

    device: Device
    gpu: str
    """Canonical name of `data/gpus.csv` where the device is in it, else the device's own name."""
    device_name: str
    device_uuid_hash: tuple[str, ...] = ()
    """SHA-256 of each GPU's UUID, first 16 hexadecimal digits."""
    device_memory_bytes: Bytes = 0
    driver_version: str = ""
    mig_enabled: bool = False
    ecc_enabled: bool | None = None
    power_limit_w: Reading | None = None
    cpu_name: str
    cpu_count: Count
    platform: str
    """Operating system and machine."""
    datasheet: Gpu | None = None
    """Worked out from what the device tells of itself; None where the catalog has it."""


class EngineSetup(Frozen):
    """The engine as it ran."""

    engine: str = "vllm"
    engine_version: str
    torch_version: str
    python_version: str
    max_model_len: Positive
    max_num_seqs: Positive
    max_num_batched_tokens: Positive
    block_size: int = Field(ge=0, le=65_536)
    enforce_eager: bool
    async_scheduling: bool
    cuda_graph_sizes: tuple[Count, ...] = ()
    """Token counts that graphs were captured for."""
    threads: Count = 0
    """Of the CPU's kernels; 0 on a GPU."""
    made_up_weights: bool = True
    made_up_context: bool = True
    """Cached tokens of decode steps were declared and not computed."""
    start_s: Seconds = 0.0


class MemoryFacts(Frozen):
    """What the engine said of its memory; None where it does not say (a CPU profiles nothing)."""

    weights_bytes: Bytes | None = None
    activation_peak_bytes: Bytes | None = None
    non_torch_bytes: Bytes | None = None
    cuda_graph_bytes: Bytes | None = None
    kv_cache_bytes: Bytes | None = None
    kv_blocks: Count | None = None
    kv_cache_tokens: Count | None = None
    gpu_memory_utilization: Ratio | None = None
    log_lines: tuple[str, ...] = ()
    """As the engine's log words them."""


class RunEnd(StrEnum):
    """How a calibration ended."""

    RUNNING = "running"
    """Still going on, or killed."""
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class CalibrationTarget(Frozen):
    """What is measured: the same on resume as at first."""

    model: str
    """As it was named."""
    config: dict[str, JsonValue]
    """The checkpoint's config.json."""
    hf_quant: dict[str, JsonValue] | None = None
    """Its hf_quant_config.json, where there is one."""
    weight_dtype: WeightDtype
    kv_dtype: KvDtype
    tp: int = Field(ge=1, le=64)


class CalibrationRun(Frozen):
    """One calibration of one deployment; a file of its own, written anew after every point."""

    format: int = RUN_FORMAT
    run_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,120}$")
    planner_version: str
    started_at: str
    ended_at: str = ""
    end: RunEnd = RunEnd.RUNNING
    end_reason: str = ""
    budget_s: Seconds
    seed: Count = 0
    target: CalibrationTarget
    machine: Machine
    engine: EngineSetup | None = None
    """None until the engine has started."""
    memory: MemoryFacts | None = None
    points: tuple[StepPoint, ...] = ()
    serving: tuple[ServingPoint, ...] = ()
    series: TelemetrySeries | None = None
    """The sensors over time, for the report; None where nothing was watched."""
    notes: tuple[str, ...] = ()
    """What is missing or was lowered, in words."""

    @property
    def measured(self) -> tuple[StepPoint, ...]:
        """The last undisturbed measurement of each shape, or the least disturbed where there is no such."""
        best: dict[StepShape, StepPoint] = {}
        for point in self.points:
            known = best.get(point.shape)
            timed = bool(point.times_s) and point.median_s > 0
            if timed and (known is None or len(point.disturbed) <= len(known.disturbed)):
                best[point.shape] = point
        return tuple(best.values())
