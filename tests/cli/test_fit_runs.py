"""`fit runs`: stored whole or not at all, told before and after, and used by other verbs."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from planner.cli.fit_runs import CHANGE_COLUMNS
from planner.export.calibration_run import write_run
from planner.formulas.gpu_fit import GpuFit
from tests.assemble.device_runs import GPU_SHAPES, MODEL, RELEASE, SLOWER, device_run, gpu_run
from tests.calibrate.benchmarks.made import RESULTS
from tests.calibrate.made_gpu import GPU
from tests.cli.conftest import Cli
from tests.export.made_run import SHAPES


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one run of the made-up processor."""
    folder = tmp_path / "runs"
    folder.mkdir()
    write_run(folder / "run-made.json", device_run())
    return folder


def contents(folder: Path) -> list[str]:
    """Every file under a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_fit_is_stored_and_told(cli: Cli, runs: Path, tmp_path: Path) -> None:
    mine, table = tmp_path / "mine", tmp_path / "changes.csv"
    result = cli("fit", "runs", runs, "--calibration-dir", mine, "--csv", table)
    assert result.code == 0, result.err
    assert contents(mine) == ["gpus/made-cpu.json"]
    assert f"wrote {mine / 'gpus' / 'made-cpu.json'}" in result.err
    assert all(word in result.out for word in ("measured [ms]", "before [ms]", "after [ms]", "left out"))
    fit = GpuFit.model_validate_json((mine / "gpus" / "made-cpu.json").read_bytes())
    assert (fit.gpu.name, fit.deployments[0].steps) == ("made-cpu", len(SHAPES))
    with table.open(newline="") as stream:
        rows = [*csv.DictReader(stream)]
    assert tuple(rows[0]) == CHANGE_COLUMNS
    assert len(rows) == len(fit.regions)
    for row in rows:
        measured, before, after = (float(row[f"{name}_ms"]) for name in ("measured", "before", "after"))
        assert abs(after / measured - 1.0) < 0.05
        assert abs(after / measured - 1.0) < abs(before / measured - 1.0)


def test_a_second_fit_replaces_the_first(cli: Cli, runs: Path, tmp_path: Path) -> None:
    """As JSON: the fit as stored, and changes that begin where the first fit ended."""
    mine = tmp_path / "mine"
    first = cli("fit", "runs", runs, "--calibration-dir", mine, "--json").json
    second = cli("fit", "runs", runs, "--calibration-dir", mine, "--json").json
    assert contents(mine) == ["gpus/made-cpu.json"]
    (told,) = second["gpus"]
    kept = json.loads((mine / "gpus" / "made-cpu.json").read_text())
    assert (told["gpu"], told["scales"]) == ("made-cpu", kept["scales"])
    after = [change["after_ms"] for change in first["changes"]]
    assert [change["before_ms"] for change in second["changes"]] == pytest.approx(after, rel=1e-6)
    assert [change["after_ms"] for change in second["changes"]] == pytest.approx(after, rel=1e-6)


def test_a_damaged_fit_is_replaced(cli: Cli, runs: Path, tmp_path: Path) -> None:
    """As every other verb says it must be."""
    mine = tmp_path / "mine"
    stored = mine / "gpus" / "made-cpu.json"
    assert cli("fit", "runs", runs, "--calibration-dir", mine).code == 0
    whole = stored.read_bytes()
    stored.write_bytes(whole[: len(whole) // 2])
    result = cli("fit", "runs", runs, "--calibration-dir", mine)
    assert result.code == 0, result.err
    assert "to be replaced" in result.err
    assert stored.read_bytes() == whole


SERVED = ("--concurrency", 8, "--input-tokens", 512, "--output-tokens", 64, "--no-async-scheduling")


def simulated(cli: Cli, mine: Path) -> Any:
    """Eight users of the measured model on the measured GPU."""
    flags = ("--model", MODEL, "--gpu", GPU, "--engine-version", RELEASE, "--calibration-dir", mine)
    return cli("simulate", *flags, *SERVED, "--json").json


def test_simulate_and_predict_rest_on_the_fit(cli: Cli, tmp_path: Path) -> None:
    """Steps of 8 sequences at 512 tokens bound the time per token from below; prompts come on top."""
    runs, mine = tmp_path / "runs", tmp_path / "mine"
    runs.mkdir()
    mine.mkdir()
    run = gpu_run()
    write_run(runs / "run-gpu.json", run)
    table = tmp_path / "in.csv"
    table.write_text(f"model,gpu,tp,concurrency,input_tokens,output_tokens\n{MODEL},{GPU},1,8,512,64\n")
    outputs, sims = [], []
    for _ in range(2):
        sims.append(simulated(cli, mine))
        out = tmp_path / "out.csv"
        predict = ("predict", table, "--calibration-dir", mine, "--method", "steady", "--output", out)
        assert cli(*predict).code == 0
        with out.open(newline="") as stream:
            outputs.append(next(csv.DictReader(stream)))
        assert cli("fit", "runs", runs, "--calibration-dir", mine).code == 0
    before, after = sims
    assert after["basis"] == "measured"
    at = next(i for i, one in enumerate(GPU_SHAPES) if (one.decodes, one.context_tokens) == (8, 512))
    decode_ms = 1e3 * run.points[at].median_s
    assert before["tpot_ms"]["mean"] < decode_ms
    # 63 of the steps of a user's answer; each of the 7 others' prompts comes into it once, at about 25 ms.
    assert 0.97 * decode_ms < after["tpot_ms"]["mean"] < decode_ms + 7 * 25 / 63
    assert 1.1 < after["ttft_ms"]["mean"] / before["ttft_ms"]["mean"] < 1.1 * SLOWER
    first, second = (float(row["pred_tpot_ms_mean"]) for row in outputs)
    # Of the newest release, which schedules asynchronously: the synchronous host time that was fitted is not in it.
    assert 1.05 < second / first < SLOWER


def test_imported_benchmarks_beside_the_runs(cli: Cli, runs: Path, tmp_path: Path) -> None:
    """One of a GPU without a run is counted and left; the fit is the same as without it."""
    alone = cli("fit", "runs", runs, "--calibration-dir", tmp_path / "alone", "--json").json
    names = ("--model", MODEL, "--gpu", "H100", "--tp", 1)
    imported = cli("calibrate", "import", RESULTS / "serve_closed.json", *names, "--out", runs)
    if imported.code:
        pytest.fail(imported.err)
    assert len([*runs.glob("benchmark-*.json")]) == 1
    result = cli("fit", "runs", runs, "--calibration-dir", tmp_path / "mine", "--json")
    assert result.code == 0, result.err
    assert "1 imported benchmarks are of GPUs without a run here: `fit serving` takes them" in result.err
    assert result.json == alone


BROKEN = {
    "no run": ("other.json", "{}", "no run of `calibrate`"),
    "not JSON": ("run-bad.json", '{"format": 1', "not a run that `calibrate` wrote"),
    "another format": ("run-bad.json", '{"format": 99}', "has format 99, this program reads 1"),
    "half a run": ("run-bad.json", '{"format": 1}', "run_id: Field required"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_refused(cli: Cli, tmp_path: Path, case: str) -> None:
    name, text, words = BROKEN[case]
    runs, mine = tmp_path / "runs", tmp_path / "mine"
    runs.mkdir()
    if case != "no run":
        write_run(runs / "run-a.json", device_run())
    (runs / name).write_text(text)
    assert words in cli("fit", "runs", runs, "--calibration-dir", mine).error
    assert not mine.exists() or contents(mine) == []


def test_three_points_or_no_folder_are_refused(cli: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert "is not a folder" in cli("fit", "runs", tmp_path / "absent", "--calibration-dir", mine).error
    write_run(tmp_path / "run-few.json", device_run("few", SHAPES[:3]))
    error = cli("fit", "runs", tmp_path, "--calibration-dir", mine).error
    assert error == "3 measured steps; a fit needs 6"
    assert contents(mine) == []


def test_a_run_is_not_overwritten_with_a_table(cli: Cli, runs: Path, tmp_path: Path) -> None:
    path = runs / "run-made.json"
    before = path.read_bytes()
    assert str(path) in cli("fit", "runs", runs, "--calibration-dir", tmp_path / "mine", "--csv", path).error
    assert path.read_bytes() == before
    assert contents(tmp_path / "mine") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_table_that_cannot_be_written_leaves_no_fit(cli: Cli, runs: Path, tmp_path: Path) -> None:
    result = cli("fit", "runs", runs, "--calibration-dir", tmp_path / "mine", "--csv", "/dev/full")
    assert result.code == 2
    assert "No space left" in result.error
    assert not [*(tmp_path / "mine").rglob("*.json")]
