"""The serving fit: a simulated world with known numbers is recovered, and what no run tells is not made up."""

import numpy as np
import pytest

from planner.assemble import fit_serving as fitting
from planner.assemble.fit_serving import PRIORS, ServingFit, deployment_name, fit_serving, fitted_serving
from planner.assemble.served import relative_errors
from planner.domain.base import InputError
from planner.formulas.tuning import NO_TUNING, model_shape
from tests.assemble.worlds import HOST, measured_in, tuning_of, unmeasured

NOISE = 0.01
RATIOS = ((1.04, 0.93), (0.97, 1.08), (1.03, 1.06), (0.96, 0.95))
"""Of each deployment, decoding and prompts: as far off as fits to kernel tables are."""
EVEN = ((1.0, 1.0),) * 4
WITHIN = {
    "step_s": 0.45,
    "per_sequence_s": 0.2,
    "sync_step_s": 0.08,
    "sync_per_sequence_s": 0.08,
    "front_per_token_s": 0.15,
    "reply_s": 0.25,
    "reply_per_user_s": 0.1,
}
"""How near each number of the host comes to the truth, through noise and though it is drawn to half of that or less.
The fixed part of an asynchronous step is a hundredth of most steps here: it is told worst."""
SURE = ("per_sequence_s", "sync_step_s", "sync_per_sequence_s")
"""Those that hardly depend on where the search ends: simulated TTFT jumps with the order of events."""


def fitted_in(ratios: tuple[tuple[float, float], ...], noise: float = 0.0) -> ServingFit:
    runs = unmeasured()
    return fit_serving(measured_in(runs, HOST, tuning_of(runs, ratios), noise))


def test_a_known_world_is_recovered_through_noise() -> None:
    runs = unmeasured()
    truth = tuning_of(runs, RATIOS, sustained_slowdown=0.15)
    found = fit_serving(measured_in(runs, HOST, truth, NOISE))
    for name, within in WITHIN.items():
        assert getattr(found.host, name) == pytest.approx(getattr(HOST, name), rel=within), name
    assert found.tuning.sustained_slowdown == pytest.approx(0.15, abs=0.05)
    assert found.tuning.rank_wait_s == pytest.approx(2e-6, rel=0.3)
    for one, known in zip(found.tuning.deployments, truth.deployments, strict=True):
        assert one.decode_ratio == pytest.approx(known.decode_ratio, abs=0.07)
        assert one.prompt_ratio == pytest.approx(known.prompt_ratio, abs=0.07)
    errors = relative_errors(measured_in(runs, HOST, truth), *found)
    assert np.median(np.abs(errors.tpot)) < 0.7 * NOISE
    assert np.abs(errors.tpot).max() < 3 * NOISE
    assert np.median(np.abs(errors.ttft)) < 1.5 * NOISE


def test_what_is_wrong_with_one_deployment_does_not_pass_for_host_time() -> None:
    """One of four decodes a quarter slower than its kernels say: its ratio says so, and nobody else's numbers move."""
    even, biased = fitted_in(EVEN), fitted_in(((1.25, 1.0), *EVEN[1:]))
    for name, within in WITHIN.items():
        moved = getattr(biased.host, name) / getattr(even.host, name) - 1.0
        assert abs(moved) < (0.1 if name in SURE else 0.3), name
        assert getattr(biased.host, name) == pytest.approx(getattr(HOST, name), rel=within + 0.1), name
    assert biased.tuning.sustained_slowdown == pytest.approx(even.tuning.sustained_slowdown, abs=0.03)
    assert biased.tuning.rank_wait_s == pytest.approx(even.tuning.rank_wait_s, abs=1e-6)
    wrong, *others = biased.tuning.deployments
    assert wrong.decode_ratio == pytest.approx(1.25, abs=0.02)
    for one in others:
        assert one.decode_ratio == pytest.approx(1.0, abs=0.02)
        assert one.prompt_ratio == pytest.approx(1.0, abs=0.03)


