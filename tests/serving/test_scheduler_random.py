"""The compiled scheduler on random loads: equal to a plain one step by step, and within its limits."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings

from planner.serving.scheduler_types import Outcome
from tests.serving.made_loads import compiled, questions, stream_of
from tests.serving.reference_scheduler import Request, Setting, schedule, written
from tests.serving.replay import LOG_ROWS, steps_of


@settings(max_examples=300, deadline=None)
@given(questions())
def test_equal_to_a_plain_scheduler(question: tuple[Setting, list[Request]]) -> None:
    setting, requests = question
    out = compiled(setting, stream_of(requests, 4), LOG_ROWS)
    history = written(schedule(setting, requests))
    ends_s = [end_s for request in requests for end_s in request.token_times_s]
    # A request that comes as a step ends, but for rounding, may be seen in either.
    assume(not any(0 < abs(request.sent_s - end_s) < 1e-9 for request in requests for end_s in ends_s))
    assert steps_of(out) == history
    for name in ("first_token_s", "finished_s"):
        wanted = [getattr(request, name) for request in requests]
        np.testing.assert_allclose(getattr(out, name), wanted, rtol=1e-9, atol=1e-9)
    assert out.preemptions.tolist() == [request.preemptions for request in requests]
    assert out.gaps.sum() == sum(request.output - 1 for request in requests)
    assert out.totals[3] <= setting.blocks


@settings(max_examples=150, deadline=None)
@given(questions())
def test_blocks_in_use_are_those_of_a_plain_scheduler(question: tuple[Setting, list[Request]]) -> None:
    """The peak is equal; over time a jumped stretch is off by less than a block for each request that runs."""
    setting, requests = question
    out = compiled(setting, stream_of(requests, 4))
    steps = [step for step in schedule(setting, requests) if step.tokens]
    assert out.totals[3] == max(step.used_blocks for step in steps)
    used = sum(step.used_blocks * step.length_s for step in steps)
    assert out.series[:, 3].sum() == pytest.approx(used, abs=out.series[:, 1].sum())


class Step(NamedTuple):
    """One decision out of the log."""

    tokens: dict[int, int]
    admitted: set[int]
    preempted: set[int]


def steps_logged(out: Outcome) -> list[Step]:
    steps = []
    for text in steps_of(out):
        words = text.split()
        got = [word.removeprefix("+").split(":") for word in words if word[0] != "-"]
        steps.append(
            Step(
                {int(number): int(tokens) for number, tokens in got},
                {int(word[1:].split(":")[0]) for word in words if word[0] == "+"},
                {int(word[1:]) for word in words if word[0] == "-"},
            )
        )
    return steps


class TestInvariants:
    @settings(max_examples=150, deadline=None)
    @given(questions())
    def test_littles_law_on_every_run(self, question: tuple[Setting, list[Request]]) -> None:
        setting, requests = question
        out = compiled(setting, stream_of(requests, 4))
        # Mean in the system x time is the sum of stays.
        present = out.series[:, 1].sum() + out.series[:, 2].sum()
        assert present == pytest.approx((out.finished_s - out.sent_s).sum(), rel=1e-9)
        assert out.series[:, 0].sum() == pytest.approx(out.totals[1], rel=1e-9)
        assert out.series[:, 4].sum() == pytest.approx(out.totals[2], rel=1e-9)

    @settings(max_examples=150, deadline=None)
    @given(questions())
    def test_every_request_ends_and_equals_are_served_in_turn(
        self, question: tuple[Setting, list[Request]]
    ) -> None:
        setting, requests = question
        out = compiled(setting, stream_of(requests, 4))
        assert (out.sent_s <= out.scheduled_s).all()
        assert (out.scheduled_s < out.first_token_s).all()
        assert (out.first_token_s <= out.finished_s).all()
        assert out.finished_s.max() == out.totals[5]
        for priority in (0, 1, 2) if setting.priority_policy else (None,):
            equals = [one.number for one in requests if priority in (None, one.priority)]
            assert (np.diff(out.scheduled_s[equals]) >= 0).all()

    @settings(max_examples=150, deadline=None)
    @given(questions())
    def test_limits_hold_and_tokens_are_conserved(self, question: tuple[Setting, list[Request]]) -> None:
        setting, requests = question
        setting = setting._replace(prefix_caching=False)
        out = compiled(setting, stream_of(requests, 4), LOG_ROWS)
        computed: dict[int, int] = {}
        answered = dict.fromkeys(range(len(requests)), 0)
        for step in steps_logged(out):
            for number in step.preempted:
                if answered[number] == requests[number].output:
                    assert setting.async_scheduling
                    continue
                del computed[number]
            for number in step.admitted:
                assert number not in computed
                computed[number] = 0
            assert sum(step.tokens.values()) <= setting.max_num_batched_tokens
            assert set(step.tokens) <= set(computed)
            assert len(computed) <= setting.max_num_seqs
            for number, tokens in step.tokens.items():
                known = requests[number].prompt + answered[number]
                computed[number] += tokens
                assert tokens > 0
                assert computed[number] <= known
                answered[number] += computed[number] == known
            assert sum(-(-tokens // setting.block_tokens) for tokens in computed.values()) <= setting.blocks
            for number in [one for one in computed if answered[one] == requests[one].output]:
                # Its last token needs no keys and values.
                assert computed.pop(number) == requests[number].prompt + requests[number].output - 1
        assert not computed
        assert answered == {one.number: one.output for one in requests}

    @settings(max_examples=150, deadline=None)
    @given(questions())
    def test_nobody_starves(self, question: tuple[Setting, list[Request]]) -> None:
        """Without priorities nobody new is admitted before a request that was preempted: the oldest always gets on."""
        setting, requests = question
        setting = setting._replace(priority_policy=False)
        waiting: set[int] = set()
        begun: set[int] = set()
        steps = steps_logged(compiled(setting, stream_of(requests, 4), LOG_ROWS))
        last = {number: at for at, step in enumerate(steps) for number in step.tokens}
        for at, step in enumerate(steps):
            # One that had ended when it was preempted does not come back.
            waiting |= {number for number in step.preempted if last[number] >= at}
            assert not waiting - step.admitted or step.admitted <= waiting
            waiting -= step.admitted
            begun |= step.admitted
        assert not waiting
        assert begun == set(range(len(requests)))

    @settings(max_examples=100, deadline=None)
    @given(questions())
    def test_the_log_changes_nothing(self, question: tuple[Setting, list[Request]]) -> None:
        setting, requests = question
        stream = stream_of(requests, 4)
        with_log, without = compiled(setting, stream, LOG_ROWS), compiled(setting, stream)
        short = compiled(setting, stream, 2)
        assert (short.log == with_log.log[:2]).all()
        for one in (without, short):
            np.testing.assert_array_equal(one.finished_s, with_log.finished_s)
            np.testing.assert_array_equal(one.totals, with_log.totals)
