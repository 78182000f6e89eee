"""The report of a calibration says what the run holds, and what it lacks."""

import json
import math
from html import unescape

import numpy as np
import pytest

from planner.calibrate.fit_steps import FEWEST_STEPS
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, RunEnd, StepPoint, StepShape
from planner.domain.evidence import StepKind
from planner.export import calibration_figures as figures
from planner.export import calibration_run_figures as run_figures
from planner.export.calibration_report import report_page, write_report
from planner.export.calibration_steps import Examined, Predictions, error_band, examined
from tests.export.made_run import FAILED, SHAPES, WHEN, made_operators, made_run, point, time_s
from tests.export.plotted import figures as figures_of
from tests.export.test_parity import HOSTILE, Page


@pytest.fixture(scope="module")
def run() -> CalibrationRun:
    return made_run()


@pytest.fixture(scope="module")
def found(run: CalibrationRun) -> Examined:
    return examined(run, made_operators(run))


@pytest.fixture(scope="module")
def predictions(found: Examined) -> Predictions:
    assert found.predictions is not None
    return found.predictions


@pytest.fixture(scope="module")
def page(run: CalibrationRun) -> str:
    return report_page(run, made_operators(run))


def text_of(page: str) -> str:
    """What a reader sees without the figures."""
    parts = page.split("<script")
    return unescape(" ".join([parts[0], *(part.partition("</script>")[2] for part in parts[1:])]))


def test_a_fit_to_the_run_predicts_it_better_than_what_was_known(
    found: Examined, predictions: Predictions
) -> None:
    clean = found.undisturbed
    assert clean.sum() == len(SHAPES)
    assert predictions.fitted_s is not None

    def off(predicted_s: np.ndarray) -> float:
        return float(np.median(np.abs(predicted_s / found.measured_s - 1.0)[clean]))

    assert off(predictions.fitted_s) < 0.1 < off(predictions.before_s)
    assert [one.shape for one in found.unmeasured] == [FAILED]


def test_the_band_holds_nine_of_ten_steps_left_out(found: Examined, predictions: Predictions) -> None:
    factor = error_band(found)
    assert factor is not None
    assert predictions.left_out_s is not None
    off = np.exp(np.abs(np.log(predictions.left_out_s / found.measured_s)))[found.undisturbed]
    assert 0.8 <= (off <= factor).mean() <= 0.95


def test_parity_holds_every_shape_twice_in_ms(found: Examined, predictions: Predictions) -> None:
    figure = figures.parity_of_steps(found, predictions)
    for axis, predicted_s in (("x", predictions.before_s), ("x2", predictions.fitted_s)):
        drawn = sorted(
            (float(x), float(y))
            for trace in figure.data
            if trace.mode == "markers" and trace.xaxis == axis
            for x, y in zip(trace.x, trace.y, strict=True)
        )
        assert predicted_s is not None
        measured_ms = [1e3 * one.median_s for one in found.points]
        assert drawn == sorted(zip(measured_ms, (1e3 * predicted_s).tolist(), strict=True))
    shown = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert len(shown) == len(set(shown))
    assert {"prefill", "decode", "mixed", "decode, disturbed"} < set(shown)


def test_residuals_are_in_percent_with_the_spread_of_the_repetitions(
    found: Examined, predictions: Predictions
) -> None:
    figure = figures.residuals(found, predictions)
    mixed = next(trace for trace in figure.data if trace.name == "mixed")
    row = next(i for i, one in enumerate(found.points) if one.shape.kind is StepKind.MIXED)
    ratio = predictions.best_s[row] / time_s(found.points[row].shape)
    assert mixed.x[0] == 72
    assert mixed.y[0] == pytest.approx(100 * (ratio - 1))
    # Repetitions at 0.98, 1 and 1.02 of the median: they deviate by 2 %.
    assert mixed.error_y.array[0] == pytest.approx(2 * ratio)
    low, high = figure.layout.yaxis.range
    assert low < 100 * (predictions.best_s / found.measured_s - 1)[found.undisturbed].min()
    assert high == -low


