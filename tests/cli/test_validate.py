"""`validate`: the error table adds up, and says which rows had no answer."""

import json
from pathlib import Path

import pandas as pd
import pytest

from planner.cli.error_table import Checked, error_rows
from tests.cli.conftest import Cli

TRUTH = Path("../shared/truth")


def with_measurements(cli: Cli, runs_file: Path, factor: float) -> Path:
    """The runs, with times that are the predictions times a factor."""
    out = runs_file.with_name("predicted.csv")
    assert cli("predict", runs_file, "--output", out).code == 0
    table = pd.read_csv(out)
    for measure in ("ttft_ms_mean", "tpot_ms_mean", "weights_gib_per_gpu"):
        table[measure] = table[f"pred_{measure}"] * factor
    kept = [column for column in table if not column.startswith("pred_")]
    measured = runs_file.with_name("measured.csv")
    table[kept].drop(columns=["status", "reason", "basis"]).to_csv(measured, index=False)
    return measured


def test_errors_of_known_size_are_found(cli: Cli, runs_file: Path, tmp_path: Path) -> None:
    measured = with_measurements(cli, runs_file, 2.0)
    found = cli("validate", measured, "--json").json
    assert found["counts"] == {"rows": 3, "ok": 2, "rejected": 1, "error": 0}
    everything = {row["measure"]: row for row in found["errors"] if row["group"] == "all"}
    assert everything["tpot_ms_mean"]["rows"] == 2
    # The rejected row still has its weights.
    assert everything["weights_gib_per_gpu"]["rows"] == 3
    for row in found["errors"]:
        assert row["median_ratio"] == pytest.approx(0.5, abs=1e-4)
        assert row["p90_ratio"] == pytest.approx(0.5, abs=1e-4)
        assert row["bias_ratio"] == pytest.approx(-0.5, abs=1e-4)
    assert [failure["row"] for failure in found["not_answered"]] == ["b"]
    assert {row["group"] for row in found["errors"]} == {"all", "model", "GPU", "TP", "load"}


def test_every_group_has_the_rows_of_all(cli: Cli, runs_file: Path) -> None:
    found = cli("validate", with_measurements(cli, runs_file, 1.1), "--json").json
    table = pd.DataFrame(found["errors"])
    sums = table.groupby(["group", "measure"])["rows"].sum().unstack()
    assert (sums == sums.loc["all"]).all(axis=None)


def test_screen_markdown_and_files(cli: Cli, runs_file: Path, tmp_path: Path) -> None:
    measured = with_measurements(cli, runs_file, 1.25)
    result = cli("validate", measured, "--csv", tmp_path / "e.csv", "--output", tmp_path / "o.csv")
    assert result.code == 0
    assert result.out.startswith("3 rows: 2 ok, 1 rejected, 0 error\n")
    assert "20.0 / 20.0 (-20.0)" in result.out
    assert "rejected: b: weights" in result.err
    assert all(len(line) <= 100 for line in result.out.splitlines())
    assert "pred_tpot_ms_mean" in pd.read_csv(tmp_path / "o.csv")
    assert set(pd.read_csv(tmp_path / "e.csv")["group"]) >= {"all", "TP"}
    markdown = cli("validate", measured, "--markdown").out.splitlines()
    header = next(line for line in markdown if line.startswith("|"))
    rows = [line for line in markdown if line.startswith("|")]
    assert {line.count("|") for line in rows if line.count("|") == header.count("|")} == {header.count("|")}


def test_groups_come_in_a_readable_order() -> None:
    checked = [
        Checked({"all": "all", "TP": tp, "load": load}, {"tpot_ms_mean": 1.0})
        for tp, load in (
            ("16", "129 users or more"),
            ("2", "open loop"),
            ("4", "9-32 users"),
            ("2", "1-8 users"),
        )
    ]
    names = [row.name for row in error_rows(checked)]
    assert names == ["all", "2", "4", "16", "1-8 users", "9-32 users", "129 users or more", "open loop"]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("model,gpu\nx,y\n", "nothing measured; it needs at least one column of ttft_ms_mean"),
        ("", "empty"),
    ],
)
def test_a_table_without_measurements_is_refused(cli: Cli, tmp_path: Path, content: str, wanted: str) -> None:
    (tmp_path / "m.csv").write_text(content)
    assert wanted in cli("validate", tmp_path / "m.csv").error


def test_measured_cells_that_are_no_numbers_are_left_out(cli: Cli, tmp_path: Path) -> None:
    base = "meta-llama/Llama-3.1-8B,H100-SXM-80GB,100,100,4"
    cells = ("", "nan", "abc", "0", "-1", "inf", "12.5")
    lines = [f"{base},{cell}" for cell in cells]
    (tmp_path / "m.csv").write_text(
        "\n".join(["model,gpu,input_tokens,output_tokens,concurrency,tpot_ms_mean", *lines])
    )
    found = cli("validate", tmp_path / "m.csv", "--json").json
    assert found["counts"]["ok"] == len(cells)
    assert {row["rows"] for row in found["errors"]} == {1}


@pytest.mark.shared
@pytest.mark.skipif(not TRUTH.is_dir(), reason="NOT CHECKED: the measured tables are not beside the checkout")
@pytest.mark.parametrize(("name", "rows"), [("e2e_train.csv", 92), ("memory_train.csv", 67)])
def test_every_row_of_the_measured_tables_is_answered(cli: Cli, name: str, rows: int) -> None:
    found = cli("validate", TRUTH / name, "--json")
    assert found.code == 0
    assert found.json["counts"] == {"rows": rows, "ok": rows, "rejected": 0, "error": 0}


@pytest.mark.shared
@pytest.mark.skipif(not TRUTH.is_dir(), reason="NOT CHECKED: the measured tables are not beside the checkout")
def test_tpot_is_within_fifteen_percent_without_an_end_to_end_fit(cli: Cli) -> None:
    errors = json.loads(cli("validate", TRUTH / "e2e_train.csv", "--json").out)["errors"]
    everything = {row["measure"]: row for row in errors if row["group"] == "all"}
    assert everything["tpot_ms_mean"]["median_ratio"] <= 0.15
