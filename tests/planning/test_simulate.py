"""Simulated deployments: laws that every run must keep, and how a stream is dealt and cut."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.domain.base import InputError
from planner.domain.workload import Slo, Workload
from planner.formulas.host_time import NO_HOST_TIME
from planner.planning.facts import Facts
from planner.planning.predict import Case
from planner.planning.simulate import (
    LEAST_OPEN_REQUESTS,
    MOST_REQUESTS,
    Simulation,
    Traffic,
    chosen,
    drawn_traffic,
    simulated,
)
from planner.serving.arrivals import plain_stream, with_prefixes
from planner.serving.measures import Measures, Requests

LLAMA = "meta-llama/Llama-3.1-8B"
CLOSED = {"input_tokens": 512, "output_tokens": 128, "concurrency": 16, "length_low_ratio": 0.5}
OPEN = {"input_tokens": 512, "output_tokens": 128, "num_requests": 600, "length_low_ratio": 0.5}


@cache
def facts() -> Facts:
    """Without the front end, whose replies are on their way after a request has left the engine."""
    return facts_for()._replace(host=NO_HOST_TIME)


def case_of(
    engine: Engine = Engine(max_model_len=8192),  # noqa: B008
    *,
    model: str = LLAMA,
    dp: int = 1,
    pp: int = 1,
) -> Case:
    gpu = gpu_named("H100-SXM-80GB")
    return deployment(model, gpu, parallelism_of(1, pp, dp), Formats(), engine)


def served(case: Case, traffic: Traffic, slo: Slo | None = None) -> Simulation:
    return simulated(case, traffic, slo or Slo(), facts())


def ran(simulation: Simulation) -> tuple[Requests, Measures]:
    assert simulation.requests is not None
    assert simulation.measures is not None
    return simulation.requests, simulation.measures


def drawn(seed: int = 0, **workload: float) -> Traffic:
    return drawn_traffic(Workload.model_validate(workload), seed)


CASES = {
    "closed": (case_of(), drawn(**CLOSED)),
    "open": (case_of(), drawn(**OPEN, requests_per_s=10)),
    "bursts": (case_of(), drawn(**OPEN, requests_per_s=10, arrival_cv=3)),
    "eager": (case_of(Engine(max_model_len=8192, enforce_eager=True)), drawn(**CLOSED)),
    "few slots": (case_of(Engine(max_model_len=8192, max_num_seqs=4)), drawn(**CLOSED)),
    "synchronous": (case_of(Engine(max_model_len=8192, async_scheduling=False)), drawn(**CLOSED)),
    "ranks": (case_of(dp=3), drawn(**CLOSED)),
    "stages": (case_of(pp=2), drawn(**OPEN, requests_per_s=10)),
}


@pytest.mark.parametrize("name", CASES)
def test_littles_law_and_conservation(name: str) -> None:
    """L = lambda W of those who run: time averages over steps against the stays of single requests."""
    requests, measures = ran(served(*CASES[name]))
    running_s = requests.e2e_s - requests.queue_s
    assert measures.preemptions == 0
    assert measures.mean_running == pytest.approx(measures.requests_per_s * running_s.mean(), rel=1e-6)
    in_flight = measures.mean_running + measures.mean_waiting
    assert in_flight == pytest.approx(measures.requests_per_s * measures.e2e.mean_s, rel=1e-6)
    assert np.all(requests.queue_s >= 0)
    assert np.all(requests.ttft_s > requests.queue_s)
    assert np.all(requests.e2e_s >= requests.ttft_s)
    assert 0 < measures.utilization_ratio <= 1 + 1e-9
    assert 0 < measures.mean_kv_used_ratio <= measures.peak_kv_used_ratio <= 1
    ends_s = [*measures.series.start_s[1:], (requests.sent_s + requests.e2e_s).max()]
    widths = np.array(ends_s) - measures.series.start_s
    assert (measures.series.running * widths).sum() == pytest.approx(running_s.sum(), rel=1e-6)


def test_a_closed_loop_never_has_more_in_flight_than_users() -> None:
    requests, measures = ran(served(*CASES["closed"]))
    assert requests.sent_s.size == 160
    ends_s = requests.sent_s + requests.e2e_s
    for moment_s in np.linspace(0.0, measures.duration_s * 0.9, 50):
        assert np.count_nonzero((requests.sent_s <= moment_s) & (ends_s > moment_s)) == 16


def test_preempted_requests_keep_littles_law_too() -> None:
    """A cache of four longest requests under sixteen users: what is preempted waits, and is computed again."""
    case = case_of(Engine(max_model_len=2048, kv_cache_memory_gib=1.0))
    requests, measures = ran(served(case, drawn(input_tokens=512, output_tokens=1500, concurrency=16)))
    assert measures.preemptions > 0
    assert measures.mean_waiting > 0
    in_flight = measures.mean_running + measures.mean_waiting
    assert in_flight == pytest.approx(requests.e2e_s.sum() / measures.duration_s, rel=1e-6)
    assert measures.peak_kv_used_ratio > 0.95


def test_equal_seeds_are_equal_and_others_are_not() -> None:
    first, again, other = (
        ran(served(case_of(), drawn(seed, **OPEN, requests_per_s=10)))[0] for seed in (5, 5, 6)
    )
    for name, column, same in zip(first._fields, first, again, strict=True):
        assert np.array_equal(column, same, equal_nan=True), name
    assert not np.array_equal(first.ttft_s, other.ttft_s)


def test_more_traffic_never_answers_sooner() -> None:
    """Mean TTFT and TPOT over rates from idle to overload."""
    found = [ran(served(case_of(), drawn(**OPEN, requests_per_s=rate)))[1] for rate in (1, 4, 16, 64, 256)]
    for slower, faster in pairwise(found):
        assert faster.ttft.mean_s >= slower.ttft.mean_s * 0.97
        assert faster.tpot.mean_s >= slower.tpot.mean_s * 0.97
    assert found[-1].ttft.mean_s > 3 * found[0].ttft.mean_s


def test_goodput_is_between_none_and_all() -> None:
    case, traffic = CASES["open"]
    _, free = ran(served(case, traffic))
    _, tight = ran(served(case, traffic, Slo(ttft_p95_s=free.ttft.p90_s)))
    assert free.goodput_requests_per_s == pytest.approx(free.requests_per_s)
    assert tight.goodput_requests_per_s == pytest.approx(0.9 * free.requests_per_s, rel=0.01)


def test_ranks_take_requests_in_turn() -> None:
    """Two ranks at twice the rate do what one does at its own, request for request; their steps differ a little."""
    prompts, outputs = np.full(40, 512), np.full(40, 64)
    sent_s = np.arange(40) * 0.05
    one, _ = ran(served(case_of(), Traffic(plain_stream(sent_s, prompts, outputs))))
    twice = plain_stream(np.repeat(sent_s, 2), np.repeat(prompts, 2), np.repeat(outputs, 2))
    two, _ = ran(served(case_of(dp=2), Traffic(twice)))
    assert two.e2e_s == pytest.approx(np.repeat(one.e2e_s, 2), rel=0.01)
    assert two.e2e_s[::2].tolist() == two.e2e_s[1::2].tolist()
    assert not any("ranks waits" in note for note in served(case_of(dp=2), Traffic(twice)).notes)


def test_the_host_s_time_adds_to_each_figure() -> None:
    """A step takes 1 ms more, a request 20 ms until the engine sees it and 30 ms until its reply is read."""
    prompts, outputs = np.full(5, 512), np.full(5, 101)
    traffic = Traffic(plain_stream(np.arange(5) * 10.0, prompts, outputs))
    times = {"step_s": 0.001, "front_s": 0.02, "reply_s": 0.03}
    slow = facts()._replace(host=NO_HOST_TIME.model_copy(update=times))
    bare = served(case_of(), traffic)
    hosted = simulated(case_of(), traffic, Slo(), slow)
    (before, _), (after, _) = ran(bare), ran(hosted)
    assert after.ttft_s - before.ttft_s == pytest.approx(0.051)
    assert after.tpot_s - before.tpot_s == pytest.approx(0.001)
    assert after.e2e_s - before.e2e_s == pytest.approx(0.151)
    assert any("outside the GPU" in note for note in bare.notes)
    assert hosted.notes == ()


def test_ranks_of_an_moe_model_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of the others lengthen every step; dense models' ranks are independent."""
    traffic, together = drawn(**CLOSED), case_of(model="openai/gpt-oss-20b", dp=4)
    stepping = served(together, traffic)
    assert any("each of the 4 ranks waits" in note for note in stepping.notes)
    monkeypatch.setattr("planner.planning.simulate.ranks_together", lambda *_: 1)
    alone = served(together, traffic)
    (_, slow), (_, fast) = ran(stepping), ran(alone)
    assert slow.tpot.mean_s > 1.05 * fast.tpot.mean_s
    assert not any("ranks waits" in note for note in alone.notes)


