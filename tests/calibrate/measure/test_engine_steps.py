from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.calibrate.measure.engine_protocol import Failed, FailureKind, Measure, Measured
from planner.calibrate.measure.engine_steps import Label, Step, in_words, measure, prefill_groups
from planner.domain.calibration import StepShape
from tests.calibrate.measure.made_engine import LIMITS, MadeEngine


def measured(engine: MadeEngine, asked: Measure) -> tuple[float, ...]:
    answer = measure(engine, asked, engine.clock)
    assert isinstance(answer, Measured), answer
    assert not engine.running
    assert not engine.waiting
    return answer.times_s


def refused(engine: MadeEngine, shape: StepShape, **settings: float) -> str:
    answer = measure(engine, Measure(shape=shape, **settings), engine.clock)
    assert isinstance(answer, Failed)
    assert answer.kind == FailureKind.UNSUPPORTED
    assert not engine.running
    return answer.message


@pytest.mark.parametrize("made_up", [True, False])
def test_decoding_steps_centre_on_the_context_and_the_admitting_step_does_not_count(made_up: bool) -> None:
    engine = MadeEngine(
        made_up_context=made_up, step_s=lambda label: min(cached for _, cached in label) * 1e-6
    )
    asked = Measure(shape=StepShape(decodes=8, context_tokens=100), repetitions=5, warmups=2)
    # Two warm-ups, then five timed: 98 99 100 101 102, whose middle is the context asked for.
    assert measured(engine, asked) == pytest.approx([98e-6, 99e-6, 100e-6, 101e-6, 102e-6])
    assert engine.steps[-7:] == [Counter({(1, context): 8}) for context in range(96, 103)]


def test_a_context_shorter_than_the_warm_ups_begins_at_one_token() -> None:
    engine = MadeEngine()
    assert len(measured(engine, Measure(shape=StepShape(decodes=2, context_tokens=1), warmups=3))) == 5
    assert engine.steps[0] == Counter({(1, 0): 2})
    assert engine.steps[1] == Counter({(1, 1): 2})


def test_a_prompt_after_cached_tokens_is_one_step_a_repetition() -> None:
    engine = MadeEngine()
    shape = StepShape(prompts=3, prompt_tokens=100, past_tokens=700)
    assert len(measured(engine, Measure(shape=shape, repetitions=4, warmups=1))) == 4
    assert engine.steps == [Counter({(100, 700): 3})] * 5


@pytest.mark.parametrize("made_up", [True, False])
def test_prompts_run_beside_sequences_that_go_on_decoding(made_up: bool) -> None:
    engine = MadeEngine(made_up_context=made_up)
    shape = StepShape(prompts=2, prompt_tokens=200, decodes=4, context_tokens=50)
    assert len(measured(engine, Measure(shape=shape, repetitions=3, warmups=1))) == 3
    assert engine.steps[-4:] == [Counter({(200, 0): 2, (1, context): 4}) for context in range(48, 52)]


def test_a_prompt_of_one_token_is_told_from_decoding_by_its_past() -> None:
    engine = MadeEngine()
    shape = StepShape(prompts=1, prompt_tokens=1, decodes=4, context_tokens=10)
    assert len(measured(engine, Measure(shape=shape))) == 5


def test_warm_ups_are_discarded() -> None:
    engine = MadeEngine()
    engine.step_s = lambda label: float(len(engine.steps))
    shape = StepShape(prompts=1, prompt_tokens=8)
    assert measured(engine, Measure(shape=shape, repetitions=2, warmups=3)) == (4.0, 5.0)


@pytest.mark.parametrize(
    ("most_seconds", "repetitions"),
    # A step takes 1 s. Within 3 times the time allowed three are wanted, after it one: with no warm-up, 10 s let
    # eleven run (the eleventh passes 10 s), 2 s three, and 0.2 s one.
    [(10.0, 11), (2.0, 3), (0.2, 1)],
)
def test_repetitions_end_when_their_time_is_over(most_seconds: float, repetitions: int) -> None:
    engine = MadeEngine(step_s=lambda label: 1.0)
    shape = StepShape(prompts=1, prompt_tokens=8)
    asked = Measure(shape=shape, repetitions=50, warmups=0, most_seconds=most_seconds)
    assert len(measured(engine, asked)) == repetitions


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (StepShape(decodes=17, context_tokens=9), "max_num_seqs 16"),
        (StepShape(prompts=2, prompt_tokens=257), "max_num_batched_tokens 512"),
        (StepShape(prompts=1, prompt_tokens=9, past_tokens=4090), "max_model_len 4,096"),
        (StepShape(decodes=1, context_tokens=4096), "max_model_len 4,096"),
        (StepShape(decodes=16, context_tokens=2000), "the engine has 1,000"),
    ],
)
def test_what_the_engine_cannot_hold_is_refused_before_it_is_tried(shape: StepShape, words: str) -> None:
    engine = MadeEngine()
    assert words in refused(engine, shape)
    assert not engine.sent


def test_asynchronous_scheduling_hides_steps() -> None:
    engine = MadeEngine(async_scheduling=True)
    assert "asynchronous" in refused(engine, StepShape(decodes=1, context_tokens=8))


def test_an_engine_that_runs_another_shape_is_not_believed() -> None:
    class SmallerThanItSays(MadeEngine):
        def step(self) -> Step:
            self.limits = LIMITS._replace(max_num_batched_tokens=64)
            found = super().step()
            self.limits = LIMITS
            return found

    message = refused(SmallerThanItSays(), StepShape(prompts=1, prompt_tokens=100))
    assert message == "the engine ran 1 x 64 tokens after 0 instead of 1 x 100 prompt tokens"


def test_without_made_up_context_nothing_can_be_cached_before_a_prompt() -> None:
    shape = StepShape(prompts=1, prompt_tokens=10, past_tokens=10)
    assert "made-up context" in refused(MadeEngine(made_up_context=False), shape)


def test_computing_context_ends_when_its_time_is_over() -> None:
    engine = MadeEngine(made_up_context=False, step_s=lambda label: 1.0)
    assert "too long" in refused(engine, StepShape(decodes=8, context_tokens=1500), most_seconds=1)


@given(count=st.integers(1, 16), context=st.integers(1, 600), budget=st.integers(20, 600))
def test_sequences_stand_at_one_context_once_all_prompts_are_computed(
    count: int, context: int, budget: int
) -> None:
    engine = MadeEngine(made_up_context=False, limits=LIMITS._replace(max_num_batched_tokens=budget))
    answer = measure(engine, Measure(shape=StepShape(decodes=count, context_tokens=context), warmups=0))
    if isinstance(answer, Failed):
        assert "cannot be brought" in answer.message
        assert context - 2 < count * -(-context // max(budget - count, 1))
    else:
        assert len(answer.times_s) == 5


def test_groups_of_prompts_share_a_step_where_they_fit() -> None:
    # 7 sequences of 100 tokens, 320 a step. The last group: (320 - 7) // 99 = 3 of 100 beside 4 decoding (304); before
    # it (320 - 4) // 98 = 3 of 99 beside 1 (298), and before that one of 98.
    assert [(one.sequences, one.tokens, one.steps) for one in prefill_groups(7, 100, 320)] == [
        (1, 98, 1),
        (3, 99, 1),
        (3, 100, 1),
    ]


def test_a_long_label_is_cut() -> None:
    assert in_words(Label()) == "nothing"
    assert in_words(Label({(1, past): 1 for past in range(6)})).endswith("after 3 and 2 more")
