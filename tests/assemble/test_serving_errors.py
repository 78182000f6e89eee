"""What the serving fit is worth: every part predicted by a fit that did not see it, errors grouped and counted."""

from collections.abc import Sequence

import numpy as np
import pytest

from planner.assemble import serving_errors
from planner.assemble.fit_serving import ServingFit, deployment_name
from planner.assemble.served import Means, Runnable
from planner.assemble.serving_errors import LOADS, Part, Spread, fit_and_test, serving_rows
from planner.domain.base import InputError
from planner.formulas.tuning import NO_TUNING
from tests.assemble.worlds import DEGREES, HOST, MODELS, measured_in, unmeasured

TRUTH = ServingFit(HOST, NO_TUNING)
NAMES = [f"{model} bf16 H100-SXM-80GB TP {tp}" for model in MODELS for tp in DEGREES]


@pytest.fixture(name="seen")
def _seen(monkeypatch: pytest.MonkeyPatch) -> list[list[Runnable]]:
    """What the fit was given each time. The fit itself has its own tests; here it knows the truth."""
    given: list[list[Runnable]] = []

    def noting(runs: Sequence[Runnable]) -> ServingFit:
        given.append(list(runs))
        return TRUTH

    monkeypatch.setattr(serving_errors, "fit_serving", noting)
    return given


def world() -> list[Runnable]:
    """Four runs of each of four deployments, measured exactly."""
    return measured_in(unmeasured((True,)), *TRUTH)


def left_out_of(given: list[Runnable], runs: list[Runnable]) -> list[int]:
    kept = {id(one) for one in given}
    return [index for index, one in enumerate(runs) if id(one) not in kept]


def test_every_part_is_predicted_by_a_fit_that_did_not_see_it(
    seen: list[list[Runnable]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_errors, "FEWEST_RUNS", 5)
    runs = world()
    told: list[tuple[str, float]] = []
    tested = fit_and_test(runs, lambda what, share: told.append((what, share)))
    assert tested.fit == TRUTH
    parts = [left_out_of(given, runs) for given in seen]
    llama, qwen = list(range(8)), list(range(8, 16))
    tp1 = [index for index in range(16) if index // 4 % 2 == 0]
    assert parts == [
        [],
        qwen,
        llama,
        tp1,
        [index for index in range(16) if index not in tp1],
        *([index for index in range(16) if NAMES[index // 4] == name] for name in sorted(NAMES)),
        list(range(0, 16, 2)),
        list(range(1, 16, 2)),
    ]
    assert [what for what, _ in told] == ["all runs", *(f"without {part.name}" for part in tested.parts)]
    assert [share for _, share in told] == pytest.approx([index / 11 for index in range(11)])
    for means in (tested.in_sample, *tested.left_out.values()):
        assert np.abs(means.tpot).max() < 1e-9
        assert np.abs(means.ttft).max() < 1e-9
    assert np.median(np.abs(tested.before.tpot)) > 0.02


def test_a_part_without_which_too_little_is_left_is_not_predicted(seen: list[list[Runnable]]) -> None:
    """Of 16 runs 8 are left without a model, a TP or a half, and 12 without a deployment; 10 are needed."""
    tested = fit_and_test(world())
    assert len(seen) == 1 + 4
    assert set(tested.left_out) == {"each model", "each TP", "each deployment", LOADS}
    for kind, means in tested.left_out.items():
        unknown = np.isnan(means.tpot)
        assert unknown.all() == (kind != "each deployment")
        assert unknown.any() == (kind != "each deployment")
    rows = serving_rows(world(), tested)
    assert {row.left_out for row in rows} == {"nothing", "each deployment"}


def test_a_part_that_is_the_same_as_another_is_fitted_once(
    seen: list[list[Runnable]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model at two TPs: leaving out a TP leaves out a deployment; without the model nothing is left."""
    monkeypatch.setattr(serving_errors, "FEWEST_RUNS", 3)
    runs = [one for one in world() if one.run.case.model.name == MODELS[0]]
    tested = fit_and_test(runs)
    assert len(seen) == 1 + 2 + 2
    assert np.isnan(tested.left_out["each model"].tpot).all()
    assert tested.left_out["each TP"].tpot.tolist() == tested.left_out["each deployment"].tpot.tolist()


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(InputError, match="10 are needed"):
        fit_and_test(world()[:9])


def test_rows_are_medians_and_tails_of_absolute_errors() -> None:
    """Two deployments of two runs: -10, 30 and 20, -40 %. Median 25, 90th percentile 30 + 0.7 x 10 = 37 %."""
    runs = [one for index, one in enumerate(world()) if index % 4 < 2 and index < 8]
    names = [deployment_name(one) for one in runs]
    errors = np.array([-0.1, 0.3, 0.2, -0.4])
    half = np.array([True, True, False, False])
    unknown = np.where(half, errors, np.nan)
    tested = serving_errors.Tested(
        TRUTH,
        Means(10.0 * errors, 5.0 * errors),
        Means(2.0 * errors, errors),
        {"each deployment": Means(2.0 * unknown, unknown), LOADS: Means(errors, errors)},
        (
            Part("each deployment", names[0], half),
            Part("each deployment", names[2], ~half),
            Part(LOADS, "loads 1 of 2", half),
        ),
    )
    rows = {(row.left_out, row.group): row for row in serving_rows(runs, tested)}
    everything = rows["nothing", "all"]
    assert everything.runs == 4
    assert everything.tpot == pytest.approx(Spread(0.25, 0.37))
    assert everything.ttft == pytest.approx(Spread(0.5, 0.74))
    assert everything.tpot_before == pytest.approx(Spread(1.25, 1.85))
    assert everything.ttft_before == pytest.approx(Spread(2.5, 3.7))
    assert everything.spreads == (
        everything.tpot_before,
        everything.tpot,
        everything.ttft_before,
        everything.ttft,
    )
    # 10 and 30 %: median 20, 90th percentile 10 + 0.9 x 20 = 28 %.
    assert rows["nothing", names[0]].tpot == pytest.approx(Spread(0.2, 0.28))
    # Of the second nothing is known left out, so the first is all there is, and no row tells of the second.
    assert rows["each deployment", "all"].runs == rows["each deployment", names[0]].runs == 2
    assert set(rows) == {
        ("nothing", "all"),
        ("nothing", names[0]),
        ("nothing", names[2]),
        ("each deployment", "all"),
        ("each deployment", names[0]),
        (LOADS, "all"),
    }
