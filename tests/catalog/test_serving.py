"""Reading the serving fit: order of folders, and broken files refused in one line."""

import json
from pathlib import Path

import pytest

from planner.catalog import serving
from planner.catalog.load import find_gpu
from planner.catalog.paths import shipped_calibration_dir
from planner.catalog.serving import FILE_NAME, FittedServing, read_serving
from planner.domain.base import InputError

SHIPPED = (shipped_calibration_dir() / FILE_NAME).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _no_user_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serving, "user_calibration_dir", lambda: tmp_path / "user")


def test_the_shipped_fit_says_what_it_rests_on() -> None:
    fitted = read_serving()
    assert fitted.runs >= 50
    assert 0 < fitted.async_runs < fitted.runs
    assert fitted.host.step_s < fitted.host.sync_step_s < 0.01
    assert fitted.host.step_s < fitted.host.chain_s
    assert "e2e_train.csv" in fitted.provenance


def test_the_shipped_ratios_are_near_1_and_of_gpus_that_are_known() -> None:
    """Kernel tables are not off by much more than what they leave held out; a larger ratio hides something else."""
    tuning = read_serving().tuning
    assert 0.0 < tuning.sustained_slowdown < 0.25
    assert sum(one.runs for one in tuning.deployments) == read_serving().runs
    for one in tuning.deployments:
        assert find_gpu(one.gpu).architecture == one.gpu_architecture
        assert 0.8 < one.decode_ratio < 1.25
        assert 0.8 < one.prompt_ratio < 1.25


def test_a_fit_is_read_as_it_was_written(tmp_path: Path) -> None:
    fitted = read_serving()
    (tmp_path / FILE_NAME).write_text(fitted.model_dump_json(), encoding="utf-8")
    assert read_serving(tmp_path) == fitted


def broken(change: str, value: object) -> str:
    """The shipped fit with one value, named by its place, in place of another."""
    found = json.loads(SHIPPED)
    *places, last = change.split(".")
    inside = found
    for place in places:
        inside = inside[int(place)] if isinstance(inside, list) else inside[place]
    assert last in inside
    inside[last] = value
    return json.dumps(found)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("tuning.sustained_slowdown", -0.1),
        ("tuning.sustained_slowdown", 2.0),
        ("tuning.deployments.0.decode_ratio", 0.2),
        ("tuning.deployments.0.prompt_ratio", 5.0),
        ("tuning.deployments.0.weight_dtype", "fp7"),
        ("tuning.deployments.0.tp", 0),
        ("tuning.deployments", {"a": 1}),
        ("host.chain_s", -1.0),
        ("host.reply_s", "soon"),
        ("tuning", None),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_place(tmp_path: Path, place: str, value: object) -> None:
    (tmp_path / FILE_NAME).write_text(broken(place, value), encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_serving(tmp_path)
    assert f"{FILE_NAME}: {place}" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_format_before_it_had_ratios_is_refused(tmp_path: Path) -> None:
    """A file of the last release holds host time alone: read as if no model were tuned it would be half a fit."""
    old = json.loads(SHIPPED)
    del old["tuning"]
    (tmp_path / FILE_NAME).write_text(json.dumps(old), encoding="utf-8")
    with pytest.raises(InputError, match="tuning: Field required"):
        read_serving(tmp_path)
    assert set(old) < set(FittedServing.model_fields)


def test_the_users_own_comes_before_the_shipped_and_a_given_folder_before_both(tmp_path: Path) -> None:
    for folder, text in (("user", "user's"), ("given", "given")):
        (tmp_path / folder).mkdir()
        changed = SHIPPED.replace('"provenance": "', f'"provenance": "{text} ')
        (tmp_path / folder / FILE_NAME).write_text(changed, encoding="utf-8")
    assert read_serving().provenance.startswith("user's")
    assert read_serving(tmp_path / "given").provenance.startswith("given")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"host": 1}', "\x00"),
        SHIPPED.replace('"step_s": ', '"step_s": -'),
        SHIPPED.replace('"step_s": ', '"step_s": NaN, "was": '),
        SHIPPED.replace('"step_s": ', '"step_s": 99, "was": '),
        SHIPPED.replace('"runs": ', '"runs": -'),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_serving(tmp_path)
    assert "\n" not in str(error.value)
    assert FILE_NAME in str(error.value)
