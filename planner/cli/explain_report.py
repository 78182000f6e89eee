"""One step taken apart, on the screen, as JSON and as CSV."""

from pathlib import Path

from planner.cli.deployment_json import deployment_json
from planner.cli.screen import Json, records, say, show_json, show_table
from planner.domain.units import seconds_to_ms
from planner.export.breakdown import (
    LIMIT_TITLES,
    OPERATOR_TITLES,
    PART_COLUMNS,
    by_time,
    kv_sentence,
    layers_title,
    relief_rows,
    ridge_sentence,
    roofline_s,
    step_part_rows,
    type_times,
)
from planner.export.format import count, milliseconds, percent
from planner.export.table import write_csv
from planner.formulas.breakdown import Breakdown
from planner.planning.explain import StepExplained
from planner.planning.predict import Case


def write_step(path: Path, answer: StepExplained) -> None:
    """Every part as a CSV row; none where the engine does not start."""
    write_csv(path, PART_COLUMNS, [] if answer.breakdown is None else step_part_rows(answer.breakdown))


def show_step(case: Case, answer: StepExplained, *, as_json: bool) -> None:
    """Prints an answer, or why the engine does not start."""
    if as_json:
        show_json(step_json(case, answer))
        return
    if answer.sized.refusal is not None:
        say(f"Does not start: {answer.sized.refusal.reason}.")
    if answer.breakdown is not None:
        _print(case, answer, answer.breakdown)


def step_json(case: Case, answer: StepExplained) -> dict[str, Json]:
    """The whole answer as one JSON object."""
    sized, found = answer.sized, answer.breakdown
    return {
        **deployment_json(case, sized),
        "batch": answer.asked.batch,
        "context_tokens": answer.asked.context_tokens if answer.asked.batch else None,
        "prompt_tokens": answer.asked.prompt_tokens,
        "notes": list(answer.notes),
        **({} if found is None else _breakdown_json(answer, found)),
    }


def _breakdown_json(answer: StepExplained, found: Breakdown) -> dict[str, Json]:
    return {
        "scheduled_tokens": answer.asked.tokens,
        "padded_tokens": answer.padded_tokens,
        "step_ms": seconds_to_ms(found.step_s),
        "roofline_ms": seconds_to_ms(roofline_s(found.parts)),
        "binds": answer.binds,
        "next_limit": answer.next_limit,
        "step_binds": found.binds.value,
        "relieved_step_ms": {
            what.value: seconds_to_ms(time_s) for what, time_s in found.relieved_step_s.items()
        },
        "kv_sequences_held": answer.held,
        "ridge_batch": answer.ridge,
        "parts": records(PART_COLUMNS, step_part_rows(found)),
    }


def _print(case: Case, answer: StepExplained, found: Breakdown) -> None:
    say(f"{case.model.name} on {case.parallelism.gpus} x {case.gpu.name}: {_step_title(answer)}")
    step_roofline_s = roofline_s(found.parts)
    show_table(
        "",
        ["layers", "operator", "time", "share", "roofline", "roofline / time", "binds"],
        [
            *(
                [
                    layers_title(part),
                    OPERATOR_TITLES[part.operator],
                    _ms(part.time_s),
                    percent(part.time_s / found.step_s),
                    "" if part.roofline_s is None else _ms(part.roofline_s),
                    "" if part.efficiency_ratio is None else percent(part.efficiency_ratio),
                    part.binds.value,
                ]
                for part in by_time(found)
            ),
            ["step", "", _ms(found.step_s), percent(1.0), *_against(step_roofline_s, found.step_s), ""],
        ],
    )
    show_table(
        "",
        ["layers", "time", "share", "roofline", "roofline / time"],
        [
            [
                one.title,
                _ms(one.time_s),
                percent(one.time_s / found.step_s),
                *_against(one.roofline_s, one.time_s),
            ]
            for one in type_times(found)
        ],
    )
    show_table(
        "",
        ["infinitely fast", "step", "saved"],
        [[what.value, _ms(time_s), percent(saved)] for what, time_s, saved in relief_rows(found)],
    )
    say(f"Binds: {LIMIT_TITLES[answer.binds]}; next: {LIMIT_TITLES[answer.next_limit]}.")
    for sentence in (kv_sentence(answer), ridge_sentence(answer, case.engine.max_num_seqs)):
        if sentence:
            say(sentence)


def _step_title(answer: StepExplained) -> str:
    """What the step computes."""
    asked = answer.asked
    work = []
    if asked.batch:
        work.append(f"{count(asked.batch, 'sequence')} decoding at {count(asked.context_tokens, 'token')}")
    if asked.prompt_tokens:
        work.append(f"a prompt of {count(asked.prompt_tokens, 'token')}")
    padded = f", padded to {answer.padded_tokens:,}" if answer.padded_tokens > asked.tokens else ""
    return f"one step, {' and '.join(work)}{padded}"


def _against(bound_s: float, time_s: float) -> list[str]:
    return [_ms(bound_s), percent(bound_s / time_s)] if bound_s > 0 else ["", ""]


def _ms(time_s: float) -> str:
    return milliseconds(seconds_to_ms(time_s))
