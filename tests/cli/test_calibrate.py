"""`calibrate` without an engine: the dry run, and what is refused before anything starts."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

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
