"""`validate --run`: errors before and after the fit, and what cannot be examined."""

from pathlib import Path

import pytest

from planner.export.calibration_run import write_run
from tests.assemble.device_runs import device_run
from tests.cli.conftest import Cli
from tests.export.made_run import SHAPES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run of the made-up processor."""
    path = tmp_path / "run-made.json"
    write_run(path, device_run())
    return path


def test_errors_are_large_before_the_fit_and_small_after(cli: Cli, path: Path, tmp_path: Path) -> None:
    ask = ("validate", "--run", path, "--calibration-dir", tmp_path / "mine", "--json")
    before = cli(*ask).json
    assert before["basis"].startswith("no steps of made-cpu are stored")
    assert cli("fit", "runs", tmp_path, "--calibration-dir", tmp_path / "mine").code == 0
    after = cli(*ask).json
    assert "knew this run" in after["basis"]
    everything = [next(row for row in one["regions"] if row["steps"] == "all") for one in (before, after)]
    assert [row["shapes"] for row in everything] == [len(SHAPES)] * 2
    assert everything[0]["median_error_ratio"] > 0.1
    assert everything[1]["median_error_ratio"] < 0.02
    assert {step["known"] for step in after["steps"]} == {"yes"}


def test_a_table_beside_a_run_is_refused(cli: Cli, path: Path, runs_file: Path) -> None:
    error = cli("validate", runs_file, "--run", path).error
    assert error == "--run: a run is no table, leave MEASURED.csv out"
    assert "leave --rows out" in cli("validate", "--run", path, "--rows").error


def test_what_is_no_run_is_refused(cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "run-bad.json"
    bad.write_text('{"format": 99}')
    assert "has format 99" in cli("validate", "--run", bad).error
