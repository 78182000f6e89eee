"""`calibrate import`: records are kept once, all or nothing is written, `validate` reads the table."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from planner.cli.calibrate_import import import_benchmarks
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkRun
from tests.calibrate.benchmarks.made import RESULTS, guidellm_02, write
from tests.cli.conftest import Cli

CLOSED, OPEN = RESULTS / "serve_closed.json", RESULTS / "serve_open_detailed.json"
CARD = ("--gpu", "L4", "--tp", "1")
Import = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Import:
    """Runs the verb in an app of its own and returns what it printed."""
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command("import")(import_benchmarks)

    def call(*arguments: object) -> str:
        capsys.readouterr()
        app([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return call


def test_a_file_is_kept_once(run: Import, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert "new" in run(CLOSED, "--out", out)
    (path,) = out.iterdir()
    before = path.read_bytes(), path.stat().st_mtime_ns
    moved = shutil.copy(CLOSED, tmp_path / "moved.json")
    assert "already there" in run(moved, "--out", out)
    assert [*out.iterdir()] == [path]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert BenchmarkRun.model_validate_json(path.read_text()).run_id == path.stem


def test_other_facts_of_the_same_file_need_a_word(run: Import, tmp_path: Path) -> None:
    run(OPEN, *CARD, "--out", tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"other facts \(tp 1 then, 2 now\); --replace"):
        run(OPEN, "--gpu", "L4", "--tp", 2, "--out", tmp_path)
    assert path.read_bytes() == before
    assert "replaced" in run(OPEN, "--gpu", "L4", "--tp", 2, "--out", tmp_path, "--replace")
    assert BenchmarkRun.model_validate_json(path.read_text()).facts.tp == 2


def test_what_was_not_said_before_is_called_so(run: Import, tmp_path: Path) -> None:
    run(OPEN, *CARD, "--out", tmp_path)
    with pytest.raises(InputError, match=r"\(engine_version not said then, 0\.32\.0 now\)"):
        run(OPEN, *CARD, "--engine-version", "0.32.0", "--out", tmp_path)


def test_the_name_a_server_gave_is_noted_where_it_means_no_model(
    run: Import, cli: Cli, tmp_path: Path
) -> None:
    document = json.loads(OPEN.read_text()) | {"model_id": "ours"}
    path = write(tmp_path / "ours.json", document)
    said = cli("calibrate", "import", path, *CARD, "--csv", tmp_path / "exam.csv")
    assert said.code == 0
    assert 'note: model "ours" is neither a path nor a bundled name' in said.err
    assert "until --model names one" in said.err
    write(path, document | {"model_id": "or/g\nans"})
    unprintable = cli("calibrate", "import", path, *CARD, "--csv", tmp_path / "exam.csv")
    assert (unprintable.code, "note: model: give a path" in unprintable.err) == (0, True)
    named = cli(
        "calibrate", "import", path, *CARD, "--model", "Qwen/Qwen3-32B", "--csv", tmp_path / "exam.csv"
    )
    assert (named.code, "note: model" in named.err) == (0, False)


def test_a_damaged_record_is_not_read_and_not_overwritten(run: Import, tmp_path: Path) -> None:
    run(CLOSED, "--out", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        run(CLOSED, "--out", tmp_path)
    run(CLOSED, "--out", tmp_path, "--replace")
    assert BenchmarkRun.model_validate_json(path.read_text())


def test_one_bad_file_of_several_leaves_nothing(run: Import, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"duration": 1')
    out, table = tmp_path / "runs", tmp_path / "runs.csv"
    with pytest.raises(InputError, match=r"bad\.json: not whole JSON"):
        run(OPEN, bad, *CARD, "--out", out, "--csv", table)
    with pytest.raises(InputError, match="says gpu H100-SXM-80GB, and --gpu says L4"):
        run(OPEN, CLOSED, *CARD, "--out", out, "--csv", table)
    assert [*tmp_path.iterdir()] == [bad]


def test_a_table_alone_keeps_no_evidence(
    run: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "calibration"
    monkeypatch.setattr("planner.cli.calibrate_import.default_calibration_dir", lambda: kept)
    assert "not kept" in run(OPEN, *CARD, "--csv", tmp_path / "exam.csv")
    assert not kept.exists()
    run(OPEN, *CARD)
    assert len([*(kept / "runs").iterdir()]) == 1


def test_json_has_the_record_and_its_row(run: Import, tmp_path: Path) -> None:
    (found,) = json.loads(run(CLOSED, "--out", tmp_path, "--json"))
    assert found["state"] == "new"
    assert Path(found["path"]).is_file()
    assert found["row"]["concurrency"] == 4
    assert found["run"]["unknown"]["note"] == "cpu"


def test_the_same_load_twice_in_one_command_is_one(run: Import, tmp_path: Path) -> None:
    assert len(json.loads(run(CLOSED, CLOSED, "--out", tmp_path, "--json"))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tp", 0), "tp is 0"),
        (("--gpu-memory-utilization", 2), "gpu_memory_utilization is 2"),
        (("--weight-dtype", "fp3"), "weight_dtype is fp3: one of bf16, fp16, fp8, "),
        (("--kv-dtype", "int1"), "kv_dtype is int1: one of auto, bf16, fp16, fp8 is needed"),
        (("--engine-version", "fast"), "engine_version 'fast' is not a vLLM version"),
        (("--engine-version", "0.1.0"), "engine_version '0.1.0' is older than vLLM"),
        (("--measured-on", "yesterday"), "measured_on"),
        (("--gpu", "H999"), 'unknown GPU "H999"'),
        (("--input-tokens", "nan"), "input_tokens is nan"),
    ],
)
def test_options_are_checked_by_name(
    run: Import, tmp_path: Path, options: tuple[Any, ...], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(OPEN, *options, "--out", tmp_path)
    assert words in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_outputs_that_cannot_be_written_leave_nothing(run: Import, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        run(OPEN, *CARD, "--out", tmp_path / "file")
    shutil.copy(OPEN, tmp_path / "bench.json")
    with pytest.raises(InputError, match="this command reads it"):
        run(tmp_path / "bench.json", *CARD, "--csv", tmp_path / "bench.json")
    with pytest.raises(InputError, match="there is no folder"):
        run(OPEN, *CARD, "--csv", tmp_path / "absent" / "runs.csv", "--out", tmp_path / "runs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "file"]


def test_validate_reads_the_table_as_it_is(run: Import, cli: Cli, tmp_path: Path) -> None:
    """Every tool's loads are answered: closed, open, offline, with and without lengths."""
    model = ("--model", "meta-llama/Llama-3.1-8B", *CARD)
    report = write(tmp_path / "benchmarks.json", guidellm_02({"type_": "concurrent", "streams": 4}))
    lengths = ("--input-tokens", 64, "--output-tokens", 16)
    tables = []
    for name, files in {
        "serve": (OPEN, RESULTS / "serve_appended.json", RESULTS / "guidellm_poisson.yaml", *model),
        "latency": (RESULTS / "latency.json", *model, *lengths, "--concurrency", 4),
        "throughput": (RESULTS / "throughput.json", *model, *lengths),
        "guidellm": (report,),
    }.items():
        table = tmp_path / f"{name}.csv"
        run(*files, "--csv", table)
        with table.open(newline="") as stream:
            rows = [*csv.DictReader(stream)]
        answered = cli("validate", table, "--json", "--rows", "--output", tmp_path / "out.csv").json
        assert answered["counts"] == {"rows": len(rows), "ok": len(rows), "rejected": 0, "error": 0}
        measures = {error["measure"] for error in answered["errors"]}
        tables.append((len(rows), "ttft_ms_mean" in measures, "output_tokens_per_s" in measures))
    # Four loads that were served; a batch and an offline run have no TTFT.
    assert tables == [(4, True, True), (1, False, True), (1, False, True), (1, True, True)]


def test_the_serving_fit_takes_its_rows(run: Import, tmp_path: Path) -> None:
    from planner.cli.measured_runs import measured_serving_runs

    table = tmp_path / "runs.csv"
    run(OPEN, RESULTS / "serve_appended.json", "--model", "meta-llama/Llama-3.1-8B", *CARD, "--csv", table)
    found, others = measured_serving_runs(table)
    assert (len(found), others) == (3, 0)
    assert [one.case.workload.concurrency for one in found if one.case.workload] == [None, 1, 2]
