"""The bundled questions: each is answered, and its answer keeps what it promises."""

from pathlib import Path

import pytest

from planner.assemble.question import ask_from, facts_for, question_from
from planner.catalog.paths import data_dir
from planner.cli.question_file import read_question
from planner.planning.recommend import recommend, shortlist

QUESTIONS = sorted((data_dir() / "questions").glob("*.toml"))


def test_there_are_bundled_questions() -> None:
    assert len(QUESTIONS) >= 3


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_a_bundled_question_is_answered(path: Path) -> None:
    question = question_from(ask_from(read_question(path), where=path.name))
    answer = recommend(question, facts_for())
    assert answer.plans
    slo, reserve, supply = question.slo, question.reserve, question.supply
    peak_requests_per_s = (question.workload.requests_per_s or 0.0) * reserve.peak_ratio
    for plan in shortlist(answer.plans, 20):
        if slo.ttft_p95_s is not None:
            assert plan.latency.ttft_p95_s <= slo.ttft_p95_s * 1.001
        if slo.tpot_p95_s is not None:
            assert plan.latency.tpot_p95_s <= slo.tpot_p95_s * 1.001
        if supply.budget_usd_per_month is not None:
            assert plan.cost.usd_per_month <= supply.budget_usd_per_month
        assert not supply.providers or plan.candidate.instance.provider in supply.providers
        assert plan.candidate.price.purchase in supply.purchases
        without_spares = plan.replica_requests_per_s * (plan.fleet.replicas - reserve.spare_replicas)
        assert without_spares * (1 - reserve.headroom_ratio) >= peak_requests_per_s * (1 - 1e-6)
