"""Plans on the real catalog: what is promised holds, what is rejected says why, more never costs less."""

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.assemble.question import Ask, ask_from, facts_for, question_from
from planner.domain.base import InputError
from planner.domain.hardware import Purchase
from planner.domain.plan import Bottleneck, Recommendation
from planner.planning.candidates import cluster_of
from planner.planning.facts import Facts
from planner.planning.recommend import nearest_misses, recommend, shortlist
from planner.planning.sizing import Placed, Sizer

QUESTION = {
    "model": "meta-llama/Llama-3.1-70B",
    "weight_dtype": "fp8",
    "input_tokens": 1024,
    "output_tokens": 256,
    "requests_per_s": 10,
    "ttft_p95_ms": 2000,
    "tpot_p95_ms": 60,
}


@cache
def facts() -> Facts:
    return facts_for()


def answer(**changes: object) -> Recommendation:
    return recommend(question_from(ask_from(QUESTION | changes, where="test")), facts())


def test_every_candidate_is_answered_or_rejected_once() -> None:
    result = answer()
    keys = [
        (c.instance.provider, c.instance.instance_type, c.price.region, c.price.purchase, c.parallelism)
        for c in [p.candidate for p in result.plans] + [r.candidate for r in result.rejections]
    ]
    assert result.candidates == len(keys) == len(set(keys))
    assert result.plans
    assert result.rejections


def test_plans_keep_the_promise_and_add_up() -> None:
    result = answer(spare_replicas=1)
    for plan in result.plans:
        instance = plan.candidate.instance
        assert plan.latency.ttft_p95_s <= 2.0 * 1.001
        assert plan.latency.tpot_p95_s <= 0.060 * 1.001
        assert plan.memory.fits
        assert plan.cost.usd_per_hour == pytest.approx(
            plan.candidate.price.usd_per_hour * plan.fleet.instances
        )
        assert plan.cost.usd_per_month == pytest.approx(plan.cost.usd_per_hour * 730)
        gpus = plan.fleet.instances * instance.gpu_count
        assert gpus == plan.fleet.replicas * plan.candidate.parallelism.gpus + plan.fleet.stranded_gpus
        carried = (plan.fleet.replicas - 1) * plan.replica_requests_per_s * 0.8
        assert carried >= 10 * 1.5 * (1 - 1e-6)
        assert plan.candidate.parallelism.tp <= instance.gpu_count
        assert plan.cost.usd_per_month_by_purchase[Purchase.ON_DEMAND] == pytest.approx(
            plan.cost.usd_per_month
        )


def test_input_and_output_prices_make_up_the_bill() -> None:
    plan = answer().plans[0]
    month_s = 730 * 3600
    bill = (
        (plan.cost.usd_per_million_input_tokens * 1024 + plan.cost.usd_per_million_output_tokens * 256)
        * 10
        * month_s
        / 1e6
    )
    assert bill == pytest.approx(plan.cost.usd_per_month)


def test_ranked_by_cost_and_the_front_only_gets_faster() -> None:
    plans = answer().plans
    costs = [plan.cost.usd_per_month for plan in plans]
    assert costs == sorted(costs)
    front = [plan for plan in plans if plan.pareto]
    speeds = [plan.latency.tpot_p95_s for plan in front]
    assert plans[0].pareto
    assert speeds == sorted(speeds, reverse=True)
    assert plans[-1].saving_usd_per_month == pytest.approx(0.0)
    assert plans[0].saving_usd_per_month == pytest.approx(costs[-1] - costs[0])


def test_rejections_say_by_how_much() -> None:
    for rejection in answer(tpot_p95_ms=20).rejections:
        assert rejection.reason
        if rejection.bottleneck is Bottleneck.MEMORY:
            assert rejection.need > rejection.have
        if rejection.bottleneck is Bottleneck.TPOT:
            assert rejection.need == pytest.approx(20)
            assert rejection.have > 20


def test_memory_rejects_what_cannot_hold_the_weights() -> None:
    """70e9 weights of one byte and a 16-bit head take 67.7 GiB: no card of 48 GiB holds them alone."""
    alone = [r for r in answer(gpu=("L40S",)).rejections if r.candidate.parallelism.gpus == 1]
    assert alone
    assert all(r.bottleneck is Bottleneck.MEMORY and r.need > 67.7 for r in alone)


def test_budget_turns_plans_into_rejections() -> None:
    free, tight = answer(), answer(budget_usd_per_month=1.0)
    assert not tight.plans
    over = [r for r in tight.rejections if r.bottleneck is Bottleneck.BUDGET]
    assert len(over) == len(free.plans)
    assert free.candidates == tight.candidates


def test_an_impossible_promise_has_nearest_misses() -> None:
    result = answer(tpot_p95_ms=0.01)
    assert not result.plans
    misses = nearest_misses(result.rejections, 3)
    assert [m.miss_ratio for m in misses] == sorted(m.miss_ratio for m in misses)


def test_an_empty_market_is_bad_input() -> None:
    with pytest.raises(InputError, match="no offer"):
        answer(provider="crusoe", gpu="T4")


