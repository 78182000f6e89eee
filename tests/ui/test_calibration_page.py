"""The Calibration page, run as Streamlit runs it, against what the core says."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from planner.assemble.exam_runs import examine
from planner.assemble.fit_runs import fit_gpus
from planner.assemble.known import known_now
from planner.assemble.question import facts_for
from planner.calibrate.benchmarks.complete import Given, benchmark_runs
from planner.calibrate.benchmarks.read import read_benchmarks
from planner.calibrate.fit_steps import MeasuredSteps, fit_steps, median_error
from planner.calibrate.store import calibration_directories, write_gpu_fit
from planner.catalog.calibration_runs import read_run
from planner.catalog.paths import shipped_calibration_dir
from planner.cli.outcomes import outcomes
from planner.cli.run_cases import CaseReader
from planner.cli.runs import Run
from planner.domain.benchmark import RUNS_COLUMNS, BenchmarkFacts
from planner.domain.calibration import CalibrationRun
from planner.domain.units import seconds_to_ms
from planner.export.format import percent, rounded
from planner.export.table import csv_cell
from planner.formulas.gpu_fit import GpuFit
from planner.ui import calibration_tables as tables
from planner.ui.calibration_answers import run_answered, stored_run
from tests.calibrate.made_gpu import GPU, REPETITIONS, deployment
from tests.ui.made_calibration import MODEL, kept_in, made_run

Page = Callable[..., AppTest]
RESULTS = Path(__file__).parents[1] / "calibrate" / "benchmarks" / "results"
SERVE = RESULTS / "serve_closed.json"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A calibration folder with kernel tables and nothing measured, in place of the user's and the shipped one."""
    (tmp_path / "operators").symlink_to(shipped_calibration_dir() / "operators")
    for reader in ("planner.ui.calibration_answers", "planner.ui.forgetting", "planner.assemble.known"):
        monkeypatch.setattr(f"{reader}.calibration_directories", lambda _=None: (tmp_path,))
    return tmp_path


def assert_clean(app: AppTest) -> None:
    assert not app.exception
    assert not app.error


