"""Capacity by bisection: hand cases, monotony, and how plans rest on it."""

from functools import cache
from math import exp, factorial

import numpy as np
import pytest

from planner.assemble.question import ask_from, facts_for, question_from
from planner.domain.deployment import EngineSettings
from planner.domain.plan import Bottleneck, CapacityMethod, Plan, Question, Recommendation
from planner.domain.workload import Slo, Workload
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.step import GRID_TOKENS, SCOPES, UNLIMITED_TOKENS
from planner.planning import finalists
from planner.planning.candidates import sites
from planner.planning.capacity import STEP_RATIO, Capacity, Trial, capacity, draw, trial
from planner.planning.finalists import Simulator, simulated_capacity
from planner.planning.recommend import recommend, shortlist
from planner.planning.screening import Answer, screen
from planner.planning.sizing import Refusal
from planner.serving.scheduler_types import BlockPool, StepTimes
from planner.serving.simulation import Replica

FIXED_S, PER_TOKEN_S = 0.010, 1e-5
BUDGET = 8192
QUESTION = {
    "model": "meta-llama/Llama-3.1-8B",
    "input_tokens": 600,
    "output_tokens": 100,
    "requests_per_s": 30,
    "ttft_p95_ms": 1000,
    "tpot_p95_ms": 40,
    "gpu": "H100-SXM-80GB,L40S,A100-SXM-80GB",
}


def engine(slots: int = 1024, blocks: int = 100_000) -> Replica:
    """A step takes 10 ms and 10 us a token; nothing else costs anything."""
    given = {
        "grid_tokens": GRID_TOKENS,
        "body_s": FIXED_S + GRID_TOKENS * PER_TOKEN_S,
        "head_s": np.zeros_like(GRID_TOKENS),
        "scope_tokens": np.full(SCOPES, UNLIMITED_TOKENS),
        "captured_tokens": np.zeros(0),
    } | dict.fromkeys(("decode_per_token_s", "context_per_pair_s", "context_per_past_s"), np.zeros(SCOPES))
    times = StepTimes(**dict.fromkeys(StepTimes._fields, 0.0) | given)
    one = np.ones(1, dtype=np.int64)
    pool = BlockPool(
        blocks=blocks,
        block_tokens=16 * one,
        window_tokens=0 * one,
        chunked=np.zeros(1, dtype=np.bool_),
        most_blocks=0 * one,
        state_blocks=0 * one,
    )
    settings = EngineSettings(
        max_num_seqs=slots,
        max_num_batched_tokens=BUDGET,
        max_model_len=16384,
        gpu_memory_utilization=0.9,
        async_scheduling=False,
    )
    return Replica(times, pool, settings, NO_HOST_TIME)


def found(one: Replica, workload: Workload, slo: Slo, start: float, running: float = 10.0) -> Capacity:
    drawn = draw(workload, running)
    return capacity(lambda rate: trial(one, drawn, rate, slo), start, start / 1000.0)


PROMPTS = Workload(input_tokens=BUDGET, output_tokens=1, requests_per_s=1.0)
"""Each prompt fills a step, and there are no answers: M/D/1 with a service of 91.92 ms."""
SERVICE_S = FIXED_S + BUDGET * PER_TOKEN_S
CHAT = Workload(input_tokens=500, output_tokens=100, requests_per_s=1.0)


def test_without_a_promise_a_prompt_mill_carries_what_its_steps_do() -> None:
    """M/D/1 is stable below one prompt a service; near that its queue takes long to tell."""
    rate = found(engine(), PROMPTS, Slo(), 5.0).requests_per_s
    assert rate == pytest.approx(1.0 / SERVICE_S, rel=0.04)


@pytest.mark.parametrize("utilization", [0.5, 0.7])
def test_a_promise_on_waiting_is_met_up_to_the_utilization_of_m_d_1(utilization: float) -> None:
    """The 95th percentile of the wait in M/D/1 from Crommelin's formula, as the promise: so far goes the capacity.

    P(W <= t) = (1 - r) sum_k (r (k - t))^k / k! e^(-r (k - t)), k up to t, in services (Crommelin 1932).
    """

    def below(t: float) -> float:
        late = [utilization * (k - t) for k in range(int(t) + 1)]
        return (1.0 - utilization) * sum(x**k / factorial(k) * exp(-x) for k, x in enumerate(late))

    grid = np.linspace(0.0, 12.0, 1201)
    wait = next(t for t in grid if below(float(t)) >= 0.95)
    slo = Slo(ttft_p95_s=(1.0 + wait) * SERVICE_S)
    rate = found(engine(), PROMPTS, slo, 5.0, running=1500.0).requests_per_s
    assert rate == pytest.approx(utilization / SERVICE_S, rel=0.04)


