"""Answers a plan's question and hands the answer to files, JSON or the screen."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from planner.assemble import Ask, ask_from, facts_for, question_from
from planner.catalog.models import load_model
from planner.cli.plan_json import answer_json
from planner.cli.plan_report import Answer, report
from planner.cli.question_file import previous_usd_per_month
from planner.cli.screen import note, show_json, working
from planner.domain.base import InputError
from planner.export.atomic import check_outputs
from planner.export.recommendation import write_recommendation, write_rejections
from planner.planning.recommend import recommend, shortlist

DEFAULT_TOP = 5
LARGEST_TOP = 10_000


class Outputs(NamedTuple):
    """Where an answer goes besides the screen."""

    csv: Path | None
    rejections: Path | None
    as_json: bool


def answer(values: Mapping[str, object], outputs: Outputs, *, where: str) -> bool:
    """Answers the question; False where nothing fits.

    Raises:
        InputError: a value is wrong or missing, or an output cannot be written.
    """
    check_outputs(outputs.csv, outputs.rejections)
    top = _top(values.get("top"), where)
    calibration_dir = _path(values.get("calibration_dir"))
    found = _ask(values, where)
    with working("sizing every candidate"):
        question = question_from(found)
        facts = facts_for(
            include_untrusted=found.include_untrusted, prices=found.prices, calibration_dir=calibration_dir
        )
        recommendation = recommend(question, facts)
    plans = shortlist(recommendation.plans, top)
    result = Answer(found, question, load_model(found.model), recommendation, plans)
    if outputs.csv is not None:
        write_recommendation(outputs.csv, plans, result.checkpoint)
    if outputs.rejections is not None:
        write_rejections(outputs.rejections, recommendation.rejections)
    if outputs.as_json:
        show_json(answer_json(result))
    else:
        report(result)
    for path in (outputs.csv, outputs.rejections):
        if path is not None:
            note(f"wrote {path}")
    return bool(plans)


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


def _top(value: object, where: str) -> int:
    if value is None:
        return DEFAULT_TOP
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_TOP:
        return value
    raise InputError(f"{where}: top must be a whole number from 1 to {LARGEST_TOP}, got {value!r}")
