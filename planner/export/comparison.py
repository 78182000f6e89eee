"""Measured runs beside their predictions, figure by figure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from planner.export.predictions import MEASURES

TITLES = {
    "ttft_ms_mean": ("TTFT", "ms"),
    "tpot_ms_mean": ("TPOT", "ms"),
    "output_tokens_per_s": ("output tokens", "tokens/s"),
    "weights_gib_per_gpu": ("weights per GPU", "GiB"),
    "kv_cache_gib_per_gpu": ("KV cache per GPU", "GiB"),
    "kv_cache_tokens": ("KV cache", "tokens"),
}
"""Name and unit of each measure."""


class Figure(NamedTuple):
    """One figure of a run, in the unit that its measure's name ends in."""

    measured: float
    predicted: float
    interval: tuple[float, float] | None = None
    """Where 90 % of measured values should lie, if that is known."""

    @property
    def is_inside(self) -> bool | None:
        """Whether the measured value is in the interval."""
        return None if self.interval is None else self.interval[0] <= self.measured <= self.interval[1]

    @property
    def error_ratio(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1.0


class ComparedRun(NamedTuple):
    """A measured run with its prediction."""

    row: int
    """Its place in the table, from 1."""
    run: str
    """Its `run_id`, else its row."""
    groups: Mapping[str, str]
    """Its model, GPU, TP and load."""
    figures: Mapping[str, Figure]
    """By measure, where it was both measured and predicted."""


class FigureRow(NamedTuple):
    """One figure of one run, as a row of a table."""

    row: int
    run: str
    model: str
    gpu: str
    tp: str
    load: str
    measure: str
    measured: float
    predicted: float
    error_ratio: float
    low: float | None
    """Of the 90 % interval."""
    high: float | None


def figure_rows(runs: Iterable[ComparedRun]) -> Iterator[FigureRow]:
    """Every figure of every run, in the order of the runs."""
    for run in runs:
        for measure in MEASURES:
            if measure in run.figures:
                figure = run.figures[measure]
                low, high = figure.interval or (None, None)
                yield FigureRow(
                    row=run.row,
                    run=run.run,
                    model=run.groups["model"],
                    gpu=run.groups["GPU"],
                    tp=run.groups["TP"],
                    load=run.groups["load"],
                    measure=measure,
                    measured=figure.measured,
                    predicted=figure.predicted,
                    error_ratio=figure.error_ratio,
                    low=low,
                    high=high,
                )