def test_purchases_are_priced_as_asked() -> None:
    result = answer(provider="gcp", purchase="reserved_1y,reserved_3y")
    assert {plan.candidate.price.purchase for plan in result.plans} == {
        Purchase.RESERVED_1Y,
        Purchase.RESERVED_3Y,
    }


def test_shortlist_names_each_layout_once() -> None:
    best = shortlist(answer().plans, 10)
    shapes = [
        (p.candidate.instance.provider, p.candidate.instance.instance_type, p.candidate.parallelism)
        for p in best
    ]
    assert len(shapes) == len(set(shapes)) == 10


def test_lossy_formats_only_on_request() -> None:
    asked = {plan.candidate.weight_dtype for plan in answer(weight_dtype="any").plans}
    plain = {plan.candidate.weight_dtype for plan in answer(weight_dtype="auto").plans}
    assert len(plain) == 1
    assert len(asked) > 1


def test_same_question_same_answer() -> None:
    assert answer() == answer()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rate=st.floats(0.1, 300), more=st.floats(1.05, 8))
def test_more_traffic_never_costs_less(rate: float, more: float) -> None:
    less, larger = answer(requests_per_s=rate), answer(requests_per_s=rate * more)
    assert less.plans
    assert larger.plans
    assert larger.plans[0].cost.usd_per_month >= less.plans[0].cost.usd_per_month * (1 - 1e-9)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tpot_ms=st.floats(15, 80), ttft_ms=st.floats(300, 4000), slack=st.floats(1.1, 4))
def test_a_looser_promise_never_costs_more(tpot_ms: float, ttft_ms: float, slack: float) -> None:
    tight = answer(tpot_p95_ms=tpot_ms, ttft_p95_ms=ttft_ms)
    loose = answer(tpot_p95_ms=tpot_ms * slack, ttft_p95_ms=ttft_ms * slack)
    if tight.plans:
        assert loose.plans[0].cost.usd_per_month <= tight.plans[0].cost.usd_per_month * (1 + 1e-9)


def test_an_ask_without_traffic_says_what_is_missing() -> None:
    with pytest.raises(InputError, match="requests_per_s"):
        question_from(Ask(model="Qwen/Qwen3-8B", input_tokens=10, output_tokens=10))


def test_own_lengths_win_over_the_preset() -> None:
    question = question_from(Ask(model="Qwen/Qwen3-8B", preset="chat", input_tokens=77))
    assert question.workload.mean_input_tokens == 77


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"input_tokens": 500_000}, "500256 tokens"),
        ({"max_model_len": 100}, "more than the 100"),
        ({"max_model_len": 1_000_000}, "at most 131072"),
    ],
)
def test_what_no_request_fits_is_bad_input(changes: dict[str, object], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        answer(**changes)


def test_one_token_answers_are_charged_to_the_prompt() -> None:
    plan = answer(input_tokens=4000, output_tokens=1, gpu=("H100-SXM-80GB",)).plans[0]
    input_bill = plan.cost.usd_per_million_input_tokens * 4000
    assert input_bill / (input_bill + plan.cost.usd_per_million_output_tokens) > 0.99
    assert plan.binding_constraint is not Bottleneck.TPOT


def test_half_precision_opens_older_gpus() -> None:
    question = {"model": "meta-llama/Llama-3.2-1B", "gpu": "T4", "weight_dtype": "bf16", "tpot_p95_ms": 100}
    assert not answer(**question).plans
    assert answer(**question | {"weight_dtype": "fp16"}).plans


def test_bursts_thin_out_over_replicas() -> None:
    """Of a hundred times the bursty traffic each replica carries more, as what it gets of it is smoother."""
    few = answer(arrival_cv=6, requests_per_s=2, gpu=("H200-SXM-141GB",)).plans
    many = answer(arrival_cv=6, requests_per_s=200, gpu=("H200-SXM-141GB",)).plans
    alone = {plan.candidate.parallelism: plan.replica_requests_per_s for plan in few}
    shared = {plan.candidate.parallelism: plan.replica_requests_per_s for plan in many}
    both = alone.keys() & shared.keys()
    assert both
    assert all(shared[layout] > alone[layout] for layout in both)


def test_reported_memory_is_that_of_the_recommended_flags() -> None:
    facts_now, question = facts(), question_from(ask_from(QUESTION, where="test"))
    plan = answer().plans[0]
    sizer = Sizer(facts_now)
    candidate = plan.candidate
    placed = sizer.place(
        question.variants[0],
        facts_now.gpus[candidate.instance.gpu],
        candidate.parallelism,
        kv_dtype=candidate.kv_dtype,
        cluster=cluster_of(candidate.instance, candidate.parallelism),
    )
    assert isinstance(placed, Placed)
    assert sizer.budget(placed, plan.engine) == plan.memory


def test_a_promise_that_the_error_band_breaks_is_warned_of() -> None:
    tight = answer(tpot_p95_ms=40).plans
    assert any("90 % range" in warning for plan in tight for warning in plan.warnings)
