"""`plan` over the whole catalog: wall time of a fresh machine's first process and of later ones, memory, screening.

Screening counts points (layout, flags, load) that one recommendation works out in a second.
"""

import tempfile
from collections.abc import Iterator

from benchmarks.inputs import Inputs
from benchmarks.measure import (
    Row,
    at_most,
    best_of,
    child,
    has_peak,
    not_measured,
    peak_mb,
    planner,
    rate_at_least,
    time_at_most,
)
from planner.assemble.question import Ask, facts_for, question_from
from planner.planning.candidates import sites
from planner.planning.evaluate import RUNNING_POINTS
from planner.planning.recommend import recommend
from planner.planning.screening import screen

WARM_S, COLD_S, IMPORT_S, RECOMMEND_S = 2.0, 20.0, 0.5, 0.5
SCREENED_PER_S = 50_000.0
PEAK_MB = 500.0
MODEL = "meta-llama/Llama-3.1-70B"
START = "from planner.cli import main; main(['plan', '--help'])"
PLAN = ["plan", "--model", MODEL, "--weight-dtype", "fp8", "--input-tokens", "1024", "--output-tokens", "256"]
PLAN += ["--requests-per-s", "10", "--ttft-p95-ms", "2000", "--tpot-p95-ms", "60"]


def rows(inputs: Inputs) -> Iterator[Row]:
    """Processes first, then what the dashboard does with everything loaded."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = {"NUMBA_CACHE_DIR": f"{folder}/compiled", "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        cold = best_of(1, planner(*PLAN, environment=fresh), warm=False)
    yield time_at_most("`plan` over the whole catalog, nothing compiled before, process wall", cold, COLD_S)
    warm = best_of(inputs.repeats, planner(*PLAN))
    yield time_at_most("`plan` over the whole catalog, later, process wall", warm, WARM_S)
    if has_peak():
        peak = peak_mb(("from planner.cli import main", f"main({PLAN!r})"))
        yield at_most("`plan`, peak memory", peak, PEAK_MB, "MB")
    else:
        yield not_measured("`plan`, peak memory", "this system does not tell a process its peak")
    with_import = best_of(inputs.repeats, lambda: child("-c", START))
    bare = best_of(inputs.repeats, lambda: child("-c", "pass"))
    what = "`plan --help`: all that `plan` imports (start of Python taken off)"
    yield at_most(what, with_import.best_s - bare.best_s, IMPORT_S, "s")
    yield from in_process(inputs.repeats)


def in_process(repeats: int, ask: Ask | None = None) -> Iterator[Row]:
    """A new recommendation, and its screening alone."""
    question = question_from(ask or Ask(model=MODEL, weight_dtype=("fp8",), preset="chat"))
    facts = facts_for()
    whole = best_of(repeats, lambda: recommend(question, facts))
    yield time_at_most("a new recommendation in process (dashboard)", whole, RECOMMEND_S)
    instances = [site.instance for site in sites(facts.offers, question.supply)]
    points = screen(instances, question, facts).settings_tried * RUNNING_POINTS
    timing = best_of(repeats, lambda: screen(instances, question, facts))
    yield rate_at_least("screening (layout, flags, load)", points, timing, SCREENED_PER_S, "candidates/s")
