"""Predictions of a runs table as columns beside the measured ones."""

from enum import StrEnum
from typing import NamedTuple

from planner.domain.deployment import MemoryBudget
from planner.domain.evidence import Accuracy
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


def predicted(prediction: Prediction) -> dict[str, float | None]:
    """The predicted value of every one of `MEASURES`, by its name; None where there is none."""
    latency, memory = prediction.latency, prediction.memory
    return {
        "ttft_ms_mean": seconds_to_ms(latency.ttft_mean_s) if latency else None,
        "tpot_ms_mean": seconds_to_ms(latency.tpot_mean_s) if latency else None,
        "output_tokens_per_s": prediction.output_tokens_per_s if latency else None,
        "weights_gib_per_gpu": memory.weights_gib if memory else None,
        "kv_cache_gib_per_gpu": bytes_to_gib(memory.kv_cache_bytes) if memory else None,
        "kv_cache_tokens": memory.kv_cache_tokens if memory else None,
    }


def prediction_cells(outcome: Outcome, accuracy: Accuracy) -> tuple[Cell, ...]:
    """One row in the order of `PREDICTION_COLUMNS`; intervals hold 90 % of measured runs."""
    prediction = outcome.prediction
    latency, memory = prediction.latency, prediction.memory
    values = predicted(prediction)
    times: tuple[Cell, ...] = (None,) * 7
    spread: tuple[Cell, ...] = (None,) * 4
    if latency is not None:
        times = tuple(
            seconds_to_ms(time_s)
            for time_s in (
                *(latency.ttft_mean_s, latency.ttft_p50_s, latency.ttft_p95_s, latency.ttft_p99_s),
                *(latency.tpot_mean_s, latency.tpot_p95_s, latency.tpot_p99_s),
            )
        )
        band = accuracy.band(prediction.basis) if prediction.basis else None
        if band is not None:
            ttft_ms, tpot_ms = seconds_to_ms(latency.ttft_mean_s), seconds_to_ms(latency.tpot_mean_s)
            spread = (
                *(ttft_ms * band.ttft_factor_low, ttft_ms * band.ttft_factor_high),
                *(tpot_ms * band.tpot_factor_low, tpot_ms * band.tpot_factor_high),
            )
    return (
        *times,
        *(values[measure] for measure in MEASURES[2:]),
        *spread,
        *((None, None) if memory is None else kv_token_interval(memory)),
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
