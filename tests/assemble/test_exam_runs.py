"""A calibration run as an exam: predictions against a device whose factors are known, and two guesses."""

from pathlib import Path

import pytest

from planner.assemble.exam_runs import examine
from planner.assemble.fit_runs import fit_gpus
from planner.assemble.known import known_now
from planner.calibrate.store import write_gpu_fit
from planner.domain.base import InputError
from planner.domain.calibration import StepShape
from tests.assemble.device_runs import device_run
from tests.calibrate import made_steps as made
from tests.export.made_run import SHAPES, serving_point


def test_without_a_fit_there_is_nothing_to_guess_by(tmp_path: Path) -> None:
    run = device_run("first")
    exam = examine(run, known_now(tmp_path), [])
    assert [step.shape for step in exam.steps] == list(SHAPES)
    assert [step.measured_s for step in exam.steps] == [point.median_s for point in run.points]
    assert {(step.mean_s, step.nearest_s, step.known) for step in exam.steps} == {(None, None, False)}
    errors = [abs(step.predicted_s / step.measured_s - 1.0) for step in exam.steps]
    assert max(errors) > 0.25
    assert exam.serving == ()


def test_new_shapes_are_predicted_better_than_guessed(tmp_path: Path) -> None:
    """New shapes between those that were fitted, against times without noise."""
    fitted = device_run("first")
    (one,) = fit_gpus([fitted], known_now(tmp_path))
    write_gpu_fit(one.fit, tmp_path)
    new = (
        StepShape(decodes=2, context_tokens=16),
        StepShape(decodes=32, context_tokens=600),
        StepShape(prompts=1, prompt_tokens=512),
    )
    exam = examine(device_run("second", (*new, SHAPES[0])), known_now(tmp_path), [fitted])
    assert [step.known for step in exam.steps] == [False, False, False, True]
    truth = made.true_s(made.deployment(), new).tolist()
    assert [step.predicted_s for step in exam.steps[:3]] == pytest.approx(truth, rel=0.06)
    medians = {point.shape: point.median_s for point in fitted.points}
    mean_s = sum(medians.values()) / len(medians)
    assert [step.mean_s for step in exam.steps] == pytest.approx([mean_s] * 4)
    # Two sequences are as near to 1 as to 4 in log2, and nearer to 1 in log(1 + n): 0.41 against 0.51.
    assert exam.steps[0].nearest_s == medians[StepShape(decodes=1, context_tokens=16)]
    assert exam.steps[3].nearest_s == medians[SHAPES[0]]
    for step in exam.steps[:3]:
        assert step.mean_s is not None
        off = abs(step.predicted_s - step.measured_s)
        assert off < 0.5 * abs(step.mean_s - step.measured_s)


def test_serving_runs_are_simulated(tmp_path: Path) -> None:
    """Two users at 100 tokens: a step of 100 tokens, then one of two sequences for each further token."""
    run = device_run("served", serving=(serving_point(),))
    write_gpu_fit(fit_gpus([run.model_copy(update={"serving": ()})], known_now(tmp_path))[0].fit, tmp_path)
    (served,) = examine(run, known_now(tmp_path), []).serving
    assert (served.concurrency, served.requests) == (2, 4)
    assert (served.ttft_measured_s, served.tpot_measured_s) == pytest.approx((0.05, 0.01))
    steps = (StepShape(prompts=1, prompt_tokens=100), StepShape(decodes=2, context_tokens=105))
    prompt_s, decode_s = made.true_s(made.deployment(), steps).tolist()
    assert 0.95 * prompt_s < served.ttft_predicted_s < 2.5 * prompt_s
    # Each user's ten steps may be held up by the other's prompt once.
    assert 0.9 * decode_s < served.tpot_predicted_s < decode_s + 0.11 * prompt_s


def test_runs_without_times_or_engine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^empty: it measured nothing$"):
        examine(device_run("empty", points=()), known_now(tmp_path), [])
    with pytest.raises(InputError, match=r"^dead: its engine never started"):
        examine(device_run("dead", engine=None), known_now(tmp_path), [])
