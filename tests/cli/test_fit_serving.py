"""`fit serving`: host time is fitted, stored, read again, and its errors told."""

import json
from pathlib import Path

import pytest

from planner.assemble.fit_serving import MeasuredRun, runnable, simulated
from planner.assemble.question import facts_for
from planner.cli.measured_runs import measured_serving_runs
from planner.formulas.host_time import NO_HOST_TIME, HostTime
from tests.cli.conftest import Cli

HEADER = "model,gpu,tp,async_scheduling,max_num_batched_tokens,input_tokens,output_tokens,concurrency"
WORLD = NO_HOST_TIME.model_copy(update={"step_s": 5e-4, "sync_step_s": 3e-3, "reply_s": 0.02})


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
    means = simulated(runnable(runs, facts_for()), WORLD)
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


def test_host_time_is_stored_read_and_told(cli: Cli, measured: Path, tmp_path: Path) -> None:
    folder, csv = tmp_path / "mine", tmp_path / "rows.csv"
    result = cli("fit", "serving", measured, "--calibration-dir", folder, "--csv", csv)
    assert result.code == 0, result.err
    assert "3 rows have no single load" in result.err
    stored = json.loads((folder / "serving.json").read_text())
    assert (stored["runs"], stored["async_runs"]) == (12, 6)
    host = facts_for(calibration_dir=folder).host
    assert host == HostTime(**stored["host"])
    assert host.step_s == pytest.approx(WORLD.step_s, rel=0.2)
    assert host.sync_step_s == pytest.approx(WORLD.sync_step_s, rel=0.1)
    assert host.reply_s == pytest.approx(WORLD.reply_s, rel=0.25)
    lines = csv.read_text().splitlines()
    assert lines[0].startswith(
        "left_out,group,runs,tpot_before_median_ratio,tpot_before_p90_ratio,tpot_median_ratio"
    )
    assert [line.split(",")[:3] for line in lines[1:]] == [
        ["nothing", "all", "12"],
        ["nothing", "meta-llama/Llama-3.1-8B TP 1", "6"],
        ["nothing", "meta-llama/Llama-3.1-8B TP 2", "6"],
    ]
    before, after = (float(lines[1].split(",")[at]) for at in (3, 5))
    assert after < 0.01 < before


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