def test_without_ratios_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same two worlds with ratios held at 1: host time is bent to fit the slow one."""
    monkeypatch.setattr(fitting, "DECODE_SPREAD", 1e-5)
    monkeypatch.setattr(fitting, "PROMPT_SPREAD", 1e-5)
    even, biased = fitted_in(EVEN), fitted_in(((1.25, 1.0), *EVEN[1:]))
    assert all(one.decode_ratio == 1.0 for one in biased.tuning.deployments)
    assert biased.host.step_s > 1.5 * even.host.step_s


def test_outliers_count_little() -> None:
    runs = unmeasured()
    runs = measured_in(runs, HOST, tuning_of(runs, EVEN))
    spoilt = [
        one._replace(run=one.run._replace(tpot_s=one.run.tpot_s * (2.0 if index % 7 == 0 else 1.0)))
        for index, one in enumerate(runs)
    ]
    sound = [one for index, one in enumerate(runs) if index % 7]
    errors = relative_errors(sound, *fit_serving(spoilt))
    assert np.median(np.abs(errors.tpot)) < 0.02


@pytest.mark.parametrize("is_async", [True, False])
def test_a_way_of_scheduling_that_no_run_used_keeps_what_it_is_drawn_to(is_async: bool) -> None:
    runs = unmeasured((is_async,))
    found = fit_serving(measured_in(runs, HOST, tuning_of(runs, EVEN))).host
    ways = ("sync_step_s", "sync_per_sequence_s"), ("step_s", "per_sequence_s")
    unseen, seen = ways if is_async else ways[::-1]
    for name in unseen:
        assert getattr(found, name) == PRIORS[name].value, name
    for name in seen:
        assert abs(getattr(found, name) - PRIORS[name].value) > 0.3 * PRIORS[name].value, name


def test_ttft_counts_only_where_the_batch_is_known_unless_it_nowhere_is() -> None:
    runs = unmeasured((True,))
    known = measured_in(runs, HOST, tuning_of(runs, EVEN))
    unsaid = [
        one._replace(run=one.run._replace(ttft_s=5.0 * one.run.ttft_s, says_batch=False)) for one in known
    ]
    told, mixed = fit_serving(known).host, fit_serving([*known, *unsaid]).host
    assert mixed.reply_s == pytest.approx(told.reply_s, rel=0.2)
    assert mixed.front_per_token_s == pytest.approx(told.front_per_token_s, rel=0.2)
    assert fit_serving(unsaid).host.reply_s > 2.0 * told.reply_s


def test_numbers_are_kept_to_three_digits_and_ratios_to_three_places() -> None:
    found = fitted_in(RATIOS)
    for name in WITHIN:
        value = getattr(found.host, name)
        assert value == float(f"{value:.3g}")
    for one in found.tuning.deployments:
        assert (one.decode_ratio, one.prompt_ratio) == (
            round(one.decode_ratio, 3),
            round(one.prompt_ratio, 3),
        )


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(InputError, match="10 are needed"):
        fit_serving(unmeasured((True,))[:9])


def test_every_deployment_is_named_and_counted() -> None:
    runs = unmeasured()
    found = fit_serving(measured_in(runs, HOST, tuning_of(runs, EVEN)))
    cases = {deployment_name(one): one.run.case for one in runs}
    assert list(cases) == [
        f"{model} bf16 H100-SXM-80GB TP {tp}"
        for model in ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-14B")
        for tp in (1, 4)
    ]
    for one, case in zip(found.tuning.deployments, cases.values(), strict=True):
        assert (one.model_shape, one.tp) == (model_shape(case.model), case.parallelism.tp)
        assert (one.gpu, one.gpu_architecture, one.runs) == ("H100-SXM-80GB", "Hopper", 8)


def test_what_is_stored_says_what_it_rests_on() -> None:
    runs = [*unmeasured((True,)), *unmeasured((False,), says_batch=False)]
    stored = fitted_serving(ServingFit(HOST, NO_TUNING), runs, source="mine.csv")
    assert (stored.runs, stored.async_runs, stored.host, stored.tuning) == (32, 16, HOST, NO_TUNING)
    assert stored.provenance.startswith("mine.csv: mean TPOT of 32 runs and mean TTFT of the 16 that say")
    unsaid = fitted_serving(ServingFit(HOST, NO_TUNING), runs[16:], source="mine.csv")
    assert "mean TTFT of the 16 against simulated runs" in unsaid.provenance
