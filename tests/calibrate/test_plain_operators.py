"""Assumed efficiencies must be a start that every model of the catalog can be predicted from."""

import numpy as np
import pytest

from planner.calibrate.plain_operators import plain_operators
from planner.catalog.model_config import parse_model, read_config
from planner.catalog.models import bundled_models
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.evidence import Basis
from planner.domain.hardware import Interconnect
from planner.formulas.step import Cluster, compile_step
from tests.calibrate.made_steps import SHEET

OPERATORS = plain_operators(SHEET)


@pytest.mark.parametrize("name", [entry.name for entry in bundled_models()][::4])
def test_every_kind_of_model_has_finite_times(name: str) -> None:
    entry = next(entry for entry in bundled_models() if entry.name == name)
    files = read_config(entry.path)
    model = parse_model(files.config, name=name, hf_quant=files.hf_quant)
    step = compile_step(
        model,
        Parallelism(),
        KvDtype.AUTO,
        OPERATORS,
        Cluster(Interconnect.NONE, 0.0),
        engine_version="0.32.0",
    )
    assert np.isfinite(step.body_s).all()
    assert (step.body_s > 0).all()
    assert (np.diff(step.body_s) >= -1e-12).all()


def test_it_says_that_nothing_was_measured() -> None:
    assert OPERATORS.basis is Basis.DATASHEET
    assert OPERATORS.coefficients.tables == ()