def metrics(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def frame(app: AppTest, column: str) -> pd.DataFrame:
    """The table with a column of this name."""
    (found,) = (one.value for one in app.dataframe if column in one.value.columns)
    return found


def upload(app: AppTest, name: str, content: bytes) -> AppTest:
    return app.file_uploader(key="calibration_upload").set_value((name, content, "application/json")).run()


def stored_fit(folder: Path, run: CalibrationRun) -> GpuFit:
    """What `fit runs` would store of one run."""
    (one,) = fit_gpus([run], known_now())
    write_gpu_fit(one.fit, folder)
    return one.fit


def left_out_ratio(run: CalibrationRun) -> float:
    found = fit_steps([MeasuredSteps(deployment(run), run.measured)])
    return median_error(found.solution.left_out_residuals)


def test_without_runs_it_says_how_to_make_one(page: Page, folder: Path) -> None:
    app = page("calibration", model=MODEL)
    assert_clean(app)
    assert app.info[0].value.startswith("No run is stored yet.")
    assert not app.metric
    commands = [code.value for code in app.code]
    assert f"python -m planner calibrate --model {MODEL} --tp 1 --budget 6m" in commands
    assert sum(command.startswith("python -m planner fit runs ") for command in commands) == 2
    assert not (folder / "runs").exists()


def test_a_gpu_without_runs_rests_on_tables_with_their_errors(page: Page, folder: Path) -> None:
    app = page("calibration", calibration_gpu=GPU)
    assert_clean(app)
    assert any(
        one.value.startswith(
            f"No run on {GPU} was fitted. Its coefficients come from operator tables, timed kernel by kernel."
        )
        for one in app.markdown
    )
    kernels = frame(app, "Operator")
    bf16 = kernels[kernels["Variant"] == "bf16, above"].iloc[0]
    stored = json.loads((folder / "operators" / f"{GPU}.json").read_text())
    evidence = stored["gemm"]["bf16"]["large_evidence"]
    assert bf16["Held out"] == pytest.approx(100 * evidence["held_out_median_ratio"])
    app.selectbox(key="calibration_gpu").set_value("H100-PCIe-80GB").run()
    assert_clean(app)
    assert any(
        f"Its coefficients are those of {GPU}, scaled by data sheet." in one.value for one in app.markdown
    )


def test_runs_are_listed_newest_first_and_shown(page: Page, folder: Path) -> None:
    run = made_run(served=True)
    older = made_run("older", steps=7).model_copy(update={"started_at": "2026-11-01T10:00:00+00:00"})
    for one in (older, run):
        kept_in(folder / "runs", one)
    app = page("calibration")
    assert_clean(app)
    listed = frame(app, "Left-out error")
    assert listed["Run"].tolist() == ["made", "older"]
    first = listed.iloc[0]
    assert (first["Device"], first["Model"], first["TP"], first["vLLM"]) == (GPU, MODEL, 1, "0.32.0")
    assert (first["Shapes"], first["Disturbed"], first["Failed"], first["Served"]) == (21, 1, 1, 1)
    assert first["Ended"] == "finished"
    assert first["Left-out error"] == pytest.approx(100 * left_out_ratio(run), rel=0.01)
    assert first["Age, days"] < listed.iloc[1]["Age, days"]
    assert metrics(app)["Shapes"] == "21"
    assert metrics(app)["Points tried"] == "22"
    assert len(app.get("plotly_chart")) >= 3
    assert any("Power cannot be read" in caption.value or "power" in caption.value for caption in app.caption)
    served = frame(app, "Requests")
    assert served["TTFT, ms"].tolist() == [20.0]
    assert served["TPOT, ms"].tolist() == [pytest.approx(4.0)]
    assert served["TPOT predicted"].iloc[0] > 0

    app.selectbox(key="calibration_run").set_value("older").run()
    assert_clean(app)
    assert metrics(app)["Shapes"] == "7"


def test_a_run_alone_predicts_its_steps_better_than_tables_do(page: Page, folder: Path) -> None:
    """Kernels and host take up to twice as long as tables say; a fit of the other steps knows that."""
    run = made_run()
    path = kept_in(folder / "runs", run)
    answer = run_answered(stored_run(path), None)
    assert answer.left_out_ratio == pytest.approx(left_out_ratio(run), rel=0.01)
    assert answer.today_ratio is not None
    assert answer.left_out_ratio < 0.05
    assert answer.today_ratio > 0.2
    shown = metrics(page("calibration"))
    assert shown["Left-out error"] == percent(answer.left_out_ratio)
    assert shown["Today's error"] == percent(answer.today_ratio)


def test_a_stored_fit_is_shown_and_predicts(page: Page, folder: Path) -> None:
    run = made_run()
    path = kept_in(folder / "runs", run)
    fit = stored_fit(folder, run)
    answer = run_answered(stored_run(path), fit)
    assert answer.today_ratio is not None
    assert answer.today_ratio < 0.05
    app = page("calibration")
    assert_clean(app)
    assert app.selectbox(key="calibration_gpu").value == GPU
    assert any(
        one.value.startswith(f"Fitted on {fit.fitted_on} to 21 steps of 1 run") for one in app.markdown
    )
    coefficients = frame(app, "Identified").set_index("Coefficient")
    assert len(coefficients) == len(fit.parameters)
    cache = next(one for one in fit.parameters if one.name == "decode_cache")
    row = coefficients.loc["Decode attention, cached tokens"]
    assert bool(row["Identified"]) is cache.identified is True
    assert float(row["Value"]) == rounded(cache.estimate.value)
    low, high = map(float, row["90 % interval"].split(" to "))
    # The made-up device reads its cache 1.6 times as slowly.
    assert low < 1.6 < high
    assert not coefficients.loc["Experts, compute", "Identified"]
    assert coefficients.loc["Host, each step", "Unit"] == "ms"
    assert frame(app, "Measured")["Run"].tolist() == ["made"]


@pytest.mark.parametrize("fitted", [False, True])
def test_regions_are_held_against_what_validate_says(folder: Path, *, fitted: bool) -> None:
    """Without a fit that is kernel tables with the stored host time, which differs from the prior of a fit."""
    run = made_run()
    path = kept_in(folder / "runs", run)
    answer = run_answered(stored_run(path), stored_fit(folder, run) if fitted else None)
    errors: dict[str, list[float]] = {}
    for step in examine(run, known_now(), []).steps:
        errors.setdefault(step.region, []).append(abs(step.predicted_s / step.measured_s - 1.0))
    assert len(errors) > 2
    assert {row.region: row.before_median_ratio for row in answer.regions} == {
        region: pytest.approx(float(np.median(found)), rel=1e-3) for region, found in errors.items()
    }


def test_every_point_is_in_the_download(folder: Path) -> None:
    answer = run_answered(stored_run(kept_in(folder / "runs", made_run())), None)
    rows = [dict(zip(tables.POINT_COLUMNS, row, strict=True)) for row in tables.point_rows(answer)]
    assert len(rows) == len(answer.run.points) == 22
    assert rows[-1]["failed"] == "out of memory"
    assert rows[-1]["measured_ms"] is rows[-1]["left_out_ms"] is None
    assert rows[0]["disturbed"] == "others used the GPU"
    assert answer.today_s is not None
    assert rows[0]["today_ms"] == pytest.approx(seconds_to_ms(float(answer.today_s[0])))
    assert rows[0]["repetitions"] == len(REPETITIONS)


def test_a_broken_file_is_one_line_and_the_rest_is_shown(page: Page, folder: Path) -> None:
    kept_in(folder / "runs", made_run())
    (folder / "runs" / "run-broken.json").write_text('{"run_id": "x"')
    (folder / "runs" / "benchmark-broken.json").write_text("[]")
    (folder / "gpus").mkdir()
    (folder / "gpus" / f"{GPU}.json").write_text("{}")
    app = page("calibration")
    assert_clean(app)
    # The last of them keeps the run from being predicted, too.
    said = {one.value for one in app.warning}
    assert len(said) == 3
    for name in ("run-broken", "benchmark-broken", GPU):
        assert sum(name in line.replace("\\", "") for line in said) == 1
    assert frame(app, "Left-out error")["Run"].tolist() == ["made"]


def test_a_run_that_measured_too_little_says_so(page: Page, folder: Path) -> None:
    kept_in(folder / "runs", made_run(steps=3))
    kept_in(folder / "runs", made_run("none", steps=0))
    kept_in(folder / "runs", made_run("dead", steps=0).model_copy(update={"engine": None, "points": ()}))
    app = page("calibration", calibration_run="made")
    assert_clean(app)
    assert any("3 measured steps; a fit needs 6" in one.value for one in app.warning)
    assert metrics(app)["Left-out error"] == "not known"
    assert metrics(app)["Today's error"] != "not known"
    for name in ("none", "dead"):
        app.selectbox(key="calibration_run").set_value(name).run()
        assert_clean(app)
        assert any("No step was measured" in one.value for one in app.warning)


def test_an_uploaded_run_is_shown_and_not_stored(page: Page, folder: Path) -> None:
    run = made_run("theirs")
    before = sorted(folder.rglob("*"))
    app = upload(page("calibration"), "run-theirs.json", run.model_dump_json().encode())
    assert_clean(app)
    assert metrics(app)["Left-out error"] == percent(left_out_ratio(run))
    assert {button.label for button in app.get("download_button")} == {"Every point, CSV"}
    assert any("no prediction changes by it" in one.value for one in app.markdown)
    assert sorted(folder.rglob("*")) == before


def test_the_same_run_uploaded_and_stored_is_shown_twice(page: Page, folder: Path) -> None:
    path = kept_in(folder / "runs", made_run())
    app = upload(page("calibration"), path.name, path.read_bytes())
    assert_clean(app)
    assert [metric.label for metric in app.metric].count("Left-out error") == 2


def test_an_uploaded_benchmark_is_predicted_as_validate_does(page: Page, folder: Path) -> None:
    app = page("calibration")
    app.text_input(key="calibration_bench_model").set_value(MODEL)
    app = upload(app, SERVE.name, SERVE.read_bytes())
    assert_clean(app)
    loads = frame(app, "TTFT predicted")
    (run,) = benchmark_runs(read_benchmarks(SERVE), Given(BenchmarkFacts(model=MODEL)))
    cells = [csv_cell(value) for value in run.as_runs_row().values()]
    asks = CaseReader(RUNS_COLUMNS).read(cells)
    assert not isinstance(asks, str)
    (outcome,) = outcomes([Run(cells, asks)], facts_for())
    latency = outcome.prediction.latency
    assert latency is not None
    assert run.measures.ttft is not None
    row = loads.iloc[0]
    assert row["TTFT, ms"] == rounded(seconds_to_ms(run.measures.ttft.mean_s))
    assert row["TTFT predicted"] == rounded(seconds_to_ms(latency.ttft_mean_s))
    assert row["TPOT predicted"] == rounded(seconds_to_ms(latency.tpot_mean_s))
    assert row["TTFT error"] == pytest.approx(
        100 * (latency.ttft_mean_s / run.measures.ttft.mean_s - 1), rel=1e-6
    )


def test_a_benchmark_that_lacks_facts_asks_for_them(page: Page, folder: Path) -> None:
    bare = json.loads(SERVE.read_text()) | {"gpu": "", "tp": ""}
    app = upload(page("calibration"), "bench.json", json.dumps(bare).encode())
    assert not app.exception
    assert len(app.error) == 1
    assert "needs the GPU and TP" in app.error[0].value
    app.selectbox(key="calibration_bench_gpu").set_value(GPU)
    app.number_input(key="calibration_bench_tp").set_value(2)
    app.text_input(key="calibration_bench_model").set_value(MODEL)
    app.run()
    assert_clean(app)
    assert frame(app, "TTFT predicted")["TP"].tolist() == [2]
    assert not np.isnan(frame(app, "TTFT predicted")["TTFT predicted"].iloc[0])


def test_a_benchmark_of_an_unknown_model_is_shown_without_prediction(page: Page, folder: Path) -> None:
    app = upload(page("calibration"), SERVE.name, SERVE.read_bytes())
    assert_clean(app)
    assert any("tiny-llama" in one.value for one in app.warning)
    assert frame(app, "TTFT predicted")["TTFT, ms"].iloc[0] > 0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", b"", "empty"),
        ("x.json", b"{", "not whole JSON"),
        ("x.json", b"\xff\xfe\x00", "not a text in UTF-8"),
        ("x.json", b"[]", "an empty list"),
        ("x.json", b"7", "not an object"),
        ("x.json", b'{"a": 1}', "not a result of"),
        ("x.yaml", b"a: [", "not whole YAML"),
        ("x.json", b"[" * 100_000, "nested too deep"),
        ("x.json", b'{"run_id": 1, "target": {}, "points": []}', "not a run that `calibrate` wrote"),
        ("x.json", b'{"run_id": "<b>$x$</b>", "target": 1, "points": 2}', "not a run that `calibrate` wrote"),
    ],
)
def test_a_bad_upload_is_one_clear_line(
    page: Page, folder: Path, name: str, content: bytes, said: str
) -> None:
    app = upload(page("calibration"), name, content)
    assert not app.exception
    assert len(app.error) == 1
    line = app.error[0].value
    assert said in line.replace("\\", "")
    assert "\n" not in line
    assert "/tmp" not in line
    assert f"{name}" in line.replace("\\", "")


