"""One real answer for the pure functions, and the app as a script for the pages."""

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from planner.assemble.question import ask_from, facts_for, question_from
from planner.catalog.models import load_model
from planner.catalog.paths import app_path
from planner.planning.recommend import recommend
from planner.ui.answers import Answer

VIEWS = Path("planner/ui/views")
LLAMA_QUESTION = {
    "model": "meta-llama/Llama-3.1-70B",
    "weight_dtype": "fp8",
    "input_tokens": 1024,
    "output_tokens": 256,
    "requests_per_s": 10,
    "ttft_p95_ms": 2000,
    "tpot_p95_ms": 60,
}


def answer_to(**fields: object) -> Answer:
    """What the planner says, without any page."""
    ask = ask_from(LLAMA_QUESTION | fields, where="test")
    question, facts = question_from(ask), facts_for()
    return Answer(ask, load_model(ask.model), question, facts, recommend(question, facts))


@pytest.fixture(scope="session")
def llama() -> Answer:
    """Llama 3.1 70B in fp8 at ten requests a second."""
    return answer_to()


@pytest.fixture(scope="session")
def impossible() -> Answer:
    """The same, promising a tenth of a millisecond a token."""
    return answer_to(tpot_p95_ms=0.1)


@pytest.fixture
def page() -> Callable[..., AppTest]:
    """Runs a page with a query string; Size unless named."""

    def run(view: str = "size", **query: str | list[str]) -> AppTest:
        app = AppTest.from_file(str(app_path()), default_timeout=60)
        for key, value in query.items():
            app.query_params[key] = value
        return app.switch_page(str(VIEWS / f"{view}.py")).run()

    return run
