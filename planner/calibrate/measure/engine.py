"""The engine process, `python -m planner.calibrate.measure.engine`: answers JSON lines with a live vLLM.

Messages alone go to what was its standard output; whatever vLLM prints goes to standard error. It ends when it is told
to, or when its parent is gone.
"""

import contextlib
import faulthandler
import gc
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO, Protocol

from pydantic import ValidationError

from planner.calibrate.measure.engine_arguments import set_environment
from planner.calibrate.measure.engine_failures import StartError, failure_kind, is_out_of_memory, reason
from planner.calibrate.measure.engine_protocol import (
    Answer,
    Failed,
    FailureKind,
    Measure,
    Question,
    Serve,
    Start,
    Started,
    Stop,
    encode,
    one_line,
    read_question,
)
from planner.calibrate.measure.engine_serving import serve
from planner.calibrate.measure.engine_steps import SteppedEngine, measure
from planner.calibrate.measure.engine_vllm import VllmEngine

BROKEN_EXIT = 3
"""Exit code where the engine does not work any more after a failure."""


def main() -> int:
    """Answers until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    questions, answers = _take_streams()
    first = questions()
    if not isinstance(first, Start):
        answers(Failed(kind=FailureKind.ENGINE, message="the first message must start an engine"))
        return 2
    try:
        set_environment(first)
        engine = VllmEngine(first)
    except StartError as refused:
        answers(Failed(kind=refused.kind, message=str(refused)))
        return 1
    except Exception as error:
        answers(Failed(kind=failure_kind(error), message=f"{type(error).__name__}: {reason(error)}"))
        return 1
    answers(Started(engine=engine.setup, memory=engine.memory))
    while not isinstance(question := questions(), Stop):
        answer = answered(engine, question)
        answers(answer)
        if isinstance(answer, Failed) and answer.engine_lost:
            return BROKEN_EXIT
    engine.shut_down()
    return 0


class Recovering(SteppedEngine, Protocol):
    """An engine that can be set right after a failed step."""

    def recover(self) -> bool:
        """Gives memory back; whether the engine still works."""


def answered(engine: Recovering, question: Question) -> Answer:
    """The answer to one question; of a failure also whether the engine outlived it."""
    try:
        return _answer(engine, question)
    except Exception as error:
        kind = FailureKind.OUT_OF_MEMORY if is_out_of_memory(error) else FailureKind.ENGINE
        failed = Failed(kind=kind, message=one_line(f"{type(error).__name__}: {reason(error)}"))
    # Until here the exception kept the frames of the failed step, and with them what they had allocated.
    gc.collect()
    return failed if engine.recover() else failed.model_copy(update={"engine_lost": True})


def _answer(engine: SteppedEngine, question: Question) -> Answer:
    match question:
        case Measure():
            return measure(engine, question)
        case Serve():
            return serve(engine, question)
    return Failed(kind=FailureKind.ENGINE, message="an engine is running already")


def _take_streams() -> tuple[Callable[[], Question], Callable[[Answer], None]]:
    """Questions from standard input and answers to standard output, both of them out of everybody else's reach."""
    read = os.fdopen(os.dup(0), "rb")
    write = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    waiting: queue.Queue[Question] = queue.Queue()
    threading.Thread(target=_listen, args=(read, waiting), daemon=True).start()

    def answer(message: Answer) -> None:
        write.write(encode(message))
        write.flush()

    return waiting.get, answer


def _listen(read: BinaryIO, waiting: "queue.Queue[Question]") -> None:
    """Passes questions on; ends this process and its workers when the parent is gone, whatever they are doing."""
    for line in read:
        try:
            question = read_question(line)
        except ValidationError as error:
            print(f"unreadable message: {one_line(str(error))}", file=sys.stderr, flush=True)
            break
        waiting.put(question)
        if isinstance(question, Stop):
            return
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)