def _with(run: CalibrationRun, path: tuple[str | int, ...], value: object) -> bytes:
    document = json.loads(run.model_dump_json())
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 99),
        (("machine", "gpu"), "Abacus"),
        (("target", "config"), {}),
        (("target", "config", "num_hidden_layers"), -1),
        (("target", "tp"), 7),
        (("engine", "engine_version"), "nonsense"),
        (("engine", "max_num_batched_tokens"), 0),
        (("engine", "cuda_graph_sizes"), [0, 0]),
        (("points", 0, "times_s"), [0.0]),
        (("points", 1, "times_s"), [1e6]),
        (("points", 1, "times_s"), [1e-300]),
        (("points", 0, "shape", "context_tokens"), 10**9),
        (("serving", 0, "load", "concurrency"), 100_000),
        (("serving", 0, "requests", 0, "input_tokens"), 10**9),
        (("memory",), {"kv_cache_tokens": 1}),
        (("run_id",), "a" * 120),
        (("notes",), ["$x$ <script>alert(1)</script> [a](http://example.com)"]),
        (("started_at",), "yesterday"),
    ],
)
def test_a_run_of_impossible_figures_breaks_nothing(
    page: Page, folder: Path, path: tuple[str | int, ...], value: object
) -> None:
    app = upload(page("calibration"), "run-x.json", _with(made_run(served=True), path, value))
    assert not app.exception
    for line in (*app.error, *app.warning):
        assert "\n" not in line.value
        assert "Traceback" not in line.value


