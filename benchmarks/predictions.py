"""`predict` and `memory`: rows a second of whole processes, and the slowest first `memory` answer of any bundled model.

Tables are made up: many deployments and loads for times, every bundled model without traffic for memory.
"""

import contextlib
import csv
import gc
import io
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from benchmarks.inputs import Inputs
from benchmarks.measure import Row, at_most, best_of, planner, rate_at_least, time_at_most
from planner.catalog.models import bundled_models
from planner.cli import main as run

STEADY_ROWS, SIMULATED_ROWS, MEMORY_ROWS = 4000, 200, 1000
STEADY_PER_S, SIMULATED_PER_S, MEMORY_ROWS_S, MEMORY_ANSWER_S = 2000.0, 30.0, 1.0, 0.05
GPUS = ("H100-SXM-80GB", "A100-SXM-80GB", "H200-SXM-141GB", "B200")
RUN = {"model": "meta-llama/Llama-3.1-70B", "weight_dtype": "fp8", "engine": "vllm"}
RUN |= {"input_tokens": "1024", "output_tokens": "256"}
PROCESSES = 3


def rows(_inputs: Inputs) -> Iterator[Row]:
    """Steady, simulated, memory alone; then one memory answer."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "runs.csv", Path(folder) / "out.csv"
        for method, count, budget in (
            ("steady", STEADY_ROWS, STEADY_PER_S),
            ("simulate", SIMULATED_ROWS, SIMULATED_PER_S),
        ):
            write_table(source, timed_runs(count))
            command = ("predict", str(source), "--output", str(target), "--method", method)
            timing = best_of(PROCESSES, planner(*command))
            what = f"`predict --method {method}`, {count:,} rows, process start included"
            yield rate_at_least(what, count, timing, budget, "rows/s")
        write_table(source, memory_runs(MEMORY_ROWS))
        timing = best_of(PROCESSES, planner("predict", str(source), "--output", str(target)))
        yield time_at_most(
            f"`predict` of {MEMORY_ROWS:,} rows for memory alone, process wall", timing, MEMORY_ROWS_S
        )
    models = [model.name for model in bundled_models()]
    what = f"`memory` in process, slowest first answer of {len(models)} models"
    yield at_most(what, slowest_memory_s(models), MEMORY_ANSWER_S, "s")


def timed_runs(count: int) -> Iterator[dict[str, object]]:
    """Rows of a runs table: many deployments, many loads."""
    for row in range(count):
        yield {**RUN, "gpu": GPUS[row % 4], "tp": (2, 4, 8)[row % 3], "concurrency": 1 + row % 128}


def memory_runs(count: int) -> Iterator[dict[str, object]]:
    """Rows without traffic over every bundled model, so that memory alone is answered."""
    models = [model.name for model in bundled_models()]
    for row in range(count):
        yield {
            "model": models[row % len(models)],
            "gpu": GPUS[row % 4],
            "tp": (1, 2, 4, 8)[row // 7 % 4],
            "max_num_batched_tokens": 2048 + 16 * (row % 97),
        }


def write_table(path: Path, table: Iterable[Mapping[str, object]]) -> None:
    """The rows as CSV under the names of the first."""
    lines = list(table)
    with path.open("w", newline="") as target:
        writer = csv.DictWriter(target, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def slowest_memory_s(models: Iterable[str]) -> float:
    """Slowest `memory` answer, each model's first, in process: nothing remembered from another [s].

    Without garbage collection, which stops whichever model it falls upon.
    """
    slowest = 0.0
    gc.disable()
    try:
        for model in models:
            arguments = ["memory", "--model", model, "--gpu", "H100-SXM-80GB", "--tp", "8", "--json"]
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                run(arguments)
            slowest = max(slowest, time.perf_counter() - start)
    finally:
        gc.enable()
    return slowest
