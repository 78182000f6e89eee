"""One step of a deployment: the same as the simulated scheduler's, and what the KV cache says about its batch."""

from functools import cache

import numpy as np
import pytest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.domain.base import InputError
from planner.domain.workload import Slo
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.relief import Resource
from planner.formulas.step_parts import Operator
from planner.planning.explain import KV, StepAsked, StepExplained, check_step, explained
from planner.planning.facts import Facts
from planner.planning.memory_questions import sequences_held
from planner.planning.predict import Case
from planner.planning.simulate import Traffic, simulated
from planner.serving.arrivals import plain_stream

LLAMA, GPT_OSS = "meta-llama/Llama-3.1-8B", "openai/gpt-oss-120b"


@cache
def facts() -> Facts:
    return facts_for()


def case_of(model: str = LLAMA, tp: int = 1, pp: int = 1, dp: int = 1, engine: Engine | None = None) -> Case:
    parallelism = parallelism_of(tp, pp, dp)
    given = engine or Engine(max_model_len=8192)
    return deployment(model, gpu_named("H100-SXM-80GB"), parallelism, Formats(), given)


def step_of(case: Case, batch: int, context: int, prompt: int = 0) -> StepExplained:
    return explained(case, StepAsked(batch, context, prompt), facts())


@pytest.mark.parametrize("batch", [1, 13, 32])
@pytest.mark.parametrize(
    ("model", "tp", "engine"),
    [
        (LLAMA, 1, Engine(max_model_len=8192)),
        (LLAMA, 1, Engine(max_model_len=8192, enforce_eager=True)),
        (LLAMA, 1, Engine(max_model_len=8192, async_scheduling=False)),
        (GPT_OSS, 2, Engine(max_model_len=8192)),
    ],
)
def test_a_decode_step_is_that_of_the_simulated_scheduler(
    model: str, tp: int, engine: Engine, batch: int
) -> None:
    """Prompts of 200 tokens all in the first step, then one step in which each sees 201: its time is the TPOT.

    Without a front end, so that they all come at once.
    """
    case = case_of(model, tp, engine=engine)
    stream = plain_stream(np.zeros(batch), np.full(batch, 200), np.full(batch, 2))
    host = facts().host.model_copy(update={"front_s": 0.0, "front_per_token_s": 0.0})
    run = simulated(case, Traffic(stream, batch), Slo(), facts()._replace(host=host))
    assert run.requests is not None
    step = step_of(case, batch, 201)
    assert step.breakdown is not None
    assert run.requests.tpot_s == pytest.approx(np.full(batch, step.breakdown.step_s), rel=1e-9)
    assert step.padded_tokens == (batch if case.engine.enforce_eager else {1: 1, 13: 16, 32: 32}[batch])


def test_the_host_takes_what_the_facts_say() -> None:
    case = case_of()
    step_s, per_sequence_s = facts().host.of_step(async_scheduling=case.engine.async_scheduling)
    found = step_of(case, 7, 100, 50).breakdown
    assert found is not None
    (host,) = (part for part in found.parts if part.operator is Operator.HOST)
    assert host.time_s == pytest.approx(step_s + 8 * per_sequence_s)
    silent = explained(case, StepAsked(7, 100), facts()._replace(host=NO_HOST_TIME))
    assert silent.breakdown is not None
    assert Operator.HOST not in {part.operator for part in silent.breakdown.parts}
    assert "outside the GPU is not counted" in silent.notes[-1]


def test_the_cache_binds_from_the_batch_that_fills_it() -> None:
    case = case_of()
    held = step_of(case, 1, 8000).held
    assert held is not None
    assert held == sequences_held(step_of(case, 1, 8000).sized, 8000)
    before, full, beyond = (step_of(case, batch, 8000) for batch in (held - 1, held, held + 1))
    assert (before.binds, before.next_limit) == (Resource.BANDWIDTH, before.breakdown.next_limit)  # type: ignore[union-attr]
    for one in (full, beyond):
        assert (one.binds, one.next_limit) == (KV, Resource.BANDWIDTH)
    assert full.notes == ()
    assert beyond.notes == (
        f"the KV cache holds {held} sequences of 8,000 tokens at once, not {held + 1}: the others wait or are "
        "preempted",
    )


def test_a_prompt_takes_its_part_of_the_cache() -> None:
    alone, beside = (step_of(case_of(), 1, 4000, prompt).held for prompt in (0, 8000))
    assert alone is not None
    assert beside is not None
    assert alone - 3 <= beside < alone  # two of 4,000 tokens, and what rounding to blocks makes of it


def test_stages_share_the_cache() -> None:
    one = step_of(case_of(pp=2), 1, 4000)
    assert one.held == sequences_held(one.sized, 4000) // 2
    assert "one batch's way through 2 stages" in one.notes[0]


def test_a_prompt_alone_asks_nothing_of_the_cache() -> None:
    found = step_of(case_of(), 0, 0, 4096)
    assert found.held is None
    assert found.ridge is None
    assert found.binds == Resource.COMPUTE


def test_more_sequences_than_a_step_takes_are_answered_and_said() -> None:
    case = case_of(engine=Engine(max_model_len=8192, max_num_seqs=16))
    found = step_of(case, 20, 100)
    assert found.breakdown is not None
    assert found.notes == ("a step takes at most max_num_seqs, 16 sequences, not 20",)


def test_ranks_each_have_the_batch() -> None:
    found = step_of(case_of("Qwen/Qwen3-30B-A3B", dp=2), 8, 1000)
    assert found.notes == ("batch and prompt are those of each of the 2 data-parallel ranks",)


def test_what_does_not_start_has_no_step() -> None:
    found = step_of(case_of("meta-llama/Llama-3.1-70B"), 1, 100)
    assert found.breakdown is None
    assert found.sized.refusal is not None
    assert (found.binds, found.next_limit) == ("", "")


def test_what_is_not_timed_is_said() -> None:
    draft = Engine(max_model_len=4096, draft_model="meta-llama/Llama-3.2-1B", num_speculative_tokens=3)
    assert "draft model" in step_of(case_of(engine=draft), 1, 100).notes[0]
    adapters = Engine(max_model_len=4096, enable_lora=True)
    assert "adapters" in step_of(case_of(engine=adapters), 1, 100).notes[0]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (StepAsked(0, 100), "batch and prompt_tokens are both 0"),
        (StepAsked(-1, 100), "batch must be from 0 to 1,000,000, got -1"),
        (StepAsked(10**30, 100), "batch must be from 0 to 1,000,000"),
        (StepAsked(1, 0), "context_tokens must be from 1 to max_model_len, 8192, got 0"),
        (StepAsked(1, -5), "context_tokens must be from 1"),
        (StepAsked(1, 8193), "context_tokens must be from 1 to max_model_len, 8192, got 8193"),
        (StepAsked(1, 100, -1), "prompt_tokens must be from 0"),
        (StepAsked(1, 100, 10**30), "prompt_tokens must be from 0"),
        (StepAsked(0, 0, 8193), "prompt_tokens must be at most max_model_len, 8192, got 8193"),
        (
            StepAsked(9000, 100),
            "at most max_num_batched_tokens, 8192 tokens; batch and prompt_tokens make 9000",
        ),
        (StepAsked(1, 100, 8192), "batch and prompt_tokens make 8193"),
    ],
)
def test_steps_that_cannot_be_are_refused(asked: StepAsked, wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        check_step(asked, case_of())
