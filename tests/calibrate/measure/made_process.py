"""Stands in for an engine process and its probe: answers by a made engine, on a clock that it alone moves."""

from collections.abc import Callable
from dataclasses import dataclass, field

from planner.calibrate.measure.engine_process import EngineDied
from planner.calibrate.measure.engine_protocol import (
    Answer,
    Failed,
    FailureKind,
    Limits,
    Measure,
    Serve,
    Start,
    Started,
)
from planner.calibrate.measure.engine_serving import serve
from planner.calibrate.measure.engine_steps import Label, measure
from planner.domain.calibration import EngineSetup, StepShape, Telemetry, TelemetrySeries
from tests.calibrate.made_steps import ENGINE, MEMORY
from tests.calibrate.measure.made_engine import MadeEngine

ASK_S = 0.3
START_S = 5.0


def linear_s(label: Label) -> float:
    """4 ms, 20 us a token, 1 us a token of context."""
    return 4e-3 + sum(
        count * (2e-5 * tokens + 1e-6 * computed) for (tokens, computed), count in label.items()
    )


@dataclass
class Clock:
    """Seconds that pass when they are told to."""

    now_s: float = 100.0

    def monotonic(self) -> float:
        """As `time` has it."""
        return self.now_s


@dataclass
class MadeProcess:
    """What `EngineProcess` is to a calibration."""

    clock: Clock
    setup: EngineSetup = ENGINE
    refuses: Callable[[StepShape], Failed | None] = lambda shape: None
    dies_at: Callable[[Measure | Serve], bool] = lambda question: False
    death: Callable[[], EngineDied] = lambda: EngineDied(
        "the engine process was killed by signal 9 (SIGKILL)"
    )
    start_failure: Failed | None = None
    start_failures: list[Failed | EngineDied | None] = field(default_factory=list)
    """Of one start after the other; none after the last."""
    loses_engine: bool = False
    """Whether what `refuses` says ends the engine."""
    started_with: list[Start] = field(default_factory=list)
    interrupt_after: int = 10**9
    asked: list[Measure | Serve] = field(default_factory=list)
    starts: int = 0
    runs: bool = False
    asynchronous: bool = False

    @property
    def shapes(self) -> list[StepShape]:
        """In the order they were asked for."""
        return [question.shape for question in self.asked if isinstance(question, Measure)]

    def start(self, start: Start) -> Started | Failed:
        """Takes START_S."""
        self.clock.now_s += START_S
        self.starts += 1
        self.started_with.append(start)
        failure = self.start_failures.pop(0) if self.start_failures else self.start_failure
        if isinstance(failure, EngineDied):
            raise failure
        if failure is not None:
            return failure
        self.runs = True
        self.asynchronous = start.async_scheduling
        return Started(
            engine=self.setup.model_copy(
                update={
                    "start_s": START_S + self.starts,
                    "async_scheduling": start.async_scheduling,
                    "max_num_seqs": min(self.setup.max_num_seqs, start.max_num_seqs),
                    "max_num_batched_tokens": min(
                        self.setup.max_num_batched_tokens, start.max_num_batched_tokens
                    ),
                }
            ),
            memory=MEMORY,
        )

    def ask(self, question: Measure | Serve, *, timeout_s: float) -> Answer:
        """By an engine whose steps take `linear_s`."""
        assert self.runs
        assert timeout_s > 0
        self.asked.append(question)
        if len(self.asked) > self.interrupt_after:
            raise KeyboardInterrupt
        if self.dies_at(question):
            self.runs = False
            self.clock.now_s += 1.0
            raise self.death()
        engine = MadeEngine(
            limits=Limits(
                max_model_len=self.setup.max_model_len,
                max_num_seqs=self.setup.max_num_seqs,
                max_num_batched_tokens=self.setup.max_num_batched_tokens,
                block_size=self.setup.block_size,
                kv_blocks=(MEMORY.kv_cache_tokens or 0) // self.setup.block_size,
            ),
            step_s=linear_s,
            async_scheduling=self.asynchronous,
        )
        self.clock.now_s += ASK_S
        answer: Answer
        if isinstance(question, Measure):
            answer = self.refuses(question.shape) or measure(engine, question, engine.clock)
            if self.loses_engine and isinstance(answer, Failed):
                self.runs = False
                answer = answer.model_copy(update={"engine_lost": True})
        else:
            answer = serve(engine, question, engine.clock)
        self.clock.now_s += engine.now_s
        return answer

    def close(self, *, patience_s: float = 0.0) -> None:
        """Ends it."""
        self.runs = False


@dataclass
class MadeProbe:
    """Sees nothing but others' use of the cores, as it is told."""

    clock: Clock
    use: Callable[[], float] = lambda: 0.0
    missing: tuple[str, ...] = ("power cannot be read: made up",)
    notes: tuple[str, ...] = ()

    def mark(self) -> float:
        """Now."""
        return self.clock.now_s

    def since(self, mark: float) -> Telemetry:
        """Since then."""
        return Telemetry(seconds=self.clock.now_s - mark, samples=0, other_use_ratio=self.use())

    def series(self) -> TelemetrySeries:
        """Empty."""
        return TelemetrySeries()


def out_of_memory(shape: StepShape) -> Failed | None:
    """Above 500 tokens."""
    if shape.scheduled_tokens <= 500:
        return None
    return Failed(kind=FailureKind.OUT_OF_MEMORY, message="CUDA out of memory")
