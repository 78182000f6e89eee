"""A simulated run on the screen, as JSON and request by request."""

from pathlib import Path
from typing import NamedTuple

from planner.catalog.atomic import write_text
from planner.cli.deployment_json import deployment_json
from planner.cli.screen import Json, say, show_json, show_table
from planner.domain.evidence import LatencyRanges
from planner.domain.units import seconds_to_ms
from planner.domain.workload import Slo
from planner.export.evidence import spanned
from planner.export.format import count, milliseconds, number, percent, promised
from planner.export.simulation import REQUEST_COLUMNS, SPREADS, request_rows
from planner.export.table import write_csv
from planner.planning.predict import Case
from planner.planning.simulate import Simulation, Traffic
from planner.serving.measures import Measures, Requests


class SimulationAnswer(NamedTuple):
    """What was asked, and what became of it."""

    case: Case
    traffic: Traffic
    slo: Slo
    found: Simulation


def write_requests(path: Path, requests: Requests | None) -> None:
    """Every request as a CSV row; none where the engine does not start."""
    write_csv(path, REQUEST_COLUMNS, [] if requests is None else request_rows(requests))


def write_page(path: Path, answer: SimulationAnswer) -> None:
    """The figures as one HTML page, or why there are none."""
    from planner.export.figures import html_page
    from planner.export.simulation_figures import simulation_page

    found, title = answer.found, _title(answer)
    if found.requests is None or found.measures is None:
        reason = found.sized.refusal.reason if found.sized.refusal is not None else ""
        write_text(path, html_page(f"{title}: does not start: {reason}", {}))
        return
    write_text(path, simulation_page(title, found.requests, found.measures.series, answer.slo))


def _title(answer: SimulationAnswer) -> str:
    case = answer.case
    return f"{case.model.name} on {case.parallelism.gpus} x {case.gpu.name}"


def show_simulation(answer: SimulationAnswer, *, as_json: bool) -> None:
    """Prints an answer, or why the engine does not start."""
    if as_json:
        show_json(simulation_json(answer))
        return
    refusal, measures = answer.found.sized.refusal, answer.found.measures
    if refusal is not None:
        say(f"Does not start: {refusal.reason}.")
    if measures is not None:
        _print(answer, measures)


def simulation_json(answer: SimulationAnswer) -> dict[str, Json]:
    """The whole answer as one JSON object."""
    case, traffic, slo, found = answer
    sized = found.sized
    return {
        **deployment_json(case, sized),
        "kv_cache_tokens": None if sized.budget is None else sized.budget.kv_cache_tokens,
        "users": traffic.users or None,
        "ttft_p95_limit_ms": None if slo.ttft_p95_s is None else seconds_to_ms(slo.ttft_p95_s),
        "tpot_p95_limit_ms": None if slo.tpot_p95_s is None else seconds_to_ms(slo.tpot_p95_s),
        "notes": list(found.notes),
        **({} if found.measures is None else _measures_json(found.measures, found.ranges)),
    }


def _measures_json(measures: Measures, ranges: LatencyRanges | None) -> dict[str, Json]:
    plain = {name: value for name, value in measures._asdict().items() if name not in (*SPREADS, "series")}
    latencies: dict[str, Json] = {
        f"{name}_ms": {
            figure.removesuffix("_s"): seconds_to_ms(value)
            for figure, value in getattr(measures, name)._asdict().items()
        }
        for name in SPREADS
    }
    bounds: dict[str, Json] = {
        f"{name}_ms_mean_{end}": seconds_to_ms(bound_s)
        for name, found in ({} if ranges is None else ranges._asdict()).items()
        for end, bound_s in zip(("low", "high"), found, strict=True)
    }
    series: dict[str, Json] = {name: column.tolist() for name, column in measures.series._asdict().items()}
    return {**plain, **latencies, **bounds, "series": series}


def _print(answer: SimulationAnswer, measures: Measures) -> None:
    traffic = answer.traffic
    load = f"{count(traffic.users, 'user')} in a closed loop" if traffic.users else "open loop"
    say(
        f"{_title(answer)}: {count(measures.requests, 'request')}, {load}, {number(measures.duration_s)} s, "
        "no warm-up dropped"
    )
    show_table(
        "",
        ["latency", "mean", "90 % of means", "p50", "p90", "p95", "p99"],
        [_latency(name, title, answer.found) for name, title in SPREADS.items()],
    )
    figures = [*_figures(measures), *_promised(answer.slo, measures)]
    placed = answer.found.sized.placed
    if placed is not None:
        figures.append(["basis", placed.basis.value])
    show_table("", ["figure", "value"], figures)


def _latency(name: str, title: str, found: Simulation) -> list[str]:
    """Mean, the range of measured means where it is known, and percentiles."""
    mean, *others = (milliseconds(seconds_to_ms(value)) for value in getattr(found.measures, name))
    known = {} if found.ranges is None else found.ranges._asdict()
    return [title, mean, spanned(known[name]) if name in known else "", *others]


def _figures(measures: Measures) -> list[list[str]]:
    return [
        ["output tokens/s", number(measures.output_tokens_per_s)],
        ["tokens/s with prompts", number(measures.total_tokens_per_s)],
        ["requests/s", number(measures.requests_per_s)],
        ["running, mean", number(measures.mean_running)],
        ["sent and not running, mean", number(measures.mean_waiting)],
        ["engine busy", percent(measures.utilization_ratio)],
        ["KV cache in use, mean", percent(measures.mean_kv_used_ratio)],
        ["KV cache in use, peak", percent(measures.peak_kv_used_ratio)],
        ["prompt tokens from the prefix cache", percent(measures.prefix_hit_ratio)],
        ["preemptions", f"{measures.preemptions:,}"],
    ]


def _promised(slo: Slo, measures: Measures) -> list[list[str]]:
    """Goodput, where latencies are promised."""
    limits = {"TTFT": slo.ttft_p95_s, "TPOT": slo.tpot_p95_s}
    given = [
        f"{name} up to {promised(seconds_to_ms(limit_s))}"
        for name, limit_s in limits.items()
        if limit_s is not None
    ]
    if not given:
        return []
    share = measures.goodput_requests_per_s / measures.requests_per_s
    return [
        [
            f"requests/s with {' and '.join(given)}",
            f"{number(measures.goodput_requests_per_s)} ({percent(share)})",
        ]
    ]
