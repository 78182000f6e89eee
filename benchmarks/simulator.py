"""The simulated scheduler on one core: requests a second on a recorded trace, against a budget and against Vidur.

Vidur (github.com/microsoft/vidur) is a request-by-request simulator in Python. Its 4.3 ms a simulated request come from
this project's survey of other programs (November 2026). `pip install vidur` (0.0.26) works, best in an environment of
its own: with `--vidur-python` its loop is run on the same requests, in the same minutes, but without its predictor of
step times, whose tables are on a model hub (vidur_run.py): that flatters Vidur. Both are one thread, and CPU time is
taken: other work on the machine shall not count.
"""

import csv
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.inputs import Inputs, trace_or_like_it
from benchmarks.measure import (
    Row,
    Timing,
    best_of,
    child,
    figure,
    has_peak,
    not_measured,
    peak_mb,
    rate_at_least,
)
from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.planning.predict import size
from planner.planning.simulate import Traffic, engine_of
from planner.planning.sizing import Sizer
from planner.serving.simulation import Replica, simulate

BUDGET_PER_S = 300_000.0
VIDUR_S = 4.3e-3
"""Time of Vidur for one simulated request; the survey of November 2026."""
VIDUR_TIMES = 1000.0
"""How many times as fast as Vidur the simulator is to be."""
VIDUR_REQUESTS = 1000
MEMORY_REQUESTS = 20_000
FOLD = 4
MEMORY_RATIO = 1.05
"""Above this, or below its inverse, memory is not flat."""
MODEL, GPU, TP, MAX_MODEL_LEN = "meta-llama/Llama-3.1-70B", "H100", 8, 16_384
RUN_SCRIPT = Path(__file__).with_name("vidur_run.py")


def rows(inputs: Inputs) -> Iterator[Row]:
    """Rate against the budget and Vidur; memory against the number of steps and of requests."""
    traffic, named = trace_or_like_it(inputs.trace)
    one = served_by()
    count = traffic.stream.prompt_tokens.size
    timing = best_of(inputs.repeats, lambda: simulate(one, traffic.stream), clock=time.process_time)
    what = f"simulated scheduler, one core, CPU time, {count:,} requests ({named})"
    yield rate_at_least(what, count, timing, BUDGET_PER_S, "requests/s")
    against = f"{figure(VIDUR_TIMES)} x Vidur as surveyed, {1e3 * VIDUR_S:g} ms/request"
    yield times_vidur("the same, times Vidur's known speed", count, timing, VIDUR_S, against)
    yield from vidur_rows(inputs, one)
    yield from memory_rows()


def served_by() -> Replica:
    """The deployment whose scheduler is simulated; it carries the trace at its own rate."""
    engine = Engine(max_model_len=MAX_MODEL_LEN)
    case = deployment(MODEL, gpu_named(GPU), parallelism_of(TP), Formats(), engine)
    facts = facts_for()
    sizer = Sizer(facts)
    return engine_of(case, size(case, sizer), sizer, facts.host)


def times_vidur(what: str, count: int, ours: Timing, vidur_s: float, against: str) -> Row:
    """How many times as fast as Vidur, which takes `vidur_s` a request; enough from VIDUR_TIMES."""
    ratio = vidur_s * count / ours.best_s
    return Row(what, f"{figure(count / ours.best_s)} requests/s", against, ratio, ratio >= VIDUR_TIMES)


def vidur_rows(inputs: Inputs, one: Replica) -> Iterator[Row]:
    """Vidur's own loop on the first requests, in the interpreter that has it."""
    python = inputs.vidur_python or (sys.executable if importlib.util.find_spec("vidur") else None)
    what = f"the same, times Vidur itself on {VIDUR_REQUESTS:,} of these requests"
    if python is None:
        yield not_measured(what, "pip install vidur elsewhere, --vidur-python PATH")
        return
    traffic, _ = trace_or_like_it(inputs.trace, VIDUR_REQUESTS)
    count = traffic.stream.prompt_tokens.size
    ours = best_of(inputs.repeats, lambda: simulate(one, traffic.stream), clock=time.process_time)
    out = simulate(one, traffic.stream)
    vidur = vidur_run(python, traffic, step_s=float(out.totals[1] / out.totals[0]))
    vidur_ms = figure(1e3 * vidur.best_s / count)
    against = f"{figure(VIDUR_TIMES)} x Vidur run here without its predictor, {vidur_ms} ms/request"
    yield times_vidur(what, count, ours, vidur.best_s / count, against)


def vidur_run(python: str, traffic: Traffic, *, step_s: float, repeats: int = 2) -> Timing:
    """CPU time of Vidur's loop over these requests, each of its steps taking `step_s`; a process each.

    Raises:
        InputError: it does not run.
    """
    stream = traffic.stream
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.csv"
        with trace.open("w", newline="") as target:
            writer = csv.writer(target)
            writer.writerow(("Date", "Time", "PromptTokenCount", "CompletionTokenCount"))
            lengths = stream.prompt_tokens.tolist(), stream.output_tokens.tolist()
            writer.writerows(zip(["all"] * stream.sent_s.size, stream.sent_s.tolist(), *lengths, strict=True))
        arguments = (str(RUN_SCRIPT), str(trace), repr(step_s))
        times = [json.loads(child(*arguments, python=python).splitlines()[-1]) for _ in range(repeats)]
    return Timing(min(times), max(times))


def memory_rows(requests: int = MEMORY_REQUESTS) -> Iterator[Row]:
    """Peak memory with answers four times as long, so four times the steps, and with four times the requests."""
    if not has_peak():
        yield not_measured("simulator, peak memory", "this system does not tell a process its peak")
        return
    drawn_run(1, 1)  # What compiles takes far more memory than what simulates.
    once, long, many = (
        peak_mb(("from benchmarks.simulator import drawn_run", f"drawn_run({number}, {fold})"))
        for number, fold in ((requests, 1), (requests, FOLD), (FOLD * requests, 1))
    )
    yield memory_row(f"simulator, peak memory with {FOLD} x the steps", long, once, MEMORY_RATIO)
    yield memory_row(f"simulator, peak memory with {FOLD} x the requests", many, once, None)


def memory_row(what: str, peak: float, base: float, limit: float | None) -> Row:
    """A peak against that of the base run [MB]; nothing is promised without a limit."""
    ratio = peak / base
    if limit is None:
        return Row(what, f"{figure(peak)} MB", f"{figure(base)} MB with 1 x", ratio, None)
    against = f"{figure(base)} MB with 1 x, at most {limit:g} times"
    return Row(what, f"{figure(peak)} MB", against, ratio, 1.0 / limit <= ratio <= limit)


def drawn_run(requests: int, fold: int) -> int:
    """Simulates drawn requests with answers so many times as long, sent so many times as slowly; counts the steps."""
    stream = trace_or_like_it(None, requests)[0].stream
    longer = stream._replace(sent_s=fold * stream.sent_s, output_tokens=fold * stream.output_tokens)
    return int(simulate(served_by(), longer).totals[0])
