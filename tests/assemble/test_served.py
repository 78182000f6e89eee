"""Measured runs as they are simulated: one rank's share, step models shared only where they are the same."""

from itertools import combinations

import numpy as np
import pytest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.assemble.served import MeasuredRun, Runnable, relative_errors, runnable, simulated
from planner.domain.workload import Workload
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.tuning import NO_TUNING, ServingTuning
from tests.assemble.worlds import HOST, tuning_of, unmeasured

MODEL = "meta-llama/Llama-3.1-8B"
AS_THEY_ARE, SHORT = Formats(), Engine(max_model_len=4096)
CLOSED = Workload(input_tokens=500, output_tokens=50, concurrency=8, num_requests=24)


def one_run(
    model: str = MODEL,
    *,
    gpu: str = "H100-SXM-80GB",
    tp: int = 1,
    dp: int = 1,
    formats: Formats = AS_THEY_ARE,
    engine: Engine = SHORT,
    workload: Workload = CLOSED,
) -> Runnable:
    case = deployment(model, gpu_named(gpu), parallelism_of(tp, dp=dp), formats, engine)
    (found,) = runnable([MeasuredRun(case._replace(workload=workload), 1.0, 1.0, True)], facts_for())
    return found


def test_an_engine_that_would_not_start_is_left_out() -> None:
    case = deployment(
        "meta-llama/Llama-3.1-70B", gpu_named("L4"), parallelism_of(1), Formats(), Engine(max_model_len=4096)
    )
    assert runnable([MeasuredRun(case._replace(workload=CLOSED), 1.0, 1.0, True)], facts_for()) == []


@pytest.mark.parametrize(
    "workload",
    [
        CLOSED.model_copy(update={"num_requests": 10**9}),
        CLOSED.model_copy(update={"input_tokens": 5000}),
        CLOSED.model_copy(update={"output_tokens": 1}),
    ],
    ids=["too many", "too long", "one token"],
)
def test_requests_that_cannot_be_simulated_are_left_out(workload: Workload) -> None:
    case = deployment(MODEL, gpu_named("H100-SXM-80GB"), parallelism_of(1), AS_THEY_ARE, SHORT)
    runs = [MeasuredRun(case._replace(workload=one), 1.0, 1.0, True) for one in (CLOSED, workload, CLOSED)]
    assert [one.run.case.workload for one in runnable(runs, facts_for())] == [CLOSED, CLOSED]


def test_an_open_loop_is_simulated_as_one_data_parallel_rank_sees_it() -> None:
    workload = Workload(input_tokens=500, output_tokens=50, requests_per_s=4.0, num_requests=100)
    one = one_run(dp=2, workload=workload)
    assert one.users == 0
    assert one.stream.prompt_tokens.size == 50
    assert one.stream.sent_s[-1] == pytest.approx(25.0, rel=0.4)
    means, bare = simulated([one], HOST, NO_TUNING), simulated([one], NO_HOST_TIME, NO_TUNING)
    assert means.ttft[0] > 500 * HOST.front_per_token_s + HOST.reply_s
    assert means.tpot[0] > bare.tpot[0]


def test_a_closed_loop_is_divided_among_data_parallel_ranks() -> None:
    one = one_run(dp=2)
    assert (one.users, one.stream.prompt_tokens.size) == (4, 12)


def test_runs_share_a_step_model_only_where_they_run_the_same() -> None:
    """Each of these differs from the first in one thing that changes times; together they are as they are alone."""
    runs = [
        one_run(),
        one_run(gpu="H200-SXM-141GB"),
        one_run(tp=2),
        one_run(formats=Formats(weight="fp8")),
        one_run(formats=Formats(kv="fp8")),
        one_run("Qwen/Qwen3-8B"),
        one_run(tp=8, engine=Engine(max_model_len=4096, engine_version="0.14.0")),
        one_run(tp=8, engine=Engine(max_model_len=4096, engine_version="0.24.0")),
        one_run("openai/gpt-oss-20b", engine=Engine(max_model_len=4096, engine_version="0.18.0")),
        one_run("openai/gpt-oss-20b", engine=Engine(max_model_len=4096, engine_version="0.19.0")),
    ]
    together = simulated(runs, NO_HOST_TIME, NO_TUNING)
    alone = [simulated([one], NO_HOST_TIME, NO_TUNING) for one in runs]
    assert together.tpot.tolist() == [float(means.tpot[0]) for means in alone]
    assert together.ttft.tolist() == [float(means.ttft[0]) for means in alone]
    for one, other in combinations(together.tpot.tolist(), 2):
        assert one != other


def test_a_ratio_moves_its_own_deployment_alone() -> None:
    runs = unmeasured((True,))
    plain = simulated(runs, NO_HOST_TIME, tuning_of(runs, ((1.0, 1.0),) * 4, 0.0))
    tuned = simulated(runs, NO_HOST_TIME, tuning_of(runs, ((1.2, 1.0), *((1.0, 1.0),) * 3), 0.0))
    ratio = tuned.tpot / plain.tpot
    # The first four runs are of the first deployment. With two users and short prompts it decodes nearly all the time.
    assert ratio[0] == pytest.approx(1.2, abs=0.005)
    assert (ratio[:4] > 1.03).all()
    assert (ratio[:4] < 1.2).all()
    assert ratio[4:] == pytest.approx(1.0, abs=1e-12)


def test_the_slowdown_moves_everybody() -> None:
    runs = unmeasured((True,))
    plain = simulated(runs, NO_HOST_TIME, NO_TUNING)
    slow = simulated(runs, NO_HOST_TIME, ServingTuning(sustained_slowdown=0.2))
    assert (slow.ttft / plain.ttft > 1.0).all()
    assert (slow.ttft / plain.ttft < 1.25).all()


def test_errors_are_relative_to_what_was_measured() -> None:
    one = one_run()
    means = simulated([one], HOST, NO_TUNING)
    doubled = one.run._replace(ttft_s=2.0 * float(means.ttft[0]), tpot_s=0.5 * float(means.tpot[0]))
    errors = relative_errors([one._replace(run=doubled)], HOST, NO_TUNING)
    assert errors.ttft == pytest.approx([-0.5])
    assert errors.tpot == pytest.approx([1.0])


def test_no_run_has_no_error() -> None:
    errors = relative_errors([], HOST, NO_TUNING)
    assert errors.ttft.shape == errors.tpot.shape == (0,)
    assert not np.isnan(errors.tpot).any()
