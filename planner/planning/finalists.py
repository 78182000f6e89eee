"""Finalists of a plan, sized once more by simulating the scheduler."""

from typing import NamedTuple

from planner.domain.plan import CapacityMethod, Question
from planner.planning.capacity import IDLE_RUNNING, Capacity, Draw, Trial, capacity, draw, trial
from planner.planning.evaluate import idle_refusal, thinned_cv
from planner.planning.facts import Facts
from planner.planning.predict import Case, Sized
from planner.planning.screening import SPLITTING_PASSES, Answer
from planner.planning.simulate import engine_of
from planner.planning.sizing import Refusal, Sizer
from planner.serving.fleet import replicas_for
from planner.serving.simulation import Replica

FINALISTS = 5
"""Distinct replicas, cheapest plans first, that are simulated."""
MOST_ROUNDS = 2
"""Where simulating makes finalists dearer, those who take their place are simulated too, so many times."""


class Stand(NamedTuple):
    """One replica ready to be simulated at any rate."""

    one: Replica
    """Of a pipeline, one of its batches."""
    stages: int
    drawn: Draw
    question: Question

    def at(self, requests_per_s: float) -> Trial:
        """The replica at a request rate."""
        return trial(self.one, self.drawn, requests_per_s, self.question.slo, stages=self.stages)


class Simulator:
    """Sizes screened replicas again by simulating them; remembers what layouts share."""

    def __init__(self, question: Question, facts: Facts) -> None:
        self._question, self._facts = question, facts
        self._sizer = Sizer(facts)

    def stand(self, answer: Answer, arrival_cv: float, *, seed: int = 0) -> Stand:
        """The replica of a screened answer, under requests as variable as it gets."""
        placed, capability = answer.placed, answer.capability
        case = Case(
            placed.model, placed.gpu, placed.parallelism, placed.kv_dtype, capability.engine, workload=None
        )
        one = engine_of(case, Sized(placed, capability.budget), self._sizer, self._facts.host)
        workload = self._question.workload.model_copy(update={"arrival_cv": arrival_cv})
        stages = placed.parallelism.pp
        drawn = draw(workload, capability.running_requests, stages=stages, seed=seed)
        return Stand(one, stages, drawn, self._question)

    def sized(self, answer: Answer) -> Answer | Refusal:
        """The answer with capacity, replicas and latency as simulated.

        A replica that breaks the promise even when almost idle is refused; one that carries less than the closed
        form says gets more replicas, which makes its share of bursty requests smoother. How prompts and answers share
        the engine's time stays the closed form's.
        """
        workload, reserve = self._question.workload, self._question.reserve
        peak = (workload.requests_per_s or 0.0) * reserve.peak_ratio
        thinned = answer.arrival_cv
        for _ in range(SPLITTING_PASSES):
            arrival_cv = thinned
            ready = self.stand(answer, arrival_cv)
            found = simulated_capacity(ready, answer)
            if found.within is None:
                return idle_refusal(self._question.slo, found.beyond.latency)
            replicas = replicas_for(peak, found.requests_per_s, reserve)
            serving = replicas - reserve.spare_replicas
            thinned = thinned_cv(workload.arrival_cv, serving)
            if thinned == arrival_cv:
                break
        at_peak = ready.at(peak / serving)
        return answer._replace(
            capability=answer.capability._replace(
                requests_per_s=found.requests_per_s, binding=found.beyond.binding
            ),
            service=answer.service._replace(
                latency=at_peak.latency, running_requests=at_peak.running_requests
            ),
            replicas=replicas,
            arrival_cv=arrival_cv,
            method=CapacityMethod.SIMULATE,
        )


def simulated_capacity(ready: Stand, answer: Answer) -> Capacity:
    """The highest rate of the replica within the promise; the search begins at the closed form's."""
    start = answer.capability.requests_per_s
    idle = start * min(1.0, IDLE_RUNNING / answer.capability.running_requests)
    return capacity(ready.at, start, idle)
