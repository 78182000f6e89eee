"""`validate`: the error table adds up, and says which rows had no answer."""

import json
from pathlib import Path

import pandas as pd
import pytest

from planner.cli.error_table import error_rows
from planner.export.comparison import ComparedRun, Figure, FigureRow
from tests.cli.conftest import Cli
from tests.export.plotted import drawn

MEASURED = ("ttft_ms_mean", "tpot_ms_mean", "weights_gib_per_gpu")
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


@pytest.mark.parametrize(("factor", "inside"), [(1.0, 1.0), (2.5, 0.0), (0.4, 0.0)])
def test_the_share_of_rows_in_their_interval_is_told(
    cli: Cli, runs_file: Path, factor: float, inside: float
) -> None:
    measured = with_measurements(cli, runs_file, factor)
    found = cli("validate", measured, "--rows", "--json").json
    for row in found["errors"]:
        timed = row["measure"] in ("ttft_ms_mean", "tpot_ms_mean")
        assert row["inside_ratio"] == (inside if timed else None)
    for row in found["rows"]:
        if row["low"] is not None:
            assert row["low"] < row["predicted"] < row["high"]
            assert (row["low"] <= row["measured"] <= row["high"]) == bool(inside)
    told = [line for line in cli("validate", measured).out.splitlines() if line.startswith(" all ")]
    assert f", {100 * inside:.0f}" in told[0]


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
    runs = [
        ComparedRun(1, "", {"all": "all", "TP": tp, "load": load}, {"tpot_ms_mean": Figure(2.0, 2.0)})
        for tp, load in (
            ("16", "129 users or more"),
            ("2", "open loop"),
            ("2", "open loop, 33-128 in flight"),
            ("2", "open loop, 9-32 in flight"),
            ("4", "9-32 users"),
            ("2", "1-8 users"),
        )
    ]
    names = [row.name for row in error_rows(runs)]
    loads = ["1-8 users", "9-32 users", "129 users or more"]
    loads += ["open loop, 9-32 in flight", "open loop, 33-128 in flight", "open loop"]
    assert names == ["all", "2", "4", "16", *loads]


def test_rows_are_those_of_the_table_by_model_gpu_tp_and_load(cli: Cli, runs_file: Path) -> None:
    measured = with_measurements(cli, runs_file, 1.25)
    table = pd.read_csv(measured).set_index("run_id")
    found = cli("validate", measured, "--rows", "--json").json
    rows = pd.DataFrame(found["rows"])
    assert tuple(rows.columns) == FigureRow._fields
    assert len(rows) == table[list(MEASURED)].notna().sum().sum()
    for row in found["rows"]:
        assert row["measured"] == pytest.approx(table.loc[row["run"], row["measure"]], rel=1e-6)
        assert row["predicted"] == pytest.approx(row["measured"] / 1.25, rel=1e-4)
        assert row["error_ratio"] == pytest.approx(-0.2, abs=1e-4)
    # Runs a and b are closed loops of 8; c is an open loop. b (70B) has no times, being rejected.
    models = list(dict.fromkeys((row["model"], row["load"]) for row in found["rows"]))
    assert [model for model, _ in models] == sorted(model for model, _ in models)
    assert dict(zip(rows["run"], rows["row"], strict=True)) == {"a": 1, "b": 2, "c": 3}
    for error in found["errors"]:
        assert error["predicted_median"] == pytest.approx(error["measured_median"] / 1.25, rel=1e-4)
    assert "rows" not in cli("validate", measured, "--json").json


def test_rows_on_the_screen(cli: Cli, runs_file: Path) -> None:
    measured = with_measurements(cli, runs_file, 1.25)
    lines = cli("validate", measured, "--rows").out.splitlines()
    assert {"TTFT, ms", "TPOT, ms", "weights per GPU, GiB"} <= set(lines)
    assert sum("-20.0 %" in line for line in lines) == 2 + 2 + 3
    assert all(len(line) <= 120 for line in lines)
    markdown = cli("validate", measured, "--rows", "--markdown").out
    assert "| model | GPU | TP | load | row | measured | predicted | error |" in markdown


@pytest.mark.parametrize(
    ("cells", "load"),
    [
        # 2 requests/s x (0.5 s + 0.02 s x 99) = 4.96 in flight
        ("2,100,,500,20", "open loop, 1-8 in flight"),
        # Answers are uniform in [50, 100], 75 on average: 10 x (0.5 + 0.02 x 74) = 19.8
        ("10,100,0.5,500,20", "open loop, 9-32 in flight"),
        ("100,100,,500,20", "open loop, 129 in flight or more"),
        ("2,100,,,20", "open loop"),
        ("2,100,,500,", "open loop"),
    ],
)
def test_the_load_of_an_open_loop_is_what_was_in_flight(
    cli: Cli, tmp_path: Path, cells: str, load: str
) -> None:
    (tmp_path / "m.csv").write_text(
        "model,gpu,input_tokens,request_rate_per_s,output_tokens,length_low_ratio,ttft_ms_mean,tpot_ms_mean\n"
        f"meta-llama/Llama-3.1-8B,H100-SXM-80GB,100,{cells}\n"
    )
    rows = cli("validate", tmp_path / "m.csv", "--rows", "--json").json["rows"]
    assert {row["load"] for row in rows} == {load}


def test_a_parity_plot_has_every_run(cli: Cli, runs_file: Path, tmp_path: Path) -> None:
    measured = with_measurements(cli, runs_file, 1.25)
    page = tmp_path / "parity.html"
    result = cli("validate", measured, "--plot", page, "--rows", "--json")
    assert result.code == 0
    assert f"wrote {page}" in result.err
    points = sorted(point for trace in drawn(page.read_text(encoding="utf-8")) for point in trace)
    expected = sorted((row["measured"], row["predicted"]) for row in result.json["rows"])
    assert len(points) == len(expected) == 7
    for point, row in zip(points, expected, strict=True):
        assert point == pytest.approx(row, rel=1e-4)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("plot", "wanted"),
    [
        ("folder", "it is a folder"),
        ("nowhere/p.html", "there is no folder"),
        ("measured.csv", "this command reads it"),
        ("out.csv", "twice"),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused_first(
    cli: Cli, runs_file: Path, tmp_path: Path, plot: str, wanted: str
) -> None:
    (tmp_path / "folder").mkdir()
    measured = with_measurements(cli, runs_file, 1.25)
    before = measured.read_bytes()
    result = cli("validate", measured, "--output", tmp_path / "out.csv", "--plot", tmp_path / plot)
    assert wanted in result.error
    assert measured.read_bytes() == before
    assert not (tmp_path / "out.csv").exists()


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
