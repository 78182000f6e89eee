"""Tables of calibrations: runs, coefficients, errors, serving loads, and every step for a download."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import pandas as pd
from streamlit import column_config

from planner.calibrate.operators import FitRow
from planner.domain.benchmark import BenchmarkRun
from planner.domain.calibration import CalibrationRun, RunEnd, StepPoint
from planner.domain.evidence import Estimate
from planner.domain.units import bytes_to_gib, seconds_to_ms
from planner.export.format import number
from planner.export.table import Cell
from planner.formulas.gpu_fit import FittedParameter, GpuFit, RegionError
from planner.ui.calibration_answers import RunAnswer, StoredRun
from planner.ui.calibration_upload import JudgedLoad
from planner.ui.format import rounded

END_TITLES = {
    RunEnd.RUNNING: "running, or killed",
    RunEnd.FINISHED: "finished",
    RunEnd.INTERRUPTED: "interrupted",
    RunEnd.FAILED: "failed",
}
PARAMETER_TITLES = {
    "compute": "Matrix products, compute",
    "weights": "Matrix products, reading weights",
    "expert_compute": "Experts, compute",
    "expert_weights": "Experts, reading weights",
    "launch": "Start of a kernel",
    "elementwise": "Norms, activations, rotary",
    "decode_cache": "Decode attention, cached tokens",
    "decode_sequence": "Decode attention, each sequence",
    "prompt_pairs": "Prompt attention, query-key pairs",
    "prompt_tokens": "Prompt attention, each token",
    "collective": "All-reduce",
    "dispatch": "Sending kernels off",
    "logit_s": "Sampling, each logit",
    "sync_step_s": "Host, each step",
    "sync_per_sequence_s": "Host, each sequence of a step",
}
FACTOR = "× time"
PERCENT = column_config.NumberColumn(format="%.1f %%")
COLUMN_CONFIG = {
    "Left-out error": column_config.NumberColumn(
        format="%.1f %%",
        help="Median of |predicted / measured - 1|, each step predicted by a fit of the run's other steps. "
        "Older runs have it once they are chosen.",
    ),
    "Age, days": column_config.NumberColumn(format="%.1f"),
    "Operator": column_config.TextColumn(width=130),
    "Ended": column_config.TextColumn(help="A run that was killed keeps what it had measured."),
    "Disturbed": column_config.NumberColumn(
        help="Shapes during which others used the device, or it throttled."
    ),
    "Identified": column_config.CheckboxColumn(
        help="Whether runs tell more of it than was known before. Where they do not, the range is the prior's."
    ),
    **dict.fromkeys(
        (
            "Before",
            "Today",
            "Fitted",
            "Left out",
            "p90",
            "Bias",
            "Fit",
            "Fit p90",
            "Held out",
            "Held out p90",
        ),
        PERCENT,
    ),
    **{name: column_config.NumberColumn(format="%+.1f %%") for name in ("TTFT error", "TPOT error")},
}
POINT_COLUMNS = (
    *("run_id", "kind", "prompts", "prompt_tokens", "past_tokens", "decodes", "context_tokens", "attempt"),
    *(
        "measured_ms",
        "spread_ratio",
        "repetitions",
        "times_ms",
        "today_ms",
        "left_out_ms",
        "disturbed",
        "failed",
    ),
    *(
        "measured_at",
        "power_w_mean",
        "energy_j",
        "sm_clock_mhz_mean",
        "temperature_c_max",
        "throttle_reasons",
    ),
)


def age_days(stamp: str, now: datetime | None = None) -> float | None:
    """Days since an ISO date and time; None where it is none.

    >>> age_days("2026-11-20T00:00:00+00:00", datetime(2026, 11, 23, tzinfo=UTC)), age_days("soon")
    (3.0, None)
    """
    try:
        then = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    then = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
    return ((now or datetime.now(UTC)) - then).total_seconds() / 86_400


def run_table(runs: Iterable[tuple[StoredRun, RunAnswer | None]]) -> pd.DataFrame:
    """One row a run; None for those that were not fitted here."""
    return pd.DataFrame.from_records([_run_row(one.run, answer) for one, answer in runs])


def _run_row(run: CalibrationRun, answer: RunAnswer | None) -> dict[str, object]:
    measured = run.measured
    return {
        "Device": run.machine.gpu,
        "Model": run.target.model,
        "Weights": run.target.weight_dtype.value,
        "KV": run.target.kv_dtype.value,
        "TP": run.target.tp,
        "vLLM": run.engine.engine_version if run.engine is not None else "did not start",
        "Age, days": age_days(run.started_at),
        "Shapes": len(measured),
        "Disturbed": sum(bool(point.disturbed) for point in measured),
        "Failed": sum(bool(point.failed) for point in run.points),
        "Served": sum(bool(point.requests) for point in run.serving),
        "Ended": END_TITLES[run.end],
        "Left-out error": _per_cent(answer.left_out_ratio if answer is not None else None),
        "Run": run.run_id,
    }


def _per_cent(ratio: float | None) -> float | None:
    return None if ratio is None else 100.0 * ratio


def region_table(
    regions: Iterable[RegionError], *, named: bool = False, before: str = "Before"
) -> pd.DataFrame:
    """One row a kind and size of steps; with the deployment where there may be several.

    `before`: the head over what the fit is held against.
    """
    return pd.DataFrame.from_records(
        [
            {
                **({"Deployment": row.deployment} if named else {}),
                "Steps": row.region,
                "Shapes": row.steps,
                before: _per_cent(row.before_median_ratio),
                "Fitted": _per_cent(row.median_ratio),
                "Left out": _per_cent(row.left_out_median_ratio),
                "p90": _per_cent(row.p90_ratio),
                "Bias": _per_cent(row.bias_ratio),
            }
            for row in regions
        ]
    )


def parameter_table(parameters: Iterable[FittedParameter]) -> pd.DataFrame:
    """One row a coefficient, with its 90 % interval and what was known before any run."""
    return pd.DataFrame.from_records([_parameter_row(one) for one in parameters])


def _parameter_row(one: FittedParameter) -> dict[str, object]:
    in_seconds = one.name.endswith("_s")
    scale, unit = _unit_of(one.prior.value) if in_seconds else (1.0, FACTOR)
    return {
        "Coefficient": PARAMETER_TITLES.get(one.name, one.name),
        "Value": number(one.estimate.value * scale),
        "Unit": unit,
        "90 % interval": _interval(one.estimate, scale),
        "Prior": number(one.prior.value * scale),
        "Prior's 90 %": _interval(one.prior, scale),
        "Identified": one.identified,
        "Steps": one.estimate.n,
    }


def _unit_of(value_s: float) -> tuple[float, str]:
    """The unit in which a time is best read.

    >>> _unit_of(1e-3), _unit_of(3e-5), _unit_of(1e-10)
    ((1000.0, 'ms'), (1000000.0, 'µs'), (1000000000.0, 'ns'))
    """
    return next(
        ((scale, unit) for scale, unit in ((1e3, "ms"), (1e6, "µs")) if value_s * scale >= 1.0), (1e9, "ns")
    )


def _interval(estimate: Estimate, scale: float) -> str:
    return f"{number(estimate.low * scale)} to {number(estimate.high * scale)}"


def titled(parameters: Iterable[FittedParameter]) -> tuple[FittedParameter, ...]:
    """The same under the names that people read."""
    return tuple(
        one.model_copy(update={"name": PARAMETER_TITLES.get(one.name, one.name)}) for one in parameters
    )


def source_table(fit: GpuFit) -> pd.DataFrame:
    """One row a run that a fit used."""
    return pd.DataFrame.from_records(
        [
            {
                "Run": one.run_id,
                "Deployment": one.deployment,
                "Steps": one.steps,
                "Served": one.serving_runs,
                "Measured": one.measured_at[:10],
            }
            for one in fit.runs
        ]
    )


def kernel_table(rows: Iterable[FitRow]) -> pd.DataFrame:
    """One row a kernel: what it rests on, and |predicted / measured - 1| of its times."""
    return pd.DataFrame.from_records(
        [
            {
                "Operator": row.operator,
                "Variant": row.variant,
                "From": row.origin,
                "Rows": row.rows or None,
                "Fit": _per_cent(row.median_ratio),
                "Fit p90": _per_cent(row.p90_ratio),
                "Held out": _per_cent(row.held_out_median_ratio),
                "Held out p90": _per_cent(row.held_out_p90_ratio),
                "Note": row.note,
            }
            for row in rows
        ]
    )


def serving_table(answer: RunAnswer) -> pd.DataFrame:
    """One row a closed loop that was served in the engine's process, beside its prediction where there is one."""
    predicted = {id(one.point): one.predicted for one in answer.served}
    rows = []
    for point in answer.run.serving:
        if not point.requests:
            continue
        tokens = sum(one.output_tokens for one in point.requests)
        energy_j = None if point.telemetry is None else point.telemetry.energy_j
        found = predicted.get(id(point))
        rows.append(
            {
                "Users": point.load.concurrency,
                "Prompt": point.load.input_tokens,
                "Answer": point.load.output_tokens,
                "Requests": len(point.requests),
                **_beside("TTFT", point.ttft_s_mean, None if found is None else found.ttft_s),
                **_beside("TPOT", point.tpot_s_mean, None if found is None else found.tpot_s),
                "J a token": None if energy_j is None else rounded(energy_j / tokens),
                "Disturbed": ", ".join(point.disturbed),
            }
        )
    return pd.DataFrame.from_records(rows)


