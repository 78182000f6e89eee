"""Many deployments at once, each simulated request by request instead of in closed form."""

from collections.abc import Sequence

from planner.domain.plan import Latency
from planner.domain.workload import Slo
from planner.planning.facts import Facts
from planner.planning.predict import Case, Prediction, predict
from planner.planning.simulate import Simulation, drawn_traffic, simulated

SEED = 0
"""Lengths and arrivals are drawn the same way for every row, so that rows differ by what they say alone."""


def predict_simulated(cases: Sequence[Case], facts: Facts) -> list[Prediction]:
    """As `predict`, in the order of the cases; memory is the same, times come from the simulated scheduler.

    Raises:
        InputError: a request needs more blocks than a cache has, or is longer than `max_model_len`.
    """
    sized = predict([case._replace(workload=None) for case in cases], facts)
    return [_timed(case, prediction, facts) for case, prediction in zip(cases, sized, strict=True)]


def _timed(case: Case, prediction: Prediction, facts: Facts) -> Prediction:
    if case.workload is None or prediction.refusal is not None:
        return prediction
    found = simulated(case, drawn_traffic(case.workload, SEED), Slo(), facts)
    return prediction if found.measures is None else _with_times(prediction, found)


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
