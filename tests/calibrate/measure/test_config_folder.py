"""Folders that killed processes left are removed, those of living ones and of others are not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from planner.calibrate.measure.config_folder import PREFIX, config_folder

HOLDS = """
import sys
from planner.calibrate.measure.config_folder import config_folder
with config_folder() as folder:
    (folder / "config.json").write_text("{}")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def holder() -> "tuple[subprocess.Popen[str], Path]":
    """Another process and its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_a_folder_is_gone_afterwards(temporary: Path) -> None:
    with config_folder() as folder:
        assert folder.parent == temporary
        assert str(os.getpid()) in folder.name
        (folder / "config.json").write_text("{}", encoding="utf-8")
    assert not list(temporary.iterdir())


def test_what_a_killed_process_left_is_removed_at_the_next_start(temporary: Path) -> None:
    process, left = holder()
    assert left.parent == temporary
    with config_folder():
        assert (left / "config.json").exists(), "of a process that lives"
    end(process)
    assert (left / "config.json").exists()
    with config_folder() as folder:
        assert list(temporary.iterdir()) == [folder]


def test_a_folder_that_a_process_unseen_holds_is_left(temporary: Path) -> None:
    """As in a container of its own: its number means nothing here, its lock does."""
    process, folder = holder()
    dead, _ = holder()
    end(dead)
    unseen = folder.rename(temporary / f"{PREFIX}{dead.pid}-held")
    with config_folder():
        assert unseen.exists()
    end(process)
    with config_folder():
        assert not unseen.exists()


def test_what_is_no_such_folder_is_left(temporary: Path) -> None:
    dead, _ = holder()
    end(dead)
    others = [temporary / name for name in ("planner-abc", f"{PREFIX}abc", f"other-{dead.pid}-a")]
    for path in others:
        path.mkdir()
    file, link = temporary / f"{PREFIX}{dead.pid}-file", temporary / f"{PREFIX}{dead.pid}-link"
    file.write_text("", encoding="utf-8")
    link.symlink_to(others[0])
    with config_folder():
        assert all(path.exists() for path in (*others, file, link))
