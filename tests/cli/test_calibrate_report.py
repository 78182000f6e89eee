"""`calibrate report`: a page beside the run, and the note where it cannot be drawn."""

import json
from pathlib import Path

import pytest

from planner.cli import calibrate_report_html
from planner.cli.calibrate_report_html import report_beside
from planner.domain.calibration import CalibrationRun
from planner.export.calibration_run import write_run
from tests.cli.conftest import Cli
from tests.export.made_run import made_operators, made_run


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run-made.json"
    write_run(path, made_run())
    return path


def test_the_page_goes_beside_the_run_or_where_it_is_named(cli: Cli, run_file: Path, tmp_path: Path) -> None:
    result = cli("calibrate", "report", run_file)
    page = tmp_path / "run-made.html"
    assert (result.code, result.out) == (0, "")
    assert result.err == f"wrote {page}\n"
    other = tmp_path / "other.html"
    assert cli("calibrate", "report", run_file, "--output", other).code == 0
    for written in (page, other):
        text = written.read_text(encoding="utf-8")
        assert "<title>Calibration of tiny on A processor</title>" in text
        assert text.count("<h2>") == 9


def test_a_run_is_never_overwritten(cli: Cli, run_file: Path) -> None:
    before = run_file.read_bytes()
    assert "this command reads it" in cli("calibrate", "report", run_file, "--output", run_file).error
    assert run_file.read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', "x" * 100])
def test_what_is_no_run_is_refused_and_nothing_written(cli: Cli, tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    assert "not a run that `calibrate` wrote" in cli("calibrate", "report", path).error
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_missing_file_is_named(cli: Cli, tmp_path: Path) -> None:
    assert "none.json cannot be read" in cli("calibrate", "report", tmp_path / "none.json").error


def test_a_device_of_no_catalog_has_a_page_without_predictions(cli: Cli, run_file: Path) -> None:
    record = json.loads(run_file.read_text(encoding="utf-8"))
    del record["machine"]["datasheet"]
    run_file.write_text(json.dumps(record), encoding="utf-8")
    result = cli("calibrate", "report", run_file)
    assert result.code == 0
    assert "nothing is predicted" in result.err
    assert "Steps cannot be predicted" in run_file.with_suffix(".html").read_text(encoding="utf-8")


def test_without_plotly_the_verb_refuses(cli: Cli, run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_report_html, "find_spec", lambda name: None)
    assert "plotly is not installed here" in cli("calibrate", "report", run_file).error


class TestBesideTheRun:
    """What `calibrate` does when it ends."""

    @pytest.fixture
    def run(self) -> CalibrationRun:
        return made_run()

    def test_it_draws(self, run: CalibrationRun, run_file: Path) -> None:
        report_beside(run_file, run, made_operators(run))
        assert run_file.with_suffix(".html").is_file()

    def test_without_plotly_it_says_how(
        self,
        run: CalibrationRun,
        run_file: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(calibrate_report_html, "find_spec", lambda name: None)
        report_beside(run_file, run, made_operators(run))
        said = capsys.readouterr().err
        assert "plotly is not installed here" in said
        assert f"`python -m planner calibrate report {run_file}`" in said
        assert not run_file.with_suffix(".html").exists()

    def test_what_cannot_be_written_is_a_note_and_the_run_stays(
        self, run: CalibrationRun, run_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_file.with_suffix(".html").mkdir()
        report_beside(run_file, run, made_operators(run))
        assert "no report: cannot write" in capsys.readouterr().err
        assert run_file.is_file()
