"""`fit`: coefficients and bands are stored whole, and read again."""

import json
from pathlib import Path

import pandas as pd
import pytest

from planner.assemble.fit_serving import FEWEST_RUNS
from planner.assemble.question import facts_for
from planner.calibrate import operators
from planner.calibrate.store import operators_path, read_accuracy, read_coefficients
from planner.catalog.paths import shipped_calibration_dir
from planner.cli.fit import BAND_COLUMNS
from planner.domain.evidence import Accuracy, Basis
from tests.cli.conftest import Cli

TPOT_OFF, TTFT_OFF = 1.05, 1.2


@pytest.fixture
def measured(cli: Cli, tmp_path: Path) -> Path:
    """Twenty-four runs at two degrees, off from the prediction by known factors, as often up as down."""
    users = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32)
    lines = ["model,gpu,tp,max_num_batched_tokens,input_tokens,output_tokens,concurrency,num_requests"]
    lines += [
        f"meta-llama/Llama-3.1-8B,H100-SXM-80GB,{tp},8192,500,40,{count},{4 * count}"
        for tp in (1, 2)
        for count in users
    ]
    plain = tmp_path / "plain.csv"
    plain.write_text("\n".join(lines) + "\n")
    rows = cli("predict", plain, "--json").json["rows"]
    lines[0] += ",ttft_ms_mean,tpot_ms_mean"
    for index, row in enumerate(rows):
        sign = 1 if index % 4 < 2 else -1
        lines[index + 1] += f",{row['pred_ttft_ms_mean'] * TTFT_OFF**sign},"
        lines[index + 1] += f"{row['pred_tpot_ms_mean'] * TPOT_OFF**sign}"
    path = tmp_path / "measured.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_bands_of_what_can_be_left_out_are_stored_and_the_others_kept(
    cli: Cli, measured: Path, tmp_path: Path
) -> None:
    folder, csv = tmp_path / "mine" / "calibration", tmp_path / "bands.csv"
    result = cli("fit", "errors", measured, "--calibration-dir", folder, "--csv", csv)
    assert result.code == 0, result.err
    assert str(folder / "accuracy.json") in result.err
    stored = Accuracy.model_validate(json.loads((folder / "accuracy.json").read_text()))
    shipped = read_accuracy((shipped_calibration_dir(),))
    assert [band.basis for band in stored.bands] == list(Basis)
    # One model cannot be left out: what that would test is known from the shipped runs alone.
    assert stored.bands[2:] == shipped.bands[2:]
    for band, how in zip(stored.bands, ("half of each deployment's loads", "and each TP"), strict=False):
        assert band.runs == 24
        assert band.note.startswith("measured.csv (H100-SXM-80GB), ")
        assert how in band.note
        assert band.tpot.median_error_ratio == pytest.approx(TPOT_OFF - 1.0, abs=0.02)
        assert TPOT_OFF - 0.01 <= band.tpot.factor <= 1.12
        assert TTFT_OFF - 0.03 <= band.ttft.factor <= 1.5
    assert stored.bands[0].tpot.coverage_ratio.keys() == {"each deployment"}
    assert stored.bands[1].tpot.coverage_ratio.keys() == {"each TP"}
    assert stored.closed_form is not None
    assert facts_for(calibration_dir=folder).accuracy == stored
    table = pd.read_csv(csv)
    assert tuple(table.columns) == BAND_COLUMNS
    assert table["basis"].tolist() == [
        *(basis.value for basis in Basis for _ in range(2)),
        *["closed form"] * 2,
    ]
    row = table[(table["basis"] == "measured") & (table["latency"] == "tpot")].iloc[0]
    assert row["factor"] == stored.bands[0].tpot.factor
    assert row["coverage"].startswith("each deployment left out ")


def test_times_in_seconds_are_not_taken_for_ms(cli: Cli, measured: Path, tmp_path: Path) -> None:
    table = pd.read_csv(measured)
    table["tpot_ms_mean"] *= 1e-3
    table.to_csv(measured, index=False)
    error = cli("fit", "errors", measured, "--calibration-dir", tmp_path / "mine").error
    assert "Llama-3.1-8B bf16 H100-SXM-80GB TP 1" in error
    assert error.endswith("are they in ms?")
    assert not (tmp_path / "mine" / "accuracy.json").exists()


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


def test_damaged_errors_are_made_anew_in_place(cli: Cli, measured: Path, tmp_path: Path) -> None:
    """The bands that the runs cannot test then come from the next folder, here the shipped one."""
    (tmp_path / "mine").mkdir()
    damaged = tmp_path / "mine" / "accuracy.json"
    damaged.write_text('{"source": "of an old release"}')
    result = cli("fit", "errors", measured, "--calibration-dir", tmp_path / "mine")
    assert result.code == 0, result.err
    assert "none of its bands is kept" in result.err
    stored = Accuracy.model_validate_json(damaged.read_bytes())
    assert stored.bands[2:] == read_accuracy((shipped_calibration_dir(),)).bands[2:]


FITS = [
    ("errors", "accuracy.json"),
    ("serving", "serving.json"),
    ("memory", "memory.json"),
    ("operators", "operators/L40S.json"),
]


@pytest.mark.parametrize(("verb", "name"), FITS)
def test_the_table_may_not_replace_the_fit(cli: Cli, tmp_path: Path, verb: str, name: str) -> None:
    evidence, folder = tmp_path / "evidence", tmp_path / "mine"
    error = cli("fit", verb, evidence, "--calibration-dir", folder, "--csv", folder / name).error
    assert error.startswith(f"cannot write {folder / name} twice")


@pytest.mark.parametrize(("verb", "name"), FITS)
def test_a_folder_in_place_of_the_fit_is_refused_before_fitting(
    cli: Cli, tmp_path: Path, verb: str, name: str
) -> None:
    (tmp_path / "mine" / name).mkdir(parents=True)
    error = cli("fit", verb, tmp_path / "evidence", "--calibration-dir", tmp_path / "mine").error
    assert error.startswith(f"cannot write {tmp_path / 'mine' / name}: it is a folder")


@pytest.mark.parametrize(
    "arguments",
    [
        *(("fit", verb, "evidence") for verb, _ in FITS),
        ("predict", "runs.csv"),
        ("explain", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "L4"),
    ],
    ids=" ".join,
)
def test_an_empty_folder_name_is_refused(
    cli: Cli, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(*arguments, "--calibration-dir", "").error == (
        "Invalid value for '--calibration-dir': empty; name a folder"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["serving.json", "memory.json", "accuracy.json"])
def test_a_folder_in_place_of_a_file_is_not_passed_over(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine" / name).mkdir(parents=True)
    plain = tmp_path / "plain.csv"
    plain.write_text(
        "model,gpu,input_tokens,output_tokens,concurrency\nmeta-llama/Llama-3.1-8B,L4,500,40,2\n"
    )
    error = cli("predict", plain, "--calibration-dir", tmp_path / "mine").error
    assert error.startswith(f"{tmp_path / 'mine' / name} is not a file")


@pytest.mark.parametrize("name", ["serving.json", "memory.json", "accuracy.json"])
def test_a_damaged_file_says_what_makes_it_anew(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    plain = tmp_path / "plain.csv"
    plain.write_text("model,gpu\nmeta-llama/Llama-3.1-8B,L4\n")
    error = cli("predict", plain, "--calibration-dir", tmp_path).error
    verb = {"accuracy.json": "errors"}.get(name, name.removesuffix(".json"))
    assert f"; make it anew with `fit {verb} " in error
