"""Predictions of a runs table as columns beside the measured ones."""

from enum import StrEnum
from math import isnan, nan
from typing import NamedTuple

from planner.domain.deployment import MemoryBudget
from planner.domain.evidence import Accuracy, LatencyRanges
from planner.domain.units import bytes_to_gib, seconds_to_ms
from planner.export.table import Cell
from planner.planning.predict import Prediction

PREDICTION_COLUMNS = (
    "pred_ttft_ms_mean",
    "pred_ttft_ms_p50",
    "pred_ttft_ms_p95",
    "pred_ttft_ms_p99",
    "pred_tpot_ms_mean",
    "pred_tpot_ms_p95",
    "pred_tpot_ms_p99",
    "pred_output_tokens_per_s",
    "pred_weights_gib_per_gpu",
    "pred_kv_cache_gib_per_gpu",
    "pred_kv_cache_tokens",
    "pred_ttft_ms_mean_low",
    "pred_ttft_ms_mean_high",
    "pred_tpot_ms_mean_low",
    "pred_tpot_ms_mean_high",
    "pred_kv_cache_tokens_low",
    "pred_kv_cache_tokens_high",
    "status",
    "reason",
    "basis",
)
"""Other programs read these by name: append only, in a new release."""

MEASURES = (
    "ttft_ms_mean",
    "tpot_ms_mean",
    "output_tokens_per_s",
    "weights_gib_per_gpu",
    "kv_cache_gib_per_gpu",
    "kv_cache_tokens",
)
"""What a run may have measured; each has its prediction in `pred_` and its name."""


class Status(StrEnum):
    """What became of a row."""

    OK = "ok"
    REJECTED = "rejected"
    """The engine would not start, or would turn every request away."""
    ERROR = "error"
    """The row was not understood."""


class Outcome(NamedTuple):
    """A row's prediction, and the reason where there is none."""

    prediction: Prediction
    status: Status
    reason: str = ""
    budget_known: bool = True
    """Whether the row says `max_num_batched_tokens`, or asks for no run that was measured."""


def predicted(prediction: Prediction) -> dict[str, float | None]:
    """The predicted value of every one of `MEASURES`, by its name; None where there is none.

    An answer of one token has no TPOT.
    """
    latency, memory = prediction.latency, prediction.memory
    tpot_s = latency.tpot_mean_s if latency else nan
    return {
        "ttft_ms_mean": seconds_to_ms(latency.ttft_mean_s) if latency else None,
        "tpot_ms_mean": None if isnan(tpot_s) else seconds_to_ms(tpot_s),
        "output_tokens_per_s": prediction.output_tokens_per_s if latency else None,
        "weights_gib_per_gpu": memory.weights_gib if memory else None,
        "kv_cache_gib_per_gpu": bytes_to_gib(memory.kv_cache_bytes) if memory else None,
        "kv_cache_tokens": memory.kv_cache_tokens if memory else None,
    }


RANGED = ("ttft_ms_mean", "tpot_ms_mean", "kv_cache_tokens")
"""The measures whose 90 % interval is told."""


def predicted_ranges(outcome: Outcome, accuracy: Accuracy) -> dict[str, tuple[float, float]]:
    """Where 90 % of measured values lie, for those of `RANGED` of which it is known."""
    found: dict[str, tuple[float, float]] = {}
    ranges, memory = latency_ranges(outcome, accuracy), outcome.prediction.memory
    if ranges is not None:
        for name, (low_s, high_s) in ranges._asdict().items():
            if isnan(low_s):
                continue
            found[f"{name}_ms_mean"] = seconds_to_ms(low_s), seconds_to_ms(high_s)
    if memory is not None:
        found["kv_cache_tokens"] = kv_token_interval(memory)
    return found


def latency_ranges(outcome: Outcome, accuracy: Accuracy) -> LatencyRanges | None:
    """Ranges of mean TTFT and TPOT; None where no run tells how far predictions of this basis are off."""
    prediction = outcome.prediction
    latency, basis = prediction.latency, prediction.basis
    if latency is None or basis is None:
        return None
    band = accuracy.band(basis, gpu=prediction.gpu, rough_kernels=prediction.rough_kernels)
    if band is None:
        return None
    return band.ranges(
        ttft_s=latency.ttft_mean_s,
        tpot_s=latency.tpot_mean_s,
        budget_known=outcome.budget_known,
    )


def prediction_cells(outcome: Outcome, accuracy: Accuracy) -> tuple[Cell, ...]:
    """One row in the order of `PREDICTION_COLUMNS`; intervals hold 90 % of measured runs."""
    prediction = outcome.prediction
    latency = prediction.latency
    values, ranges = predicted(prediction), predicted_ranges(outcome, accuracy)
    times: tuple[Cell, ...] = (None,) * 7
    if latency is not None:
        times = tuple(
            seconds_to_ms(time_s)
            for time_s in (
                *(latency.ttft_mean_s, latency.ttft_p50_s, latency.ttft_p95_s, latency.ttft_p99_s),
                *(latency.tpot_mean_s, latency.tpot_p95_s, latency.tpot_p99_s),
            )
        )
    return (
        *times,
        *(values[measure] for measure in MEASURES[2:]),
        *(bound for measure in RANGED for bound in ranges.get(measure, (None, None))),
        outcome.status.value,
        outcome.reason,
        prediction.basis.value if prediction.basis else "",
    )


def kv_token_interval(budget: MemoryBudget) -> tuple[int, int]:
    """The 90 % interval of KV-cache tokens: the engine's own memory is known to `relative_error`."""
    doubt_bytes = budget.relative_error * budget.overhead_bytes
    tokens_per_byte = (
        budget.kv_cache_tokens / budget.kv_cache_bytes
        if budget.kv_cache_bytes > 0
        else 1.0 / max(budget.kv_bytes_per_token, 1.0)
    )
    low = (budget.kv_cache_bytes - doubt_bytes) * tokens_per_byte
    high = (budget.kv_cache_bytes + doubt_bytes) * tokens_per_byte
    return max(0, round(low)), max(0, round(high))
