"""The Step page, run as Streamlit runs it, against what the core says."""

from collections.abc import Callable
from functools import cache

import pytest
from streamlit.testing.v1 import AppTest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.domain.units import seconds_to_ms
from planner.export.breakdown import LIMIT_TITLES, OPERATOR_TITLES, layers_title, roofline_s, type_times
from planner.formulas.breakdown import Breakdown
from planner.planning.explain import StepAsked, StepExplained, explained
from planner.ui.format import latency
from planner.ui.memory_inputs import DEFAULT_GPU
from planner.ui.step_chart import step_bars

Page = Callable[..., AppTest]
MODEL = "openai/gpt-oss-120b"
QUERY = {"model": MODEL, "memory_tp": "2", "step_batch": "32", "step_context_tokens": "2048"}


@cache
def core(batch: int = 32, context: int = 2048, prompt: int = 0) -> StepExplained:
    case = deployment(MODEL, gpu_named(DEFAULT_GPU), parallelism_of(2), Formats(), Engine())
    return explained(case, StepAsked(batch, context, prompt), facts_for())


def taken_apart(step: StepExplained) -> Breakdown:
    assert step.breakdown is not None
    return step.breakdown


def metrics(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def assert_clean(app: AppTest) -> None:
    assert not app.exception
    assert not app.error


def test_the_page_says_what_the_core_says(page: Page) -> None:
    app = page("step", **QUERY)
    assert_clean(app)
    found = taken_apart(core())
    assert metrics(app) == {
        "Step": latency(found.step_s),
        "Roofline": latency(roofline_s(found.parts)),
        "Binds": LIMIT_TITLES[core().binds],
        "Next limit": LIMIT_TITLES[core().next_limit],
    }
    parts, relief = (frame.value for frame in app.dataframe)
    assert parts["Time, ms"].sum() == pytest.approx(seconds_to_ms(found.step_s))
    assert parts["Share"].sum() == pytest.approx(100)
    assert len(parts) == len(found.parts)
    assert relief["Step, ms"].is_monotonic_increasing
    assert relief["Infinitely fast"][0] == LIMIT_TITLES[found.binds.value]
    assert len(app.get("plotly_chart")) == 1
    assert any("sequences of 2,048 tokens" in caption.value for caption in app.caption)
    assert {button.label for button in app.get("download_button")} == {"CSV"}


def test_a_prompt_is_added_to_the_step(page: Page) -> None:
    app = page("step", **QUERY, step_prompt_tokens="4000")
    assert_clean(app)
    assert metrics(app)["Step"] == latency(taken_apart(core(prompt=4000)).step_s)
    assert OPERATOR_TITLES["attention_prefill"] in set(app.dataframe[0].value["Operator"])  # type: ignore[index]
    app.number_input(key="step_batch").set_value(0).run()
    assert_clean(app)
    assert metrics(app)["Step"] == latency(taken_apart(core(0, 2048, 4000)).step_s)


def test_a_full_cache_is_said(page: Page) -> None:
    app = page("step", **{**QUERY, "step_batch": "500", "step_context_tokens": "100000"})
    assert_clean(app)
    assert metrics(app)["Binds"] == "KV cache"
    assert any("KV cache holds" in warning.value for warning in app.warning)


def test_without_fields_there_is_an_answer(page: Page) -> None:
    app = page("step")
    assert_clean(app)
    assert len(app.metric) == 4


def test_what_does_not_start_says_why(page: Page) -> None:
    app = page("step", **{**QUERY, "memory_tp": "3"})
    assert_clean(app)
    assert not app.metric
    assert app.warning[0].value.startswith("Does not start: tensor parallel size 3 does not divide")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"step_batch": "0"}, "batch and prompt_tokens are both 0"),
        ({"step_batch": "50000"}, "max_num_batched_tokens"),
        ({"step_context_tokens": "99999999"}, "context_tokens must be from 1"),
        ({"step_prompt_tokens": "9000"}, "max_num_batched_tokens"),
        ({"model": "no-such-model"}, "neither a path nor a bundled name"),
        ({"memory_engine_version": "1999"}, "engine_version"),
    ],
)
def test_bad_input_is_one_clear_line(page: Page, query: dict[str, str], said: str) -> None:
    app = page("step", **{**QUERY, **query})
    assert not app.exception
    assert len(app.error) == 1
    assert said in app.error[0].value
    assert "\n" not in app.error[0].value


def test_values_that_mean_nothing_fall_back(page: Page) -> None:
    app = page("step", **{**QUERY, "step_batch": "-3", "step_context_tokens": "many"})
    assert_clean(app)
    assert app.number_input(key="step_batch").value is None


def test_every_field_has_help(page: Page) -> None:
    app = page("step", **QUERY)
    fields = [*app.number_input, *app.selectbox, *app.text_input, *app.toggle]
    assert [field.label for field in fields if not field.help] == []


def test_bars_add_up_and_the_roofline_is_marked() -> None:
    found = taken_apart(core(prompt=1000))
    figure = step_bars(found)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    (marks,) = (trace for trace in figure.data if trace.type == "scatter")
    assert sum(sum(trace.x) for trace in bars) == pytest.approx(seconds_to_ms(found.step_s))
    assert [trace.name for trace in bars] == [
        OPERATOR_TITLES[operator]
        for operator in OPERATOR_TITLES
        if operator in {part.operator for part in found.parts}
    ]
    assert len({trace.marker.color for trace in bars}) == len(bars)
    assert set(marks.y) == {layers_title(part) for part in found.parts}
    for one, x in zip(type_times(found), marks.x, strict=True):
        assert x == pytest.approx(seconds_to_ms(one.roofline_s))
        assert x <= seconds_to_ms(one.time_s)
    assert figure.layout.barmode == "stack"
