"""One batch after the other, on a made engine."""

from typing import cast

import pytest

from planner.calibrate.measure import session
from planner.calibrate.measure.design import EngineLimits, Plan
from planner.calibrate.measure.engine_protocol import Start
from planner.calibrate.measure.probe import Probe
from planner.calibrate.measure.session import BATCH, DRIFT_EVERY, Budget, StepSession, Tools
from planner.domain.calibration import CalibrationRun, Device
from planner.domain.dtypes import WeightDtype
from tests.calibrate.made_steps import ENGINE, MACHINE, MEMORY, deployment, target
from tests.calibrate.measure.made_process import START_S, Clock, MadeProbe, MadeProcess

START = Start(
    config_dir="nowhere",
    stored_dtype=WeightDtype.BF16,
    weight_dtype=WeightDtype.BF16,
    device=Device.CPU,
    max_model_len=ENGINE.max_model_len,
    max_num_seqs=ENGINE.max_num_seqs,
    max_num_batched_tokens=ENGINE.max_num_batched_tokens,
)
LIMITS = EngineLimits(ENGINE.max_model_len, ENGINE.max_num_seqs, 2048, MEMORY.kv_cache_tokens or 0, 16)
RUN = CalibrationRun(
    run_id="made",
    planner_version="0",
    started_at="2026-01-01T00:00:00+00:00",
    budget_s=30.0,
    engine=ENGINE,
    memory=MEMORY,
    target=target(),
    machine=MACHINE,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(session, "time", made)
    return made


def measured(clock: Clock, budget_s: float, run: CalibrationRun = RUN) -> CalibrationRun:
    process = MadeProcess(clock)
    process.start(START)
    tools = Tools(cast(Probe, MadeProbe(clock)), lambda kept: None, lambda progress: None)
    one = StepSession(run, deployment(), tools, Plan(repetitions=3, warmups=1, overhead_s=0.02))
    one.measure(process, LIMITS, Budget(clock.now_s, budget_s))
    return one.run


def test_it_ends_with_its_budget(clock: Clock) -> None:
    began_s = clock.now_s
    run = measured(clock, 8.0)
    # The last shape was chosen to fit what was left, by what was expected of it.
    assert 6.0 < clock.now_s - began_s - START_S < 9.0
    assert len(run.points) > BATCH


def test_the_first_shape_is_measured_again_to_tell_drift(clock: Clock) -> None:
    run = measured(clock, 20.0)
    first = run.points[0].shape
    again = [index for index, point in enumerate(run.points) if point.shape == first]
    assert len(again) >= 2
    # In every third batch of BATCH shapes, and that one besides.
    assert again[1] in range((DRIFT_EVERY - 1) * BATCH, DRIFT_EVERY * BATCH + 1)
    counts = {
        shape: sum(point.shape == shape for point in run.points) for shape in {p.shape for p in run.points}
    }
    assert all(count == 1 for shape, count in counts.items() if shape != first)


def test_every_shape_fits_the_engine(clock: Clock) -> None:
    assert all(LIMITS.allows(point.shape) for point in measured(clock, 20.0).points)


def test_more_attempts_than_a_run_can_count_are_no_failure(clock: Clock) -> None:
    run = measured(clock, 8.0)
    many = run.model_copy(update={"points": run.points[:1] * 150 + run.points[1:13]})
    assert max(point.attempt for point in measured(clock, 30.0, many).points) == 100
