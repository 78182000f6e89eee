"""Whatever stands in a cell: a status, never a traceback, and the row itself unharmed."""

import csv
import io
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.assemble.question import facts_for
from planner.cli.predict import write_predictions
from planner.cli.run_cases import KNOWN_COLUMNS
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
    with TemporaryDirectory() as folder:
        source, out = Path(folder, "in.csv"), Path(folder, "out.csv")
        with source.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, ["run_id", *KNOWN_COLUMNS])
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
    assert (float(found["pred_tpot_ms_mean"]) > 0) == (answer != "1")
    assert float(found["pred_ttft_ms_p50"]) <= float(found["pred_ttft_ms_p99"])
