"""Host time: a simulated world with known host time is recovered, and what no run tells is not made up."""

from itertools import product

import numpy as np
import pytest

from planner.assemble import host_time_errors
from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.fit_serving import (
    MeasuredRun,
    Runnable,
    fit_host_time,
    fitted_host_time,
    relative_errors,
    runnable,
    simulated,
)
from planner.assemble.host_time_errors import fit_and_test
from planner.assemble.question import facts_for
from planner.domain.base import InputError
from planner.domain.workload import Workload
from planner.formulas.host_time import NO_HOST_TIME, HostTime

TRUTH = HostTime(
    step_s=3e-4,
    per_sequence_s=2.5e-5,
    sync_step_s=2e-3,
    sync_per_sequence_s=6e-5,
    front_s=0.0,
    front_per_token_s=4e-6,
    reply_s=8e-3,
    reply_per_user_s=2e-4,
)
NOISE = 0.01
MODELS = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-32B")


def _unmeasured(ways: tuple[bool, ...] = (True, False), *, says_batch: bool = True) -> list[Runnable]:
    """A sweep of two models, two degrees, prompts short and long, few users and many; times not yet known."""
    runs = []
    for model, tp, is_async, (prompt, users) in product(
        MODELS, (2, 4), ways, ((200, 2), (200, 48), (4000, 2), (4000, 24))
    ):
        case = deployment(
            model,
            gpu_named("H100-SXM-80GB"),
            parallelism_of(tp),
            Formats(),
            Engine(max_model_len=8192, async_scheduling=is_async),
        )
        workload = Workload(
            input_tokens=prompt,
            output_tokens=100,
            length_low_ratio=0.8,
            concurrency=users,
            num_requests=12 * users,
        )
        runs.append(MeasuredRun(case._replace(workload=workload), 1.0, 1.0, says_batch))
    return runnable(runs, facts_for())


def _measured_in(world: HostTime, runs: list[Runnable], noise: float = 0.0) -> list[Runnable]:
    """The runs with the times that this world shows, each off by a random factor."""
    means, random = simulated(runs, world), np.random.default_rng(3)
    factors = np.exp(noise * random.standard_normal((2, len(runs))))
    return [
        one._replace(run=one.run._replace(ttft_s=float(ttft), tpot_s=float(tpot)))
        for one, ttft, tpot in zip(runs, means.ttft * factors[0], means.tpot * factors[1], strict=True)
    ]