def test_a_slot_at_a_time_is_a_single_server() -> None:
    """One slot: a request holds it for its prompt and 99 steps of its answer, so the rate is below one a stay."""
    stay_s = FIXED_S + 500 * PER_TOKEN_S + 99 * (FIXED_S + PER_TOKEN_S)
    rate = found(engine(slots=1), CHAT, Slo(), 0.5, running=1.0).requests_per_s
    assert rate == pytest.approx(1.0 / stay_s, rel=0.05)


def test_a_looser_promise_and_more_slots_carry_more() -> None:
    one = engine()
    rates = [found(one, CHAT, Slo(tpot_p95_s=limit), 50.0).requests_per_s for limit in (0.012, 0.015, 0.02)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]
    patience = [
        found(one, CHAT, Slo(ttft_p95_s=limit), 50.0).requests_per_s for limit in (0.03, 0.05, 0.2, 1.0)
    ]
    assert patience == sorted(patience)
    slots = [found(engine(slots=count), CHAT, Slo(), 5.0).requests_per_s for count in (1, 4, 16)]
    assert slots == sorted(slots)
    assert slots[-1] > 8.0 * slots[0]


@pytest.mark.parametrize("start", [0.3, 20.0, 400.0])
def test_where_the_search_begins_does_not_show(start: float) -> None:
    slo = Slo(ttft_p95_s=0.1, tpot_p95_s=0.015)
    drawn, one = draw(CHAT, 10.0), engine()
    result = capacity(lambda rate: trial(one, drawn, rate, slo), start, 0.01)
    usual = capacity(lambda rate: trial(one, drawn, rate, slo), 50.0, 0.01)
    assert result.requests_per_s == pytest.approx(usual.requests_per_s, rel=2 * (STEP_RATIO - 1))
    assert result == capacity(lambda rate: trial(one, drawn, rate, slo), start, 0.01)
    assert result.within is not None
    assert result.within.strain <= 1.0 < result.beyond.strain


def test_a_promise_broken_when_idle_is_no_capacity() -> None:
    """The prompt alone takes 15 ms."""
    none = found(engine(), CHAT, Slo(ttft_p95_s=0.014), 10.0)
    assert none.within is None
    assert none.requests_per_s == 0.0
    assert none.beyond.latency.ttft_p95_s > 0.014
    assert none.beyond.binding is Bottleneck.TTFT


def test_every_rate_is_tried_on_the_same_requests() -> None:
    """Twice the rate halves every gap and changes no length; the mean rate is what is stated."""
    drawn = draw(CHAT.model_copy(update={"length_low_ratio": 0.2, "arrival_cv": 2.0}), 5.0)
    sent_s = drawn.stream.sent_s
    assert sent_s[-1] == pytest.approx(sent_s.size)
    assert np.diff(sent_s).std() == pytest.approx(2.0, rel=0.15)
    again = draw(CHAT.model_copy(update={"length_low_ratio": 0.2, "arrival_cv": 2.0}), 5.0)
    assert (again.stream.prompt_tokens == drawn.stream.prompt_tokens).all()
    assert (again.stream.sent_s == sent_s).all()


@cache
def answer(finalists_wanted: int) -> Recommendation:
    return recommend(question(), facts_for(), finalists=finalists_wanted)


def question(**changes: object) -> Question:
    return question_from(ask_from(QUESTION | changes, where="test"))


def test_the_cheapest_plans_rest_on_simulation_and_are_ranked_by_it() -> None:
    result = answer(3)
    costs = [plan.cost.usd_per_month for plan in result.plans]
    assert costs == sorted(costs)
    assert result.candidates == answer(0).candidates
    simulated = [plan for plan in result.plans if plan.capacity_method is CapacityMethod.SIMULATE]
    assert result.plans[0] in simulated
    assert {plan.capacity_method for plan in answer(0).plans} == {CapacityMethod.STEADY}
    for plan in simulated:
        assert plan.capacity_requests_per_s == pytest.approx(
            plan.replica_requests_per_s * plan.fleet.replicas
        )
        assert plan.replica_requests_per_s * plan.fleet.replicas * 0.8 >= 30 * 1.5 * (1 - 1e-9)
        ratio = plan.capacity_disagreement_ratio
        assert ratio is not None
        assert plan.steady_replica_requests_per_s == pytest.approx(plan.replica_requests_per_s * (1 + ratio))
        assert plan.latency.ttft_p95_s <= 1.0
        assert plan.latency.tpot_p95_s <= 0.040


