"""Figures of a simulated run say what its measures say."""

import numpy as np
import pytest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.assemble.traffic import TrafficAsked, traffic_asked
from planner.domain.workload import Slo
from planner.export.simulation import (
    REQUEST_COLUMNS,
    SERIES_COLUMNS,
    SPREAD_COLUMNS,
    request_rows,
    series_rows,
    spread_rows,
)
from planner.export.simulation_figures import CURVES, latency_curves, simulation_page, timeline
from planner.planning.simulate import Simulation, simulated
from planner.serving.measures import Measures, Requests
from tests.export.plotted import figures

SLO = Slo(ttft_p95_s=0.5, tpot_p95_s=0.02)


@pytest.fixture(scope="module")
def run() -> Simulation:
    case = deployment(
        "meta-llama/Llama-3.1-8B", gpu_named("H100-SXM-80GB"), parallelism_of(1), Formats(), Engine()
    )
    asked = TrafficAsked(requests_per_s=20.0, input_tokens=900, output_tokens=80, length_low_ratio=0.1)
    traffic, _ = traffic_asked(asked._replace(num_requests=300))
    return simulated(case, traffic, SLO, facts_for())


@pytest.fixture(scope="module")
def requests(run: Simulation) -> Requests:
    assert run.requests is not None
    return run.requests


@pytest.fixture(scope="module")
def measures(run: Simulation) -> Measures:
    assert run.measures is not None
    return run.measures


def test_curves_pass_through_the_percentiles(requests: Requests, measures: Measures) -> None:
    figure = latency_curves(requests, SLO)
    by_title = {trace.name: trace for trace in figure.data}
    assert list(by_title) == list(CURVES.values())
    for name, title in CURVES.items():
        trace, spread = by_title[title], getattr(measures, name.removesuffix("_s"))
        assert all(later >= earlier for earlier, later in zip(trace.x, trace.x[1:], strict=False))
        assert (trace.y[0], trace.y[-1]) == (0, 100)
        for share, value_s in ((50.0, spread.p50_s), (90.0, spread.p90_s), (95.0, spread.p95_s)):
            at = int(np.argmin(np.abs(np.array(trace.y) - share)))
            assert trace.x[at] == pytest.approx(max(1e3 * value_s, 0.1))
    looks = {(trace.line.color, trace.line.dash) for trace in figure.data}
    assert len({colour for colour, _ in looks}) == len({dash for _, dash in looks}) == len(CURVES)


def test_what_is_promised_is_a_line_in_its_place(requests: Requests) -> None:
    figure = latency_curves(requests, SLO)
    lines = [shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1]
    assert lines == [500.0, 20.0]
    assert [note.text for note in figure.layout.annotations] == [
        "TTFT promised 500 ms",
        "TPOT promised 20 ms",
    ]
    # Annotations on a logarithmic axis stand at the logarithm.
    assert [note.x for note in figure.layout.annotations] == pytest.approx(np.log10([500.0, 20.0]))
    assert not latency_curves(requests, Slo()).layout.annotations


def test_answers_of_one_token_have_no_tpot_to_draw(requests: Requests) -> None:
    single = requests._replace(tpot_s=np.full_like(requests.tpot_s, np.nan))
    assert "TPOT" not in {trace.name for trace in latency_curves(single, Slo()).data}


def test_the_timeline_is_the_series(measures: Measures) -> None:
    series = measures.series
    by_name = {trace.name: trace for trace in timeline(series).data}
    assert list(by_name["running"].y) == series.running.tolist()
    assert list(by_name["waiting"].y) == series.waiting.tolist()
    assert list(by_name["tokens/s"].y) == series.tokens_per_s.tolist()
    assert list(by_name["KV cache in use"].y) == pytest.approx((100 * series.kv_used_ratio).tolist())
    assert all(list(trace.x) == series.start_s.tolist() for trace in by_name.values())


def test_a_page_holds_both(requests: Requests, measures: Measures) -> None:
    page = simulation_page("<i>model</i> on 1 x GPU", requests, measures.series, SLO)
    curves, over_time = figures(page)
    assert [trace["name"] for trace in curves] == list(CURVES.values())
    assert len(over_time) == 4
    assert "<i>" not in page.partition("<script")[0]
    assert page.count("* plotly.js v") == 1


def test_tables_have_a_cell_for_every_column(requests: Requests, measures: Measures) -> None:
    rows = list(request_rows(requests))
    assert len(rows) == measures.requests == 300
    assert {len(row) for row in rows} == {len(REQUEST_COLUMNS)}
    bins = list(series_rows(measures.series))
    assert len(bins) == measures.series.start_s.size
    assert {len(row) for row in bins} == {len(SERIES_COLUMNS)}
    assert SPREAD_COLUMNS == ("latency", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms")
    spreads = {row[0]: row[1:] for row in spread_rows(measures)}
    assert spreads["ttft"] == pytest.approx([1e3 * value for value in measures.ttft])
    assert list(spreads) == ["ttft", "tpot", "itl", "e2e", "queue"]
