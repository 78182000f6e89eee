"""Prediction columns are a contract, and intervals hold what they are about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.deployment import MemoryBudget
from planner.domain.evidence import Accuracy, Basis, ErrorBand, LatencyError
from planner.domain.plan import Latency
from planner.export.predictions import (
    PREDICTION_COLUMNS,
    Outcome,
    Status,
    kv_token_interval,
    predicted_ranges,
    prediction_cells,
)
from planner.planning.predict import Prediction

CONTRACT = """
pred_ttft_ms_mean pred_ttft_ms_p50 pred_ttft_ms_p95 pred_ttft_ms_p99 pred_tpot_ms_mean pred_tpot_ms_p95
pred_tpot_ms_p99 pred_output_tokens_per_s pred_weights_gib_per_gpu pred_kv_cache_gib_per_gpu pred_kv_cache_tokens
pred_ttft_ms_mean_low pred_ttft_ms_mean_high pred_tpot_ms_mean_low pred_tpot_ms_mean_high pred_kv_cache_tokens_low
pred_kv_cache_tokens_high status reason basis
"""
BAND = ErrorBand(
    basis=Basis.OPERATORS,
    tpot=LatencyError(median_error_ratio=0.1, factor=1.25, rough_kernels_scale=2.0, half_width_ratio=0.2),
    ttft=LatencyError(median_error_ratio=0.3, factor=4.0, unknown_budget_scale=1.25, half_width_ratio=1.5),
    runs=10,
    note="",
)
LATENCY = Latency(
    ttft_mean_s=0.1,
    ttft_p50_s=0.09,
    ttft_p95_s=0.2,
    ttft_p99_s=0.3,
    tpot_mean_s=0.01,
    tpot_p95_s=0.02,
    tpot_p99_s=0.03,
)


def budget(kv_cache_bytes: int, relative_error: float = 0.2) -> MemoryBudget:
    return MemoryBudget(
        total_bytes=80_000,
        outside_bytes=8_000,
        weights_bytes=72_000 - 4_000 - kv_cache_bytes,
        activation_bytes=2_000,
        cuda_graph_bytes=1_000,
        non_torch_bytes=1_000,
        kv_cache_bytes=kv_cache_bytes,
        kv_cache_tokens=max(0, kv_cache_bytes // 10),
        kv_blocks=max(0, kv_cache_bytes // 160),
        block_size=16,
        kv_bytes_per_token=10.0,
        max_concurrency=1.0,
        max_model_len=100,
        request_bytes=1_000,
        relative_error=relative_error,
    )


def test_columns_are_the_contract() -> None:
    assert list(PREDICTION_COLUMNS) == CONTRACT.split()


def test_a_full_row() -> None:
    prediction = Prediction(budget(40_000), LATENCY, 500.0, 0.2, 8.0, Basis.OPERATORS)
    cells = prediction_cells(Outcome(prediction, Status.OK), Accuracy(source="", fitted_on="", bands=(BAND,)))
    row = dict(zip(PREDICTION_COLUMNS, cells, strict=True))
    assert row["pred_ttft_ms_mean"] == 100.0
    assert (row["pred_ttft_ms_mean_low"], row["pred_ttft_ms_mean_high"]) == (25.0, 400.0)
    assert (row["pred_tpot_ms_mean_low"], row["pred_tpot_ms_mean_high"]) == (8.0, 12.5)
    assert row["pred_kv_cache_tokens"] == 4000
    # 20 % of 4,000 bytes of overhead are 800 bytes, or 80 tokens.
    assert (row["pred_kv_cache_tokens_low"], row["pred_kv_cache_tokens_high"]) == (3920, 4080)
    assert (row["status"], row["reason"], row["basis"]) == ("ok", "", "operators")


def test_ttft_alone_is_wider_where_the_token_budget_is_assumed() -> None:
    prediction = Prediction(budget(40_000), LATENCY, 500.0, 0.2, 8.0, Basis.OPERATORS)
    accuracy = Accuracy(source="", fitted_on="", bands=(BAND,))
    known, assumed = (
        predicted_ranges(Outcome(prediction, Status.OK, budget_known=said), accuracy)
        for said in (True, False)
    )
    # 4 to the power of 1.25 is 4 x sqrt(2): 100 ms are 17.7 to 566 ms.
    assert assumed.pop("ttft_ms_mean") == pytest.approx((100.0 / 32**0.5, 100.0 * 32**0.5))
    assert known.pop("ttft_ms_mean") == pytest.approx((25.0, 400.0))
    assert assumed == known


def test_ranges_are_wider_for_models_with_rough_kernels() -> None:
    plain = Prediction(budget(40_000), LATENCY, 500.0, 0.2, 8.0, Basis.OPERATORS)
    accuracy = Accuracy(source="", fitted_on="", bands=(BAND,))
    ranges, wider = (
        predicted_ranges(Outcome(one, Status.OK), accuracy)
        for one in (plain, plain._replace(rough_kernels=True))
    )
    # 1.25 twice over is 1.5625; TTFT of this basis is as sure as of other models.
    assert ranges.pop("tpot_ms_mean") == pytest.approx((10.0 / 1.25, 12.5))
    assert wider.pop("tpot_ms_mean") == pytest.approx((10.0 / 1.5625, 15.625))
    assert wider == ranges


def test_what_was_never_tested_has_no_range() -> None:
    prediction = Prediction(budget(40_000), LATENCY, 500.0, 0.2, 8.0, Basis.TRANSFERRED)
    ranges = predicted_ranges(
        Outcome(prediction, Status.OK), Accuracy(source="", fitted_on="", bands=(BAND,))
    )
    assert set(ranges) == {"kv_cache_tokens"}


def test_a_row_without_an_answer_is_empty_but_for_its_reason() -> None:
    cells = prediction_cells(
        Outcome(Prediction(), Status.ERROR, "why"), Accuracy(source="", fitted_on="", bands=())
    )
    assert cells == (*(None,) * 17, "error", "why", "")


@given(st.integers(-10_000, 60_000), st.floats(0, 1))
def test_the_interval_of_kv_tokens_holds_the_prediction(kv_cache_bytes: int, relative_error: float) -> None:
    found = budget(kv_cache_bytes, relative_error)
    low, high = kv_token_interval(found)
    assert 0 <= low <= found.kv_cache_tokens <= high
