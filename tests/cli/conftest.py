"""Runs command lines in this process: what they print and how they exit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from planner.cli import main

RUNS = """\
run_id,model,gpu,tp,weight_dtype,input_tokens,output_tokens,concurrency,request_rate_per_s,tpot_ms_mean,notes
a,meta-llama/Llama-3.1-8B,H100-SXM-80GB,1,,1024,128,8,,8.0,"first, of three"
b,meta-llama/Llama-3.1-70B,H100-SXM-80GB,1,,1024,128,8,,,does not fit
c,meta-llama/Llama-3.1-8B,H100-SXM-80GB,1,fp8,1024.5,128,,2,,open loop
"""


class Result(NamedTuple):
    """How one command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as JSON; NaN and Infinity are no JSON."""
        return json.loads(self.out, parse_constant=_refuse)

    @property
    def error(self) -> str:
        """The one line of a refusal."""
        assert self.code == 2, self
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


Cli = Callable[..., Result]


@pytest.fixture(autouse=True, scope="session")
def _shipped_files_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither the hub nor the user's own coefficients have a say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs one command line."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def runs_file(tmp_path: Path) -> Path:
    """A small runs table."""
    path = tmp_path / "runs.csv"
    path.write_text(RUNS, encoding="utf-8")
    return path
