"""How far the closed form's capacity of a replica lies from the simulated one, over seeded random questions."""

import argparse
import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.inputs import Inputs
from benchmarks.measure import Row, at_most
from planner.assemble.question import Ask, facts_for, question_from
from planner.cli.screen import say, show_table
from planner.domain.base import InputError
from planner.domain.plan import Question
from planner.planning.candidates import sites
from planner.planning.facts import Facts
from planner.planning.finalists import Simulator, simulated_capacity
from planner.planning.screening import Answer, screen

QUESTIONS, SEED = 200, 1
TRIES_A_QUESTION = 20
TOLERATED, TOLERATED_SHARE = 0.10, 0.90
MODELS = (
    *("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B", "google/gemma-2-27b", "Qwen/Qwen3-32B"),
    *("meta-llama/Llama-3.1-70B", "openai/gpt-oss-20b", "openai/gpt-oss-120b", "Qwen/Qwen3-30B-A3B"),
    *("mistralai/Mixtral-8x7B-v0.1", "Qwen/Qwen3-235B-A22B", "deepseek-ai/DeepSeek-V2-Lite"),
    "deepseek-ai/DeepSeek-R1",
)
GPUS = ("H100-SXM-80GB", "H200-SXM-141GB", "A100-SXM-80GB", "L40S", "B200")


class Asked(NamedTuple):
    """One question drawn, and what both ways say of the replica."""

    text: str
    running: float
    """Mean requests at once, at the closed form's capacity."""
    steady_requests_per_s: float
    simulated_requests_per_s: float
    binding: str

    @property
    def disagreement(self) -> float:
        """Closed form over simulation, less one."""
        if self.simulated_requests_per_s == 0.0:
            return math.inf
        return self.steady_requests_per_s / self.simulated_requests_per_s - 1.0


def rows(inputs: Inputs) -> Iterator[Row]:
    """The disagreement that nine of ten questions keep, and the share beyond a tenth."""
    del inputs
    off = np.abs([one.disagreement for one in asked(QUESTIONS, SEED)])
    what = f"closed form against simulated capacity, {off.size} random questions: "
    yield at_most(f"{what}90th percentile", 100.0 * float(np.quantile(off, TOLERATED_SHARE)), 10.0, "%")
    yield at_most(f"{what}beyond 10 %", 100.0 * float((off > TOLERATED).mean()), 10.0, "% of them")


def asked(questions: int, seed: int) -> list[Asked]:
    """So many random questions that a replica can serve, equal for a seed."""
    chance, facts = random.Random(seed), facts_for()
    found: list[Asked] = []
    for _ in range(TRIES_A_QUESTION * questions):
        if len(found) == questions:
            break
        one = _answered(chance, facts)
        if one is not None:
            found.append(one)
    return found


def _answered(chance: random.Random, facts: Facts) -> Asked | None:
    """One question, and both capacities of its replica; None where no replica starts or serves it."""
    ask, low_ratio = _drawn(chance)
    try:
        question = question_from(ask)
        workload = question.workload.model_copy(update={"length_low_ratio": low_ratio})
        question = question.model_copy(update={"workload": workload})
        answer = _replica(question, ask.max_tp, facts)
    except InputError:
        return None
    if answer is None:
        return None
    stand = Simulator(question, facts).stand(answer, answer.arrival_cv)
    capacity = simulated_capacity(stand, answer)
    text = (
        f"{ask.model} {ask.weight_dtype[0]} {ask.gpu[0]} TP {ask.max_tp}: {ask.input_tokens:g} in, "
        f"{ask.output_tokens:g} out from {low_ratio:g}, hits {ask.prefix_hit_ratio:g}, CV {ask.arrival_cv:g}, "
        f"TTFT {ask.ttft_p95_ms or '-'}, TPOT {ask.tpot_p95_ms or '-'}"
    )
    return Asked(
        text,
        answer.capability.running_requests,
        answer.capability.requests_per_s,
        capacity.requests_per_s,
        capacity.beyond.binding.value,
    )


def _drawn(chance: random.Random) -> tuple[Ask, float]:
    """A question, and the shortest length over the longest."""

    def between(low: float, high: float) -> float:
        return float(f"{math.exp(chance.uniform(math.log(low), math.log(high))):.2g}")

    ask = Ask(
        model=chance.choice(MODELS),
        weight_dtype=(chance.choice(("auto", "auto", "fp8")),),
        gpu=(chance.choice(GPUS),),
        max_tp=chance.choice((1, 2, 4, 8)),
        input_tokens=between(128, 8192),
        output_tokens=between(32, 1024),
        prefix_hit_ratio=chance.choice((0.0, 0.0, 0.5)),
        arrival_cv=chance.choice((1.0, 1.0, 0.5, 2.0)),
        requests_per_s=10.0,
        ttft_p95_ms=chance.choice((None, *(between(300, 10_000),) * 3)),
        tpot_p95_ms=chance.choice((None, *(between(20, 200),) * 3)),
        purchase=("any",),
        include_untrusted=True,
    )
    return ask, chance.choice((1.0, 1.0, 0.5, 0.05))


def _replica(question: Question, tp: int, facts: Facts) -> Answer | None:
    """What the closed form says of the replica at this tensor-parallel degree."""
    large = [site.instance for site in sites(facts.offers, question.supply) if site.instance.gpu_count >= tp]
    verdicts = screen(large[:1], question, facts).verdicts if large else {}
    return next(
        (
            verdict
            for replica, verdict in verdicts.items()
            if isinstance(verdict, Answer) and replica.parallelism.tp == tp
        ),
        None,
    )


def main() -> None:
    """Prints every question beyond a tenth, and the distribution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    found = sorted(asked(options.questions, options.seed), key=lambda one: abs(one.disagreement))
    off = np.abs([one.disagreement for one in found])
    show_table(
        "Beyond 10 %",
        ["closed form", "simulated", "off by", "running", "bound by", "question"],
        [
            [
                f"{one.steady_requests_per_s:.3g}/s",
                f"{one.simulated_requests_per_s:.3g}/s",
                f"{one.disagreement:+.0%}",
                f"{one.running:.3g}",
                one.binding,
                one.text,
            ]
            for one in found
            if abs(one.disagreement) > TOLERATED
        ],
    )
    shares = ", ".join(f"p{share} {100 * np.quantile(off, share / 100):.1f} %" for share in (50, 75, 90, 95))
    bias = 100 * float(np.median([one.disagreement for one in found]))
    say(
        f"{off.size} questions: {shares}; {100 * (off <= TOLERATED).mean():.0f} % within 10 %; bias {bias:+.1f} %"
    )


if __name__ == "__main__":
    main()
