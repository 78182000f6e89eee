"""What every test here wants."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _shipped_files_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fits of whoever runs the tests have no say, and nothing is fetched."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
