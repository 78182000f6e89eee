"""Launches that no CUDA graph holds: what they do to whole deployments, and how `explain` shows them."""

from functools import cache

import numpy as np
import pytest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.domain.workload import Slo, Workload
from planner.formulas.engine_defaults import parse_version
from planner.formulas.launches import launch_time
from planner.formulas.relief import Resource
from planner.formulas.step_parts import Operator
from planner.planning.explain import StepAsked, StepExplained, explained
from planner.planning.facts import Facts
from planner.planning.predict import Case, predict
from planner.planning.simulate import Traffic, drawn_traffic, simulated
from planner.serving.arrivals import plain_stream

SMALL, LARGE = "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-70B"
USERS = Workload(input_tokens=512, output_tokens=128, concurrency=8, num_requests=200)


@cache
def facts() -> Facts:
    return facts_for()


def case_of(model: str, tp: int = 1, **flags: bool) -> Case:
    given = Engine(max_model_len=8192, **flags)
    found = deployment(model, gpu_named("H100-SXM-80GB"), parallelism_of(tp, 1, 1), Formats(), given)
    return found._replace(workload=USERS)


def explained_step(case: Case, batch: int, prompt_tokens: int = 0) -> StepExplained:
    return explained(case, StepAsked(batch, 1000, prompt_tokens), facts())


def simulated_tpot_s(case: Case) -> float:
    run = simulated(case, drawn_traffic(USERS, 0), Slo(), facts())
    assert run.measures is not None
    return run.measures.tpot.mean_s


def wait_s(step: StepExplained) -> float:
    assert step.breakdown is not None
    return sum(part.time_s for part in step.breakdown.parts if part.operator is Operator.LAUNCHES)


@pytest.mark.parametrize("is_async", [True, False])
def test_an_eager_step_of_a_small_model_is_its_launches_and_the_hosts_work(is_async: bool) -> None:
    case = case_of(SMALL, enforce_eager=True, async_scheduling=is_async)
    engine, host = case.engine, facts().host
    launch_s = launch_time(case.model, case.parallelism, parse_version(engine.engine_version)).eager_s
    before_s, per_sequence_s = host.of_step(async_scheduling=is_async)
    chain_s, chain_per_sequence_s = host.beside_step(async_scheduling=is_async)
    besides_s = max(before_s + 8 * per_sequence_s, chain_s + 8 * chain_per_sequence_s)
    step = explained_step(case, 8)
    assert step.breakdown is not None
    assert step.breakdown.step_s == pytest.approx(launch_s + besides_s)
    assert step.breakdown.binds is Resource.HOST
    assert sum(part.time_s for part in step.breakdown.parts) == pytest.approx(step.breakdown.step_s)
    assert "--enforce-eager" in " ".join(step.notes)


def test_a_captured_decode_step_waits_for_no_launch() -> None:
    step = explained_step(case_of(SMALL), 8)
    assert wait_s(step) == 0.0
    assert not any("launching" in note for note in step.notes)


def test_attention_between_captured_pieces_is_launched() -> None:
    """A small prompt in a step of a small model: 28 layers of pieces take longer than the GPU."""
    step = explained_step(case_of(SMALL), 8, prompt_tokens=64)
    assert wait_s(step) > 0.0
    assert "no CUDA graph holds the whole step" in " ".join(step.notes)


@pytest.mark.parametrize("flags", [{}, {"enforce_eager": True}])
def test_a_long_prompt_of_a_large_model_hides_its_launches(flags: dict[str, bool]) -> None:
    assert wait_s(explained_step(case_of(LARGE, 4, **flags), 1, prompt_tokens=4096)) == 0.0


def test_eager_engines_of_small_models_answer_slower() -> None:
    assert simulated_tpot_s(case_of(SMALL, enforce_eager=True)) > 1.5 * simulated_tpot_s(case_of(SMALL))


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("prompt_tokens", [100, 1500])
def test_the_simulated_step_is_the_explained_one(eager: bool, prompt_tokens: int) -> None:
    """One prompt alone, within the captured sizes and beyond: its first step is the time to its first token."""
    case = case_of(SMALL, enforce_eager=eager)
    host = facts().host.model_copy(update={"front_s": 0.0, "front_per_token_s": 0.0, "reply_s": 0.0})
    host = host.model_copy(update={"reply_per_user_s": 0.0})
    known = facts()._replace(host=host)
    stream = plain_stream(np.zeros(1), np.array([prompt_tokens]), np.array([1]))
    run = simulated(case, Traffic(stream, 1), Slo(), known)
    assert run.requests is not None
    step = explained(case, StepAsked(0, 0, prompt_tokens), known)
    assert step.breakdown is not None
    assert run.requests.ttft_s[0] == pytest.approx(step.breakdown.step_s, rel=0.01)


@pytest.mark.parametrize("eager", [True, False])
def test_the_closed_form_agrees_with_the_simulation(eager: bool) -> None:
    case = case_of(SMALL, enforce_eager=eager)
    (found,) = predict([case], facts())
    assert found.latency is not None
    assert found.latency.tpot_mean_s == pytest.approx(simulated_tpot_s(case), rel=0.1)
