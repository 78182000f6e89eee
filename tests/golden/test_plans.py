"""A changed winner, or a plan that is feasible no more, is seen before users see it."""

import json
from pathlib import Path

import pytest

from tests.golden.plans import GOLDEN, QUESTIONS, winner

REFRESH = "if the change is meant: python -m tests.golden.plans, and say why in the commit"
DRIFT_RATIO = 0.02


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda path: path.stem)
def test_the_first_choice_stays(question: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[question.name]
    found = winner(question)
    names = [name for name, value in golden.items() if isinstance(value, str)]
    assert {name: found[name] for name in names} == {name: golden[name] for name in names}, REFRESH
    drift = {
        name: (golden[name], found[name])
        for name in golden
        if name not in names and found[name] != pytest.approx(golden[name], rel=DRIFT_RATIO)
    }
    assert not drift, f"(golden, found) {drift}; {REFRESH}"
