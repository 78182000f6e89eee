"""The recommendation CSV is a contract: these columns, in this order, readable by pandas."""

import io
from functools import cache

import pandas as pd
import pytest

from planner.assemble.question import ask_from, facts_for, question_from
from planner.catalog.models import load_model
from planner.domain.plan import Recommendation
from planner.export.recommendation import (
    PLAN_COLUMNS,
    REJECTION_COLUMNS,
    recommendation_csv,
    rejections_csv,
)
from planner.planning.recommend import recommend, shortlist

CONTRACT = """
rank provider region instance_type gpu gpus_per_instance tp pp replicas instances weight_dtype kv_dtype max_num_seqs
max_num_batched_tokens max_model_len gpu_memory_utilization ttft_ms_p95 tpot_ms_p95 capacity_requests_per_s
utilization_ratio kv_cache_tokens purchase usd_per_hour usd_per_month usd_per_million_tokens
usd_per_million_input_tokens usd_per_million_output_tokens saving_usd_per_month price_date price_source basis
expected_error_ratio binding_constraint engine_command warnings capacity_method steady_capacity_requests_per_s
capacity_disagreement_ratio ttft_ms_p95_low ttft_ms_p95_high tpot_ms_p95_low tpot_ms_p95_high
"""
MODEL = "meta-llama/Llama-3.1-8B"


@cache
def answer() -> Recommendation:
    values = {"model": MODEL, "preset": "chat", "gpu": "H100-SXM-80GB,L4"}
    return recommend(question_from(ask_from(values, where="test")), facts_for())


def test_columns_are_the_contract() -> None:
    assert list(PLAN_COLUMNS) == CONTRACT.split()


def test_pandas_reads_every_row_with_its_type() -> None:
    plans = shortlist(answer().plans, 7)
    table = pd.read_csv(io.StringIO(recommendation_csv(plans, load_model(MODEL))))
    assert list(table.columns) == CONTRACT.split()
    assert table["rank"].tolist() == list(range(1, len(plans) + 1))
    for column in ("replicas", "tp", "kv_cache_tokens", "max_num_seqs"):
        assert pd.api.types.is_integer_dtype(table[column]), column
    for name in ("ttft_ms_p95", "tpot_ms_p95"):
        assert (table[f"{name}_low"] < table[name]).all()
        assert (table[name] < table[f"{name}_high"]).all()
    for column in ("usd_per_month", "ttft_ms_p95", "utilization_ratio", "saving_usd_per_month"):
        assert pd.api.types.is_numeric_dtype(table[column]), column
    assert table["usd_per_month"].to_numpy() == pytest.approx(table["usd_per_hour"].to_numpy() * 730)
    assert table["usd_per_month"].is_monotonic_increasing
    assert table["engine_command"].str.startswith("vllm serve meta-llama/Llama-3.1-8B ").all()
    assert table["usd_per_month"].tolist() == pytest.approx([plan.cost.usd_per_month for plan in plans])


def test_a_name_that_is_a_formula_is_made_harmless() -> None:
    plan = answer().plans[0]
    instance = plan.candidate.instance.model_copy(update={"provider": "=cmd|' /C calc'!A0"})
    candidate = plan.candidate.model_copy(update={"instance": instance})
    text = recommendation_csv([plan.model_copy(update={"candidate": candidate})], load_model(MODEL))
    assert pd.read_csv(io.StringIO(text))["provider"][0] == "'=cmd|' /C calc'!A0"


def test_every_rejection_is_written_with_its_reason() -> None:
    table = pd.read_csv(io.StringIO(rejections_csv(answer().rejections)))
    assert list(table.columns) == list(REJECTION_COLUMNS)
    assert len(table) == len(answer().rejections) > 0
    assert table["reason"].notna().all()
