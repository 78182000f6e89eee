"""Files, streams and names that are not what they should be: one line, exit 2, and nothing overwritten."""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import RUNS, Cli

PLAN = ("plan", "--model", "meta-llama/Llama-3.1-8B", "--preset", "chat", "--gpu", "L40S")
MODEL_ROW = "meta-llama/Llama-3.1-8B,H100-SXM-80GB,1000,100,4"
HEADER = "model,gpu,input_tokens,output_tokens,concurrency"
ZERO = pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="no /dev/zero on this system")
FULL = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full on this system")


def shell(arguments: Sequence[str], redirection: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'"$0" -m planner "$@" {redirection}', sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "redirection", "code"),
    [
        (PLAN, ">&-", 0),
        (PLAN, ">&- 2>&-", 0),
        ((*PLAN, "--tpot-p95-ms", "0.001"), ">&-", 1),
        (("plan",), "2>&-", 2),
        (("plan",), ">&- 2>&-", 2),
        pytest.param(PLAN, "2>/dev/full", 0, marks=FULL),
        pytest.param(("plan",), "2>/dev/full", 2, marks=FULL),
        pytest.param(("catalog", "list", "gpus"), ">/dev/full", 2, marks=FULL),
    ],
)
def test_a_closed_or_full_stream_changes_no_exit_code(
    arguments: tuple[str, ...], redirection: str, code: int
) -> None:
    ended = shell(arguments, redirection)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    if arguments == ("plan",):
        assert ended.stdout == ""


def test_links_in_a_circle_are_no_output(cli: Cli, tmp_path: Path) -> None:
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    for arguments in (
        (*PLAN, "--csv", loop),
        ("predict", "x.csv", "--output", loop),
        ("validate", "x.csv", "--csv", loop),
        ("memory", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "L4", "--csv", loop),
        ("catalog", "list", "gpus", "--csv", loop),
    ):
        assert "its symbolic links form a loop" in cli(*arguments).error


@ZERO
@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("plan", "/dev/zero"), "larger than 1 MB"),
        ((*PLAN, "--prices", "/dev/zero"), "larger than 20 MB"),
        ((*PLAN, "--previous", "/dev/zero"), "larger than 20 MB"),
        (("predict", "/dev/zero"), "line 1 is longer than 10,000,000 characters"),
        (("validate", "/dev/zero"), "line 1 is longer than 10,000,000 characters"),
        (("fit", "memory", "/dev/zero", "--calibration-dir", "{tmp}"), "larger than 20 MB"),
        (("memory", "--model", "/dev/zero", "--gpu", "L4"), "not a regular file"),
    ],
)
def test_input_without_end_is_refused(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], wanted: str
) -> None:
    assert wanted in cli(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)).error


def test_a_pipe_is_no_model_config(cli: Cli, tmp_path: Path) -> None:
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    assert "not a regular file" in cli("memory", "--model", pipe, "--gpu", "L4").error


@pytest.mark.parametrize(
    ("name", "content", "arguments"),
    [
        ("m.csv", f"{HEADER},tpot_ms_mean\n{MODEL_ROW},9\n", ("validate", "{file}", "--csv", "{file}")),
        ("m.csv", f"{HEADER},tpot_ms_mean\n{MODEL_ROW},9\n", ("validate", "{file}", "--output", "{file}")),
        ("m.csv", "x\n", ("fit", "errors", "{file}", "--calibration-dir", "{tmp}", "--csv", "{file}")),
        ("m.csv", "x\n", ("fit", "memory", "{file}", "--calibration-dir", "{tmp}", "--csv", "{file}")),
        (
            "q.toml",
            'preset = "chat"\nmodel = "meta-llama/Llama-3.1-8B"',
            ("plan", "{file}", "--csv", "{file}"),
        ),
        ("p.csv", "provider,instance_type\n", (*PLAN, "--prices", "{file}", "--rejections", "{file}")),
        ("r.csv", "usd_per_month\n1\n", (*PLAN, "--previous", "{file}", "--csv", "{file}")),
        ("c.json", "{}", ("memory", "--model", "{file}", "--gpu", "L4", "--csv", "{file}")),
        ("config.json", "{}", ("memory", "--model", "{tmp}", "--gpu", "L4", "--csv", "{file}")),
        ("c.json", "{}", ("export", "vllm", "--model", "{file}", "--gpu", "L4", "--csv", "{file}")),
        ("gpus.csv", "name\n", ("catalog", "check", "--data-dir", "{tmp}", "--csv", "{file}")),
    ],
)
def test_no_command_overwrites_what_it_reads(
    cli: Cli, tmp_path: Path, name: str, content: str, arguments: tuple[str, ...]
) -> None:
    file = tmp_path / name
    file.write_text(content)
    given = [text.replace("{file}", str(file)).replace("{tmp}", str(tmp_path)) for text in arguments]
    assert "this command reads it" in cli(*given).error
    assert file.read_text() == content


