"""Reading the memory coefficients: order of folders, and broken files refused in one line."""

from pathlib import Path

import pytest

from planner.catalog import memory_coefficients
from planner.catalog.memory_coefficients import FILE_NAME, read_memory_coefficients
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.base import InputError

SHIPPED = (shipped_calibration_dir() / FILE_NAME).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _no_user_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_coefficients, "user_calibration_dir", lambda: tmp_path / "user")


def test_shipped_coefficients_say_what_they_rest_on() -> None:
    coefficients = read_memory_coefficients()
    assert coefficients.non_torch_bytes.n >= 5
    assert coefficients.collective_bytes.n >= 20
    assert 0 < coefficients.overhead_relative_error < 1
    assert "start-up logs" in coefficients.provenance


def test_the_users_own_come_before_the_shipped_and_a_given_folder_before_both(tmp_path: Path) -> None:
    for folder, text in (("user", "user's"), ("given", "given")):
        (tmp_path / folder).mkdir()
        changed = SHIPPED.replace('"provenance": "', f'"provenance": "{text} ')
        (tmp_path / folder / FILE_NAME).write_text(changed, encoding="utf-8")
    assert read_memory_coefficients().provenance.startswith("user's")
    assert read_memory_coefficients(tmp_path / "given").provenance.startswith("given")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"non_torch_bytes": 1}', SHIPPED.replace('"n": 4', '"n": -4'), "\x00"],
)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_memory_coefficients(tmp_path)
    assert "\n" not in str(error.value)
    assert FILE_NAME in str(error.value)
