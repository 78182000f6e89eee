"""Predicts a stream of runs, thousands at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from math import ceil

from planner.cli.run_cases import RunCases
from planner.cli.runs import Run
from planner.domain.base import InputError
from planner.domain.plan import Bottleneck
from planner.export.predictions import Outcome, Status
from planner.planning.facts import Facts
from planner.planning.predict import Case, Prediction, predict
from planner.planning.predict_simulated import predict_simulated


class Method(StrEnum):
    """How latency is predicted."""

    STEADY = "steady"
    """In closed form."""
    SIMULATE = "simulate"
    """Request by request."""


BATCH_ROWS = {Method.STEADY: 20_000, Method.SIMULATE: 200}
"""Rows predicted at once: layouts compile once a batch, memory stays bounded, and people see that it moves."""


def batches(runs: Iterable[Run], method: Method) -> Iterator[list[Run]]:
    """The runs in lists of as many as are predicted at once."""
    remaining = iter(runs)
    while batch := list(islice(remaining, BATCH_ROWS[method])):
        yield batch


Predictor = Callable[[Sequence[Case], Facts], Sequence[Prediction]]
PREDICTORS: dict[Method, Predictor] = {Method.STEADY: predict, Method.SIMULATE: predict_simulated}


def outcomes(runs: Sequence[Run], facts: Facts, method: Method = Method.SIMULATE) -> list[Outcome]:
    """What becomes of each run, in their order."""
    predictor = PREDICTORS[method]
    cases = [case for run in runs if run.asks for case in run.asks.cases]
    predictions = iter(_predictions(cases, facts, predictor))
    found: list[Outcome] = []
    tight: list[tuple[int, RunCases]] = []
    for run in runs:
        if run.asks is None:
            found.append(Outcome(Prediction(), Status.ERROR, run.problem))
            continue
        candidates = [next(predictions) for _ in run.asks.cases]
        found.append(_outcome(candidates, run.asks))
        if run.asks.own_length and _lacks_memory(found[-1]):
            tight.append((len(found) - 1, run.asks))
    _shorten(found, tight, facts, predictor)
    return found


def _lacks_memory(outcome: Outcome) -> bool:
    refusal = outcome.prediction.refusal
    return refusal is not None and refusal.bottleneck is Bottleneck.MEMORY


def _shorten(
    found: list[Outcome], tight: Sequence[tuple[int, RunCases]], facts: Facts, predictor: Predictor
) -> None:
    """Answers runs that do not say `max_model_len` at what their load needs, where the model's own does not fit."""
    shorter = [[_at_needed_length(case) for case in asks.cases] for _, asks in tight]
    predictions = iter(_predictions([case for cases in shorter for case in cases], facts, predictor))
    for (index, asks), cases in zip(tight, shorter, strict=True):
        outcome = _outcome([next(predictions) for _ in cases], asks)
        if outcome.status is Status.OK:
            lengths = cases[0].engine.max_model_len, asks.cases[0].engine.max_model_len
            said = "answered at max_model_len {}: the model's own {} does not fit".format(*lengths)
            found[index] = outcome._replace(reason="; ".join(part for part in (said, outcome.reason) if part))


def _at_needed_length(case: Case) -> Case:
    workload = case.workload
    assert workload is not None
    needed = min(ceil(workload.input_tokens + workload.output_tokens), case.engine.max_model_len)
    return case._replace(engine=case.engine.model_copy(update={"max_model_len": needed}))


def _outcome(candidates: Sequence[Prediction | str], asks: RunCases) -> Outcome:
    """The tightest of a run's limits decides."""
    known = [candidate for candidate in candidates if not isinstance(candidate, str)]
    if len(known) < len(candidates):
        problem = next(candidate for candidate in candidates if isinstance(candidate, str))
        return Outcome(Prediction(), Status.ERROR, problem)
    prediction = min(known, key=lambda one: one.output_tokens_per_s)
    refusal = prediction.refusal.reason if prediction.refusal is not None else ""
    if asks.turned_away or refusal:
        return Outcome(prediction, Status.REJECTED, asks.turned_away or refusal)
    return Outcome(prediction, Status.OK, asks.note, budget_known=asks.budget_known)


def _predictions(cases: Sequence[Case], facts: Facts, predictor: Predictor) -> Sequence[Prediction | str]:
    """All cases together; one by one where one of them is refused as a whole."""
    try:
        return predictor(cases, facts)
    except InputError:
        return [_alone(case, facts, predictor) for case in cases]


def _alone(case: Case, facts: Facts, predictor: Predictor) -> Prediction | str:
    try:
        return predictor([case], facts)[0]
    except InputError as error:
        return str(error)