def _beside(name: str, measured_s: float | None, predicted_s: float | None) -> dict[str, float | None]:
    """A latency measured, predicted, and its error in percent."""
    return {
        f"{name}, ms": None if measured_s is None else rounded(seconds_to_ms(measured_s)),
        f"{name} predicted": None if predicted_s is None else rounded(seconds_to_ms(predicted_s)),
        f"{name} error": 100.0 * (predicted_s / measured_s - 1.0) if measured_s and predicted_s else None,
    }


def memory_table(run: CalibrationRun) -> pd.DataFrame:
    """What the engine said of one device's memory; only what it said."""
    memory = run.memory
    if memory is None:
        return pd.DataFrame()
    sizes = {
        "Weights": memory.weights_bytes,
        "Activation peak": memory.activation_peak_bytes,
        "Outside torch": memory.non_torch_bytes,
        "CUDA graphs": memory.cuda_graph_bytes,
        "KV cache": memory.kv_cache_bytes,
    }
    said = {name: f"{bytes_to_gib(size):.3f} GiB" for name, size in sizes.items() if size is not None}
    if memory.kv_cache_tokens is not None:
        said["KV cache, tokens"] = f"{memory.kv_cache_tokens:,}"
    return pd.DataFrame({"One device": said.keys(), "As the engine says": said.values()})


