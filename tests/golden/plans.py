"""The winners of the bundled questions; `python -m tests.golden.plans` rewrites them after a change that is meant."""

import json
from pathlib import Path

from planner.assemble.question import ask_from, facts_for, question_from
from planner.cli.question_file import merged
from planner.planning.finalists import FINALISTS
from planner.planning.recommend import recommend

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("plans.json")
QUESTIONS = sorted((ROOT / "data" / "questions").glob("*.toml"))


def winner(question: Path) -> dict[str, object]:
    """What the first choice of a question comes to."""
    values = {key: value for key, value in merged(question, {}).items() if key != "top"}
    asked = question_from(ask_from(values, where=question.name))
    result = recommend(asked, facts_for(), finalists=FINALISTS)
    plan = result.plans[0]
    return {
        "instance_type": plan.candidate.instance.instance_type,
        "gpu": plan.candidate.instance.gpu,
        "tp": plan.candidate.parallelism.tp,
        "pp": plan.candidate.parallelism.pp,
        "replicas": plan.fleet.replicas,
        "usd_per_month": round(plan.cost.usd_per_month),
        "replica_requests_per_s": round(plan.replica_requests_per_s, 3),
        "capacity_method": plan.capacity_method.value,
        "ttft_p95_ms": round(plan.latency.ttft_p95_s * 1e3, 1),
        "tpot_p95_ms": round(plan.latency.tpot_p95_s * 1e3, 2),
        "feasible": len(result.plans),
    }


if __name__ == "__main__":
    written = {question.name: winner(question) for question in QUESTIONS}
    GOLDEN.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
