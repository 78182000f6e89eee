"""The compiled scheduler: equal to a plain one step by step, by hand, and as queueing theory wants it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings
from planner.formulas.host_time import NO_HOST_TIME
from planner.serving.arrivals import plain_stream, with_prefixes
from planner.serving.scheduler_loop import run
from planner.serving.scheduler_types import (
    BlockPool,
    Outcome,
    RequestStream,
    SchedulerLimits,
    StepTimes,
    empty_outcome,
)
from planner.serving.simulation import Replica, simulate, tpot_s, ttft_s
from tests.serving.reference_scheduler import Request, Setting, schedule

GAPS_S = (0.0, 0.0051713, 0.0313171, 0.4071337)
"""Off the grid of step times, so that no arrival falls on the border of a step."""


def times_of(setting: Setting) -> StepTimes:
    grid, nothing = np.array([1.0, 1e6]), np.zeros(1)
    return StepTimes(
        grid_tokens=grid,
        body_s=setting.fixed_s + grid * setting.per_token_s,
        head_s=np.zeros(2),
        decode_constant_s=0.0,
        decode_per_sequence_s=0.0,
        scope_tokens=np.array([1e18]),
        decode_per_token_s=nothing,
        context_constant_s=0.0,
        context_per_token_s=0.0,
        context_per_pair_s=nothing,
        context_per_past_s=nothing,
        captured_tokens=np.zeros(0),
        host_s=0.0,
        host_per_sequence_s=0.0,
        front_s=0.0,
        front_per_token_s=0.0,
    )


def pool_of(blocks: int, block_tokens: int = 16) -> BlockPool:
    return BlockPool(
        blocks, np.array([block_tokens]), np.array([0]), np.array([False]), np.zeros(1, dtype=np.int64)
    )


def compiled(setting: Setting, stream: RequestStream) -> Outcome:
    out = empty_outcome(stream.prompt_tokens.size)
    limits = SchedulerLimits(
        setting.max_num_seqs,
        setting.max_num_batched_tokens,
        setting.long_prefill_token_threshold,
        setting.users,
        setting.priority_policy,
        setting.reserve_full_prompt,
        setting.async_scheduling,
    )
    run(stream, limits, pool_of(setting.blocks, setting.block_tokens), times_of(setting), out)
    return out


def stream_of(requests: list[Request]) -> RequestStream:
    stream = plain_stream(
        np.array([request.sent_s for request in requests]),
        np.array([request.prompt for request in requests]),
        np.array([request.output for request in requests]),
    )
    return stream._replace(priority=np.array([request.priority for request in requests], dtype=np.int64))


@st.composite
def questions(draw: st.DrawFn) -> tuple[Setting, list[Request]]:
    lengths = draw(
        st.lists(
            st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=10
        )
    )
    largest = max(-(-(prompt + output) // 4) for prompt, output, _ in lengths)
    seqs = draw(st.integers(1, 8))
    users = draw(st.sampled_from([0, 0, 1, 3]))
    setting = Setting(
        blocks=largest + draw(st.integers(0, 20)),
        block_tokens=4,
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(seqs, 70)),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 7])),
        users=users,
        priority_policy=draw(st.booleans()),
        reserve_full_prompt=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
    )
    sent_s = np.cumsum([0.0 if users else draw(st.sampled_from(GAPS_S)) for _ in lengths])
    return setting, [
        Request(number, float(sent_s[number]), prompt, output, priority)
        for number, (prompt, output, priority) in enumerate(lengths)
    ]


@settings(max_examples=300, deadline=None)
@given(questions())
def test_equal_to_a_plain_scheduler(question: tuple[Setting, list[Request]]) -> None:
    setting, requests = question
    out = compiled(setting, stream_of(requests))
    schedule(setting, requests)
    for name in ("first_token_s", "finished_s"):
        wanted = [getattr(request, name) for request in requests]
        np.testing.assert_allclose(getattr(out, name), wanted, rtol=1e-9, atol=1e-9)
    assert out.preemptions.tolist() == [request.preemptions for request in requests]
    assert out.gaps.sum() == sum(request.output - 1 for request in requests)
    assert out.totals[3] <= setting.blocks


class TestByHand:
    def test_two_requests_share_a_step(self) -> None:
        # Both prompts fill one step of 30 tokens: 10 + 30 = 40 ms. Then three steps of two tokens, 12 ms each: the
        # first request has its 3 tokens after two of them, the second its 4 after the third, alone: 11 ms.
        stream = plain_stream(np.zeros(2), np.array([10, 20]), np.array([3, 4]))
        out = compiled(Setting(), stream)
        assert out.first_token_s == pytest.approx([0.040, 0.040])
        assert out.finished_s == pytest.approx([0.064, 0.075])

    def test_a_long_prompt_is_cut_and_answers_wait_for_nobody(self) -> None:
        # Budget 16: the first prompt of 16 goes alone (26 ms), then its token and 15 of the second's 20 (26 ms), then
        # its second token and the remaining 5 (16 ms).
        stream = plain_stream(np.zeros(2), np.array([16, 20]), np.array([3, 1]))
        out = compiled(Setting(max_num_batched_tokens=16), stream)
        assert out.first_token_s == pytest.approx([0.026, 0.068])
        assert out.finished_s == pytest.approx([0.068, 0.068])

    def test_the_last_is_preempted_and_computes_its_prompt_again(self) -> None:
        # Four blocks of 4: both prompts of 8 fill them. The first token of the first needs a fifth block: the second
        # is preempted, waits until the first has ended, and prefills its 8 tokens and the one it had: 9.
        stream = plain_stream(np.zeros(2), np.array([8, 8]), np.array([3, 3]))
        out = compiled(Setting(blocks=4, block_tokens=4), stream)
        assert out.preemptions.tolist() == [0, 1]
        assert out.finished_s[0] == pytest.approx(0.026 + 2 * 0.011)
        assert out.finished_s[1] == pytest.approx(0.026 + 2 * 0.011 + 0.019 + 0.011)

    def test_a_shared_prefix_is_computed_once(self) -> None:
        # 8 of 12 prompt tokens are the same two blocks: the second request computes 4 of them
        stream = plain_stream(np.array([0.0, 1.0]), np.array([12, 12]), np.array([1, 1]))
        out = compiled(Setting(block_tokens=4), with_prefixes(stream, [[7, 8], [7, 8]], 4))
        assert out.cached_tokens.tolist() == [0, 8]
        assert out.finished_s == pytest.approx([0.022, 1.014])

    def test_prefixes_give_way_when_blocks_run_short(self) -> None:
        # Three blocks: the second prompt of 12 needs all, so the first's prefix is evicted and the third misses it
        stream = plain_stream(np.array([0.0, 1.0, 2.0]), np.array([9, 11, 9]), np.array([1, 1, 1]))
        ids = with_prefixes(stream, [[1, 2], [3, 4], [1, 2]], 4)
        assert compiled(Setting(blocks=3, block_tokens=4), ids).cached_tokens.tolist() == [0, 0, 0]
        assert compiled(Setting(blocks=9, block_tokens=4), ids).cached_tokens.tolist() == [0, 0, 8]


class TestTheory:
    def test_one_server_with_constant_service_waits_as_m_d_1(self) -> None:
        # One slot, one token out, 100 ms each, at 70 % of capacity: W = s + rho s / (2 (1 - rho)) = 217 ms
        count = 40_000
        random = np.random.default_rng(3)
        sent_s = np.cumsum(random.exponential(0.1 / 0.7, count))
        stream = plain_stream(sent_s, np.full(count, 90), np.ones(count, dtype=np.int64))
        out = compiled(Setting(max_num_seqs=1), stream)
        assert (out.finished_s - out.sent_s).mean() == pytest.approx(0.2167, rel=0.05)

    @pytest.mark.parametrize("rate", [0.5, 2.0, 8.0])
    def test_littles_law(self, rate: float) -> None:
        count = 2_000
        random = np.random.default_rng(5)
        sent_s = np.cumsum(random.exponential(1.0 / rate, count))
        stream = plain_stream(sent_s, random.integers(1, 200, count), random.integers(1, 60, count))
        out = compiled(Setting(max_num_seqs=16, max_num_batched_tokens=256), stream)
        # Mean running x time is the sum of stays; who arrives within a step is not counted as waiting until it ends.
        assert out.series[:, 1].sum() == pytest.approx((out.finished_s - out.scheduled_s).sum(), rel=1e-9)
        waited_s = (out.scheduled_s - out.sent_s).sum()
        assert 0 <= out.series[:, 2].sum() <= waited_s
        assert out.series[:, 4].sum() == pytest.approx(out.totals[2])
        assert out.series[:, 0].sum() == pytest.approx(out.totals[1])


def test_a_request_larger_than_the_cache_is_refused() -> None:
    engine = EngineSettings(
        max_num_seqs=4, max_num_batched_tokens=64, max_model_len=4096, gpu_memory_utilization=0.9
    )
    one = Replica(times_of(Setting()), pool_of(10), engine, NO_HOST_TIME)
    fits = plain_stream(np.zeros(1), np.array([100]), np.array([60]))
    out = simulate(one, fits)
    assert ttft_s(one, out, 1.0).size == tpot_s(out, fits).size == 1
    with pytest.raises(InputError, match="request 0 of 161 tokens needs 11 KV blocks, the cache has 10"):
        simulate(one, plain_stream(np.zeros(1), np.array([100]), np.array([61])))
    assert simulate(one, plain_stream(np.zeros(0), np.zeros(0, int), np.zeros(0, int))).totals[0] == 0
