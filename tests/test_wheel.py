"""A wheel installed elsewhere finds its facts, its coefficients and the dashboard's entry."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked far from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 5_000_000
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_answers_from_its_own_data(installed: Path) -> None:
    where = run(installed, "-c", "import planner.catalog.paths as p; print(p.data_dir(), p.app_path())")
    data, app = where.stdout.split()
    assert str(installed) in data
    assert Path(app).is_file()
    plan = run(
        installed,
        *("-m", "planner", "plan", "--model", "meta-llama/Llama-3.1-8B", "--preset", "chat", "--json"),
    )
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["plans"]


def test_it_carries_no_tests_and_no_caches(installed: Path) -> None:
    (wheel,) = installed.parent.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert names
    assert not [name for name in names if name.startswith("tests") or "__pycache__" in name]
