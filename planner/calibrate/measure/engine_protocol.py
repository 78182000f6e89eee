"""What a calibration and its engine process say to each other: one JSON object a line, told apart by `type`."""

from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter

from planner.domain.base import Frozen
from planner.domain.calibration import (
    Count,
    Device,
    EngineSetup,
    MemoryFacts,
    Ratio,
    Seconds,
    ServedRequest,
    ServingLoad,
    StepShape,
)
from planner.domain.dtypes import KvDtype, WeightDtype


class Start(Frozen):
    """The first message: the engine to start. A process starts one engine."""

    type: Literal["start"] = "start"
    config_dir: str
    """Folder with the checkpoint's config.json."""
    weights: str = ""
    """Folder of the whole checkpoint; empty for made-up weights of the true shapes."""
    stored_dtype: WeightDtype
    """How the checkpoint of that config stores its weights."""
    weight_dtype: WeightDtype
    """How they are to run: as stored, or what the engine can make of them while loading."""
    kv_dtype: KvDtype = KvDtype.AUTO
    tp: int = Field(default=1, ge=1, le=64)
    device: Device
    max_model_len: int = Field(ge=1)
    max_num_seqs: int = Field(ge=1)
    max_num_batched_tokens: int = Field(ge=1)
    gpu_memory_utilization: Ratio = 0.9
    enforce_eager: bool = False
    async_scheduling: bool = False
    made_up_context: bool = True
    """Declare cached tokens through a KV connector; else they are computed before they are timed."""
    seed: Count = 0
    threads: Count = 0
    """Of the CPU's kernels; 0 leaves that to the engine."""
    cpu_cache_gib: int = Field(default=1, ge=1)
    """KV cache on a CPU, where the environment does not say."""


class Started(Frozen):
    """The engine runs."""

    type: Literal["started"] = "started"
    engine: EngineSetup
    memory: MemoryFacts


class Measure(Frozen):
    """Run one shape again and again and time each step.

    A decoding sequence grows by a token a step, so decoding steps are timed at contexts centred on the one asked for,
    within `warmups + repetitions` of it. Repetitions end early once `most_seconds` have gone and three are there, or
    thrice that and one.
    """

    type: Literal["measure"] = "measure"
    shape: StepShape
    repetitions: int = Field(default=5, ge=1, le=10_000)
    warmups: int = Field(default=1, ge=0, le=1000)
    most_seconds: Seconds = 60.0


class Measured(Frozen):
    """Wall time of each repetition, in the order they ran."""

    type: Literal["measured"] = "measured"
    times_s: tuple[Seconds, ...]
    warmup_s: tuple[Seconds, ...] = ()
    """Of the warm-ups, the first of which meets its shape for the first time."""


class Serve(Frozen):
    """Run a closed loop. After `most_seconds` nothing more is sent; what still runs after as long again is dropped."""

    type: Literal["serve"] = "serve"
    load: ServingLoad
    most_seconds: Seconds = 600.0


class Served(Frozen):
    """Requests that ended, in the order they were sent: fewer than asked for where time ran out."""

    type: Literal["served"] = "served"
    submit_s: Seconds
    requests: tuple[ServedRequest, ...]
    steps: Count
    """That computed something."""


class FailureKind(StrEnum):
    """What to do about a failure."""

    OUT_OF_MEMORY = "out_of_memory"
    """Less would fit."""
    UNSUPPORTED = "unsupported"
    """This engine cannot do that; another shape or format may do."""
    CONFIG = "config"
    """The engine refuses the model or its settings."""
    CONTEXT = "context"
    """The engine refuses made-up context: start it without."""
    ENGINE = "engine"
    """Anything else that went wrong in the engine."""


class Failed(Frozen):
    """It did not work."""

    type: Literal["failed"] = "failed"
    kind: FailureKind
    message: str
    """One line."""
    engine_lost: bool = False
    """The engine does not work any more, and its process ends."""


class Stop(Frozen):
    """The last message."""

    type: Literal["stop"] = "stop"


Question = Start | Measure | Serve | Stop
Answer = Started | Measured | Served | Failed
_QUESTIONS: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="type")])
_ANSWERS: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="type")])
MESSAGE_CHARS = 400
"""No failure is worded longer."""


class Limits(NamedTuple):
    """What one step of an engine may hold."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    kv_blocks: int
    """That sequences may take."""
    counts_blocks: bool = True
    """False where layers differ in what they cache, so that only the engine itself can tell what fits."""


def encode(message: Question | Answer) -> bytes:
    """The message as a line."""
    return message.model_dump_json().encode() + b"\n"


def read_question(line: bytes) -> Question:
    """What the parent asks.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return _QUESTIONS.validate_json(line)


def read_answer(line: bytes) -> Answer:
    """What the engine process answers.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return _ANSWERS.validate_json(line)


def one_line(text: str) -> str:
    """Text without line breaks and runs of spaces, cut where it gets long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MESSAGE_CHARS else flat[: MESSAGE_CHARS - 3] + "..."
