"""From the sidebar to an answer, with everything remembered that does not change between two clicks."""

from pathlib import Path
from typing import NamedTuple

import streamlit as st

from planner.assemble.question import Ask, ask_from, facts_for, question_from
from planner.catalog.models import load_model
from planner.domain.base import InputError
from planner.domain.model import Model
from planner.domain.plan import Plan, Question, Recommendation
from planner.planning.facts import Facts
from planner.planning.recommend import recommend
from planner.ui.uploads import is_kept, without_folder

FIELDS_KEY = "asked_fields"
PROBLEM_KEY = "asked_problem"
HISTORY_KEY = "asked_history"
SIMULATED = 1
"""The cheapest plan alone is simulated, so that a change is answered in half a second."""
OWN_CHECKPOINT = "path/to/checkpoint"
"""What the engine is told to serve where the user gave a config without weights."""


class Answer(NamedTuple):
    """A question, what it was answered from, and the answer. Immutable, so it is shared and never copied."""

    ask: Ask
    checkpoint: Model
    """The model as it is stored, whatever format it is served in."""
    question: Question
    facts: Facts
    recommendation: Recommendation


class History(NamedTuple):
    """The cheapest monthly cost of this answer and of the one the user saw before it."""

    ask: Ask | None = None
    usd_per_month: float | None = None
    before_usd_per_month: float | None = None

    def after(self, ask: Ask, plans: tuple[Plan, ...]) -> "History":
        """The history once `ask` was answered; asking the same again changes nothing."""
        if ask == self.ask:
            return self
        cost = plans[0].cost.usd_per_month if plans else None
        return History(ask, cost, self.usd_per_month or self.before_usd_per_month)


@st.cache_resource(ttl="1h", max_entries=16, show_spinner=False)
def facts(include_untrusted: bool, prices: str | None) -> Facts:
    """Catalog and coefficients, read once; an hour later again, so that prices grow old in a long-lived server."""
    return facts_for(include_untrusted=include_untrusted, prices=Path(prices) if prices else None)


@st.cache_resource(ttl="1h", max_entries=24, show_spinner=False)
def answered(ask: Ask) -> Answer:
    """The answer to a question. Raises `InputError` where the question has none."""
    question = question_from(ask)
    known = facts(ask.include_untrusted, str(ask.prices) if ask.prices else None)
    found = recommend(question, known, finalists=SIMULATED)
    return Answer(ask, _checkpoint(ask.model), question, known, found)


def _checkpoint(reference: str) -> Model:
    model = load_model(reference)
    return model.model_copy(update={"name": OWN_CHECKPOINT}) if is_kept(reference) else model


def current() -> Answer:
    """The answer to what the sidebar asks; shows one line and ends the page where it cannot be answered."""
    try:
        if st.session_state.get(PROBLEM_KEY):
            raise InputError(st.session_state[PROBLEM_KEY])
        answer = answered(ask_from(st.session_state[FIELDS_KEY], where="sidebar"))
    except InputError as error:
        st.error(without_folder(str(error)), icon=":material/error:")
        st.stop()
    history: History = st.session_state.get(HISTORY_KEY, History())
    st.session_state[HISTORY_KEY] = history.after(answer.ask, answer.recommendation.plans)
    return answer


def before_usd_per_month() -> float | None:
    """What the answer before this one would have cost a month; None where there was none."""
    history: History = st.session_state.get(HISTORY_KEY, History())
    return history.before_usd_per_month
