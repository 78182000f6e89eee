"""A simulated run as tables: its percentiles, its time series, and every request."""

from collections.abc import Iterable

from planner.domain.units import seconds_to_ms
from planner.export.table import Cell
from planner.serving.measures import Measures, Requests, Spread, TimeSeries

REQUEST_COLUMNS = (
    "sent_s",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "queue_ms",
    "ttft_ms",
    "tpot_ms",
    "e2e_ms",
    "preemptions",
)
SERIES_COLUMNS = TimeSeries._fields
SPREADS = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "between tokens",
    "e2e": "whole answer",
    "queue": "before admission",
}
"""The latencies of a run, by their name in `Measures`."""
SPREAD_COLUMNS = ("latency", *(name.removesuffix("_s") + "_ms" for name in Spread._fields))


def request_rows(requests: Requests) -> Iterable[tuple[Cell, ...]]:
    """Every request, in the order of `REQUEST_COLUMNS`."""
    columns = (
        requests.sent_s,
        requests.prompt_tokens,
        requests.output_tokens,
        requests.cached_tokens,
        *(requests.queue_s * 1e3, requests.ttft_s * 1e3, requests.tpot_s * 1e3, requests.e2e_s * 1e3),
        requests.preemptions,
    )
    return zip(*(column.tolist() for column in columns), strict=True)


def series_rows(series: TimeSeries) -> Iterable[tuple[Cell, ...]]:
    """Every time bin, in the order of `SERIES_COLUMNS`."""
    return zip(*(column.tolist() for column in series), strict=True)


def spread_rows(measures: Measures) -> list[tuple[Cell, ...]]:
    """Mean and percentiles of every latency, in the order of `SPREAD_COLUMNS`."""
    return [(name, *map(seconds_to_ms, getattr(measures, name))) for name in SPREADS]
