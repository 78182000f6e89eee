"""What the README tells people to type works as it stands."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from planner.cli import main
from planner.export.calibration_run import write_run
from tests.export.made_run import made_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = """model,gpu,tp,input_tokens,output_tokens,concurrency,ttft_ms_mean,tpot_ms_mean
meta-llama/Llama-3.1-8B,H100-SXM-80GB,1,1024,128,8,100,9
"""


TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


def commands() -> list[str]:
    """The command lines of the README's code blocks that end by themselves and need no GPU."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python -m planner ")]
    return [line for line in lines if not line.endswith(" ui") and "calibrate --model" not in line]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_answers(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "PATH").mkdir()
    shutil.copy(ROOT / "data/models/Qwen--Qwen3-32B.json", tmp_path / "PATH/config.json")
    shutil.copytree(ROOT / "data/questions", tmp_path / "data/questions")
    for name in ("runs.csv", "measured.csv"):
        (tmp_path / name).write_text(MEASURED, encoding="utf-8")
    shutil.copy(ROOT / "tests/calibrate/startup_logs/vllm-0.18.0.txt", tmp_path / "server.log")
    (tmp_path / "trace.csv").write_text(TRACE, encoding="utf-8")
    shutil.copy(ROOT / "tests/calibrate/benchmarks/results/serve_closed.json", tmp_path / "bench.json")
    (tmp_path / "calibration/runs").mkdir(parents=True)
    write_run(tmp_path / "calibration/runs/run-made.json", made_run())
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)[3:]) == 0
    assert capsys.readouterr().out or "predict" in line


def test_there_are_commands_to_try() -> None:
    assert len(commands()) >= 7


PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/memory.md",
    "docs/accuracy.md",
    "docs/benchmarks.md",
    "docs/operators.md",
    "data/README.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("word", ["plan", "test", "ui", "bench", "engine-cpu", "engine-test", "engine-full"])
def test_make_targets_named_in_the_readme_exist(word: str) -> None:
    assert f"make {word}" in README
    assert re.search(rf"^{word}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
