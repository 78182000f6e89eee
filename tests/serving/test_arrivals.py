"""Arrival times at the ends of what a workload may be."""

import numpy as np
import pytest

from planner.domain.base import InputError
from planner.domain.workload import REQUESTS_PER_S, Workload
from planner.serving.arrivals import drawn_stream, plain_stream
from planner.serving.simulation import simulate
from tests.serving.test_measures import an_engine


@pytest.mark.parametrize("cv", [0.0, 1e-200, 1e-4])
def test_gaps_that_hardly_vary_are_constant(cv: float) -> None:
    workload = Workload(input_tokens=9, output_tokens=9, requests_per_s=2, arrival_cv=cv)
    assert drawn_stream(workload, 3, seed=0).sent_s == pytest.approx([0.5, 1.0, 1.5])


@pytest.mark.parametrize("cv", [1e-3, 20.0])
@pytest.mark.parametrize("rate", REQUESTS_PER_S)
def test_arrival_times_are_finite_in_order(cv: float, rate: float) -> None:
    workload = Workload(input_tokens=9, output_tokens=9, requests_per_s=rate, arrival_cv=cv)
    sent_s = drawn_stream(workload, 1000, seed=0).sent_s
    assert np.isfinite(sent_s).all()
    assert (np.diff(sent_s) >= 0).all()


@pytest.mark.parametrize("sent_s", [np.inf, np.nan])
def test_the_compiled_loop_never_sees_a_time_that_is_not_finite(sent_s: float) -> None:
    stream = plain_stream(np.array([0.0, sent_s]), np.array([9, 9]), np.array([9, 9]))
    with pytest.raises(InputError, match="no finite numbers"):
        simulate(an_engine(), stream)
