"""Figures of a run, computed by hand."""

import math

import numpy as np
import pytest

from planner.domain.deployment import EngineSettings
from planner.domain.workload import Slo
from planner.formulas.host_time import NO_HOST_TIME
from planner.serving.arrivals import plain_stream
from planner.serving.measures import Measures, Share, measures_of, requests_of, spread
from planner.serving.scheduler_parts import count_gap
from planner.serving.scheduler_types import GAP_BINS, BlockPool, Outcome, StepTimes, empty_outcome
from planner.serving.simulation import Replica

ENGINE = EngineSettings(
    max_num_seqs=8, max_num_batched_tokens=8192, max_model_len=8192, gpu_memory_utilization=0.9
)
HOST = NO_HOST_TIME.model_copy(update={"reply_s": 0.5})
NO_TIMES = StepTimes(
    *(np.zeros(0),) * 3, 0.0, 0.0, *(np.zeros(0),) * 2, 0.0, 0.0, *(np.zeros(0),) * 3, *(0.0,) * 7
)


def an_engine(blocks: int = 10) -> Replica:
    pool = BlockPool(
        blocks=blocks,
        block_tokens=np.array([16]),
        window_tokens=np.array([0]),
        chunked=np.array([False]),
        most_blocks=np.array([0]),
        state_blocks=np.array([0]),
    )
    return Replica(NO_TIMES, pool, ENGINE, NO_HOST_TIME)


def an_outcome() -> Outcome:
    """Three requests: 11, 1 and 3 tokens; 10 + 0 + 2 gaps. The engine is busy for 8 of 10 s.

    Two bins of 8 s: in the first 1.5 running on average and 4 blocks, in the 2 s of the second 1 and 2.
    """
    out = empty_outcome(3)
    out.sent_s[:] = [0.0, 2.0, 4.0]
    out.scheduled_s[:] = [0.0, 3.0, 4.0]
    out.first_token_s[:] = [1.0, 4.0, 5.0]
    out.finished_s[:] = [6.0, 4.0, 10.0]
    out.cached_tokens[:] = [0, 50, 0]
    out.preemptions[:] = [0, 0, 2]
    count_gap(out.gaps, 0.5, 10)
    count_gap(out.gaps, 2.5, 2)
    out.series[0] = [6.0, 12.0, 1.0, 32.0, 800.0]
    out.series[1] = [2.0, 2.0, 0.0, 4.0, 20.0]
    out.totals[:] = [40.0, 8.0, 820.0, 6.0, 8.0, 10.0]
    return out


def a_share(one: Replica) -> Share:
    stream = plain_stream(np.zeros(3), np.array([100, 60, 40]), np.array([11, 1, 3]))
    return Share(one, stream, np.arange(3), an_outcome())


def measured(*shares: Share, slo: Slo | None = None, engines: int = 1) -> Measures:
    return measures_of(requests_of(shares), shares, slo or Slo(), engines=engines)


def test_latencies_of_each_request() -> None:
    requests = requests_of([a_share(an_engine())])
    assert requests.ttft_s.tolist() == [1.0, 2.0, 1.0]
    assert requests.queue_s.tolist() == [0.0, 1.0, 0.0]
    assert requests.e2e_s.tolist() == [6.0, 2.0, 6.0]
    # Five seconds for ten gaps, none, five for two.
    assert requests.tpot_s[0] == 0.5
    assert math.isnan(requests.tpot_s[1])
    assert requests.tpot_s[2] == 2.5


def test_the_reply_counts_in_ttft_and_e2e_and_not_in_tpot() -> None:
    requests = requests_of([a_share(an_engine()._replace(host=HOST))])
    assert requests.ttft_s.tolist() == [1.5, 2.5, 1.5]
    assert requests.e2e_s.tolist() == [6.5, 2.5, 6.5]
    assert requests.tpot_s[0] == 0.5


def test_rates_and_levels() -> None:
    """3 requests, 15 tokens out and 200 in, over 10 s."""
    found = measured(a_share(an_engine()))
    assert found.duration_s == 10.0
    assert found.requests_per_s == pytest.approx(0.3)
    assert found.output_tokens_per_s == pytest.approx(1.5)
    assert found.total_tokens_per_s == pytest.approx(21.5)
    assert found.utilization_ratio == pytest.approx(0.8)
    assert found.mean_running == pytest.approx(1.4)
    # 14 request-seconds in all and all of them running.
    assert found.mean_waiting == pytest.approx(0.0)
    # (32 + 4) block-seconds of 10 blocks over 10 s.
    assert found.mean_kv_used_ratio == pytest.approx(0.36)
    assert found.peak_kv_used_ratio == pytest.approx(0.6)
    assert found.preemptions == 2
    assert found.prefix_hit_ratio == pytest.approx(0.25)