@FULL
def test_a_plan_that_cannot_write_one_output_leaves_the_other(cli: Cli, tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    kept.write_text("mine")
    for outputs in (
        ("--csv", kept, "--rejections", "/dev/full"),
        ("--csv", "/dev/full", "--rejections", kept),
    ):
        assert "/dev/full: No space left" in cli(*PLAN, *outputs).error
        assert kept.read_text() == "mine"


def test_an_unclosed_quotation_mark_costs_its_own_row_alone(cli: Cli, tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    good = f"{MODEL_ROW},plain"
    rows = [f'{MODEL_ROW},"never closed', good, f'{MODEL_ROW},"quoted, and closed"', good]
    rows += [f'{MODEL_ROW},"of two\nlines"', f'{MODEL_ROW},"at the end']
    source.write_text("\n".join([f"{HEADER},notes", *rows]))
    assert cli("predict", source, "--output", out).code == 0
    with out.open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [row["status"] for row in found] == ["error", "ok", "ok", "ok", "ok", "error"]
    assert found[0]["reason"] == "a quotation mark opened in line 2 is never closed"
    assert found[5]["reason"] == "a quotation mark opened in line 8 is never closed"
    assert found[4]["notes"] == "of two\nlines"


def test_a_header_with_an_unclosed_quotation_mark_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(f'"{HEADER}\n{MODEL_ROW}\n')
    assert "a quotation mark opened in line 1 is never closed" in cli("predict", tmp_path / "in.csv").error


def test_control_characters_of_a_table_reach_no_terminal(cli: Cli, tmp_path: Path) -> None:
    measured, out = tmp_path / "m.csv", tmp_path / "o.csv"
    measured.write_text(
        "run_id,model,gpu,engine,input_tokens,output_tokens,concurrency,tpot_ms_mean\n"
        "\x1b]0;owned\x07,meta-llama/Llama-3.1-8B,L40S,\x1b[2J,100,100,4,9\n"
        "b,meta-llama/Llama-3.1-8B,L40S,,\x1b[31m,100,4,9\n"
    )
    for arguments in (("validate", measured), ("validate", measured, "--markdown"), ("predict", measured)):
        result = cli(*arguments)
        assert result.code == 0
        assert set(filter(lambda c: not c.isprintable(), result.out + result.err)) <= {"\n"}
    cli("predict", measured, "--output", out)
    with out.open(newline="") as stream:
        reasons = [row["reason"] for row in csv.DictReader(stream)]
    assert "?[2j" in reasons[0]
    assert all(reason.isprintable() for reason in reasons)


def test_an_error_line_is_short_and_keeps_both_ends(cli: Cli) -> None:
    name = "/no/such" + "/x" * 1000 + "/runs.csv"
    error = cli("predict", name).error
    assert len(error) < 520
    assert error.startswith("/no/such")
    assert error.endswith("No such file or directory")


def test_earlier_predictions_are_told_of_after_success_alone(
    cli: Cli, runs_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "predicted.csv"
    assert cli("predict", runs_file, "--output", out).code == 0
    told = "earlier predictions in it are replaced"
    assert told in cli("validate", out).err
    assert told in cli("predict", out).err
    assert "are needed" in cli("fit", "errors", out, "--calibration-dir", tmp_path).err
    unmeasured = tmp_path / "unmeasured.csv"
    unmeasured.write_text(RUNS.replace("tpot_ms_mean", "pred_tpot_ms_mean"))
    assert "nothing measured" in cli("validate", unmeasured).error


@pytest.mark.parametrize("cell", ["1e-320", "1e-300", "1e-7", "1e308", "1_0"])
def test_measurements_that_no_run_has_count_as_not_measured(cli: Cli, tmp_path: Path, cell: str) -> None:
    measured = tmp_path / "m.csv"
    measured.write_text(
        f"{HEADER},ttft_ms_mean,tpot_ms_mean\n" + f"{MODEL_ROW},{cell},{cell}\n" * 12 + f"{MODEL_ROW},90,9\n"
    )
    errors = cli("validate", measured, "--json").json["errors"]
    assert {row["rows"] for row in errors} == {1}
    assert "1 runs with TTFT and TPOT" in cli("fit", "errors", measured, "--calibration-dir", tmp_path).error


def test_times_in_another_unit_make_no_band(cli: Cli, tmp_path: Path) -> None:
    measured = tmp_path / "m.csv"
    measured.write_text(f"{HEADER},ttft_ms_mean,tpot_ms_mean\n" + f"{MODEL_ROW},1e-5,1e-5\n" * 12)
    assert "are they in ms?" in cli("fit", "errors", measured, "--calibration-dir", tmp_path).error
    assert not (tmp_path / "accuracy.json").exists()


def test_without_a_home_a_fit_asks_where_to_write(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planner.cli import fit

    monkeypatch.setattr(fit, "default_calibration_dir", lambda: None)
    assert "name one with --calibration-dir" in cli("fit", "memory", tmp_path / "logs.csv").error