def test_the_roofline_bends_where_its_ceilings_meet(found: Examined, predictions: Predictions) -> None:
    figure = figures.roofline(found, predictions)
    roofs = [trace for trace in figure.data if trace.mode == "lines"]
    assert roofs[0].name == "guessed before the run: 0.160 TFLOP/s, 20.0 GB/s"
    assert len(roofs) == 2
    # 160 GFLOP/s over 20 GB/s: 8 FLOP a byte.
    assert roofs[0].x[1] == 8
    assert list(roofs[0].y[1:]) == [160e9, 160e9]
    assert roofs[0].y[0] == pytest.approx(20e9 * roofs[0].x[0])
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert sum(len(trace.x) for trace in points) == len(found.points)
    single = next(i for i, one in enumerate(found.points) if one.shape == SHAPES[0])
    reached = predictions.work.flop[single] / time_s(SHAPES[0])
    assert any(y == pytest.approx(reached) for trace in points for y in trace.y)


def test_sensors_that_read_nothing_have_no_panel(run: CalibrationRun) -> None:
    assert run.series is not None
    figure = run_figures.sensors(run.series)
    assert figure is not None
    drawn = {trace.name: list(trace.y) for trace in figure.data}
    assert drawn == {
        "power, W": [90, None, 110],
        "utilisation, %": [50, 100, 100],
        "memory used, GiB": [1, 2, 2],
    }


def test_the_coverage_has_every_shape_and_marks_what_failed(found: Examined) -> None:
    figure = figures.coverage(found)
    assert figure is not None
    marks = [
        (x, y, symbol)
        for trace in figure.data
        if trace.text
        for x, y, symbol in zip(
            trace.x,
            trace.y,
            trace.marker.symbol
            if isinstance(trace.marker.symbol, tuple)
            else [trace.marker.symbol] * len(trace.x),
            strict=True,
        )
    ]
    assert len(marks) == len(SHAPES) + 2
    assert (16.0 * 128, 3000.0, "x") in marks
    assert (2.0, 64.0, "square") in marks
    assert (2048.0, 1.0, "circle") in marks  # nothing cached before
    assert sum(symbol == "circle" for _, _, symbol in marks) == len(SHAPES)


def test_parameters_are_told_from_those_that_the_run_does_not_tell(found: Examined) -> None:
    assert found.fit is not None
    fitted = found.fit.parameters
    figure = run_figures.parameters(fitted)
    told, untold = (trace for trace in figure.data if trace.mode == "markers")
    assert set(told.y) == {one.name for one in fitted if one.identified}
    assert set(untold.y) == {one.name for one in fitted if not one.identified}
    # No experts, no second GPU: nothing to be told of them.
    assert {"expert_compute", "collective"} <= set(untold.y)
    assert told.marker.color != untold.marker.color


def test_the_page_tells_the_run(page: str) -> None:
    text = text_of(page)
    assert text.count("<h2>") == 9
    for said in (
        "A processor (cpu)",
        "vllm 0.32.0",
        "max_num_batched_tokens",
        "finished",
        "the clock of the cores cannot be read",
        "2.000 GiB",
        "1,048,576",
        "KV cache: 2 GiB",
        "Not read on this machine: SM clock, temperature",
        "Clocks were held back by: power cap.",
        "out of memory",
    ):
        assert said in text
    # 44 J for 4 x 11 tokens; 44 tokens from 0 to 0.3 + 0.15 s; (150 - 50) / 10 ms.
    for cell in ("1.00 J", "97.8", "50.0 ms", "10.0 ms", "100 W"):
        assert f"<td>{cell}</td>" in text
    drawn = figures_of(page)
    assert len(drawn) == 7
    assert page.count("* plotly.js v") == 1
    assert Page(page).sources == []


def test_a_step_takes_its_power_for_its_time(page: str) -> None:
    # 100 W: from the longest prompt, over whose tokens the 3 ms are spread, to the shortest.
    prefill = next(line for line in text_of(page).splitlines() if line.startswith("<tr><td>prefill</td>"))
    low = 100 * time_s(StepShape(prompts=1, prompt_tokens=2048)) / 2048
    high = 100 * time_s(StepShape(prompts=1, prompt_tokens=16)) / 16
    assert f"<td>{low:.4f} to {high:.4f} J</td>" in prefill


