"""Answers a plan's question and hands the answer to files, JSON or the screen."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from planner.assemble.question import Ask, ask_from, facts_for, question_from
from planner.catalog.atomic import check_outputs, write_texts
from planner.catalog.load import hidden_offers
from planner.catalog.models import load_model, model_files
from planner.cli.plan_json import answer_json
from planner.cli.plan_report import Answer, report
from planner.cli.question_file import previous_usd_per_month
from planner.cli.screen import note, show_json, working
from planner.domain.base import InputError
from planner.domain.plan import CapacityMethod, Question, Recommendation
from planner.export.format import count
from planner.export.recommendation import recommendation_csv, rejections_csv
from planner.planning.facts import Facts
from planner.planning.finalists import FINALISTS
from planner.planning.recommend import recommend, shortlist

DEFAULT_TOP = 5
LARGEST_TOP = 10_000
DEFAULT_METHOD = CapacityMethod.SIMULATE
WORKING = {
    CapacityMethod.STEADY: "sizing every candidate",
    CapacityMethod.SIMULATE: "sizing every candidate, simulating the best; the first run is compiling, once",
}


class Outputs(NamedTuple):
    """Where an answer goes besides the screen."""

    csv: Path | None
    rejections: Path | None
    as_json: bool


def answer(values: Mapping[str, object], outputs: Outputs, question_file: Path | None) -> bool:
    """Answers the question, kept in a file or not; False where nothing fits.

    Raises:
        InputError: a value is wrong or missing, or an output cannot be written.
    """
    where = str(question_file or "plan")
    inputs = (question_file, _path(values.get("prices")), _path(values.get("previous")))
    check_outputs(
        outputs.csv, outputs.rejections, inputs=(*inputs, *model_files(str(values.get("model", ""))))
    )
    top = _top(values.get("top"), where)
    method = _method(values.get("method"), where)
    calibration_dir = _path(values.get("calibration_dir"))
    found = _ask(values, where)
    with working(WORKING[method]):
        question = question_from(found)
        facts = facts_for(
            include_untrusted=found.include_untrusted, prices=found.prices, calibration_dir=calibration_dir
        )
        recommendation = _recommended(found, question, facts, method)
    plans = shortlist(recommendation.plans, top)
    result = Answer(found, question, load_model(found.model), facts.accuracy, recommendation, plans)
    texts = {}
    if outputs.csv is not None:
        texts[outputs.csv] = recommendation_csv(plans, result.checkpoint)
    if outputs.rejections is not None:
        texts[outputs.rejections] = rejections_csv(recommendation.rejections)
    write_texts(texts)
    if outputs.as_json:
        show_json(answer_json(result))
    else:
        report(result)
    for path in texts:
        note(f"wrote {path}")
    return bool(plans)


def _recommended(ask: Ask, question: Question, facts: Facts, method: CapacityMethod) -> Recommendation:
    """The answer; where there is nothing to choose from, the error says what is hidden."""
    finalists = FINALISTS if method is CapacityMethod.SIMULATE else 0
    try:
        return recommend(question, facts, finalists=finalists)
    except InputError as error:
        hidden = hidden_offers(ask.provider)
        sold = any(offer.instance.provider in ask.provider for offer in facts.offers)
        if sold or not hidden or not ask.provider:
            raise
        names = f"{' and '.join(ask.provider)} {'has' if len(ask.provider) == 1 else 'have'}"
        message = f"{names} {count(hidden, 'price')}, all undated or second-hand: --include-untrusted"
        raise InputError(f"{error}; {message}") from None


def _ask(values: Mapping[str, object], where: str) -> Ask:
    """The question as typed, with the cost of an earlier answer where one is named."""
    asked = {key: value for key, value in values.items() if key in Ask.model_fields}
    previous = _path(values.get("previous"))
    if previous is not None:
        asked["previous_usd_per_month"] = previous_usd_per_month(previous)
    return ask_from(asked, where=where)


def _path(value: object) -> Path | None:
    if value is None or isinstance(value, Path):
        return value
    raise InputError(f"a file name is needed, got {value!r}")


def _method(value: object, where: str) -> CapacityMethod:
    if value is None:
        return DEFAULT_METHOD
    if value in tuple(CapacityMethod):
        return CapacityMethod(str(value))
    raise InputError(f"{where}: method must be one of {', '.join(CapacityMethod)}, got {value!r}")


def _top(value: object, where: str) -> int:
    if value is None:
        return DEFAULT_TOP
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_TOP:
        return value
    raise InputError(f"{where}: top must be a whole number from 1 to {LARGEST_TOP}, got {value!r}")
