"""The compiled scheduler by hand, and as queueing theory wants it."""

import numpy as np
import pytest

from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings
from planner.formulas.host_time import NO_HOST_TIME
from planner.serving.arrivals import plain_stream, with_prefixes
from planner.serving.scheduler_loop import run
from planner.serving.scheduler_types import (
    GAP_BINS,
    GAP_LOW_S,
    GAP_RATIO,
    Outcome,
    SchedulerLimits,
    empty_outcome,
)
from planner.serving.simulation import Replica, simulate, tpot_s, ttft_s
from tests.serving.made_loads import compiled, pool_of
from tests.serving.reference_scheduler import Setting, times_of
from tests.serving.replay import NEVER


class TestByHand:
    def test_two_requests_share_a_step(self) -> None:
        # Both prompts fill one step of 30 tokens: 10 + 30 = 40 ms. Then three steps of two tokens, 12 ms each: the
        # first request has its 3 tokens after two of them, the second its 4 after the third, alone: 11 ms.
        stream = plain_stream(np.zeros(2), np.array([10, 20]), np.array([3, 4]))
        out = compiled(Setting(), stream)
        assert out.first_token_s == pytest.approx([0.040, 0.040])
        assert out.finished_s == pytest.approx([0.064, 0.075])

    def test_no_step_is_shorter_than_the_hosts_chain(self) -> None:
        # The same with a chain of 20 ms and 2 ms a request: the prompts' 40 ms stay, two decode steps of 12 ms become
        # 20 + 2 x 2 = 24, the last, of one request, 22 instead of 11.
        stream = plain_stream(np.zeros(2), np.array([10, 20]), np.array([3, 4]))
        out = compiled(Setting(chain_s=0.020, chain_per_sequence_s=0.002), stream)
        assert out.first_token_s == pytest.approx([0.040, 0.040])
        assert out.finished_s == pytest.approx([0.088, 0.110])
        assert out.totals[1] == pytest.approx(0.110)

    def test_the_next_is_sent_when_the_reply_has_reached_its_client(self) -> None:
        # One user: 10 tokens in 20 ms, the second token 11 ms later, 50 ms back to the client, who then sends the next.
        stream = plain_stream(np.zeros(3), np.full(3, 10), np.full(3, 2))
        out = compiled(Setting(users=1, reply_s=0.050), stream)
        assert out.sent_s == pytest.approx([0.0, 0.081, 0.162])
        assert out.first_token_s == pytest.approx([0.020, 0.101, 0.182])
        assert out.finished_s == pytest.approx([0.031, 0.112, 0.193])
        assert out.totals[1] == pytest.approx(0.093)

    def test_others_go_on_while_a_reply_is_on_its_way(self) -> None:
        # Two users, prompts of 5: 20 ms for both, then one step of two tokens, 12 ms, ends the first request at 32 ms.
        # Its user sends again 5 ms later, within the other's step of 11 ms (32 to 43 ms), so that the new prompt runs
        # from 43 ms in a step of 5 + 1 tokens: 16 ms.
        stream = plain_stream(np.zeros(3), np.full(3, 5), np.array([2, 4, 1]))
        out = compiled(Setting(users=2, reply_s=0.005), stream)
        assert out.sent_s == pytest.approx([0.0, 0.0, 0.037])
        assert out.scheduled_s == pytest.approx([0.0, 0.0, 0.043])
        assert out.finished_s == pytest.approx([0.032, 0.059, 0.059])

    def test_a_long_prompt_is_cut_and_answers_wait_for_nobody(self) -> None:
        # Budget 16: the first prompt of 16 goes alone (26 ms), then its token and 15 of the second's 20 (26 ms), then
        # its second token and the remaining 5 (16 ms).
        stream = plain_stream(np.zeros(2), np.array([16, 20]), np.array([3, 1]))
        out = compiled(Setting(max_num_batched_tokens=16), stream)
        assert out.first_token_s == pytest.approx([0.026, 0.068])
        assert out.finished_s == pytest.approx([0.068, 0.068])

    def test_the_last_is_preempted_and_computes_its_prompt_again(self) -> None:
        # Four blocks of 4: both prompts of 8 fill them. The first token of the first needs a fifth block: the second
        # is preempted and waits until the first has ended. Of its two blocks the first took the last, so it finds 4 of
        # its 8 tokens again and prefills the others and the one it had: 5. Without prefix caching 9.
        stream = plain_stream(np.zeros(2), np.array([8, 8]), np.array([3, 3]))
        for prefix_caching, prefill_s in ((True, 0.015), (False, 0.019)):
            setting = Setting(blocks=4, block_tokens=4, prefix_caching=prefix_caching)
            out = compiled(setting, stream)
            assert out.preemptions.tolist() == [0, 1]
            assert out.finished_s[0] == pytest.approx(0.026 + 2 * 0.011)
            assert out.finished_s[1] == pytest.approx(0.026 + 2 * 0.011 + prefill_s + 0.011)

    def test_who_ended_keeps_its_slot_for_a_step_of_asynchronous_scheduling(self) -> None:
        # Two slots. Both prompts of 10: 30 ms; a step of two: 12 ms, with which the first ends at 42 ms. The next step
        # was scheduled before that: the second alone, 11 ms. So the third comes in at 53 ms: 1 + 10 tokens, 21 ms.
        stream = plain_stream(np.zeros(3), np.full(3, 10), np.array([2, 4, 1]))
        out = compiled(Setting(max_num_seqs=2, async_scheduling=True), stream)
        assert out.scheduled_s == pytest.approx([0.0, 0.0, 0.053])
        assert out.finished_s == pytest.approx([0.042, 0.074, 0.074])
        # Otherwise at 42 ms, 21 ms with the second's third token, whose fourth takes 11 ms more.
        out = compiled(Setting(max_num_seqs=2), stream)
        assert out.scheduled_s == pytest.approx([0.0, 0.0, 0.042])
        assert out.finished_s == pytest.approx([0.042, 0.074, 0.063])

    def test_a_step_with_nobody_in_it_takes_no_time(self) -> None:
        # One slot: nobody can be scheduled beside the last step of the first request, 20 + 11 ms, and the second is as
        # soon as that ends. It may come until then.
        for sent_s in (0.0, 0.030):
            stream = plain_stream(np.array([0.0, sent_s]), np.full(2, 10), np.full(2, 2))
            out = compiled(Setting(max_num_seqs=1, async_scheduling=True), stream)
            assert out.scheduled_s == pytest.approx([0.0, 0.031])
            assert out.finished_s == pytest.approx([0.031, 0.062])

    def test_who_ended_keeps_its_blocks_for_a_step_of_asynchronous_scheduling(self) -> None:
        # Six blocks of 4: prompts of 8, 16 tokens in 26 ms, take four, their next tokens, 12 ms, the others. The third
        # needs three: those of the first, which ends at 38 ms, are free for the step after the next: 11 ms later.
        stream = plain_stream(np.zeros(3), np.array([8, 8, 12]), np.array([2, 4, 1]))
        for asynchronous, scheduled_s in ((True, 0.049), (False, 0.038)):
            out = compiled(Setting(blocks=6, block_tokens=4, async_scheduling=asynchronous), stream)
            assert out.scheduled_s == pytest.approx([0.0, 0.0, scheduled_s])
            assert out.preemptions.tolist() == [0, 0, 0]

    def test_one_that_ended_is_preempted_for_its_blocks(self) -> None:
        # Four blocks of 4: both prompts fill them in 26 ms, and the second has all its tokens. The first needs a fifth
        # block before that is known: the second loses its own, which costs nobody anything.
        stream = plain_stream(np.zeros(2), np.array([8, 8]), np.array([3, 1]))
        out = compiled(Setting(blocks=4, block_tokens=4, async_scheduling=True), stream)
        assert out.preemptions.tolist() == [0, 1]
        assert out.finished_s == pytest.approx([0.048, 0.026])
        assert compiled(Setting(blocks=4, block_tokens=4), stream).preemptions.tolist() == [0, 0]

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