@pytest.mark.parametrize(
    ("changed", "said", "drawn"),
    [
        ({"points": (), "serving": (), "series": None}, "No step was measured", 0),
        (
            {"points": (), "serving": (), "series": None, "engine": None, "memory": None, "notes": ()},
            "never started",
            0,
        ),
        (
            {
                "points": (StepPoint(shape=FAILED, measured_at=WHEN, failed="out of memory"),),
                "end": RunEnd.FAILED,
                "end_reason": "the engine died",
            },
            "failed: the engine died",
            3,  # sensors, coverage, serving
        ),
        ({"engine": None}, "engine is not recorded", 3),
        ({"points": tuple(map(point, SHAPES[: FEWEST_STEPS - 1]))}, "a fit needs", 6),
        ({"points": (point(SHAPES[0]),)}, "1 measured steps; a fit needs", 6),
        ({"points": (point(SHAPES[0], disturbed=("noise",)),)}, "a fit needs", 6),
        (
            {"points": tuple(point(shape, disturbed=("noise",)) for shape in SHAPES)},
            "of them disturbed</td><td>15",
            7,
        ),
        ({"points": (point(SHAPES[0]).model_copy(update={"times_s": (0.0,)}),)}, "No step was measured", 3),
    ],
)
def test_a_run_that_lacks_something_still_has_a_report(
    changed: dict[str, object], said: str, drawn: int
) -> None:
    run = made_run(**changed)
    page = report_page(run, made_operators(run))
    assert said in text_of(page)
    assert len(figures_of(page)) == drawn
    assert page.count("* plotly.js v") == bool(drawn)


def test_a_device_or_model_that_is_not_known_is_said(run: CalibrationRun) -> None:
    assert "the device is in no catalog" in text_of(report_page(run, None))
    target = run.target.model_copy(update={"config": {"model_type": "no such thing"}})
    text = text_of(report_page(made_run(target=target), made_operators(run)))
    assert "Steps cannot be predicted" in text
    assert "there are no residuals" in text


def test_nothing_that_a_run_says_is_run(run: CalibrationRun) -> None:
    """Every string of the file that has no form of its own is replaced."""

    def hostile(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {name: item if name in kept else hostile(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [hostile(item, key) for item in value]
        return HOSTILE if isinstance(value, str) and value else value

    kept = {
        "config",
        "run_id",
        "end",
        "device",
        "weight_dtype",
        "kv_dtype",
        "peak_flop_per_s",
        "engine_version",
    }
    kept |= {"confidence", "as_of", "vendor"}
    named = hostile(json.loads(run.model_dump_json()))
    page = report_page(CalibrationRun.model_validate(named), made_operators(run))
    assert "alert(1)>" not in page
    plain = report_page(run, made_operators(run))
    assert sorted(Page(page).tags) == sorted(Page(plain).tags)
    assert Page(page).sources == []
    assert len(figures_of(page)) == 7
    assert HOSTILE in text_of(page)


def test_a_report_is_written_whole_or_not_at_all(
    run: CalibrationRun, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("reports")
    write_report(run, made_operators(run), folder / "made.html")
    assert (folder / "made.html").read_text(encoding="utf-8").endswith("</html>\n")
    with pytest.raises(InputError, match="there is no folder"):
        write_report(run, made_operators(run), folder / "none" / "made.html")
    assert [path.name for path in folder.iterdir()] == ["made.html"]


def test_axes_name_powers_of_two_and_hold_every_point() -> None:
    axis = figures._token_axis("cached tokens before", [1.0, 3000.0])
    assert axis["ticktext"][0] == "0"
    assert len(axis["tickvals"]) <= 9
    assert axis["range"][0] < 0
    assert axis["range"][1] > math.log10(3000)
    one = figures._token_axis("tokens scheduled", [1.0])
    assert one["ticktext"] == ["1", "2"]
