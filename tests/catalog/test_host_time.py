"""Reading the host time: order of folders, and broken files refused in one line."""

from pathlib import Path

import pytest

from planner.catalog import host_time
from planner.catalog.host_time import FILE_NAME, read_host_time
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.base import InputError

SHIPPED = (shipped_calibration_dir() / FILE_NAME).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _no_user_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_time, "user_calibration_dir", lambda: tmp_path / "user")


def test_the_shipped_time_says_what_it_rests_on() -> None:
    fitted = read_host_time()
    assert fitted.runs >= 50
    assert 0 < fitted.async_runs < fitted.runs
    assert fitted.host.step_s < fitted.host.sync_step_s < 0.01
    assert "e2e_train.csv" in fitted.provenance


def test_the_users_own_comes_before_the_shipped_and_a_given_folder_before_both(tmp_path: Path) -> None:
    for folder, text in (("user", "user's"), ("given", "given")):
        (tmp_path / folder).mkdir()
        changed = SHIPPED.replace('"provenance": "', f'"provenance": "{text} ')
        (tmp_path / folder / FILE_NAME).write_text(changed, encoding="utf-8")
    assert read_host_time().provenance.startswith("user's")
    assert read_host_time(tmp_path / "given").provenance.startswith("given")


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
        read_host_time(tmp_path)
    assert "\n" not in str(error.value)
    assert FILE_NAME in str(error.value)
