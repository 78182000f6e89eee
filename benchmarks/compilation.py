"""The first simulation ever, which compiles the scheduler into an empty cache, and the next, which reads it from there.

Both are whole processes of `simulate` with one request, as a user starts them.
"""

import tempfile
from collections.abc import Iterator

from benchmarks.inputs import Inputs
from benchmarks.measure import Row, Timing, best_of, figure, planner, time_at_most

FIRST_S = 20.0
CACHED_RATIO = 0.5
"""A start that took longer than this share of the first would have compiled again."""
SIMULATE = [
    "simulate",
    "--model",
    "Qwen/Qwen3-8B",
    "--gpu",
    "H100",
    "--concurrency",
    "1",
    "--num-requests",
    "1",
]
SIMULATE += ["--input-tokens", "8", "--output-tokens", "2"]


def rows(inputs: Inputs) -> Iterator[Row]:
    """First start and later ones."""
    with tempfile.TemporaryDirectory() as folder:
        run = planner(*SIMULATE, environment={"NUMBA_CACHE_DIR": folder})
        first = best_of(1, run, warm=False)
        later = best_of(inputs.repeats, run, warm=False)
    yield time_at_most(
        "first `simulate`, scheduler compiled into an empty cache, process wall", first, FIRST_S
    )
    yield later_row(first, later)


def later_row(first: Timing, later: Timing) -> Row:
    """A start from the cache against the first."""
    ratio = later.best_s / first.best_s
    measured = f"{figure(later.best_s)} s (worst {figure(later.worst_s)})"
    against = f"{figure(first.best_s)} s the first time, at most {CACHED_RATIO:g} of it"
    return Row(
        "later `simulate`, scheduler from the cache, process wall",
        measured,
        against,
        ratio,
        ratio <= CACHED_RATIO,
    )
