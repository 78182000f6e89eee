"""Simulate: one deployment under one load, request by request: latencies, goodput, cache, and the run over time."""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import streamlit as st

from planner.domain.base import InputError
from planner.domain.evidence import LatencyRanges, Range
from planner.export.evidence import how_tested, spanned
from planner.export.format import count
from planner.export.simulation import (
    REQUEST_COLUMNS,
    SERIES_COLUMNS,
    SPREAD_COLUMNS,
    SPREADS,
    request_rows,
    series_rows,
    spread_rows,
)
from planner.export.simulation_figures import latency_curves, timeline
from planner.export.table import Cell, csv_text
from planner.serving.measures import Measures, Requests, Spread
from planner.ui import answers
from planner.ui.format import latency, number, percent, rounded
from planner.ui.memory_inputs import halves
from planner.ui.simulation_answers import SimulationAnswer, simulation_answered
from planner.ui.simulation_inputs import simulation_inputs
from planner.ui.uploads import is_kept, without_folder

CHART = {"displayModeBar": False}
Rows = Iterable[Sequence[Cell]]


def headline(answer: SimulationAnswer, model: str) -> None:
    """Whether the promise is kept, and by what deployment."""
    st.subheader(verdict(answer), anchor=False)
    case, placed = answer.case, answer.found.sized.placed
    layout = case.parallelism
    name = answers.OWN_CHECKPOINT if is_kept(model) else case.model.name
    degrees = [f"TP {layout.tp}"] + ([f"PP {layout.pp}"] if layout.pp > 1 else [])
    parts = [
        without_folder(name),
        f"{layout.gpus} × {case.gpu.name}",
        ", ".join(degrees) + (", expert parallel" if layout.ep else ""),
        f"{case.model.weight_dtype.value} weights",
    ]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(" · ".join(parts).replace("$", "\\$"), width="content")
        if placed is not None:
            st.badge(
                placed.basis.value,
                icon=":material/science:",
                color="blue",
                help=f"Rests on {answer.basis_detail}; {how_tested(answer.band)}.",
            )
    refusal = answer.found.sized.refusal
    if refusal is not None:
        st.caption(f"{refusal.reason[:1].upper()}{refusal.reason[1:]}.".replace("$", "\\$"))
    if answer.notes:
        st.caption("  \n".join(f"{note[:1].upper()}{note[1:]}." for note in answer.notes))


def verdict(answer: SimulationAnswer) -> str:
    """In a line: does it start, does it keep what is promised."""
    measures, slo = answer.found.measures, answer.slo
    if measures is None:
        return "Does not start"
    limits = {"TTFT": (measures.ttft, slo.ttft_p95_s), "TPOT": (measures.tpot, slo.tpot_p95_s)}
    given = {name: limit for name, limit in limits.items() if limit[1] is not None}
    missed = [name for name, (found, limit_s) in given.items() if found.p95_s > (limit_s or 0.0)]
    ran = f"{count(measures.requests, 'request')} in {number(measures.duration_s)} s"
    if not given:
        return ran
    said = f"misses the promised {' and '.join(missed)}" if missed else "keeps the promise"
    return f"{ran}: {said}"


def tile(label: str, value: str, below: str, about: str) -> None:
    """A figure with what qualifies it."""
    st.container().metric(
        label,
        value,
        delta=below,
        delta_color="off",
        delta_arrow="off",
        border=True,
        height="stretch",
        help=about,
    )


def latency_tile(name: str, found: Spread, mean: Range | None, limit_s: float | None) -> None:
    """A p95 beside what was promised."""
    below = f"of {latency(limit_s)}" if limit_s is not None else "no promise"
    about = "Simulated, beside what the sidebar promises."
    if mean is not None:
        about += f" The mean, {latency(found.mean_s)}, is {spanned(mean)} with 90 %."
    tile(f"{name} p95", latency(found.p95_s), below, about)