def test_tpot_is_by_request_and_itl_by_token() -> None:
    found = measured(a_share(an_engine()))
    assert found.tpot.mean_s == pytest.approx((0.5 + 2.5) / 2)
    assert found.itl.mean_s == pytest.approx((10 * 0.5 + 2 * 2.5) / 12)
    # Of 12 gaps the 6th is short, the 11th to 12th are long; bins are 1.25 % wide.
    assert found.itl.p50_s == pytest.approx(0.5, rel=0.00625)
    assert found.itl.p90_s == pytest.approx(2.5, rel=0.00625)
    assert found.ttft.p50_s == 1.0
    # Linear between the second and the third: 1 + 0.8 x (2 - 1).
    assert found.ttft.p90_s == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(), 3),
        (Slo(ttft_p95_s=1.0), 2),
        (Slo(tpot_p95_s=1.0), 2),
        (Slo(ttft_p95_s=1.0, tpot_p95_s=1.0), 1),
        (Slo(ttft_p95_s=0.5), 0),
    ],
)
def test_goodput_counts_requests_that_keep_every_promise(slo: Slo, good: int) -> None:
    assert measured(a_share(an_engine()), slo=slo).goodput_requests_per_s == pytest.approx(good / 10)


def test_series_are_means_over_bins_and_the_last_ends_with_the_run() -> None:
    series = measured(a_share(an_engine())).series
    assert series.start_s.tolist() == [0.0, 8.0]
    assert series.running.tolist() == [1.5, 1.0]
    assert series.kv_used_ratio == pytest.approx([0.4, 0.2])
    assert series.tokens_per_s.tolist() == [100.0, 10.0]


def test_ranks_are_pooled_and_requests_keep_their_places() -> None:
    """A second rank with bins half as wide: its first two make one of the first rank's."""
    other = an_outcome()
    other.totals[4] = 4.0
    other.series[:3] = [[3.0, 3.0, 0, 8.0, 80], [3.0, 9.0, 0, 8.0, 80], [2.0, 2.0, 0, 4.0, 20]]
    stream = plain_stream(np.zeros(3), np.array([1, 2, 3]), np.array([11, 1, 3]))
    shares = (
        a_share(an_engine())._replace(rows=np.array([0, 2, 4])),
        Share(an_engine(30), stream, np.array([1, 3, 5]), other),
    )
    assert requests_of(shares).prompt_tokens.tolist() == [100, 1, 60, 2, 40, 3]
    found = measured(*shares, engines=4)
    assert found.requests == 6
    assert found.requests_per_s == pytest.approx(0.6)
    assert found.utilization_ratio == pytest.approx(16 / 4 / 10)
    assert found.mean_kv_used_ratio == pytest.approx((36 + 20) / 40 / 10)
    assert found.peak_kv_used_ratio == pytest.approx(0.6)
    assert found.series.running.tolist() == [3.0, 2.0]


def test_nothing_to_measure_is_nan() -> None:
    assert all(map(math.isnan, spread(np.zeros(0))))
    single = plain_stream(np.zeros(3), np.array([1, 1, 1]), np.array([1, 1, 1]))
    share = a_share(an_engine())._replace(stream=single)
    found = measured(share._replace(outcome=share.outcome._replace(gaps=np.zeros(GAP_BINS))))
    assert math.isnan(found.tpot.mean_s)
    assert math.isnan(found.itl.p99_s)
    assert found.ttft.mean_s == pytest.approx(4 / 3)


def test_a_rank_that_ends_early_is_in_the_first_bin() -> None:
    """One rank with bins of 4,096 s beside one with bins of 8 s: 512 of the latter would make one."""
    slow = an_outcome()
    slow.totals[4:] = [4096.0, 6000.0]
    slow.series[:2, 1] = [4096.0, 1904.0]
    shares = (
        a_share(an_engine())._replace(rows=np.array([0, 2, 4])),
        a_share(an_engine())._replace(rows=np.array([1, 3, 5]), outcome=slow),
    )
    assert measured(*shares).series.running == pytest.approx([1 + 14 / 4096, 1.0])
