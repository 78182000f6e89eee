"""Predicts a stream of runs, thousands at a time."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from planner.cli.runs import Run
from planner.domain.base import InputError
from planner.export.predictions import Outcome, Status
from planner.planning.facts import Facts
from planner.planning.predict import Case, Prediction, predict

BATCH = 20_000
"""Rows predicted at once: layouts compile once a batch, memory stays bounded."""


def batches(runs: Iterable[Run], size: int = BATCH) -> Iterator[list[Run]]:
    """The runs in lists of at most `size`."""
    remaining = iter(runs)
    while batch := list(islice(remaining, size)):
        yield batch


def outcomes(runs: Sequence[Run], facts: Facts) -> list[Outcome]:
    """What becomes of each run, in their order."""
    cases = [case for run in runs if run.asks for case in run.asks.cases]
    predictions = iter(_predictions(cases, facts))
    found = []
    for run in runs:
        if run.asks is None:
            found.append(Outcome(Prediction(), Status.ERROR, run.problem))
            continue
        candidates = [next(predictions) for _ in run.asks.cases]
        found.append(_outcome(candidates, run.asks.turned_away))
    return found


def _outcome(candidates: Sequence[Prediction | str], turned_away: str) -> Outcome:
    """The tightest of a run's limits decides."""
    known = [candidate for candidate in candidates if not isinstance(candidate, str)]
    if len(known) < len(candidates):
        problem = next(candidate for candidate in candidates if isinstance(candidate, str))
        return Outcome(Prediction(), Status.ERROR, problem)
    prediction = min(known, key=lambda one: one.output_tokens_per_s)
    if prediction.refusal is not None:
        return Outcome(prediction, Status.REJECTED, prediction.refusal.reason)
    if turned_away:
        return Outcome(prediction, Status.REJECTED, turned_away)
    return Outcome(prediction, Status.OK)


def _predictions(cases: Sequence[Case], facts: Facts) -> Sequence[Prediction | str]:
    """All cases together; one by one where one of them is refused as a whole."""
    try:
        return predict(cases, facts)
    except InputError:
        return [_alone(case, facts) for case in cases]


def _alone(case: Case, facts: Facts) -> Prediction | str:
    try:
        return predict([case], facts)[0]
    except InputError as error:
        return str(error)
