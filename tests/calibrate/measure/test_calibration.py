"""The whole loop on an engine that computes nothing and a clock that it alone moves."""

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import pytest

from planner.calibrate.measure import calibration, session
from planner.calibrate.measure.calibration import MOST_DEATHS, Calibration, Setting, changed_flags
from planner.calibrate.measure.design import Plan
from planner.calibrate.measure.engine_process import EngineDied, EngineProcess
from planner.calibrate.measure.engine_protocol import Failed, FailureKind, Measure, Serve, Start
from planner.calibrate.measure.probe import Probe
from planner.calibrate.measure.session import Budget, Tools
from planner.calibrate.step_deployment import operators_before
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, Device, RunEnd, StepShape
from planner.domain.dtypes import WeightDtype
from tests.calibrate.made_steps import ENGINE, MACHINE, target
from tests.calibrate.measure.made_process import START_S, Clock, MadeProbe, MadeProcess, out_of_memory

START = Start(
    config_dir="nowhere",
    stored_dtype=WeightDtype.BF16,
    weight_dtype=WeightDtype.BF16,
    device=Device.CPU,
    max_model_len=ENGINE.max_model_len,
    max_num_seqs=ENGINE.max_num_seqs,
    max_num_batched_tokens=ENGINE.max_num_batched_tokens,
)
EMPTY = CalibrationRun(
    run_id="made",
    planner_version="0",
    started_at="2026-01-01T00:00:00+00:00",
    budget_s=30.0,
    target=target(),
    machine=MACHINE,
)


