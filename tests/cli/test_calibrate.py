"""`calibrate` without an engine: the dry run, and what is refused before anything starts."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from planner.cli.calibrate import _Here, _resumed
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationTarget, RunEnd
from planner.export.calibration_run import write_run
from tests.calibrate.made_steps import MACHINE, target
from tests.cli.conftest import Cli
from tests.export.made_run import made_run

TINY = ("calibrate", "--model", "meta-llama/Llama-3.2-1B", "--device", "cpu")
LOADED = """
import sys
from planner.cli import main
code = main(sys.argv[1:])
print([name for name in ("vllm", "pynvml", "torch") if name in sys.modules], code, file=sys.stderr)
"""


def test_the_dry_run_stays_within_limits(cli: Cli) -> None:
    result = cli(*TINY, "--max-model-len", 512, "--max-num-seqs", 8, "--dry-run", "--json")
    assert result.code == 0, result.err
    shapes = result.json["shapes"]
    assert len(shapes) >= 6
    for shape in shapes:
        assert shape["prompts"] + shape["decodes"] <= 8
        assert shape["prompts"] * shape["prompt_tokens"] + shape["decodes"] <= 2048
        assert max(shape["past_tokens"] + shape["prompt_tokens"], shape["context_tokens"] + 1) <= 512
        assert shape["expected_ms"] > 0


def test_the_dry_run_loads_no_engine() -> None:
    command = [sys.executable, "-c", LOADED, *TINY, "--dry-run", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[] 0"


@pytest.mark.parametrize("budget", ["soon", "1s", "-5m", "25h"])
def test_a_bad_budget_is_refused(cli: Cli, budget: str) -> None:
    assert "from 20s to 24h" in cli(*TINY, f"--budget={budget}").error


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--seed", 10**20), "--seed: one from 0 to 1,000,000,000"),
        (("--threads", 10**6), "--threads: a whole number from 0 to 4,096"),
        (("--weight-dtype", "int4"), "--weight-dtype int4: vLLM cannot make int4 weights"),
    ],
)
def test_what_no_engine_takes_is_refused_before_one_starts(
    cli: Cli, flags: tuple[str, object], said: str
) -> None:
    assert said in cli(*TINY, *flags, "--dry-run").error


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_an_engine_it_says_what_to_install(cli: Cli, tmp_path: Path) -> None:
    result = cli(*TINY, "--budget", "20s", "--out", tmp_path)
    assert result.code == 2
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "pip install vllm" in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("pynvml") is not None, reason="NVML may be here")
def test_without_nvml_there_is_no_gpu_to_measure(cli: Cli, tmp_path: Path) -> None:
    error = cli(*TINY[:3], "--device", "cuda", "--out", tmp_path / "runs").error
    assert "pip install nvidia-ml-py" in error
    assert not (tmp_path / "runs").exists()


BUDGET_S, SEED = 60.0, 7
OTHER = target(num_hidden_layers=8)
HERE = _Here(MACHINE, ("power cannot be read",))


def kept(folder: Path, run_id: str, end: RunEnd, **changed: object) -> Path:
    """A run of `calibrate` on disk."""
    path = folder / f"run-{run_id}.json"
    write_run(path, made_run(run_id=run_id, end=end, **changed))
    return path


def resumed(folder: Path, *targets: CalibrationTarget) -> list[tuple[str, str, bool]]:
    """File, run and whether it goes on, of every job."""
    jobs = _resumed(targets or (target(),), folder, HERE, BUDGET_S, SEED)
    assert [job.run.target for job in jobs] == [job.target for job in jobs]
    return [(job.path.name, job.run.run_id, job.resumed) for job in jobs]


@pytest.mark.parametrize("end", [RunEnd.RUNNING, RunEnd.INTERRUPTED, RunEnd.FAILED])
def test_the_newest_unfinished_run_goes_on(
    tmp_path: Path, end: RunEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished one that is newer does not stop it."""
    kept(tmp_path, "1-older", end)
    path = kept(tmp_path, "2-newer", end)
    kept(tmp_path, "3-done", RunEnd.FINISHED)
    before = path.read_bytes()
    assert resumed(tmp_path) == [("run-2-newer.json", "2-newer", True)]
    assert f"going on with {path}: {len(made_run().points)} points" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_runs_of_another_device_or_model_are_not_taken(tmp_path: Path) -> None:
    kept(tmp_path, "1", RunEnd.INTERRUPTED, machine=MACHINE.model_copy(update={"device_name": "Another"}))
    kept(tmp_path, "2", RunEnd.INTERRUPTED, target=OTHER)
    with pytest.raises(InputError) as caught:
        resumed(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no unfinished run of tiny at TP 1 on A processor to resume"
    assert resumed(tmp_path, OTHER) == [("run-2.json", "2", True)]


def test_of_several_models_each_goes_on_begins_or_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted in the first of three: the second was finished in an earlier run, the third never begun."""
    kept(tmp_path, "1", RunEnd.INTERRUPTED)
    done = kept(tmp_path, "2", RunEnd.FINISHED, target=OTHER)
    third = target(num_hidden_layers=2)
    first, begun = resumed(tmp_path, target(), OTHER, third)
    assert first == ("run-1.json", "1", True)
    name, run_id, goes_on = begun
    assert not goes_on
    assert name == f"run-{run_id}.json"
    assert not (tmp_path / name).exists()
    assert f"{done} is finished: left as it is" in capsys.readouterr().err
    (_, job) = _resumed((target(), third), tmp_path, HERE, BUDGET_S, SEED)
    assert (job.run.budget_s, job.run.seed, job.run.points) == (BUDGET_S, SEED, ())
    assert job.run.machine == MACHINE
    assert job.run.notes == HERE.missing


def test_nothing_begins_where_nothing_goes_on(tmp_path: Path) -> None:
    """Who asks to resume does not want an engine started for anything else."""
    for _ in range(2):
        with pytest.raises(InputError, match="no unfinished run of tiny, tiny at TP 1"):
            resumed(tmp_path, target(), OTHER)
        kept(tmp_path, "1", RunEnd.FINISHED)


def test_a_run_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    kept(tmp_path, "1", RunEnd.INTERRUPTED)
    (tmp_path / "run-2.json").write_text('{"format": 1', encoding="utf-8")
    with pytest.raises(InputError, match=r"run-2\.json.*not a run that `calibrate` wrote"):
        resumed(tmp_path)
