"""Runs of a table that a simulation can be held against: one load, TTFT and TPOT measured."""

from pathlib import Path

from planner.assemble.served import MeasuredRun
from planner.cli.error_table import measured
from planner.cli.runs import open_runs
from planner.domain.units import ms_to_seconds

BATCH_COLUMN = "max_num_batched_tokens"
SHORTEST_ANSWER = 2
"""Tokens; an answer of one has no time per token after the first."""


def measured_serving_runs(path: Path) -> tuple[list[MeasuredRun], int]:
    """Those runs, and how many rows of the table are not among them.

    Raises:
        InputError: the table cannot be read.
    """
    found: list[MeasuredRun] = []
    others = 0
    with open_runs(path) as table:
        batch_at = table.columns.index(BATCH_COLUMN) if BATCH_COLUMN in table.columns else -1
        for run in table.runs:
            times = measured(table.columns, run)
            cases = () if run.asks is None or run.asks.turned_away else run.asks.cases
            ttft_ms, tpot_ms = times.get("ttft_ms_mean"), times.get("tpot_ms_mean")
            workload = cases[0].workload if len(cases) == 1 else None
            if workload is None or ttft_ms is None or tpot_ms is None:
                others += 1
                continue
            if workload.output_tokens < SHORTEST_ANSWER:
                others += 1
                continue
            says_batch = batch_at >= 0 and bool(run.cells[batch_at].strip())
            found.append(MeasuredRun(cases[0], ms_to_seconds(ttft_ms), ms_to_seconds(tpot_ms), says_batch))
    return found, others
