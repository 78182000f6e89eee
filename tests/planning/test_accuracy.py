"""Predictions against measured runs that nothing was fitted on, where their table lies beside the checkout."""

import json
from pathlib import Path

import pytest

from planner.assemble.question import facts_for
from planner.cli import main
from planner.domain.evidence import Basis

RUNS = Path(__file__).parents[3] / "shared" / "truth" / "e2e_train.csv"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(
        not RUNS.is_file(), reason="the measured runs (../shared/truth/e2e_train.csv) are not here"
    ),
]


def test_every_run_is_answered_and_tpot_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(RUNS), "--json"]) == 0
    text = capsys.readouterr().out
    report = json.loads(text)
    assert report["counts"]["ok"] == report["counts"]["rows"] == 92
    overall = next(
        row for row in report["errors"] if row["group"] == "all" and row["measure"] == "tpot_ms_mean"
    )
    band = facts_for().accuracy.band(Basis.MEASURED)
    assert band is not None
    # In sample, so no worse than with half of each deployment's loads left out.
    assert overall["median_ratio"] < band.tpot.median_error_ratio + 0.005
    assert overall["median_ratio"] < 0.03


def test_intervals_hold_as_many_runs_as_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(RUNS), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["errors"]
    for row in rows:
        if row["group"] == "all" and row["measure"] in ("ttft_ms_mean", "tpot_ms_mean"):
            assert 0.85 <= row["inside_ratio"] <= 0.97
