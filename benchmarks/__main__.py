"""Measures each budget and prints measured, budget and their ratio; nothing fails here, nothing is timed in tests."""

import contextlib
import csv
import gc
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import Ask, facts_for, question_from
from planner.catalog.models import bundled_models
from planner.cli import main as run
from planner.domain.workload import Workload
from planner.planning.evaluate import RUNNING_POINTS
from planner.planning.predict import size
from planner.planning.recommend import recommend
from planner.planning.simulate import drawn_traffic, engine_of
from planner.planning.sizing import Sizer
from planner.serving.simulation import simulate

REPEATS = 5
SIMULATED = 20_000
SIMULATED_ROWS = 200
MEMORY_ROWS = 1000
MEMORY_ROWS_S = 1.0
ROWS = 4000
PLAN = ["plan", "--model", "meta-llama/Llama-3.1-70B", "--weight-dtype", "fp8", "--input-tokens", "1024"]
PLAN += ["--output-tokens", "256", "--requests-per-s", "10", "--ttft-p95-ms", "2000", "--tpot-p95-ms", "60"]
RUN = {
    "model": "meta-llama/Llama-3.1-70B",
    "weight_dtype": "fp8",
    "input_tokens": "1024",
    "output_tokens": "256",
    "engine": "vllm",
}


def median_s(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of an action after one that warms it [s]."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def planner_process(*arguments: str) -> Callable[[], object]:
    """A whole process of the command line."""
    command = [sys.executable, "-m", "planner", *arguments]
    return lambda: subprocess.run(command, check=True, capture_output=True)


def peak_child_mb() -> float:
    """Largest resident size of any finished child process [MB]."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def runs_table(path: Path, rows: int = ROWS) -> None:
    """A runs table of many different deployments and loads."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*RUN, "gpu", "tp", "concurrency"])
        writer.writeheader()
        for row in range(rows):
            gpu = ("H100-SXM-80GB", "A100-SXM-80GB", "H200-SXM-141GB", "B200")[row % 4]
            writer.writerow({**RUN, "gpu": gpu, "tp": (2, 4, 8)[row % 3], "concurrency": 1 + row % 128})


def memory_table(path: Path) -> None:
    """A runs table without traffic over every bundled model, so that memory alone is answered."""
    models = [model.name for model in bundled_models()]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["model", "gpu", "tp", "max_num_batched_tokens"])
        writer.writeheader()
        for row in range(MEMORY_ROWS):
            gpu = ("H100-SXM-80GB", "A100-SXM-80GB", "H200-SXM-141GB", "B200")[row % 4]
            tokens = 2048 + 16 * (row % 97)
            model, tp = models[row % len(models)], (1, 2, 4, 8)[row // 7 % 4]
            writer.writerow({"model": model, "gpu": gpu, "tp": tp, "max_num_batched_tokens": tokens})


def memory_rows_s(folder: Path) -> float:
    """Wall time of `predict` over a table that asks for memory alone, process start included [s]."""
    source, target = folder / "memory.csv", folder / "out.csv"
    memory_table(source)
    return median_s(planner_process("predict", str(source), "--output", str(target)), 3)


def memory_answer_s() -> float:
    """Slowest first `memory` answer of any bundled model, in process: nothing remembered from another [s].

    Without garbage collection, which stops whichever model it falls upon.
    """
    slowest = 0.0
    sink = io.StringIO()
    gc.disable()
    for model in bundled_models():
        arguments = ["memory", "--model", model.name, "--gpu", "H100-SXM-80GB", "--tp", "8", "--json"]
        start = time.perf_counter()
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            run(arguments)
        slowest = max(slowest, time.perf_counter() - start)
    gc.enable()
    return slowest


def predict_rows_per_s(folder: Path, *, rows: int = ROWS, method: str = "steady") -> float:
    """Rows a second of `predict`, process start included."""
    source, target = folder / "runs.csv", folder / "out.csv"
    runs_table(source, rows)
    command = ("predict", str(source), "--output", str(target), "--method", method)
    return rows / median_s(planner_process(*command), 3)


def simulated_per_s() -> float:
    """Requests a second through the simulated scheduler on one core: conversations on a replica that carries them."""
    facts = facts_for()
    engine = Engine(max_model_len=8192)
    case = deployment("meta-llama/Llama-3.1-70B", gpu_named("H100"), parallelism_of(8), Formats(), engine)
    load = Workload(input_tokens=2100, output_tokens=400, length_low_ratio=0.05, requests_per_s=5.5)
    traffic = drawn_traffic(load.model_copy(update={"num_requests": SIMULATED}), 0)
    sizer = Sizer(facts)
    one = engine_of(case, size(case, sizer), sizer, facts.host)
    return SIMULATED / median_s(lambda: simulate(one, traffic.stream), 3)


def screened_per_s() -> tuple[float, float]:
    """Seconds of one recommendation, and points (layout, flags, load) it screens a second."""
    ask = Ask(model=PLAN[2], weight_dtype=("fp8",), preset="chat")
    question, facts = question_from(ask), facts_for()
    seconds = median_s(lambda: recommend(question, facts))
    return seconds, recommend(question, facts).settings_tried * RUNNING_POINTS / seconds


def main() -> None:
    """Prints the table."""
    imports = median_s(lambda: subprocess.run([sys.executable, "-c", "import planner"], check=True))
    bare = median_s(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))
    plan = median_s(planner_process(*PLAN))
    plan_mb = peak_child_mb()
    recommend_s, points_per_s = screened_per_s()
    with tempfile.TemporaryDirectory() as folder:
        rows_per_s = predict_rows_per_s(Path(folder))
        simulated_rows_per_s = predict_rows_per_s(Path(folder), rows=SIMULATED_ROWS, method="simulate")
        memory_s = memory_rows_s(Path(folder))
    table = Table("what", "measured", "budget", "measured / budget", title="Budgets")
    for what, value, budget, unit in (
        ("`plan` over the whole catalog, process wall", plan, 2.0, "s"),
        ("`plan`, peak memory", plan_mb, 500.0, "MB"),
        ("`import planner` (start of Python taken off)", imports - bare, 0.5, "s"),
        ("a new recommendation in process (dashboard)", recommend_s, 0.5, "s"),
        ("`memory` in process, slowest of the bundled models", memory_answer_s(), 0.05, "s"),
        (f"`predict` of {MEMORY_ROWS:,} rows for memory alone, process wall", memory_s, MEMORY_ROWS_S, "s"),
    ):
        table.add_row(what, f"{value:.3g} {unit}", f"{budget:g} {unit}", f"{value / budget:.2f}")
    table.add_row(
        "`predict`, process start included",
        f"{rows_per_s:,.0f} rows/s",
        "2,000 rows/s",
        f"{rows_per_s / 2000:.2f}",
    )
    table.add_row(
        "`predict --method simulate`, process start included",
        f"{simulated_rows_per_s:,.0f} rows/s",
        "30 rows/s",
        f"{simulated_rows_per_s / 30:.2f}",
    )
    requests_per_s = simulated_per_s()
    table.add_row(
        "simulated scheduler, one core",
        f"{requests_per_s:,.0f} requests/s",
        "300,000 requests/s",
        f"{requests_per_s / 300_000:.2f}",
    )
    screened = f"{points_per_s:,.0f}/s"
    table.add_row("screening (layout, flags, load)", screened, "50,000/s", f"{points_per_s / 50_000:.2f}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
