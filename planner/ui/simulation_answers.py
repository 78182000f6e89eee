"""From the fields of the Simulate page to its answer; equal fields are simulated once."""

from typing import NamedTuple

import streamlit as st

from planner.assemble.traffic import TrafficAsked, traffic_asked
from planner.domain.evidence import ErrorBand
from planner.domain.units import ms_to_seconds
from planner.domain.workload import Slo
from planner.planning.basis import basis_detail, has_rough_kernels
from planner.planning.memory_questions import smallest_tp, tensor_parallel_options
from planner.planning.predict import Case
from planner.planning.simulate import Simulation, simulated
from planner.planning.sizing import Sizer
from planner.ui.answers import facts
from planner.ui.memory_answers import MemoryAsk, case_of

WAIT = "Simulating. The first run after an installation also compiles the scheduler, once."


class SimulationAsk(NamedTuple):
    """One deployment, what it is sent, and the latency promised."""

    deployment: MemoryAsk
    traffic: TrafficAsked
    ttft_p95_ms: float | None = None
    tpot_p95_ms: float | None = None


class SimulationAnswer(NamedTuple):
    """What became of the traffic."""

    case: Case
    slo: Slo
    found: Simulation
    notes: tuple[str, ...]
    """What was changed in the traffic, and what is approximate."""
    basis_detail: str
    band: ErrorBand | None


@st.cache_resource(ttl="1h", max_entries=4, show_spinner=WAIT)
def simulation_answered(ask: SimulationAsk) -> SimulationAnswer:
    """The simulated run. Raises `InputError` where a field or the trace is not legal."""
    slo = Slo(
        ttft_p95_s=None if ask.ttft_p95_ms is None else ms_to_seconds(ask.ttft_p95_ms),
        tpot_p95_s=None if ask.tpot_p95_ms is None else ms_to_seconds(ask.tpot_p95_ms),
    )
    case = _case(ask.deployment)
    traffic, changed = traffic_asked(ask.traffic)
    known = facts(False, None)
    found = simulated(case, traffic, slo, known)
    placed = found.sized.placed
    return SimulationAnswer(
        case,
        slo,
        found,
        (*changed, *found.notes),
        ""
        if placed is None
        else basis_detail(
            placed.model,
            placed.parallelism,
            placed.operators,
            known.tuning.deployments,
            placed.paging.engine_version,
        ),
        None
        if placed is None
        else known.accuracy.band(
            placed.basis, gpu=case.gpu.name, rough_kernels=has_rough_kernels(placed.model)
        ),
    )


def _case(ask: MemoryAsk) -> Case:
    """The deployment; without a degree the smallest that fits, else the largest that divides the model."""
    if ask.tp is not None:
        return case_of(ask, ask.gpu, ask.tp)
    sizer = Sizer(facts(False, None))
    case = case_of(ask, ask.gpu, 1)
    largest = max((one.parallelism.tp for one, _ in tensor_parallel_options(case, sizer)), default=1)
    return case_of(ask, ask.gpu, smallest_tp(case, sizer) or largest)
