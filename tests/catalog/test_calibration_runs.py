"""Runs read back from disk, and files that are none: one clear line each."""

import json
from pathlib import Path

import pytest

from planner.catalog.calibration_runs import read_run, run_paths, runs_of
from planner.catalog.load import gpus
from planner.domain.base import InputError
from planner.domain.calibration import RUN_FORMAT
from planner.domain.hardware import Gpu
from planner.export.calibration_run import write_run
from tests.export.made_run import made_run


def _refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_run(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "run-1.json"
    write_run(path, made_run())
    return path


def test_a_run_without_format_is_refused(written: Path) -> None:
    fields = json.loads(written.read_text())
    del fields["format"]
    written.write_text(json.dumps(fields))
    assert "format: Field required" in _refused(written)


@pytest.mark.parametrize("other", [RUN_FORMAT - 1, RUN_FORMAT + 1])
def test_another_format_is_refused_whatever_else_it_holds(written: Path, other: int) -> None:
    written.write_text(json.dumps({"format": other, "unheard_of": []}))
    assert f"has format {other}, this program reads {RUN_FORMAT}" in _refused(written)


@pytest.mark.parametrize("value", ["1", 1.0, True, None])
def test_a_format_is_a_whole_number(written: Path, value: object) -> None:
    written.write_text(json.dumps(json.loads(written.read_text()) | {"format": value}))
    assert "format:" in _refused(written)


def test_a_truncated_run_is_refused_wherever_it_ends(written: Path) -> None:
    text = written.read_bytes().rstrip()
    for kept in (0, 1, len(text) // 3, len(text) // 2, len(text) - 1):
        written.write_bytes(text[:kept])
        assert "not a run that `calibrate` wrote" in _refused(written)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1.0", "0.0", '"soon"'])
def test_a_time_that_is_none_is_refused(written: Path, value: str) -> None:
    fields = json.loads(written.read_text())
    fields["points"][0]["times_s"][1] = "HERE"
    written.write_text(json.dumps(fields).replace('"HERE"', value))
    assert "points.0.times_s.1" in _refused(written)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../x", "/etc/x", "a\\b", "a\nb", "\x1b[31m", "x" * 200, "\u0660"]
)
def test_a_device_whose_name_leads_elsewhere_is_refused(written: Path, name: str) -> None:
    fields = json.loads(written.read_text())
    fields["machine"] |= {"gpu": name}
    fields["machine"]["datasheet"] |= {"name": name}
    written.write_text(json.dumps(fields))
    assert "machine.gpu is" in _refused(written)


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_every_gpu_of_the_catalog_is_a_name(written: Path, gpu: Gpu) -> None:
    fields = json.loads(written.read_text())
    fields["machine"] = fields["machine"] | {"gpu": gpu.name, "datasheet": None}
    written.write_text(json.dumps(fields))
    assert read_run(written).machine.gpu == gpu.name


def test_a_datasheet_of_another_device_is_refused(written: Path) -> None:
    fields = json.loads(written.read_text())
    fields["machine"]["datasheet"]["name"] = "../../x"
    written.write_text(json.dumps(fields))
    assert 'machine.datasheet is of "../../x"' in _refused(written)


def test_a_step_shorter_than_any_is_refused(written: Path) -> None:
    fields = json.loads(written.read_text())
    fields["points"][1]["times_s"] = [1e-300]
    written.write_text(json.dumps(fields))
    assert "points.1.times_s: 1e-300 s is shorter than any step" in _refused(written)


def test_answers_that_took_no_time_are_refused(written: Path) -> None:
    fields = json.loads(written.read_text())
    for request in fields["serving"][0]["requests"]:
        request["e2e_s"] = request["ttft_s"]
    written.write_text(json.dumps(fields))
    assert "serving.0: its answers took no time after their first tokens" in _refused(written)


def test_a_field_that_nobody_knows_is_refused(written: Path) -> None:
    written.write_text(json.dumps(json.loads(written.read_text()) | {"unheard_of": 1}))
    assert "unheard_of" in _refused(written)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "not a file" in _refused(tmp_path)
    assert "cannot be read" in _refused(tmp_path / "absent.json")
    assert "not a file" in _refused(Path("/dev/zero"))


def test_text_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    _refused(path)


def test_runs_of_one_target_and_device_come_newest_first(tmp_path: Path) -> None:
    run = made_run()
    other_device = run.machine.model_copy(update={"device_name": "Another processor"})
    other_target = run.target.model_copy(update={"tp": 2})
    kept = {
        "run-20260101.json": made_run(run_id="first"),
        "run-20260103.json": made_run(run_id="last"),
        "run-20260102.json": made_run(run_id="middle"),
        "run-20260104.json": made_run(run_id="device", machine=other_device),
        "run-20260105.json": made_run(run_id="target", target=other_target),
        "served-20260106.json": made_run(run_id="name"),
    }
    for name, one in kept.items():
        write_run(tmp_path / name, one)
    found = runs_of(tmp_path, run.target, run.machine)
    assert [one.run_id for _, one in found] == ["last", "middle", "first"]
    assert all(kept[path.name] == one for path, one in found)
    assert [path.name for path in run_paths(tmp_path)] == [f"run-2026010{day}.json" for day in range(1, 6)]


def test_a_folder_that_is_none_is_refused(written: Path) -> None:
    with pytest.raises(InputError, match="is not a folder of calibration runs"):
        run_paths(written)
