"""Where facts lie, in a checkout and in a wheel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from planner.calibrate.store import calibration_directories, read_accuracy
from planner.catalog import paths
from planner.catalog.memory_coefficients import read_memory_coefficients


def test_the_checkout_holds_its_own_facts() -> None:
    root = Path(__file__).resolve().parents[2]
    assert paths.data_dir() == root / "data"
    assert paths.shipped_calibration_dir() == root / "calibration"
    assert paths.default_calibration_dir() == root / "calibration"
    assert paths.app_path() == root / "app.py"


def test_a_wheel_holds_them_inside_the_package(tmp_path: Path) -> None:
    """The layout of pyproject.toml's force-include, run as its own interpreter would import it."""
    package = tmp_path / "site" / "planner"
    (package / "catalog").mkdir(parents=True)
    (package / "_bundled" / "data").mkdir(parents=True)
    for name in ("__init__.py", "catalog/__init__.py"):
        (package / name).touch()
    (package / "catalog" / "paths.py").write_bytes(Path(paths.__file__).read_bytes())
    code = (
        "from planner.catalog.paths import *; "
        "print(data_dir(), shipped_calibration_dir(), app_path(), default_calibration_dir(), sep='\\n')"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "XDG_DATA_HOME": str(tmp_path / "share")}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    bundled = package / "_bundled"
    assert ran.stdout.splitlines() == [
        str(bundled / "data"),
        str(bundled / "calibration"),
        str(bundled / "app.py"),
        str(tmp_path / "share" / "llm-serving-planner" / "calibration"),
    ]


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_DATA_HOME": "/share"}, "/share/llm-serving-planner/calibration"),
        ("linux", {}, "/home/me/.local/share/llm-serving-planner/calibration"),
        ("linux", {"XDG_DATA_HOME": "not/absolute"}, "/home/me/.local/share/llm-serving-planner/calibration"),
        ("darwin", {}, "/home/me/Library/Application Support/llm-serving-planner/calibration"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/llm-serving-planner/calibration"),
        ("win32", {}, "/home/me/AppData/Local/llm-serving-planner/calibration"),
    ],
)
def test_the_users_folder_follows_the_platform(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], expected: str
) -> None:
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(paths.sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert paths.user_calibration_dir().as_posix() == expected


def test_without_a_home_there_is_no_folder_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert paths.user_calibration_dir() is None
    assert calibration_directories() == (paths.shipped_calibration_dir(),)
    assert read_memory_coefficients().provenance


def test_a_users_folder_that_may_not_be_entered_does_not_hide_the_shipped_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    look = Path.stat

    def forbidden(self: Path, **options: bool) -> os.stat_result:
        if self.is_relative_to(tmp_path):
            raise PermissionError(13, "Permission denied")
        return look(self, **options)

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "stat", forbidden)
    assert paths.user_calibration_dir() is None
    assert read_memory_coefficients().provenance
    assert read_accuracy(calibration_directories()).bands
