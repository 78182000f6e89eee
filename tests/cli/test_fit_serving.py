"""`fit serving`: host time and ratios are fitted, stored, read again, and their errors told."""

import json
import shutil
from pathlib import Path

import pytest

from planner.assemble.question import facts_for
from planner.assemble.served import MeasuredRun, runnable, simulated
from planner.catalog.paths import shipped_calibration_dir
from planner.catalog.serving import FittedServing
from planner.cli.measured_runs import measured_serving_runs
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.tuning import NO_TUNING
from tests.cli.conftest import Cli

HEADER = "model,gpu,tp,async_scheduling,max_num_batched_tokens,input_tokens,output_tokens,concurrency"
WORLD = NO_HOST_TIME.model_copy(update={"step_s": 5e-4, "sync_step_s": 3e-3, "reply_s": 4e-3})


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Twelve runs as a world with known host time shows them, and three that tell nothing."""
    rows = [
        f"meta-llama/Llama-3.1-8B,H100-SXM-80GB,{tp},{is_async},8192,500,60,{users}"
        for tp in (1, 2)
        for is_async in ("true", "false")
        for users in (2, 8, 24)
    ]
    path = tmp_path / "runs.csv"
    lines = [f"{HEADER},ttft_ms_mean,tpot_ms_mean", *(f"{row},1,1" for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    runs, others = measured_serving_runs(path)
    assert (len(runs), others) == (12, 0)
    means = simulated(runnable(runs, facts_for()), WORLD, NO_TUNING)
    lines[1:] = [
        f"{row},{1e3 * ttft_s},{1e3 * tpot_s}"
        for row, ttft_s, tpot_s in zip(rows, means.ttft, means.tpot, strict=True)
    ]
    lines += [
        f"{rows[0]},,5",
        "meta-llama/Llama-3.1-8B,H100-SXM-80GB,1,true,,500,60,,9,9",
        "nothing,,,,,,,,9,9",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_fit_is_stored_read_and_told(cli: Cli, measured: Path, tmp_path: Path) -> None:
    folder, csv = tmp_path / "mine", tmp_path / "rows.csv"
    result = cli("fit", "serving", measured, "--calibration-dir", folder, "--csv", csv)
    assert result.code == 0, result.err
    assert "3 rows have no single load" in result.err
    assert "fitting: all runs" in result.err
    stored = FittedServing.model_validate(json.loads((folder / "serving.json").read_text()))
    assert (stored.runs, stored.async_runs) == (12, 6)
    facts = facts_for(calibration_dir=folder)
    assert (facts.host, facts.tuning) == (stored.host, stored.tuning)
    assert stored.host.sync_step_s == pytest.approx(WORLD.sync_step_s, rel=0.15)
    assert [(one.tp, one.runs) for one in stored.tuning.deployments] == [(1, 6), (2, 6)]
    lines = csv.read_text().splitlines()
    assert lines[0].startswith(
        "left_out,group,runs,tpot_before_median_ratio,tpot_before_p90_ratio,tpot_median_ratio"
    )
    name = "meta-llama/Llama-3.1-8B bf16 H100-SXM-80GB TP"
    assert [line.split(",")[:3] for line in lines[1:]] == [
        ["nothing", "all", "12"],
        ["nothing", f"{name} 1", "6"],
        ["nothing", f"{name} 2", "6"],
    ]
    before, after = (float(lines[1].split(",")[at]) for at in (3, 5))
    assert after < 0.5 * before
    assert after < 0.03


def test_the_table_is_shown_and_given_as_json(cli: Cli, measured: Path, tmp_path: Path) -> None:
    shown = cli("fit", "serving", measured, "--calibration-dir", tmp_path)
    assert all(word in shown.out for word in ("left out", "TPOT before", "nothing"))
    rows = cli("fit", "serving", measured, "--calibration-dir", tmp_path, "--json").json
    assert [row["runs"] for row in rows] == [12, 6, 6]
    assert set(rows[0]) >= {"left_out", "group", "tpot_median_ratio", "ttft_p90_ratio"}


def test_too_few_runs_are_refused_and_nothing_is_written(cli: Cli, measured: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("\n".join(measured.read_text().splitlines()[:6]))
    error = cli("fit", "serving", few, "--calibration-dir", tmp_path / "mine").error
    assert "5 runs with TTFT and TPOT" in error
    assert not (tmp_path / "mine" / "serving.json").exists()


def test_a_table_without_loads_is_refused(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    path.write_text("model,gpu\nmeta-llama/Llama-3.1-8B,L4\n")
    assert "0 runs" in cli("fit", "serving", path, "--calibration-dir", tmp_path).error


def test_the_batch_is_known_where_the_row_says_it(measured: Path) -> None:
    plain = measured.read_text().replace(",8192,", ",,")
    measured.write_text(plain)
    runs, _ = measured_serving_runs(measured)
    assert all(isinstance(run, MeasuredRun) and not run.says_batch for run in runs)


def test_a_damaged_fit_is_made_anew_in_place(cli: Cli, measured: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(shipped_calibration_dir(), folder)
    old = json.loads((folder / "serving.json").read_text())
    del old["tuning"]
    (folder / "serving.json").write_text(json.dumps(old))
    (folder / "accuracy.json").write_text("{")
    result = cli("fit", "serving", measured, "--calibration-dir", folder)
    assert result.code == 0, result.err
    stored = FittedServing.model_validate_json((folder / "serving.json").read_bytes())
    assert [one.runs for one in stored.tuning.deployments] == [6, 6]


def test_rows_that_cannot_be_fitted_are_left_out_and_counted(
    cli: Cli, measured: Path, tmp_path: Path
) -> None:
    """One-token answers have no time per output token; the other two would stop the simulation."""
    lines = measured.read_text().splitlines()
    rows = [
        f"{lines[1].replace(',500,60,', ',500,1,')},",
        f"{lines[1].replace(',500,60,', ',150000,60,')},",
        f"{lines[1]},1000000000",
    ]
    header, *plain = lines
    measured.write_text("\n".join([f"{header},num_requests", *(f"{line}," for line in plain), *rows]) + "\n")
    result = cli("fit", "serving", measured, "--calibration-dir", tmp_path / "mine", "--json")
    assert result.code == 0, result.err
    assert result.json[0]["runs"] == 12
    assert "6 rows have no single load" in result.err


@pytest.mark.parametrize("times", [("9e8", "5"), ("20", "2e-6")])
def test_times_that_are_not_in_ms_are_refused(
    cli: Cli, measured: Path, tmp_path: Path, times: tuple[str, str]
) -> None:
    lines = measured.read_text().splitlines()
    lines[1] = ",".join([*lines[1].split(",")[:-2], *times])
    measured.write_text("\n".join(lines) + "\n")
    error = cli("fit", "serving", measured, "--calibration-dir", tmp_path / "mine")
    assert error.code == 2
    assert "are they in ms?" in error.err
    assert not (tmp_path / "mine" / "serving.json").exists()


def test_a_measured_column_that_stands_twice_is_refused(cli: Cli, measured: Path, tmp_path: Path) -> None:
    lines = [f"{line},1" for line in measured.read_text().splitlines()]
    lines[0] = lines[0].removesuffix("1") + "tpot_ms_mean"
    measured.write_text("\n".join(lines) + "\n")
    error = cli("fit", "serving", measured, "--calibration-dir", tmp_path / "mine").error
    assert error.endswith("column tpot_ms_mean stands twice")
