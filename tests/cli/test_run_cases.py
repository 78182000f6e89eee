"""Whatever stands in a cell: a status, never a traceback, and the row itself unharmed."""

import csv
import io
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.assemble.question import facts_for
from planner.catalog.releases import releases
from planner.cli.predict import write_predictions
from planner.cli.run_cases import KNOWN_COLUMNS, CaseReader, RunCases
from planner.formulas.engine_defaults import parse_version
from planner.planning.facts import Facts

ODD = st.sampled_from(
    [
        *("", " ", "0", "-1", "1", "2.0", "7", "1e3", "1e309", "-inf", "inf", "nan", "0.5", "1e-300", "1_0"),
        *("true", "off", "None", "auto", "fp8", "int4", "poisson", "gamma:2", "gamma:", "constant", ":", "é"),
        *("0.11.0", "0.26", "v9", "../x", "=1+1", "'", '"', "\u0663", "H200-SXM-141GB", "L4", "B200", "vllm"),
        *("openai/gpt-oss-20b", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3"),
    ]
)
CELL = ODD | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=6)
BASE = {
    "model": "meta-llama/Llama-3.1-8B",
    "gpu": "H100-SXM-80GB",
    "input_tokens": "512",
    "output_tokens": "64",
    "concurrency": "4",
}
STATUSES = {"ok", "rejected", "error"}


@cache
def facts() -> Facts:
    return facts_for()


def predicted(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    columns = list(dict.fromkeys(["run_id", *KNOWN_COLUMNS, *(name for row in rows for name in row)]))
    with TemporaryDirectory() as folder:
        source, out = Path(folder, "in.csv"), Path(folder, "out.csv")
        with source.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(rows)
        counts = write_predictions(source, out, facts())
        found = list(csv.DictReader(io.StringIO(out.read_bytes().decode(), newline="")))
    assert counts.total() == len(rows) == len(found)
    return found


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.dictionaries(st.sampled_from(KNOWN_COLUMNS), CELL, max_size=4).map(lambda cells: BASE | cells),
        min_size=1,
        max_size=6,
    )
)
def test_every_row_has_a_status_and_keeps_its_cells(rows: list[dict[str, str]]) -> None:
    numbered = [{"run_id": str(index), **row} for index, row in enumerate(rows)]
    for row, found in zip(numbered, predicted(numbered), strict=True):
        assert found["status"] in STATUSES
        assert found["reason"] or found["status"] == "ok"
        assert all(found[column] == cell for column, cell in row.items())
        for column in ("pred_ttft_ms_mean", "pred_tpot_ms_mean", "pred_weights_gib_per_gpu"):
            assert found[column] == "" or 0 <= float(found[column]) < float("inf")


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 20_000).map(str),
    st.integers(1, 4_000).map(str),
    st.integers(1, 3_000).map(str),
    st.sampled_from(["1", "2", "4", "8"]),
)
def test_ordinary_runs_are_answered(prompt: str, answer: str, users: str, tp: str) -> None:
    row = BASE | {"input_tokens": prompt, "output_tokens": answer, "concurrency": users, "tp": tp}
    (found,) = predicted([row])
    assert found["status"] == "ok"
    assert (float(found["pred_tpot_ms_mean"] or 0) > 0) == (answer != "1")
    assert float(found["pred_ttft_ms_p50"]) <= float(found["pred_ttft_ms_p99"])


def read(**cells: str) -> RunCases:
    """One row with these cells; an empty cell stands in the table, an absent one does not."""
    row = BASE | cells
    found = CaseReader(tuple(row)).read(tuple(row.values()))
    assert isinstance(found, RunCases), found
    return found


def version_of(found: RunCases) -> str:
    return str(parse_version(found.cases[0].engine.engine_version))


LIMITS = {"max_num_batched_tokens": "4096", "max_num_seqs": "64", "max_model_len": "4096"}


