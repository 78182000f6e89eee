"""The command that runs benchmarks: names, files, table."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.inputs import Inputs
from benchmarks.measure import Row
from planner.domain.base import InputError


def test_every_benchmark_is_listed_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(command.benchmarks())
    assert all(len(line.split()) > 5 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulatr"], 'unknown benchmark "simulatr"; did you mean simulator?'),
        (["simulator", "--trace", "/no/such.csv"], "--trace /no/such.csv: no such file"),
        (["simulator", "--repeats", "0"], "--repeats must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {says}\n"
    assert printed.out == ""


def test_the_table_has_the_rows_of_what_was_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,1,1\n", encoding="utf-8")
    seen: list[Inputs] = []

    def rows(inputs: Inputs) -> list[Row]:
        seen.append(inputs)
        return [Row("speed", "3 /s", "2 /s", 1.5, True)]

    monkeypatch.setattr("benchmarks.simulator.rows", rows)
    assert command.main(["simulator", "--trace", str(trace), "--repeats", "2", "--markdown"]) == 0
    assert "| speed | 3 /s | 2 /s | 1.5 | yes |" in capsys.readouterr().out
    assert [(one.trace, one.repeats) for one in seen] == [(trace, 2)]


def test_a_benchmark_that_fails_leaves_the_others_standing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_inputs: Inputs) -> Iterator[Row]:
        yield Row("first", "1", "2", 0.5, True)
        raise InputError("no such interpreter")

    monkeypatch.setattr("benchmarks.simulator.rows", fails)
    monkeypatch.setattr("benchmarks.planning.rows", lambda _inputs: [Row("second", "1", "2", 0.5, True)])
    assert command.main(["simulator", "planning", "--markdown"]) == 1
    out = capsys.readouterr().out
    assert out.index("| first |") < out.index("no such interpreter") < out.index("| second |")
