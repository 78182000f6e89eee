"""Runs written and read back, and the lock that keeps a second writer out."""

import subprocess
import sys
from pathlib import Path

import pytest

from planner.catalog.calibration_runs import read_run
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, RunEnd
from planner.export.calibration_run import only_writer, write_run
from tests.export.made_run import made_run

HOLD = """
import sys
from pathlib import Path
from planner.export.calibration_run import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    "run",
    [
        made_run(),
        made_run(engine=None, memory=None, points=(), serving=(), series=None, notes=()),
        made_run(end=RunEnd.FAILED, end_reason='out of memory: "Überlauf"\n\t\u2028', notes=("\\", "")),
    ],
    ids=["whole", "begun", "failed"],
)
def test_a_run_is_read_back_as_it_was_written(run: CalibrationRun, tmp_path: Path) -> None:
    path = tmp_path / "run-1.json"
    write_run(path, run)
    assert read_run(path) == run
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_run_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "run-1.json"
    write_run(path, made_run())
    shorter = made_run(points=made_run().points[:1])
    write_run(path, shorter)
    assert read_run(path) == shorter


def test_a_run_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "run-1.json"
    write_run(path, made_run())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_run(path, made_run(budget_s=float("nan")))
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="there is no folder"):
        write_run(tmp_path / "absent" / "run-1.json", made_run())


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    path = tmp_path / "run-1.json"
    with only_writer(path):
        with pytest.raises(InputError, match="another calibration is writing it"), only_writer(path):
            pass
        with only_writer(tmp_path / "run-2.json"):
            pass
        # Whoever was refused has not let go of the first one's lock.
        with pytest.raises(InputError, match="another calibration is writing it"), only_writer(path):
            pass
    with only_writer(path):
        pass
    assert not list(tmp_path.iterdir())


def test_another_process_holds_a_run_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "run-1.json"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another calibration is writing it"), only_writer(path):
            pass
        other.kill()
    # It left its lock's file behind, which holds nobody up.
    assert list(tmp_path.iterdir())
    with only_writer(path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_block_that_fails_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "run-1.json"
    with pytest.raises(RuntimeError, match="engine died"), only_writer(path):
        raise RuntimeError("engine died")
    with only_writer(path):
        pass


def test_a_folder_that_is_absent_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"), only_writer(tmp_path / "absent" / "run-1.json"):
        pass