def test_fewer_users_than_ranks_leave_ranks_idle() -> None:
    workload = {"input_tokens": 512, "output_tokens": 64, "concurrency": 2}
    _, alone = ran(served(case_of(dp=2), drawn(**workload)))
    _, spare = ran(served(case_of(dp=4), drawn(**workload)))
    assert spare.e2e.mean_s == pytest.approx(alone.e2e.mean_s)
    assert spare.utilization_ratio == pytest.approx(alone.utilization_ratio / 2)


def test_shared_prefixes_are_found_and_not_without_prefix_caching() -> None:
    """Ten prompts of 1,100 tokens that begin with the same 1,024, far apart: nine find them."""
    stream = plain_stream(np.arange(10) * 5.0, np.full(10, 1100), np.full(10, 8))
    shared = Traffic(with_prefixes(stream, [[7, 9]] * 10, 512))
    requests, measures = ran(served(case_of(), shared))
    assert requests.cached_tokens.tolist() == [0] + [1024] * 9
    assert measures.prefix_hit_ratio == pytest.approx(9 * 1024 / 11000)
    off = served(case_of(Engine(max_model_len=8192, prefix_caching=False)), shared)
    assert ran(off)[0].cached_tokens.tolist() == [0] * 10
    assert any("prefix caching is off" in note for note in off.notes)


