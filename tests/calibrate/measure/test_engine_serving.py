import pytest

from planner.calibrate.measure.engine_protocol import Failed, FailureKind, Serve, Served
from planner.calibrate.measure.engine_serving import lengths, serve
from planner.calibrate.measure.engine_steps import Prompt
from planner.domain.calibration import ServingLoad
from tests.calibrate.measure.made_engine import MadeEngine


def served(engine: MadeEngine, load: ServingLoad, most_seconds: float = 1e5) -> Served:
    answer = serve(engine, Serve(load=load, most_seconds=most_seconds), engine.clock)
    assert isinstance(answer, Served), answer
    assert not engine.running
    assert not engine.waiting
    return answer


def test_every_user_sends_the_next_request_when_the_last_one_ended() -> None:
    engine = MadeEngine(step_s=lambda label: 1.0)
    load = ServingLoad(concurrency=2, input_tokens=10, output_tokens=4, num_requests=5)
    found = served(engine, load)
    # Two users, steps of 1 s, four tokens each: first token after 1 s, the last after 4, then the next pair.
    assert [one.sent_s for one in found.requests] == [0, 0, 4, 4, 8]
    assert {one.ttft_s for one in found.requests} == {1.0}
    assert {one.e2e_s for one in found.requests} == {4.0}
    assert {one.tpot_s for one in found.requests} == {1.0}
    assert found.steps == 12
    assert found.submit_s == 0


def test_a_prompt_of_two_steps_has_its_first_token_after_both() -> None:
    engine = MadeEngine(step_s=lambda label: 1.0)
    load = ServingLoad(concurrency=1, input_tokens=600, output_tokens=1, num_requests=1)
    (request,) = served(engine, load).requests
    assert (request.ttft_s, request.e2e_s, request.tpot_s) == (2.0, 2.0, None)


def test_lengths_follow_the_seed_and_stay_in_their_range() -> None:
    load = ServingLoad(
        concurrency=1, input_tokens=100, output_tokens=40, length_low_ratio=0.5, num_requests=200, seed=3
    )
    drawn = list(lengths(load))
    assert drawn == list(lengths(load))
    assert drawn != list(lengths(load.model_copy(update={"seed": 4})))
    assert {one.tokens for one in drawn} <= set(range(50, 101))
    assert {one.output_tokens for one in drawn} == set(range(20, 41))
    requests = served(MadeEngine(), load).requests
    assert [(one.input_tokens, one.output_tokens) for one in requests] == [
        (one.tokens, one.output_tokens) for one in drawn
    ]


def test_nothing_is_sent_after_its_time_and_what_runs_is_finished() -> None:
    engine = MadeEngine(step_s=lambda label: 1.0)
    load = ServingLoad(concurrency=1, input_tokens=10, output_tokens=4, num_requests=100)
    found = served(engine, load, most_seconds=9.0)
    # Requests end at 4, 8 and 12 s; the third is sent before 9 s and ends before 18.
    assert [one.e2e_s for one in found.requests] == [4.0, 4.0, 4.0]


def test_what_does_not_end_in_twice_its_time_is_dropped() -> None:
    engine = MadeEngine(step_s=lambda label: 1.0)
    load = ServingLoad(concurrency=2, input_tokens=10, output_tokens=100, num_requests=2)
    assert served(engine, load, most_seconds=9.0).requests == ()


def test_requests_longer_than_the_engine_takes_are_refused() -> None:
    load = ServingLoad(concurrency=2, input_tokens=4000, output_tokens=100, num_requests=2)
    answer = serve(MadeEngine(), Serve(load=load))
    assert isinstance(answer, Failed)
    assert answer.kind == FailureKind.UNSUPPORTED
    assert "max_model_len 4,096" in answer.message


def test_an_engine_that_runs_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.calibrate.measure.engine_serving.IDLE_STEPS", 10)

    class Idle(MadeEngine):
        def submit(self, prompt: Prompt) -> str:
            return "never"

    load = ServingLoad(concurrency=1, input_tokens=1, output_tokens=1, num_requests=1)
    answer = serve(Idle(), Serve(load=load))
    assert isinstance(answer, Failed)
    assert answer.kind == FailureKind.ENGINE