@pytest.mark.parametrize(
    ("day", "release"),
    [("2025-10-03", "0.10.2"), ("2025-10-04", "0.11.0"), ("2025-12-18", "0.12.0"), ("2026-07-01", "0.24.0")],
)
def test_a_run_has_the_newest_release_of_its_day(day: str, release: str) -> None:
    for cells in ({}, {"engine_version": ""}, {"engine": "vllm"}):
        found = read(measured_on=day, **LIMITS, **cells)
        assert version_of(found) == release
        assert found.note == f"engine_version is taken to be {release}, the newest on the day of measured_on"


def test_the_release_changes_what_follows_from_it() -> None:
    """Asynchronous scheduling is the default since 0.14, and 0.92 of memory since 0.20."""
    older, newer = (read(measured_on=day).cases[0].engine for day in ("2025-12-19", "2026-05-01"))
    assert (older.async_scheduling, newer.async_scheduling) == (False, True)
    assert (older.gpu_memory_utilization, newer.gpu_memory_utilization) == (0.9, 0.92)


@pytest.mark.parametrize(
    "cells",
    [
        {},
        {"measured_on": ""},
        {"measured_on": "October 2025"},
        {"measured_on": "2025-10"},
        {"measured_on": "2025-13-01"},
        {"measured_on": "2024-01-01"},
    ],
)
def test_without_a_day_it_is_the_newest_release_known(cells: dict[str, str]) -> None:
    found = read(**LIMITS, **cells)
    assert version_of(found) == releases()[-1].version
    assert found.note == ""


def test_a_release_that_the_row_says_wins_over_its_day() -> None:
    found = read(measured_on="2025-10-04", engine_version="0.18.0", **LIMITS)
    assert (version_of(found), found.note) == ("0.18.0", "")


def test_the_days_of_vllm_are_not_those_of_other_engines() -> None:
    found = read(measured_on="2025-10-04", engine="sglang", engine_version="0.5.1", **LIMITS)
    assert version_of(found) == releases()[-1].version
    assert found.note == "sglang is predicted as if it were vLLM"


def tokens_of(found: RunCases) -> set[int]:
    return {case.engine.max_num_batched_tokens for case in found.cases}


@pytest.mark.parametrize("record", [{"source": "somewhere"}, {"measured_on": "2026-11-20"}])
@pytest.mark.parametrize("load", [{}, {"concurrency": "", "request_rate_per_s": "2"}])
def test_a_measured_run_without_any_limit_has_2048_tokens_a_step(
    record: dict[str, str], load: dict[str, str]
) -> None:
    found = read(**record, **load)
    assert tokens_of(found) == {2048}
    assert "2048 tokens a step are assumed" in found.note
    assert "give max_num_batched_tokens" in found.note
    assert ("engine_version is taken to be" in found.note) == ("measured_on" in record)


@pytest.mark.parametrize("limit", list(LIMITS))
def test_one_limit_that_is_told_is_enough_to_leave_the_others_at_the_servers(limit: str) -> None:
    """An H100 batches 8192 tokens by default; who records one flag had no other."""
    found = read(source="somewhere", **{limit: LIMITS[limit]})
    assert tokens_of(found) == {4096 if limit == "max_num_batched_tokens" else 8192}
    assert found.note == ""


@pytest.mark.parametrize(
    "cells",
    [
        {},
        {"source": "", "measured_on": " "},
        {"source": "somewhere", "concurrency": "", "request_rate_per_s": ""},
    ],
)
def test_a_question_is_answered_with_the_servers_tokens(cells: dict[str, str]) -> None:
    """Not a record of a run, or one of memory alone."""
    found = read(**cells)
    assert tokens_of(found) == {8192}
    assert found.note == ""


def test_what_was_assumed_stands_in_the_answer() -> None:
    rows = [
        BASE | {"source": "somewhere", "measured_on": "2025-12-18"},
        BASE | {"measured_on": "", "source": ""},
    ]
    assumed, plain = predicted(rows)
    assert assumed["status"] == plain["status"] == "ok"
    assert "2048 tokens a step are assumed" in assumed["reason"]
    assert "engine_version is taken to be 0.12.0" in assumed["reason"]
    assert (assumed["max_num_batched_tokens"], assumed["engine_version"]) == ("", "")
    assert plain["reason"] == ""
