"""What the engine process answers where a step fails."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from planner.calibrate.measure.engine import answered
from planner.calibrate.measure.engine_protocol import Failed, FailureKind, Measure, Measured, Question, Start
from planner.calibrate.measure.engine_steps import Step
from planner.domain.calibration import Device, StepShape
from planner.domain.dtypes import WeightDtype
from tests.calibrate.measure.made_engine import MadeEngine

ASKED = Measure(shape=StepShape(decodes=2, context_tokens=100))


class Activations:
    """What a step holds while it runs."""


@dataclass
class Failing(MadeEngine):
    """Fails in its second step; whether it outlives that is told."""

    error: Callable[[], Exception] = lambda: RuntimeError("illegal memory access")
    outlives: bool = True
    held: "weakref.ref[Activations] | None" = None
    freed: bool | None = None

    def step(self) -> Step:
        """The second one fails; its frame holds the exception, which holds the frame, as with a future's."""
        if len(self.steps) == 1:
            activations = Activations()
            self.held = weakref.ref(activations)
            failed = self.error()
            raise failed
        return super().step()

    def recover(self) -> bool:
        """Whether what the failed step held is gone by now."""
        assert self.held is not None
        self.freed = self.held() is None
        self.steps.clear()
        self.clear()
        return self.outlives


@dataclass
class Sound(MadeEngine):
    """Never fails."""

    def recover(self) -> bool:
        """Has nothing to set right."""
        raise AssertionError("nothing failed")


def caused() -> Exception:
    """An error that says nothing, raised from one that does."""
    error = RuntimeError("unexpected error")
    error.__cause__ = MemoryError()
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lambda: RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."), FailureKind.OUT_OF_MEMORY),
        (MemoryError, FailureKind.OUT_OF_MEMORY),
        (lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), FailureKind.OUT_OF_MEMORY),
        (lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"), FailureKind.OUT_OF_MEMORY),
        (caused, FailureKind.OUT_OF_MEMORY),
        (lambda: RuntimeError("illegal memory access"), FailureKind.ENGINE),
        (lambda: RuntimeError("out of resource: shared memory"), FailureKind.ENGINE),
    ],
)
def test_a_failed_step_is_sorted_and_the_engine_goes_on(
    error: Callable[[], Exception], kind: FailureKind
) -> None:
    answer = answered(Failing(error=error), ASKED)
    assert isinstance(answer, Failed)
    assert answer.kind is kind
    assert answer.message.startswith(type(error()).__name__)
    assert not answer.engine_lost


def test_what_the_failed_step_held_is_gone_before_the_engine_is_set_right() -> None:
    engine = Failing()
    answered(engine, ASKED)
    assert engine.freed


def test_an_engine_that_does_not_outlive_it_says_so() -> None:
    answer = answered(Failing(outlives=False), ASKED)
    assert isinstance(answer, Failed)
    assert answer.engine_lost


def test_a_step_that_goes_well_is_timed() -> None:
    assert isinstance(answered(Sound(), ASKED), Measured)


def test_a_second_start_is_refused() -> None:
    start: Question = Start(
        config_dir="nowhere",
        stored_dtype=WeightDtype.BF16,
        weight_dtype=WeightDtype.BF16,
        device=Device.CPU,
        max_model_len=64,
        max_num_seqs=2,
        max_num_batched_tokens=64,
    )
    answer = answered(Sound(), start)
    assert answer == Failed(kind=FailureKind.ENGINE, message="an engine is running already")