class World:
    """A process, a clock, and every state of the run that was kept."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.process = MadeProcess(self.clock)
        self.probe = MadeProbe(self.clock)
        self.kept: list[CalibrationRun] = []

    def measure(
        self,
        run: CalibrationRun = EMPTY,
        *,
        budget_s: float = 30.0,
        device: Device = Device.CPU,
        save: Callable[[CalibrationRun], None] | None = None,
    ) -> CalibrationRun:
        setting = Setting(
            engine=cast(EngineProcess, self.process),
            start=START.model_copy(update={"device": device}),
            operators=operators_before(MACHINE, ()),
            plan=Plan(repetitions=3, warmups=1, overhead_s=0.02),
            budget=Budget(self.clock.now_s, budget_s),
            tools=Tools(cast(Probe, self.probe), save or self.kept.append, lambda progress: None),
        )
        return Calibration(run, setting).measure()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    for module in (session, calibration):
        monkeypatch.setattr(module, "time", made.clock)
    return made


def test_steps_then_serving_within_the_budget(world: World) -> None:
    began_s = world.clock.now_s
    run = world.measure()
    assert (run.end, run.end_reason) == (RunEnd.FINISHED, "")
    assert world.clock.now_s - began_s < 1.1 * 30.0
    assert not world.process.runs
    assert run.engine is not None
    assert run.memory is not None
    assert {point.shape.kind.value for point in run.points} == {"prefill", "decode", "mixed"}
    assert all(len(point.times_s) == 3 for point in run.points)
    assert [point.load.concurrency for point in run.serving] == [4, 16]
    assert all(point.requests for point in run.serving)
    assert "power cannot be read: made up" in run.notes
    # A quarter of what the start left is for serving.
    steps = [index for index, asked in enumerate(world.process.asked) if isinstance(asked, Measure)]
    assert steps == list(range(len(steps)))


def test_every_point_is_kept_as_it_comes(world: World) -> None:
    run = world.measure()
    counts = [len(one.points) for one in world.kept]
    assert counts == sorted(counts)
    assert {after - before for before, after in pairwise(counts)} <= {0, 1}
    assert all(one.end is RunEnd.RUNNING for one in world.kept[:-1])
    assert world.kept[-1] == run


def test_the_order_follows_the_run_and_is_shuffled(world: World) -> None:
    world.measure(budget_s=15.0)
    first = list(world.process.shapes)
    orders = []
    for run_id in ("made", "another"):
        world.process.asked.clear()
        world.measure(EMPTY.model_copy(update={"run_id": run_id}), budget_s=15.0)
        orders.append(list(world.process.shapes))
    assert orders[0] == first
    assert set(orders[1][:6]) == set(first[:6])
    assert orders[1][:6] != first[:6]


def test_running_out_of_memory_lowers_the_grid_and_ends_nothing(world: World) -> None:
    world.process.refuses = out_of_memory
    run = world.measure()
    assert run.end is RunEnd.FINISHED
    failed = [point for point in run.points if point.failed]
    assert failed
    assert all(point.failed.startswith("out_of_memory: CUDA out of memory") for point in failed)
    for index, point in enumerate(run.points):
        for earlier in run.points[:index]:
            if earlier.failed:
                larger = (
                    point.shape.scheduled_tokens >= earlier.shape.scheduled_tokens
                    and point.shape.cached_tokens >= earlier.shape.cached_tokens
                )
                # The batch in hand was chosen before.
                assert not larger or index - run.points.index(earlier) < 7
    assert any("shapes were not measured" in line for line in run.notes)


def test_disturbed_points_are_measured_once_more_and_said(world: World) -> None:
    uses = iter([0.0, 0.9, 0.0] + 10_000 * [0.0])
    world.probe.use = lambda: next(uses)
    run = world.measure()
    (bad,) = [point for point in run.points if point.disturbed]
    assert bad.disturbed == ("others used 90% of the cores",)
    again = [point for point in run.points if point.shape == bad.shape]
    assert [point.attempt for point in again][:2] == [1, 2]
    assert not next(point for point in run.measured if point.shape == bad.shape).disturbed


def test_a_machine_that_is_always_busy_is_measured_all_the_same(world: World) -> None:
    world.probe.use = lambda: 0.9
    run = world.measure()
    assert run.end is RunEnd.FINISHED
    assert len(run.measured) > 10
    assert all(point.disturbed for point in run.measured)


def test_an_engine_that_dies_is_started_again_and_not_asked_for_that_again(world: World) -> None:
    deadly: list[StepShape] = []

    def dies(asked: Measure | Serve) -> bool:
        if isinstance(asked, Measure) and (len(world.process.asked) == 5 or asked.shape in deadly):
            deadly.append(asked.shape)
            return True
        return False

    world.process.dies_at = dies
    run = world.measure(budget_s=60.0)
    assert run.end is RunEnd.FINISHED
    assert world.process.starts == 2
    assert len(deadly) == 1
    (failed,) = [point for point in run.points if point.failed]
    assert failed.shape == deadly[0]
    assert failed.failed.startswith("engine: the engine process was killed")
    assert len(run.points) > 10


def test_the_first_point_is_no_measure_of_drift_where_the_engine_died_at_it(world: World) -> None:
    world.process.dies_at = lambda asked: len(world.process.asked) == 1
    run = world.measure(budget_s=60.0)
    assert run.points[0].failed
    assert world.process.shapes.count(run.points[0].shape) == 1


def test_an_engine_that_dies_again_and_again_ends_the_run(world: World) -> None:
    world.process.dies_at = lambda asked: isinstance(asked, Measure)
    run = world.measure(budget_s=600.0)
    assert run.end is RunEnd.FAILED
    assert run.end_reason.startswith(f"the engine died {MOST_DEATHS} times")
    assert world.process.starts == MOST_DEATHS
    assert len(run.points) == MOST_DEATHS


def test_a_death_while_serving_is_recorded_and_the_next_load_runs(world: World) -> None:
    world.process.dies_at = lambda asked: isinstance(asked, Serve) and asked.load.concurrency == 4
    run = world.measure(budget_s=60.0)
    assert run.end is RunEnd.FINISHED
    assert [(point.load.concurrency, bool(point.requests)) for point in run.serving] == [
        (4, False),
        (16, True),
    ]
    assert "SIGKILL" in run.serving[0].failed


NO_MEMORY = Failed(kind=FailureKind.OUT_OF_MEMORY, message="CUDA out of memory. Tried to allocate 2 GiB.")
KILLED = "the engine process was killed by signal 9 (SIGKILL)"


@pytest.mark.parametrize("killed", [False, True])
def test_points_that_the_engine_does_not_outlive_lower_the_grid_and_are_no_deaths(
    world: World, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setattr(calibration, "MOST_DEATHS", 1)
    if killed:
        world.process.death = lambda: EngineDied(KILLED, out_of_memory=True)
        world.process.dies_at = lambda asked: (
            isinstance(asked, Measure) and out_of_memory(asked.shape) is not None
        )
    else:
        world.process.refuses = out_of_memory
        world.process.loses_engine = True
    run = world.measure(budget_s=45.0)
    assert (run.end, run.end_reason) == (RunEnd.FINISHED, "")
    failed = [point for point in run.points if point.failed]
    assert len(failed) >= 2
    # Only shapes that need too much, each as what it was; none that came after.
    assert {point.failed for point in failed} == {
        f"out_of_memory: {KILLED if killed else 'CUDA out of memory'}"
    }
    assert all(out_of_memory(point.shape) for point in failed)
    assert len({point.shape for point in failed}) == len(failed)
    # Each loss is a start of its own.
    assert world.process.starts == len(failed) + 1
    assert run.measured


def test_an_engine_that_dies_with_no_time_left_is_no_failure(world: World) -> None:
    world.process.dies_at = lambda asked: len(world.process.asked) == 20
    run = world.measure(budget_s=12.0 + START_S)
    assert run.end is RunEnd.FINISHED
    assert world.process.starts == 1
    assert sum(bool(point.failed) for point in run.points) == 1


@pytest.mark.parametrize("failure", [NO_MEMORY, EngineDied(KILLED, out_of_memory=None)])
def test_a_start_without_memory_is_tried_once_more_with_less(
    world: World, failure: Failed | EngineDied
) -> None:
    world.process.start_failures = [failure]
    run = world.measure(device=Device.CUDA, budget_s=35.0)
    assert run.end is RunEnd.FINISHED
    first, second = world.process.started_with[:2]
    assert second.gpu_memory_utilization < first.gpu_memory_utilization
    assert second.max_num_seqs == first.max_num_seqs // 2
    assert run.engine is not None
    assert run.engine.max_num_seqs == second.max_num_seqs
    assert all(point.shape.prompts + point.shape.decodes <= second.max_num_seqs for point in run.points)
    (note,) = [line for line in run.notes if line.startswith("started with ")]
    assert f"max_num_seqs {second.max_num_seqs}" in note
    assert ("CUDA out of memory" if failure is NO_MEMORY else "SIGKILL") in note
    # Later starts, to serve, ask for no more.
    assert {one.max_num_seqs for one in world.process.started_with[1:]} == {second.max_num_seqs}


def test_a_second_start_without_memory_ends_in_one_line(world: World) -> None:
    world.process.start_failures = [NO_MEMORY, EngineDied(KILLED, out_of_memory=True)]
    run = world.measure()
    assert run.end is RunEnd.FAILED
    assert world.process.starts == 2
    assert run.end_reason.startswith("CUDA out of memory. Tried to allocate 2 GiB.; with ")
    assert run.end_reason.endswith(f"it did not start either: vLLM did not start: {KILLED}")
    assert world.kept[-1] == run


def test_a_start_that_crashes_is_not_tried_again(world: World) -> None:
    world.process.start_failures = [EngineDied("the engine process was killed by signal 11 (SIGSEGV)")]
    run = world.measure()
    assert run.end is RunEnd.FAILED
    assert world.process.starts == 1
    assert run.end_reason == "vLLM did not start: the engine process was killed by signal 11 (SIGSEGV)"


def test_an_engine_that_does_not_start_again_says_what_is_kept(world: World) -> None:
    world.process.dies_at = lambda asked: len(world.process.asked) == 7
    world.process.start_failures = [None, NO_MEMORY, NO_MEMORY]
    run = world.measure(device=Device.CUDA, budget_s=40.0)
    assert run.end is RunEnd.FAILED
    assert run.end_reason.endswith("; 7 points are kept")
    assert len(run.points) == 7
    # Under other limits the points would be of another engine.
    assert world.process.started_with[2].max_num_seqs == START.max_num_seqs


def test_servers_schedule_asynchronously_and_without_made_up_context(world: World) -> None:
    run = world.measure(device=Device.CUDA, budget_s=35.0)
    assert run.end is RunEnd.FINISHED
    steps, serves = world.process.started_with
    assert (steps.async_scheduling, steps.made_up_context) == (False, True)
    assert (serves.async_scheduling, serves.made_up_context) == (True, False)
    assert run.engine is not None
    assert not run.engine.async_scheduling
    assert run.serving
    assert all(point.requests and point.async_scheduling for point in run.serving)


def test_an_engine_that_does_not_start_as_servers_do_serves_as_steps_were_made(world: World) -> None:
    world.process.start_failures = [None, EngineDied("the engine process ended with exit code 1")]
    run = world.measure(device=Device.CUDA, budget_s=40.0)
    assert run.end is RunEnd.FINISHED
    assert [one.async_scheduling for one in world.process.started_with] == [False, True, False]
    assert run.serving
    assert all(point.requests and not point.async_scheduling for point in run.serving)
    assert any(
        line.startswith("not served asynchronously, as servers do: vLLM did not") for line in run.notes
    )


def test_an_engine_that_does_not_start_is_said(world: World) -> None:
    world.process.start_failure = Failed(kind=FailureKind.CONFIG, message="heads must divide")
    run = world.measure()
    assert (run.end, run.end_reason) == (RunEnd.FAILED, "heads must divide")
    assert world.process.starts == 1
    assert not run.points


def test_a_budget_that_the_start_uses_up_is_no_success(world: World) -> None:
    run = world.measure(budget_s=START_S)
    assert run.end is RunEnd.FAILED
    assert "left no time for a step" in run.end_reason


def test_limits_that_no_step_fits_are_named(world: World) -> None:
    world.process.setup = ENGINE.model_copy(update={"max_model_len": 32})
    run = world.measure()
    assert run.end is RunEnd.FAILED
    assert run.end_reason == "no step fits 32 tokens in blocks of 16"


def test_an_interrupt_keeps_what_is_there_and_resuming_goes_on(world: World) -> None:
    world.process.interrupt_after = 12
    half = world.measure()
    assert (half.end, half.end_reason) == (RunEnd.INTERRUPTED, "interrupted")
    assert len(half.points) == 12
    assert not world.process.runs
    world.process.interrupt_after = 10**9
    world.process.asked.clear()
    run = world.measure(half.model_copy(update={"end": RunEnd.RUNNING}))
    assert run.end is RunEnd.FINISHED
    assert run.points[:12] == half.points
    drift = half.points[0].shape
    known = {point.shape for point in half.points} - {drift}
    assert not known & set(world.process.shapes)


def test_points_of_another_engine_are_not_mixed(world: World) -> None:
    world.process.interrupt_after = 5
    half = world.measure()
    world.process.setup = ENGINE.model_copy(update={"threads": 7})
    run = world.measure(half)
    assert run.end is RunEnd.FAILED
    assert (
        run.end_reason == "the points so far are of another engine (threads 0, now 7): start a run of its own"
    )
    assert run.points == half.points
    assert run.engine == half.engine


def test_engines_differ_by_more_than_their_start() -> None:
    assert changed_flags(ENGINE, ENGINE.model_copy(update={"start_s": 9.0})) == ""
    assert changed_flags(ENGINE, ENGINE.model_copy(update={"block_size": 32})) == "block_size 16, now 32"


def test_serving_runs_are_not_repeated_on_resume(world: World) -> None:
    done = world.measure()
    world.process.asked.clear()
    again = world.measure(done, budget_s=20.0)
    assert again.serving == done.serving


def test_a_disk_that_is_full_ends_the_run_and_the_engine(world: World) -> None:
    def save(run: CalibrationRun) -> None:
        if len(run.points) == 3:
            raise InputError("cannot write run.json: No space left on device")

    with pytest.raises(InputError, match="No space left"):
        world.measure(save=save)
    assert not world.process.runs
