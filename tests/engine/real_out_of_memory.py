"""What a live vLLM answers to questions of which one runs out of memory in its model runner.

Runs with the interpreter that has vLLM: reads a start message, questions and where to fail as JSON from standard input,
writes the answers as JSON to standard output.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Answers the questions on standard input."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from planner.calibrate.measure.engine import answered
    from planner.calibrate.measure.engine_arguments import set_environment
    from planner.calibrate.measure.engine_protocol import Start, read_question

    asked: dict[str, Any] = json.load(sys.stdin)
    start = Start.model_validate(asked["start"])
    set_environment(start)
    import torch

    from planner.calibrate.measure.engine_vllm import VllmEngine

    engine = VllmEngine(start)
    runner: Any = engine._core.model_executor.driver_worker.worker.model_runner
    inner, left = getattr(runner, asked["method"]), asked["call"]

    def fails_once(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return inner(*arguments, **named)

    setattr(runner, asked["method"], fails_once)
    answers = [answered(engine, read_question(json.dumps(one).encode())) for one in asked["questions"]]
    engine.shut_down()
    print("\n" + json.dumps([one.model_dump(mode="json") for one in answers]), flush=True)


if __name__ == "__main__":
    main()