def test_requests_chosen_keep_their_prefixes() -> None:
    stream = plain_stream(np.arange(4.0), np.array([10, 20, 30, 40]), np.array([1, 2, 3, 4]))
    stream = with_prefixes(stream, [[5, 6], [], [6, 7, 8], [8]], 512)
    few = chosen(stream, np.array([0, 2, 3]))
    assert few.prompt_tokens.tolist() == [10, 30, 40]
    assert few.prefix_start.tolist() == [0, 2, 5, 6]
    assert few.prefix_ids.tolist() == [0, 1, 1, 2, 3, 3]
    assert chosen(stream, np.array([1])).prefix_ids.size == 0


def test_what_is_longer_than_the_server_takes_is_left_out_and_said() -> None:
    stream = plain_stream(np.arange(3.0), np.array([1000, 8000, 1000]), np.array([10, 193, 10]))
    found = served(case_of(), Traffic(stream))
    assert ran(found)[0].sent_s.tolist() == [0.0, 2.0]
    assert "1 of 3 requests" in found.notes[0]
    with pytest.raises(InputError, match="every request"):
        served(case_of(), Traffic(chosen(stream, np.array([1]))))


def test_what_does_not_fit_is_refused() -> None:
    found = served(case_of(Engine(), model="meta-llama/Llama-3.1-70B"), drawn(**CLOSED))
    assert found.sized.refusal is not None
    assert found.requests is None
    assert found.measures is None


@pytest.mark.parametrize(
    ("workload", "requests"),
    [
        ({"concurrency": 3}, 30),
        ({"concurrency": 10**6}, MOST_REQUESTS),
        ({"concurrency": 3, "num_requests": 7}, 7),
        ({"requests_per_s": 0.01}, LEAST_OPEN_REQUESTS),
        ({"requests_per_s": 2}, 1200),
        ({"requests_per_s": 1e6}, MOST_REQUESTS),
    ],
)
def test_how_many_requests_are_drawn(workload: dict[str, float], requests: int) -> None:
    assert drawn(input_tokens=10, output_tokens=10, **workload).stream.sent_s.size == requests