def load_table(loads: Iterable[JudgedLoad]) -> pd.DataFrame:
    """One row a benchmark's load: measured, predicted, error."""
    return pd.DataFrame.from_records([_load_row(one) for one in loads])


def _load_row(one: JudgedLoad) -> dict[str, object]:
    run, measures = one.run, one.run.measures
    latency = None if one.prediction is None else one.prediction.latency
    rate = None if one.prediction is None or latency is None else one.prediction.output_tokens_per_s
    return {
        "Load": load_text(run),
        "Model": run.facts.model,
        "GPU": run.facts.gpu,
        "TP": run.facts.tp,
        **_beside(
            "TTFT",
            None if measures.ttft is None else measures.ttft.mean_s,
            None if latency is None else latency.ttft_mean_s,
        ),
        **_beside(
            "TPOT",
            None if measures.tpot is None else measures.tpot.mean_s,
            None if latency is None else latency.tpot_mean_s,
        ),
        "Tokens/s": _rounded(measures.output_tokens_per_s),
        "Tokens/s predicted": _rounded(rate),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else rounded(value)


def load_text(run: BenchmarkRun) -> str:
    """A load in a few words."""
    load = run.load
    lengths = f"{load.input_tokens.mean:,.0f} + {load.output_tokens.mean:,.0f} tokens"
    users = [] if load.concurrency is None else [f"{load.concurrency:,} at once"]
    rate = [] if load.requests_per_s is None else [f"{load.requests_per_s:.3g}/s {load.arrival}"]
    return ", ".join([lengths, *users, *rate])


def benchmark_table(runs: Iterable[BenchmarkRun]) -> pd.DataFrame:
    """One row an imported benchmark."""
    return pd.DataFrame.from_records(
        [
            {
                "Benchmark": run.run_id,
                "Tool": run.source.tool.value,
                "Model": run.facts.model,
                "GPU": run.facts.gpu,
                "TP": run.facts.tp,
                "vLLM": run.facts.engine_version,
                "Load": load_text(run),
                "Measured": run.source.measured_on[:10],
            }
            for run in runs
        ]
    )


def point_rows(answer: RunAnswer) -> Iterator[tuple[Cell, ...]]:
    """Every point of a run, failed and repeated ones too, with the predictions of those that are judged."""
    known = answer.examined.predictions
    left_out_s = None if known is None else known.left_out_s
    place = {id(point): at for at, point in enumerate(answer.examined.points)}
    for point in answer.run.points:
        at = place.get(id(point))
        yield (
            answer.run.run_id,
            point.shape.kind.value,
            *point.shape.model_dump().values(),
            point.attempt,
            *_times(point),
            *(
                None if at is None or times_s is None else seconds_to_ms(float(times_s[at]))
                for times_s in (answer.today_s, left_out_s)
            ),
            "; ".join(point.disturbed),
            point.failed,
            point.measured_at,
            *_sensors(point),
        )


def _times(point: StepPoint) -> tuple[Cell, ...]:
    times_ms = " ".join(f"{seconds_to_ms(time_s):.6g}" for time_s in point.times_s)
    if not point.times_s:
        return None, None, 0, times_ms
    return seconds_to_ms(point.median_s), point.spread_ratio, len(point.times_s), times_ms


def _sensors(point: StepPoint) -> tuple[Cell, ...]:
    seen = point.telemetry
    if seen is None:
        return None, None, None, None, ""
    return (
        seen.power_w_mean,
        seen.energy_j,
        seen.sm_clock_mhz_mean,
        seen.temperature_c_max,
        "; ".join(seen.throttle_reasons),
    )
