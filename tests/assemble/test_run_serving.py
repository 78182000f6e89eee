"""Serving runs of a calibration: simulated means against single steps added up by hand."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pytest

from planner.assemble.run_serving import ServedMeans, served_means, serving_step, settings_of
from planner.calibrate.step_unknowns import StepDeployment, tuned_step
from planner.domain.base import InputError
from planner.domain.calibration import MemoryFacts, ServedRequest, ServingLoad, ServingPoint, StepShape
from planner.formulas.gpu_fit import NewSizes
from planner.formulas.host_time import HostTime
from planner.formulas.operators.scales import PLAIN
from planner.formulas.shape_time import host_s, shape_columns, shapes_s
from planner.formulas.step import StepModel
from tests.assemble.device_runs import device_run
from tests.calibrate import made_steps as made
from tests.export.made_run import WHEN

SUBMIT_S = 3e-4
RUN = device_run(memory=MemoryFacts(kv_cache_tokens=200_000))


@pytest.fixture(scope="module")
def one() -> StepDeployment:
    return made.deployment()


@pytest.fixture(scope="module")
def step(one: StepDeployment) -> StepModel:
    return tuned_step(one, PLAIN, np.zeros(len(one.knots)))


def served(*lengths: tuple[int, int], users: int = 1) -> ServingPoint:
    """Requests of so many prompt and answer tokens, sent in this order; how long they took has no say."""
    requests = tuple(
        ServedRequest(input_tokens=prompt, output_tokens=answer, sent_s=float(at), ttft_s=9.0, e2e_s=99.0)
        for at, (prompt, answer) in enumerate(lengths)
    )
    return ServingPoint(
        load=ServingLoad(concurrency=users, input_tokens=100, output_tokens=100, num_requests=len(requests)),
        async_scheduling=False,
        submit_s=SUBMIT_S,
        requests=requests,
        measured_at=WHEN,
    )


def means(
    point: ServingPoint, one: StepDeployment, step: StepModel, host: HostTime = made.TRUE_HOST
) -> ServedMeans:
    return served_means(RUN, point, one, step, host)


def steps_s(step: StepModel, shapes: Sequence[StepShape], host: HostTime = made.TRUE_HOST) -> list[float]:
    """Single steps, one scheduled when the one before has ended."""
    columns = shape_columns(shapes)
    return (shapes_s(step, columns) + host_s(host, columns)).tolist()


def decodes(prompt: int, answer: int) -> list[StepShape]:
    """The steps of all tokens of an answer but its first, alone."""
    return [StepShape(decodes=1, context_tokens=prompt + at) for at in range(answer - 1)]


def test_one_user_takes_its_prompt_and_then_a_step_a_token(one: StepDeployment, step: StepModel) -> None:
    found = means(served((300, 8), (60, 5)), one, step)
    prompts = steps_s(step, [StepShape(prompts=1, prompt_tokens=tokens) for tokens in (300, 60)])
    assert found.ttft_s == pytest.approx(fmean(prompts) + SUBMIT_S, rel=1e-9)
    each = [fmean(steps_s(step, decodes(*lengths))) for lengths in ((300, 8), (60, 5))]
    assert found.tpot_s == pytest.approx(fmean(each), rel=1e-6)


def test_two_users_share_their_steps(one: StepDeployment, step: StepModel) -> None:
    """Two alike that are sent together: both prompts in one step, then both tokens in each."""
    found = means(served((200, 6), (200, 6), users=2), one, step)
    (prompts_s,) = steps_s(step, [StepShape(prompts=2, prompt_tokens=200)])
    together = [StepShape(decodes=2, context_tokens=200 + at) for at in range(5)]
    assert found.ttft_s == pytest.approx(prompts_s + SUBMIT_S, rel=1e-9)
    assert found.tpot_s == pytest.approx(fmean(steps_s(step, together)), rel=1e-6)


def test_requests_go_in_the_order_they_were_sent(one: StepDeployment, step: StepModel) -> None:
    """Two users, three requests: whoever was sent last waits for the first of the others to end."""
    point = served((1000, 2), (20, 2), (20, 40), users=2)
    shuffled = point.model_copy(update={"requests": tuple(reversed(point.requests))})
    assert means(shuffled, one, step) == means(point, one, step)
    swapped = served((20, 40), (20, 2), (1000, 2), users=2)
    assert means(swapped, one, step).ttft_s != pytest.approx(means(point, one, step).ttft_s, rel=0.01)


def test_neither_network_nor_front_end_is_in_the_process(one: StepDeployment, step: StepModel) -> None:
    point = served((100, 5), (100, 5), (50, 3), users=2)
    far = {"front_s": 1.0, "front_per_token_s": 1.0, "reply_s": 1.0, "reply_per_user_s": 1.0}
    remote = made.TRUE_HOST.model_copy(update=far)
    assert means(point, one, step, remote) == means(point, one, step)
    slower = made.TRUE_HOST.model_copy(update={"sync_step_s": made.TRUE_HOST.sync_step_s + 1e-3})
    assert means(point, one, step, slower).tpot_s > means(point, one, step).tpot_s + 0.9e-3


def test_scheduling_ahead_takes_the_host_time_of_its_own(one: StepDeployment, step: StepModel) -> None:
    """Synchronous host time no longer counts; 2 ms that no step hides do, once a step."""
    point = served((100, 9)).model_copy(update={"async_scheduling": True})
    ahead = made.TRUE_HOST.model_copy(update={"step_s": 2e-3, "sync_step_s": 1.0})
    bare = shapes_s(step, shape_columns(decodes(100, 9)))
    assert means(point, one, step, ahead).tpot_s == pytest.approx(float(bare.mean()) + 2e-3, rel=1e-6)


def test_answers_of_one_token_have_no_time_per_token(one: StepDeployment, step: StepModel) -> None:
    assert means(served((100, 1), (100, 1)), one, step).tpot_s == 0.0
    with_one = means(served((100, 1), (80, 4)), one, step)
    assert with_one.tpot_s == pytest.approx(fmean(steps_s(step, decodes(80, 4))), rel=1e-6)


def test_the_cache_is_as_large_as_the_engine_said(one: StepDeployment, step: StepModel) -> None:
    """Without room for two, the second waits for the first."""
    point = served((1000, 20), (1000, 20), users=2)
    small = RUN.model_copy(update={"memory": MemoryFacts(kv_cache_tokens=1100)})
    waited = served_means(small, point, one, step, made.TRUE_HOST)
    (prompt_s,) = steps_s(step, [StepShape(prompts=1, prompt_tokens=1000)])
    answer_s = sum(steps_s(step, decodes(1000, 20)))
    assert waited.ttft_s == pytest.approx(fmean((prompt_s, 2 * prompt_s + answer_s)) + SUBMIT_S, rel=1e-6)
    assert waited.tpot_s == pytest.approx(answer_s / 19, rel=1e-6)
    none = RUN.model_copy(update={"memory": None})
    assert served_means(none, point, one, step, made.TRUE_HOST) == means(point, one, step)
    tiny = RUN.model_copy(update={"memory": MemoryFacts(kv_cache_tokens=500)})
    with pytest.raises(InputError, match="KV blocks"):
        served_means(tiny, point, one, step, made.TRUE_HOST)


def test_steps_without_end_are_refused(one: StepDeployment, step: StepModel) -> None:
    endless = step._replace(body_s=np.full_like(step.body_s, np.inf))
    with pytest.raises(InputError, match=r"^made: its steps cannot be predicted; the datasheet"):
        means(served((100, 5)), one, endless)


def test_new_sizes_lengthen_steps_with_prompts_alone(one: StepDeployment, step: StepModel) -> None:
    """3 ms and 10 us for each of 400 tokens: 7 ms on the first token, nothing on the others."""
    point = served((400, 6))
    slower = serving_step(step, NewSizes(step_s=3e-3, per_token_s=1e-5))
    before, after = means(point, one, step), means(point, one, slower)
    assert after.ttft_s - before.ttft_s == pytest.approx(7e-3, rel=1e-6)
    assert after.tpot_s == pytest.approx(before.tpot_s)
    assert means(point, one, serving_step(step, NewSizes())) == before


def test_the_engine_keeps_its_limits(one: StepDeployment, step: StepModel) -> None:
    """Three prompts of 900 in steps of 2,048 tokens: the third is cut after 248. Steps go by their tokens alone."""
    settings = settings_of(made.ENGINE, async_scheduling=True)
    assert (settings.max_num_batched_tokens, settings.max_num_seqs, settings.max_model_len) == (
        2048,
        64,
        4096,
    )
    assert settings.async_scheduling
    assert not settings.enable_prefix_caching
    nothing = np.zeros_like(step.context_per_pair_s)
    by_tokens = step._replace(
        head_s=np.zeros_like(step.head_s), context_per_pair_s=nothing, context_per_past_s=nothing
    )
    host = made.TRUE_HOST.model_copy(update={"sync_per_sequence_s": 0.0})
    full, rest = (StepShape(prompts=1, prompt_tokens=tokens) for tokens in (2048, 652))
    first, second = steps_s(by_tokens, [full, rest], host)
    ttft_s = means(served((900, 1), (900, 1), (900, 1), users=3), one, by_tokens, host).ttft_s
    assert ttft_s == pytest.approx(first + second / 3 + SUBMIT_S, rel=1e-6)
    unknown = made.ENGINE.model_copy(update={"block_size": 0})
    assert settings_of(unknown, async_scheduling=False).block_size == 1
