"""Many deployments at once, each simulated request by request instead of in closed form."""

from collections.abc import Sequence

from planner.domain.plan import Latency
from planner.domain.workload import Slo
from planner.planning.facts import Facts
from planner.planning.predict import Case, Prediction, memory_alone, size
from planner.planning.simulate import Simulation, drawn_traffic, simulated_by
from planner.planning.sizing import Sizer

SEED = 0
"""Lengths and arrivals are drawn the same way for every row, so that rows differ by what they say alone."""


def predict_simulated(cases: Sequence[Case], facts: Facts) -> list[Prediction]:
    """As `predict`, in the order of the cases; memory is the same, times come from the simulated scheduler.

    Raises:
        InputError: a request needs more blocks than a cache has, or is longer than `max_model_len`.
    """
    sizer = Sizer(facts)
    return [_predicted(case, sizer) for case in cases]


def _predicted(case: Case, sizer: Sizer) -> Prediction:
    alone = memory_alone(size(case, sizer))
    if case.workload is None or alone.refusal is not None:
        return alone
    found = simulated_by(sizer, case, drawn_traffic(case.workload, SEED), Slo())
    return alone if found.measures is None else _with_times(alone, found)


def _with_times(prediction: Prediction, found: Simulation) -> Prediction:
    measures = found.measures
    assert measures is not None
    ttft, tpot = measures.ttft, measures.tpot
    return prediction._replace(
        latency=Latency(
            ttft_mean_s=ttft.mean_s,
            ttft_p50_s=ttft.p50_s,
            ttft_p95_s=ttft.p95_s,
            ttft_p99_s=ttft.p99_s,
            tpot_mean_s=tpot.mean_s,
            tpot_p95_s=tpot.p95_s,
            tpot_p99_s=tpot.p99_s,
        ),
        output_tokens_per_s=measures.output_tokens_per_s,
        running_requests=measures.mean_running,
    )
