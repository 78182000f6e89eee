"""`fit`: coefficients and bands are stored whole, and read again."""

import json
from pathlib import Path

import pandas as pd
import pytest

from planner.assemble.question import facts_for
from planner.calibrate import operators
from planner.calibrate.store import operators_path, read_coefficients
from planner.catalog.paths import shipped_calibration_dir
from planner.cli.error_bands import FEWEST_RUNS
from planner.domain.evidence import Accuracy, Basis
from tests.cli.conftest import Cli


@pytest.fixture
def measured(cli: Cli, tmp_path: Path) -> Path:
    """Twenty runs whose times are off from the prediction by known factors, 1.0 to 1.38."""
    lines = ["model,gpu,tp,input_tokens,output_tokens,concurrency"]
    lines += [f"meta-llama/Llama-3.1-70B,H100-SXM-80GB,8,1000,200,{users}" for users in range(1, 21)]
    plain = tmp_path / "plain.csv"
    plain.write_text("\n".join(lines) + "\n")
    rows = cli("predict", plain, "--json").json["rows"]
    lines[0] += ",ttft_ms_mean,tpot_ms_mean"
    for index, row in enumerate(rows):
        factor = 1.0 + 0.02 * index
        lines[index + 1] += f",{factor * row['pred_ttft_ms_mean']},{factor * row['pred_tpot_ms_mean']}"
    path = tmp_path / "measured.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_bands_are_stored_and_read(cli: Cli, measured: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "calibration"
    result = cli("fit", "errors", measured, "--calibration-dir", folder)
    assert result.code == 0
    assert str(folder / "accuracy.json") in result.err
    stored = Accuracy.model_validate(json.loads((folder / "accuracy.json").read_text()))
    own = stored.band(Basis.OPERATORS)
    assert own is not None
    assert own.basis is Basis.OPERATORS
    assert own.runs == 20
    assert own.note.startswith("measured.csv (H100-SXM-80GB), ")
    assert own.tpot_factor_low == 1.0
    assert own.tpot_factor_high == pytest.approx(1.361, abs=0.002)
    assert own.tpot_median_error_ratio == pytest.approx(0.16, abs=0.01)
    assert facts_for(calibration_dir=folder).accuracy == stored


def test_json(cli: Cli, measured: Path, tmp_path: Path) -> None:
    bands = cli("fit", "errors", measured, "--calibration-dir", tmp_path, "--json").json
    assert bands[0]["basis"] == "operators"


def test_too_few_runs_are_refused(cli: Cli, measured: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("\n".join(measured.read_text().splitlines()[:5]))
    folder = tmp_path / "calibration"
    error = cli("fit", "errors", few, "--calibration-dir", folder).error
    assert f"{FEWEST_RUNS} are needed" in error
    assert not (folder / "accuracy.json").exists()


def test_a_folder_that_cannot_be_made_is_refused(cli: Cli, measured: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert (
        "cannot write in"
        in cli("fit", "errors", measured, "--calibration-dir", tmp_path / "file" / "x").error
    )


def test_operator_fits_are_stored_with_a_table_of_their_errors(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit itself takes a minute and has its own tests; here it is the shipped one."""
    shipped = read_coefficients(operators_path(shipped_calibration_dir(), "H100-SXM-80GB"))
    asked = []

    def fitted(directory: Path, *, progress: operators.Progress) -> tuple[object, ...]:
        asked.append(directory)
        progress("H100-SXM-80GB", 0.0)
        return (shipped,)

    monkeypatch.setattr(operators, "fit_operators", fitted)
    folder = tmp_path / "calibration"
    result = cli("fit", "operators", "tables", "--calibration-dir", folder, "--csv", tmp_path / "fit.csv")
    assert result.code == 0
    assert asked == [Path("tables")]
    assert read_coefficients(operators_path(folder, "H100-SXM-80GB")) == shipped
    assert "fitting: H100-SXM-80GB" in result.err
    assert "decode attention" in result.out
    table = pd.read_csv(tmp_path / "fit.csv")
    assert {"gpu", "operator", "held_out_median_ratio", "held_out_p90_ratio"} <= set(table.columns)
    assert len(table) == len(operators.fit_report([shipped]))


def test_a_folder_without_tables_is_refused(cli: Cli, tmp_path: Path) -> None:
    error = cli("fit", "operators", tmp_path / "none", "--calibration-dir", tmp_path).error
    assert "no such directory of kernel tables" in error
