"""Bulk prediction through the simulated scheduler: the closed form's answers where those hold, and the same memory."""

import numpy as np
import pytest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.domain.base import InputError
from planner.domain.dtypes import KvDtype
from planner.domain.workload import Workload
from planner.formulas.host_time import NO_HOST_TIME
from planner.planning.predict import Case, predict
from planner.planning.predict_simulated import predict_simulated

FACTS = facts_for(calibration_dir=None)
NO_HOST = FACTS._replace(host=NO_HOST_TIME)


def case_of(tp: int = 4, max_model_len: int = 8192, **load: float) -> Case:
    engine = Engine(max_model_len=max_model_len, async_scheduling=False)
    case = deployment(
        "meta-llama/Llama-3.1-70B", gpu_named("H100"), parallelism_of(tp), Formats("fp8"), engine
    )
    workload = Workload.model_validate({"input_tokens": 1024, "output_tokens": 256} | load)
    return case._replace(workload=workload)


@pytest.mark.parametrize(
    "load",
    [
        {"concurrency": 1},
        {"concurrency": 16, "length_low_ratio": 0.5},
        {"requests_per_s": 2.0, "length_low_ratio": 0.5},
    ],
)
def test_near_the_closed_form_where_that_holds(load: dict[str, float]) -> None:
    case = case_of(**load)
    closed, run = predict([case], NO_HOST)[0], predict_simulated([case], NO_HOST)[0]
    assert closed.latency is not None
    assert run.latency is not None
    assert run.memory == closed.memory
    assert run.latency.tpot_mean_s == pytest.approx(closed.latency.tpot_mean_s, rel=0.08)
    assert run.latency.ttft_mean_s == pytest.approx(closed.latency.ttft_mean_s, rel=0.3)
    assert run.output_tokens_per_s == pytest.approx(closed.output_tokens_per_s, rel=0.12)


def test_host_time_only_slows() -> None:
    case = case_of(concurrency=1)
    bare, hosted = (predict_simulated([case], facts)[0].latency for facts in (NO_HOST, FACTS))
    assert bare is not None
    assert hosted is not None
    assert hosted.tpot_mean_s > bare.tpot_mean_s
    assert hosted.ttft_mean_s > bare.ttft_mean_s


def test_equal_questions_have_equal_answers_in_their_order() -> None:
    cases = [case_of(concurrency=users) for users in (1, 8, 1)]
    first, second = predict_simulated(cases, FACTS), predict_simulated(cases, FACTS)
    assert first == second
    assert first[0].latency == first[2].latency != first[1].latency


def test_cases_together_are_answered_as_each_alone() -> None:
    """What layouts share is remembered from row to row, and nothing of what they do not share."""
    first = case_of(concurrency=8)
    flags = [
        {"gpu_memory_utilization": 0.8},
        {"max_num_seqs": 64},
        {"max_num_batched_tokens": 2048},
        {"engine_version": "0.11.0"},
        {"enforce_eager": True},
        {"kv_cache_memory_bytes": 10 << 30},
    ]
    cases = [first, *(first._replace(engine=first.engine.model_copy(update=one)) for one in flags)]
    cases += [
        first._replace(kv_dtype=KvDtype.FP8),
        first._replace(gpu=gpu_named("H200")),
        case_of(8, concurrency=8),
    ]
    for method in (predict, predict_simulated):
        together = method(cases, FACTS)
        assert together == [method([case], FACTS)[0] for case in cases]
        assert len({one.memory for one in together}) == len(cases)


def test_more_users_wait_longer_and_make_more_tokens() -> None:
    found = predict_simulated([case_of(concurrency=users) for users in (1, 4, 16, 64)], FACTS)
    tpot = [one.latency.tpot_mean_s for one in found if one.latency is not None]
    assert (np.diff(tpot) > 0).all()
    assert (np.diff([one.output_tokens_per_s for one in found]) > 0).all()


def test_what_does_not_start_is_refused_and_memory_alone_is_not_timed() -> None:
    tight = case_of(tp=1, max_model_len=131_072, concurrency=1)
    refused = predict_simulated([tight], FACTS)[0]
    assert refused.refusal is not None
    assert refused.latency is None
    alone = predict_simulated([case_of(concurrency=1)._replace(workload=None)], FACTS)[0]
    assert alone.memory is not None
    assert alone.latency is None


def test_requests_longer_than_the_engine_takes_are_bad_input() -> None:
    with pytest.raises(InputError, match="longer than max_model_len, 1024 tokens"):
        predict_simulated([case_of(max_model_len=1024, concurrency=1)], FACTS)