def test_a_known_world_is_recovered_through_noise() -> None:
    runs = _measured_in(TRUTH, _unmeasured(), NOISE)
    found = fit_host_time(runs)
    for name in ("step_s", "per_sequence_s", "sync_step_s", "sync_per_sequence_s", "front_per_token_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUTH, name), rel=0.25), name
    assert found.reply_s == pytest.approx(TRUTH.reply_s, rel=0.15)
    errors = relative_errors(_measured_in(TRUTH, runs), found)
    assert np.median(np.abs(errors.tpot)) < NOISE
    assert np.median(np.abs(errors.ttft)) < 2 * NOISE


def test_outliers_count_little() -> None:
    runs = _measured_in(TRUTH, _unmeasured())
    spoilt = [
        one._replace(run=one.run._replace(tpot_s=one.run.tpot_s * (2.0 if index % 7 == 0 else 1.0)))
        for index, one in enumerate(runs)
    ]
    sound = [one for index, one in enumerate(runs) if index % 7]
    errors = relative_errors(sound, fit_host_time(spoilt))
    assert np.median(np.abs(errors.tpot)) < 0.02


@pytest.mark.parametrize("is_async", [True, False])
def test_a_way_of_scheduling_that_no_run_used_has_the_time_of_the_other(is_async: bool) -> None:
    found = fit_host_time(_measured_in(TRUTH, _unmeasured((is_async,))))
    assert (found.step_s, found.per_sequence_s) == (found.sync_step_s, found.sync_per_sequence_s)
    assert found.step_s == pytest.approx(TRUTH.step_s if is_async else TRUTH.sync_step_s, rel=0.1)


def test_ttft_counts_only_where_the_batch_is_known_unless_it_nowhere_is() -> None:
    known = _measured_in(TRUTH, _unmeasured((True,)))
    unsaid = [
        one._replace(run=one.run._replace(ttft_s=5.0 * one.run.ttft_s, says_batch=False)) for one in known
    ]
    mixed = fit_host_time([*known, *unsaid])
    assert mixed.reply_s == pytest.approx(TRUTH.reply_s, rel=0.2)
    assert fit_host_time(unsaid).reply_s > 2.0 * TRUTH.reply_s


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(InputError, match="10 are needed"):
        fit_host_time(_unmeasured((True,))[:9])


def test_an_engine_that_would_not_start_is_left_out() -> None:
    case = deployment(
        "meta-llama/Llama-3.1-70B", gpu_named("L4"), parallelism_of(1), Formats(), Engine(max_model_len=4096)
    )
    workload = Workload(input_tokens=100, output_tokens=10, concurrency=1)
    assert runnable([MeasuredRun(case._replace(workload=workload), 1.0, 1.0, True)], facts_for()) == []


def test_an_open_loop_is_simulated_as_one_data_parallel_rank_sees_it() -> None:
    case = deployment(
        MODELS[0], gpu_named("H100-SXM-80GB"), parallelism_of(1, dp=2), Formats(), Engine(max_model_len=4096)
    )
    workload = Workload(input_tokens=500, output_tokens=50, requests_per_s=4.0, num_requests=100)
    (one,) = runnable([MeasuredRun(case._replace(workload=workload), 1.0, 1.0, True)], facts_for())
    assert one.users == 0
    assert one.stream.prompt_tokens.size == 50
    assert one.stream.sent_s[-1] == pytest.approx(25.0, rel=0.4)
    means = simulated([one], TRUTH)
    assert means.ttft[0] > 500 * TRUTH.front_per_token_s + TRUTH.reply_s
    assert means.tpot[0] > simulated([one], NO_HOST_TIME).tpot[0]


def test_every_part_is_predicted_by_a_fit_that_did_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit itself has its own tests; here it only notes what it is given."""
    runs = _measured_in(TRUTH, _unmeasured((True,)))
    seen: list[set[str]] = []

    def noting(given: list[Runnable]) -> HostTime:
        seen.append({f"{one.run.case.model.name} TP {one.run.case.parallelism.tp}" for one in given})
        return TRUTH

    monkeypatch.setattr(host_time_errors, "fit_host_time", noting)
    monkeypatch.setattr(host_time_errors, "FEWEST_RUNS", 5)
    host, rows = fit_and_test(runs)
    pairs = {f"{model} TP {tp}" for model in MODELS for tp in (2, 4)}
    assert host == TRUTH
    assert seen[0] == pairs
    assert [pairs - kept for kept in seen[1:]] == [
        *({f"{model} TP 2", f"{model} TP 4"} for model in sorted(MODELS)),
        *({f"{model} TP {tp}" for model in MODELS} for tp in (2, 4)),
        *({pair} for pair in sorted(pairs)),
    ]
    assert [(row.left_out, row.runs) for row in rows if row.group == "all"] == [
        ("nothing", 16),
        ("each model", 16),
        ("each TP", 16),
        ("each model and TP", 16),
    ]
    for row in rows:
        assert row.tpot.p90_ratio < 1e-9
        assert row.tpot_before.median_ratio > 0.01


def test_what_is_stored_says_what_it_rests_on() -> None:
    runs = [*_unmeasured((True,)), *_unmeasured((False,), says_batch=False)]
    stored = fitted_host_time(TRUTH, runs, source="mine.csv")
    assert (stored.runs, stored.async_runs, stored.host) == (32, 16, TRUTH)
    assert stored.provenance.startswith("mine.csv: mean TPOT of 32 runs and mean TTFT of the 16 that say")