def test_the_same_question_is_simulated_the_same() -> None:
    assert recommend(question(), facts_for(), finalists=2) == recommend(question(), facts_for(), finalists=2)


def test_a_finalist_that_carries_less_gets_more_replicas_and_may_lose_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every simulated replica is made to carry a tenth: finalists cost more, and others come in front of them."""
    whole = finalists.simulated_capacity

    def tenth(stand: finalists.Stand, screened: Answer) -> Capacity:
        result = whole(stand, screened)
        assert result.within is not None
        return result._replace(
            within=result.within._replace(requests_per_s=result.within.requests_per_s / 10.0)
        )

    monkeypatch.setattr(finalists, "simulated_capacity", tenth)
    before, after = answer(0).plans, recommend(question(), facts_for(), finalists=1).plans
    names = [(plan.candidate.instance, plan.candidate.parallelism) for plan in before]
    first = next(plan for plan in after if (plan.candidate.instance, plan.candidate.parallelism) == names[0])
    assert first.fleet.replicas > 5 * before[0].fleet.replicas
    assert after[0].cost.usd_per_month < first.cost.usd_per_month
    assert first.capacity_method is CapacityMethod.SIMULATE


def test_a_finalist_that_breaks_the_promise_when_idle_is_turned_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulation finds no rate that the cheapest replica carries: it is rejected, and counted there."""

    def never(stand: finalists.Stand, screened: Answer) -> Capacity:
        idle: Trial = stand.at(0.01)
        late = idle.latency.model_copy(update={"ttft_p95_s": 2.0})
        return Capacity(None, idle._replace(latency=late, strain=2.0))

    monkeypatch.setattr(finalists, "simulated_capacity", never)
    before, after = answer(0), recommend(question(), facts_for(), finalists=1)
    assert after.candidates == before.candidates
    assert len(after.plans) < len(before.plans)
    lost = [each for each in after.rejections if each.bottleneck is Bottleneck.TTFT and each.have == 2000.0]
    assert lost
    assert all("almost idle" in each.reason for each in lost)


def test_bursts_are_simulated_as_one_replica_of_the_fleet_sees_them() -> None:
    asked = question(arrival_cv=3.0, requests_per_s=200)
    plans = recommend(asked, facts_for(), finalists=1).plans
    best = next(plan for plan in plans if plan.capacity_method is CapacityMethod.SIMULATE)
    assert isinstance(best, Plan)
    assert best.fleet.replicas > 1
    assert 0.0 < best.utilization_ratio <= 0.8 * (1 + 1e-9)


def test_the_closed_form_and_the_simulation_of_a_replica_agree() -> None:
    """Within 15 % for each of a few replicas; the benchmark `capacity_disagreement` has the distribution."""
    asked = question()
    plans = shortlist(answer(4).plans, 4)
    ratios = [
        plan.capacity_disagreement_ratio for plan in plans if plan.capacity_disagreement_ratio is not None
    ]
    assert len(ratios) >= 2
    assert max(abs(ratio) for ratio in ratios) < 0.15
    assert asked.workload.requests_per_s == 30


def test_a_pipeline_is_sized_as_batches_that_take_turns() -> None:
    asked = question_from(
        ask_from(
            {
                "model": "meta-llama/Llama-3.1-70B",
                "input_tokens": 600,
                "output_tokens": 100,
                "requests_per_s": 2,
                "tpot_p95_ms": 150,
                "gpu": "A100-SXM-80GB",
                "max_tp": 1,
            },
            where="test",
        )
    )
    facts = facts_for()
    verdicts = screen([site.instance for site in sites(facts.offers, asked.supply)], asked, facts).verdicts
    piped = [v for v in verdicts.values() if isinstance(v, Answer) and v.placed.parallelism.pp == 2]
    if not piped:
        pytest.skip("no instance of the catalog runs this as a pipeline")
    simulator = Simulator(asked, facts)
    sized = simulator.sized(piped[0])
    assert not isinstance(sized, Refusal)
    stand = simulator.stand(piped[0], 1.0)
    assert stand.stages == 2
    assert simulated_capacity(stand, piped[0]).requests_per_s == sized.capability.requests_per_s
    assert sized.capability.requests_per_s == pytest.approx(piped[0].capability.requests_per_s, rel=0.2)
