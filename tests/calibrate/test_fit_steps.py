"""The fit to measured steps, on a made-up device of known factors."""

import numpy as np
import pytest

from planner.calibrate.fit_steps import MeasuredSteps, fit_steps, region_errors
from planner.calibrate.measure.design import EngineLimits, candidate_shapes
from planner.calibrate.step_unknowns import PLAIN_SPREADS
from planner.domain.base import InputError
from planner.domain.calibration import StepShape
from planner.formulas.operators.scales import KernelScales
from planner.formulas.shape_time import host_s, shape_columns, shapes_s
from tests.calibrate.made_steps import SHEET, TRUE_SCALES, deployment, measured, points, true_s

SHAPES = candidate_shapes(EngineLimits(4096, 64, 2048, 200_000, 16))
TOLD = {"compute", "decode_cache", "prompt_pairs"}
"""What sixty shapes of a dense model always tell."""
SCALED = (*sorted(TOLD), "weights", "launch", "elementwise", "decode_sequence", "prompt_tokens")


def some(count: int, seed: int) -> list[StepShape]:
    return [SHAPES[index] for index in np.random.default_rng(seed).permutation(len(SHAPES))[:count]]


def test_nine_of_ten_intervals_hold_the_true_factor() -> None:
    one = deployment()
    held, widths = [], []
    for seed in range(12):
        random = np.random.default_rng(1000 + seed)
        true = KernelScales(
            logit_s=float(1e-9 * np.exp(random.normal())),
            **{name: float(np.exp(PLAIN_SPREADS.get(name, 1.0) * random.normal())) for name in SCALED},
        )
        fit = fit_steps([measured(one, some(60, seed), seed=seed, scales=true)])
        told = {item.name for item in fit.parameters if item.identified}
        assert told >= TOLD
        for item in fit.parameters:
            if item.name in TOLD or item.name == "weights":
                found = item.estimate
                held.append(found.low <= getattr(true, item.name) <= found.high)
                widths.append(found.high / found.low)
                assert found.n == 60 or item.name not in told
    assert np.mean(held) >= 0.85
    # An interval that holds everything says nothing: priors are a factor of 700 wide.
    assert np.median(widths) < 2.0


def test_shapes_that_were_not_measured_are_predicted() -> None:
    one = deployment()
    known = some(60, 3)
    fit = fit_steps([measured(one, known)])
    host, (step,) = fit.unknowns.steps(fit.solution.values)
    new = [shape for shape in SHAPES if shape not in known]
    columns = shape_columns(new)
    errors = np.abs((shapes_s(step, columns) + host_s(host, columns)) / true_s(one, new) - 1.0)
    assert np.median(errors) < 0.02
    assert np.quantile(errors, 0.9) < 0.05
    # What it says of steps left out is no better and not much worse than that.
    assert 0.002 < np.median(np.abs(np.expm1(-fit.solution.left_out_residuals))) < 0.04


def test_a_second_model_is_predicted_by_the_factors_of_the_first() -> None:
    fit = fit_steps([measured(deployment(), some(80, 5))])
    other = deployment(hidden_size=1024, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=16)
    asked = fit.unknowns._replace(deployments=(other,))
    shared = len(asked.kernels) + len(asked.host)
    values = np.concatenate([fit.solution.values[:shared], np.zeros(len(other.knots))])
    error = np.abs(np.expm1(asked.log_s(values, [shape_columns(SHAPES)]) - np.log(true_s(other, SHAPES))))
    assert np.median(error) < 0.1


def test_what_never_ran_stays_as_it_was_known() -> None:
    fit = fit_steps([measured(deployment(), some(60, 1))])
    by_name = {item.name: item for item in fit.parameters}
    for name in ("expert_compute", "expert_weights", "collective"):
        assert not by_name[name].identified
        assert by_name[name].estimate == by_name[name].prior
        assert getattr(fit.scales, name) == 1.0


def test_decoding_alone_tells_nothing_of_prompts() -> None:
    shapes = [shape for shape in SHAPES if not shape.prompts]
    told = {item.name for item in fit_steps([measured(deployment(), shapes)]).parameters if item.identified}
    assert "decode_cache" in told
    assert not told & {"prompt_pairs", "prompt_tokens"}


def test_a_tenth_of_wild_outliers_moves_little() -> None:
    one = deployment()
    good = points(one, some(60, 2))
    wild = tuple(
        point.model_copy(update={"times_s": tuple(5 * time for time in point.times_s)})
        if index % 10 == 0
        else point
        for index, point in enumerate(good)
    )
    clean, spoilt = (fit_steps([MeasuredSteps(one, some_points)]) for some_points in (good, wild))
    for name in ("decode_cache", "prompt_pairs"):
        assert getattr(spoilt.scales, name) == pytest.approx(getattr(clean.scales, name), rel=0.1)
        assert getattr(spoilt.scales, name) == pytest.approx(getattr(TRUE_SCALES, name), rel=0.15)


def test_errors_are_told_by_kind_and_size_and_shrink() -> None:
    steps = [measured(deployment(), some(60, 4))]
    rows = region_errors(steps, fit_steps(steps))
    assert sum(row.steps for row in rows) == 60
    assert {row.region.partition(",")[0] for row in rows} == {"decode", "prefill", "mixed"}
    for row in rows:
        if row.steps >= 5:
            assert row.median_ratio < 0.1 < row.before_median_ratio
            assert row.left_out_median_ratio >= 0.5 * row.median_ratio
            assert row.left_out_p90_ratio >= row.left_out_median_ratio


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(InputError, match="5 measured steps; a fit needs 6"):
        fit_steps([measured(deployment(), SHAPES[:5])])


def test_a_datasheet_that_gives_no_time_is_refused() -> None:
    one = deployment()
    slow = SHEET.model_copy(update={"memory_bandwidth_bytes_per_s": 1e-300})
    broken = one._replace(operators=one.operators._replace(gpu=slow))
    with pytest.raises(InputError, match="datasheet in the run cannot be right"), np.errstate(all="ignore"):
        fit_steps([MeasuredSteps(broken, points(one, some(20, 0)))])


def test_the_order_of_steps_does_not_matter() -> None:
    one = deployment()
    taken = points(one, some(40, 6))
    ahead, back = (fit_steps([MeasuredSteps(one, order)]) for order in (taken, taken[::-1]))
    for name in TOLD:
        assert getattr(ahead.scales, name) == pytest.approx(getattr(back.scales, name), rel=2e-3)
