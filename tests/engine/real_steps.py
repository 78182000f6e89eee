"""Steps that a live vLLM runs for shapes, as its scheduler and its model runner tell them apart.

Runs with the interpreter that has vLLM: reads a start message and questions as JSON from standard input, writes what
each step was as JSON to standard output.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Answers the questions on standard input."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from planner.calibrate.measure.engine_arguments import set_environment
    from planner.calibrate.measure.engine_protocol import Measure, Start
    from planner.calibrate.measure.engine_steps import Step, measure

    asked: dict[str, Any] = json.load(sys.stdin)
    start = Start.model_validate(asked["start"])
    set_environment(start)
    from planner.calibrate.measure.engine_vllm import VllmEngine

    seen: list[Any] = []

    class Watched(VllmEngine):
        def step(self) -> Step:
            found = super().step()
            seen.append(sorted([*key, count] for key, count in found.label.items()))
            return found

    engine = Watched(start)
    answers = []
    for one in asked["questions"]:
        seen.clear()
        answer = measure(engine, Measure.model_validate(one))
        answers.append({"answer": answer.model_dump(mode="json"), "steps": list(seen)})
    engine.shut_down()
    print("\n" + json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
