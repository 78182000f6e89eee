import numpy as np
import pytest

from planner.calibrate.step_unknowns import (
    KERNEL_SPREADS,
    PLAIN_SPREAD,
    PLAIN_SPREADS,
    WIDENED,
    step_unknowns,
    tuned_step,
)
from planner.calibrate.store import table_operators_for
from planner.catalog.load import find_gpu
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.calibration import StepShape
from planner.domain.evidence import Basis
from planner.formulas.operators.scales import LARGEST_SCALE, PLAIN, KernelScales
from planner.formulas.shape_time import shape_columns, shapes_s
from tests.calibrate.made_steps import deployment

COLUMNS = shape_columns([StepShape(prompts=1, prompt_tokens=128), StepShape(decodes=4, context_tokens=200)])


def test_at_zero_everything_is_as_it_was_known() -> None:
    unknowns = step_unknowns([deployment()])
    applied = unknowns.applied(np.zeros(unknowns.spreads.size))
    assert applied.scales == PLAIN.model_copy(update={"logit_s": 1e-10})
    assert applied.host.sync_step_s == pytest.approx(1e-3)
    assert not np.concatenate(applied.curves).any()


def test_a_number_is_its_prior_times_the_exponential() -> None:
    unknowns = step_unknowns([deployment()])
    values = np.zeros(unknowns.spreads.size)
    names = [one.name for one in unknowns.everything]
    values[names.index("weights")] = np.log(2.0)
    values[names.index("sync_per_sequence_s")] = np.log(3.0)
    applied = unknowns.applied(values)
    assert applied.scales.weights == pytest.approx(2.0)
    assert applied.host.sync_per_sequence_s == pytest.approx(9e-5)


def test_no_search_leaves_what_a_factor_may_be() -> None:
    unknowns = step_unknowns([deployment()])
    applied = unknowns.applied(np.full(unknowns.spreads.size, 50.0))
    assert applied.scales.compute == LARGEST_SCALE
    assert applied.scales.logit_s == 1e-3


def test_two_deployments_share_factors_and_keep_a_curve_each() -> None:
    one, other = deployment(), deployment(num_hidden_layers=8)
    unknowns = step_unknowns([one, other])
    values = np.zeros(unknowns.spreads.size)
    before = unknowns.log_s(values, [COLUMNS, COLUMNS])
    values[-len(other.knots) :] = 0.3
    after = unknowns.log_s(values, [COLUMNS, COLUMNS])
    assert after[:2] == pytest.approx(before[:2], abs=1e-12)
    assert (after[2:] > before[2:]).all()


def test_a_device_without_tables_is_less_sure_of_everything() -> None:
    folder = shipped_calibration_dir()
    assert folder is not None
    known = deployment()._replace(operators=table_operators_for(find_gpu("H100-SXM-80GB"), [folder]))
    sibling = known._replace(operators=table_operators_for(find_gpu("L4"), [folder]))
    assert sibling.operators.basis is Basis.TRANSFERRED
    spreads = [{item.name: item.spread for item in step_unknowns([one]).kernels} for one in (known, sibling)]
    assert spreads[0] == KERNEL_SPREADS
    assert spreads[1]["compute"] == pytest.approx(WIDENED[Basis.TRANSFERRED] * KERNEL_SPREADS["compute"])
    plain = {item.name: item.spread for item in step_unknowns([deployment()]).kernels}
    assert plain == {name: PLAIN_SPREADS.get(name, PLAIN_SPREAD) for name in (*KERNEL_SPREADS, "logit_s")}
    assert all(plain[name] > spread for name, spread in KERNEL_SPREADS.items())


@pytest.mark.parametrize(
    "name", ["compute", "weights", "launch", "decode_cache", "prompt_pairs", "elementwise"]
)
def test_slower_kernels_make_no_step_shorter(name: str) -> None:
    one = deployment()
    plain, slow = (
        shapes_s(tuned_step(one, scales, np.zeros(len(one.knots))), COLUMNS)
        for scales in (PLAIN, KernelScales(**{name: 4.0}))
    )
    assert (slow >= plain).all()
    assert (slow > plain).any()