def test_the_command_follows_the_fields(page: Page, folder: Path) -> None:
    app = page("calibration", calibration_tp="4", calibration_budget="20m")
    app.multiselect(key="calibration_models").set_value(["Qwen/Qwen3-8B", MODEL])
    app.selectbox(key="calibration_weight_dtype").set_value("fp8")
    app.selectbox(key="calibration_kv_dtype").set_value("fp8")
    app.run()
    assert_clean(app)
    words = shlex.split(next(code.value for code in app.code if " calibrate " in code.value))
    assert words == [
        *("python", "-m", "planner", "calibrate", "--model", "Qwen/Qwen3-8B", "--model", MODEL),
        *("--tp", "4", "--weight-dtype", "fp8", "--kv-dtype", "fp8", "--budget", "20m"),
    ]


def test_a_command_that_would_be_refused_is_not_shown(page: Page, folder: Path) -> None:
    app = page("calibration", model="no-such-model")
    assert not app.exception
    assert len(app.error) == 1
    assert "neither a path nor a bundled name" in app.error[0].value
    assert not any(" calibrate " in code.value for code in app.code)


def test_every_field_has_help(page: Page, folder: Path) -> None:
    kept_in(folder / "runs", made_run())
    app = page("calibration")
    fields = [*app.number_input, *app.selectbox, *app.multiselect, *app.text_input]
    assert [field.label for field in fields if not field.help] == []


def test_the_users_and_the_shipped_folder_are_both_read() -> None:
    assert shipped_calibration_dir() in calibration_directories()


def test_a_run_read_again_after_a_change_is_the_new_one(folder: Path) -> None:
    path = kept_in(folder / "runs", made_run(steps=8))
    assert len(stored_run(path).run.points) == 9
    kept_in(folder / "runs", made_run(steps=10))
    assert stored_run(path).run == read_run(path)
    assert len(stored_run(path).run.points) == 11