class TestJumped:
    """One request alone: its prompt is one step, the rest of its answer a few stretches."""

    PROMPT, ANSWER = 1000, 9001

    def alone(self, chain_s: float = 0.0) -> Outcome:
        """A decode step takes 2 us for each token that it sees: 10 + 2 ms at first, 10 + 20 ms at last."""
        times = times_of(Setting(per_token_s=0.0, chain_s=chain_s))
        times = times._replace(decode_per_token_s=np.array([2e-6]))
        stream = plain_stream(np.zeros(1), np.array([self.PROMPT]), np.array([self.ANSWER]))
        out = empty_outcome(1)
        limits = SchedulerLimits(256, 8192, 0, True, 0, False, True, True, True, False)
        run(stream, limits, pool_of(10_000), times, out, NEVER)
        return out

    def test_blocks_grow_with_the_answer(self) -> None:
        out = self.alone()
        # 1,001 to 10,000 tokens in blocks of 16; of the k-th step the length is 10 ms + 2 us x (1,000 + k).
        tokens = self.PROMPT + np.arange(1, self.ANSWER)
        used, lengths_s = -(-tokens // 16), 0.010 + 2e-6 * tokens
        busy_s = out.totals[1]
        assert out.totals[3] == 625
        assert busy_s == pytest.approx(0.010 + lengths_s.sum(), rel=1e-9)
        # 63 to 625 blocks, more of it late, where steps are longer.
        mean = (0.010 * 63 + (used * lengths_s).sum()) / busy_s
        assert mean > 380
        assert out.series[:, 3].sum() / busy_s == pytest.approx(mean, rel=0.01)
        by_bin = out.series[:, 3] / np.maximum(out.series[:, 0], 1e-12)
        assert (np.diff(by_bin[out.series[:, 0] > 0]) > 0).all()

    def test_steps_grow_only_where_they_outgrow_the_chain(self) -> None:
        # The chain takes 20 ms, as long as the step that sees 5,000 tokens: up to there every step has its length. The
        # one stretch over that bend is counted with the mean of its ends, which is too long, here by 1 % of all.
        out = self.alone(chain_s=0.020)
        lengths_s = np.maximum(0.020, 0.010 + 2e-6 * (self.PROMPT + np.arange(1, self.ANSWER)))
        assert out.first_token_s[0] == pytest.approx(0.020)
        assert out.totals[1] == pytest.approx(0.020 + lengths_s.sum(), rel=1e-2)
        assert out.totals[1] >= 0.020 + lengths_s.sum() - 1e-9

    def test_gaps_grow_from_the_first_to_the_last(self) -> None:
        out = self.alone()
        assert out.gaps.sum() == pytest.approx(self.ANSWER - 1, rel=1e-12)
        edges_s = GAP_LOW_S * GAP_RATIO ** np.arange(GAP_BINS + 1)
        gaps_s = 0.010 + 2e-6 * (self.PROMPT + np.arange(1, self.ANSWER))
        wanted, _ = np.histogram(gaps_s, edges_s)
        assert np.abs(out.gaps - wanted).max() < 2.0


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
        # Mean running x time is the sum of stays, mean waiting x time that of waits.
        assert out.series[:, 1].sum() == pytest.approx((out.finished_s - out.scheduled_s).sum(), rel=1e-9)
        assert out.series[:, 2].sum() == pytest.approx((out.scheduled_s - out.sent_s).sum(), rel=1e-9)
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


def test_a_closed_loop_waits_for_the_reply_of_so_many_users() -> None:
    """`simulate` takes the reply's way from host time: 10 ms and 1 ms for each of two users."""
    engine = EngineSettings(
        max_num_seqs=4, max_num_batched_tokens=64, max_model_len=4096, gpu_memory_utilization=0.9
    )
    host = NO_HOST_TIME.model_copy(update={"reply_s": 0.010, "reply_per_user_s": 0.001})
    one = Replica(times_of(Setting()), pool_of(100), engine, host)
    stream = plain_stream(np.zeros(4), np.full(4, 10), np.array([2, 3, 2, 2]))
    out = simulate(one, stream, users=2)
    assert out.sent_s == pytest.approx([0.0, 0.0, out.finished_s[0] + 0.012, out.finished_s[1] + 0.012])
    assert ttft_s(one, out, 2.0) == pytest.approx(out.first_token_s - out.sent_s + 0.012)
    opened = simulate(one, stream)
    assert opened.sent_s.tolist() == [0.0] * 4
