"""`memory --solve`: the memory question turned round, answered directly."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from planner.cli.memory_report import DEPLOYMENT_HEADERS, deployment_cells, title
from planner.cli.screen import Json, note, records, say, show_json, show_table
from planner.domain.base import InputError
from planner.export.format import count
from planner.export.memory import DEPLOYMENT_COLUMNS, deployment_row
from planner.export.table import write_csv
from planner.planning.memory_questions import (
    HeldLoad,
    gpu_options,
    largest_max_model_len,
    largest_max_num_seqs,
    smallest_gpu,
    smallest_tp,
    tensor_parallel_options,
)
from planner.planning.predict import Case, Sized, size
from planner.planning.sizing import Sizer


class Unknown(StrEnum):
    """What `--solve` can be asked for."""

    TP = "tp"
    MAX_MODEL_LEN = "max-model-len"
    MAX_NUM_SEQS = "max-num-seqs"
    GPU = "gpu"


class Asked(NamedTuple):
    """A deployment with one thing left open, and the load it must hold."""

    unknown: Unknown
    cases: tuple[Case, ...]
    """One; for the GPU one a card of the catalog."""
    context_tokens: int | None
    batch: int | None

    @property
    def load(self) -> HeldLoad | None:
        """What the KV cache must hold at once, where a batch or a length is asked for."""
        if self.batch is None and self.context_tokens is None:
            return None
        return HeldLoad(self.batch or 1, self.context_tokens or self.cases[0].engine.max_model_len)


def check_asked(asked: Asked) -> None:
    """Raises `InputError` where a load is given that the answer would not depend on."""
    if asked.unknown is Unknown.MAX_MODEL_LEN and asked.context_tokens is not None:
        raise InputError("--solve max-model-len asks for the length: give no --context-tokens")
    if asked.unknown is Unknown.MAX_NUM_SEQS and asked.batch is not None:
        raise InputError("--solve max-num-seqs asks for the batch: give no --batch")


class Solution(NamedTuple):
    """The answer, in words and beside the options it was chosen from."""

    value: int | str | None
    """None: nothing in the catalog, or in the range of the flag, works."""
    sentence: str
    options: tuple[tuple[Case, Sized], ...]


def solve(asked: Asked, sizer: Sizer) -> Solution:
    """Answers `asked`."""
    return _SOLVERS[asked.unknown](asked, sizer)


def show_solution(asked: Asked, solution: Solution, *, csv: Path | None, as_json: bool) -> None:
    """Prints and writes an answer."""
    rows = [deployment_row(case, sized) for case, sized in solution.options]
    if csv is not None:
        write_csv(csv, DEPLOYMENT_COLUMNS, rows)
        note(f"wrote {csv}")
    if as_json:
        options: Sequence[Json] = records(DEPLOYMENT_COLUMNS, rows)
        show_json({"solve": asked.unknown, "answer": solution.value, "options": options})
        return
    say(solution.sentence)
    headers = ["GPU", "TP", "max_model_len", "max_num_seqs", *DEPLOYMENT_HEADERS]
    table = [
        [
            case.gpu.name,
            str(case.parallelism.tp),
            f"{case.engine.max_model_len:,}",
            f"{case.engine.max_num_seqs:,}",
            *deployment_cells(sized),
        ]
        for case, sized in solution.options
        if sized.budget is not None
    ]
    if table:
        show_table("", headers, table)
    for case, sized in solution.options:
        if sized.budget is None and sized.refusal is not None:
            note(f"{case.gpu.name}: {sized.refusal.reason}")


def _solve_tp(asked: Asked, sizer: Sizer) -> Solution:
    (case,) = asked.cases
    least = smallest_tp(case, sizer, asked.load)
    room = _room(asked.load)
    sentence = (
        f"The smallest TP that fits{room} is {least}."
        if least
        else f"No tensor-parallel degree up to 64 fits{room}."
    )
    return Solution(least, sentence, tensor_parallel_options(case, sizer))


def _solve_length(asked: Asked, sizer: Sizer) -> Solution:
    (case,) = asked.cases
    sequences = asked.batch or 1
    longest = largest_max_model_len(case, sizer, sequences)
    at_once = f" and {count(sequences, 'such sequence')} fit at once" if sequences > 1 else ""
    limit = " (all that the model can attend to)" if longest == case.model.max_position else ""
    return _flag_solution(case, sizer, "max_model_len", longest, f"starts{at_once}{limit}")


def _solve_seqs(asked: Asked, sizer: Sizer) -> Solution:
    (case,) = asked.cases
    tokens = asked.context_tokens or case.engine.max_model_len
    most = largest_max_num_seqs(case, sizer, tokens)
    limit = " (all of max_num_batched_tokens)" if most == case.engine.max_num_batched_tokens else ""
    ask = "" if asked.context_tokens else "; --context-tokens asks for another length"
    return _flag_solution(
        case, sizer, "max_num_seqs", most, f"holds them at {tokens:,} tokens each{limit}{ask}"
    )


def _flag_solution(case: Case, sizer: Sizer, flag: str, value: int, then: str) -> Solution:
    if value == 0:
        sized = size(case, sizer)
        why = (
            ": so many sequences are not held at once"
            if sized.refusal is None
            else f": {sized.refusal.reason}"
        )
        return Solution(None, f"No {flag} works{why}.", ((case, sized),))
    solved = case._replace(engine=case.engine.model_copy(update={flag: value}))
    sentence = f"The largest {flag} is {value:,}: {title(case)} {then}."
    return Solution(value, sentence, ((solved, size(solved, sizer)),))


def _room(load: HeldLoad | None) -> str:
    return (
        ""
        if load is None
        else f" with {load.sequences:,} sequences of {load.context_tokens:,} tokens at once"
    )


def _solve_gpu(asked: Asked, sizer: Sizer) -> Solution:
    options = gpu_options(asked.cases, sizer)
    gpu = smallest_gpu(options, asked.load)
    room = _room(asked.load)
    tp = asked.cases[0].parallelism.tp
    sentence = (
        f"The smallest card that holds it{room} at TP {tp} is {gpu.name}."
        if gpu
        else f"No GPU of the catalog holds it{room} at TP {tp}."
    )
    return Solution(gpu.name if gpu else None, sentence, options)


_SOLVERS: dict[Unknown, Callable[[Asked, Sizer], Solution]] = {
    Unknown.TP: _solve_tp,
    Unknown.MAX_MODEL_LEN: _solve_length,
    Unknown.MAX_NUM_SEQS: _solve_seqs,
    Unknown.GPU: _solve_gpu,
}