def tiles(answer: SimulationAnswer, measures: Measures) -> None:
    """The figures that a run is judged by."""
    share = measures.goodput_requests_per_s / measures.requests_per_s
    left, right = halves()
    with left:
        ranges = answer.found.ranges
        latency_tile("TTFT", measures.ttft, ranges and ranges.ttft, answer.slo.ttft_p95_s)
        latency_tile("TPOT", measures.tpot, ranges and ranges.tpot, answer.slo.tpot_p95_s)
    with right:
        tile(
            "Output tokens/s",
            number(measures.output_tokens_per_s),
            f"{number(measures.total_tokens_per_s)} with prompts",
            "From the first request sent to the last answer.",
        )
        tile(
            "Goodput, req/s",
            number(measures.goodput_requests_per_s),
            f"{percent(share)} of {number(measures.requests_per_s)}",
            "Requests answered within every latency promised; below, their share of all.",
        )
    left, right = halves()
    with left:
        tile(
            "Engine busy",
            percent(measures.utilization_ratio),
            f"{number(measures.mean_running)} running",
            "Share of the time in which a step runs; below, the requests that run at once, on average.",
        )
        tile(
            "KV cache, peak",
            percent(measures.peak_kv_used_ratio),
            f"{percent(measures.mean_kv_used_ratio)} on average",
            "Of the cache's blocks, those in use.",
        )
    with right:
        tile(
            "Preemptions",
            f"{measures.preemptions:,}",
            f"{number(measures.mean_waiting)} waiting",
            "Requests put back for want of cache, to be computed anew; below, those sent that do not run, on average.",
        )
        tile(
            "Prefix hits",
            percent(measures.prefix_hit_ratio),
            "of prompt tokens",
            "Prompt tokens found in the prefix cache.",
        )


def download(columns: Sequence[str], rows: Callable[[], Rows], name: str, about: str) -> None:
    """A button for a table as a file; `rows` makes them when it is pressed."""
    st.download_button(
        f"{name.capitalize()}, CSV",
        data=lambda: csv_text(columns, rows()),
        file_name=f"simulation-{name}.csv",
        mime="text/csv",
        on_click="ignore",
        icon=":material/download:",
        key=f"simulate_{name}_csv",
        help=about,
    )


def percentiles(measures: Measures, requests: Requests, ranges: LatencyRanges | None) -> None:
    """Mean, its 90 % range and percentiles of every latency, and the files."""
    known = {} if ranges is None else ranges._asdict()
    rows = [
        (
            *(SPREADS[str(name)], *(rounded(float(str(value))) for value in values)),
            spanned(known[str(name)]) if name in known else "",
        )
        for name, *values in spread_rows(measures)
    ]
    names = [column.removesuffix("_ms") for column in SPREAD_COLUMNS[1:]]
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
        st.markdown("**Latency, ms**", width="content")
        with st.container(horizontal=True, width="content"):
            download(
                REQUEST_COLUMNS,
                lambda: request_rows(requests),
                "requests",
                "Every request with its latencies.",
            )
            download(
                SERIES_COLUMNS,
                lambda: series_rows(measures.series),
                "timeline",
                "What ran, waited and was held.",
            )
    st.dataframe(
        pd.DataFrame(rows, columns=["Latency", *names, "90 % of means"]),
        hide_index=True,
        height="content",
        key="simulate_percentiles",
    )


def charts(answer: SimulationAnswer, measures: Measures, requests: Requests) -> None:
    """How latencies are spread, and how the run went."""
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**Share of requests that were at most so slow**")
        st.plotly_chart(latency_curves(requests, answer.slo), key="simulate_curves", config=CHART)
    with right:
        st.markdown("**The run over time**")
        st.plotly_chart(timeline(measures.series), key="simulate_timeline", config=CHART)


head = st.container()
with st.container(border=True):
    asked = simulation_inputs()
if asked is None:
    head.info("Upload a trace to simulate it.", icon=":material/upload_file:")
    st.stop()
try:
    answer = simulation_answered(asked)
except InputError as error:
    head.error(without_folder(str(error)), icon=":material/error:")
    st.stop()
measures, requests = answer.found.measures, answer.found.requests
with head:
    headline(answer, asked.deployment.model)
    if measures is not None:
        tiles(answer, measures)
if measures is not None and requests is not None:
    percentiles(measures, requests, answer.found.ranges)
    charts(answer, measures, requests)
