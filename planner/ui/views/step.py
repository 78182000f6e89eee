"""Step: where the time of one engine step goes, against the data sheet, and what binds it."""

import streamlit as st

from planner.domain.base import InputError
from planner.export.breakdown import (
    LIMIT_TITLES,
    PART_COLUMNS,
    kv_sentence,
    ridge_sentence,
    roofline_s,
    step_part_rows,
)
from planner.export.format import count
from planner.export.table import csv_text
from planner.formulas.breakdown import Breakdown
from planner.planning.explain import StepAsked
from planner.ui.format import latency, percent
from planner.ui.memory_inputs import (
    MOST_TOKENS,
    Defaults,
    deployment_inputs,
    follow_the_plan,
    halves,
    typical_request_tokens,
)
from planner.ui.step_answers import COLUMN_CONFIG, StepAnswer, part_table, relief_table, step_answered
from planner.ui.step_chart import step_bars
from planner.ui.uploads import without_folder

DEFAULT_BATCH = 32
CHART = {"displayModeBar": False}


def number(label: str, name: str, default: int, about: str, *, least: int = 0) -> int:
    """A field of the step; its default where it is empty."""
    value = st.number_input(
        label,
        min_value=least,
        max_value=MOST_TOKENS,
        value=None,
        key=f"step_{name}",
        bind="query-params",
        placeholder=f"{default}",
        help=about,
    )
    return default if value is None else int(value)


def step_inputs(_defaults: Defaults) -> StepAsked:
    """What the step computes."""
    return StepAsked(
        number("Batch", "batch", DEFAULT_BATCH, "Sequences that decode one token each in the step."),
        number(
            "Context",
            "context_tokens",
            typical_request_tokens(),
            "Tokens of each of them in the KV cache. Empty: prompt and answer of the sidebar.",
            least=1,
        ),
        number("Prompt", "prompt_tokens", 0, "Tokens of one whole prompt in the same step. Empty: none."),
    )


def headline(answer: StepAnswer) -> None:
    """What deployment, and what step of it."""
    case, asked = answer.case, answer.step.asked
    layout = case.parallelism
    degrees = f"TP {layout.tp}" + (f", PP {layout.pp}" if layout.pp > 1 else "")
    work = (
        [f"{count(asked.batch, 'sequence')} at {count(asked.context_tokens, 'token')}"] if asked.batch else []
    )
    work += [f"a prompt of {count(asked.prompt_tokens, 'token')}"] if asked.prompt_tokens else []
    padded = answer.step.padded_tokens
    work += [f"padded to {padded:,} tokens"] if padded > asked.tokens else []
    parts = [without_folder(case.model.name), f"{layout.gpus} × {case.gpu.name}", degrees, *work]
    st.markdown(" · ".join(parts).replace("$", "\\$"))


def tiles(answer: StepAnswer, found: Breakdown) -> None:
    """The figures that a step is judged by."""
    step, bound_s = answer.step, roofline_s(found.parts)
    left, right = halves()
    with left:
        st.metric(
            "Step",
            latency(found.step_s),
            border=True,
            height="stretch",
            help="One engine iteration, the host's share included.",
        )
        st.metric(
            "Roofline",
            latency(bound_s),
            delta=f"{percent(bound_s / found.step_s)} of the step",
            delta_color="off",
            delta_arrow="off",
            border=True,
            height="stretch",
            help="The same work at the data sheet's rates, one operator after the other.",
        )
    with right:
        st.metric(
            "Binds",
            LIMIT_TITLES[step.binds],
            border=True,
            height="stretch",
            help="What the step would gain most from: compute, memory bandwidth, latency of kernels, communication or "
            "host; KV cache where it holds no further sequence.",
        )
        st.metric(
            "Next limit",
            LIMIT_TITLES[step.next_limit],
            border=True,
            height="stretch",
            help="What would bind if that did not.",
        )


def answered(answer: StepAnswer) -> None:
    """Everything about a step."""
    step, found = answer.step, answer.step.breakdown
    with head:
        headline(answer)
        if step.sized.refusal is not None:
            reason = step.sized.refusal.reason
            st.warning(f"Does not start: {reason}.".replace("$", "\\$"), icon=":material/block:")
        if found is not None:
            tiles(answer, found)
        for text in step.notes:
            st.warning(f"{text[:1].upper()}{text[1:]}.", icon=":material/info:")
    if found is not None:
        chart(answer, found)
        tables(found)


def chart(answer: StepAnswer, found: Breakdown) -> None:
    """The stacked bars, and what they do not show."""
    st.markdown("**Time by type of layer**", help="The marks are what the data sheet allows.")
    st.plotly_chart(step_bars(found), key="step_bars", config=CHART)
    for sentence in (
        kv_sentence(answer.step),
        ridge_sentence(answer.step, answer.case.engine.max_num_seqs),
    ):
        if sentence:
            st.caption(sentence)


def tables(found: Breakdown) -> None:
    """Every part, and what each resource would save."""
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
        st.caption("Every operator of every type of layer, longest first.", width="content")
        st.download_button(
            "CSV",
            data=lambda: csv_text(PART_COLUMNS, step_part_rows(found)),
            file_name="step.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            key="step_csv",
            help="This table with every column, for a spreadsheet or another program.",
        )
    st.dataframe(
        part_table(found),
        hide_index=True,
        height="content",
        key="step_parts",
        column_config=COLUMN_CONFIG,
        placeholder="",
    )
    st.caption("The step if one resource took no time at all.")
    st.dataframe(
        relief_table(found), hide_index=True, height="content", key="step_relief", column_config=COLUMN_CONFIG
    )


follow_the_plan()
head = st.container()
with st.container(border=True):
    ask, asked = deployment_inputs(step_inputs)
try:
    found_answer = step_answered(ask, asked)
except InputError as error:
    head.error(without_folder(str(error)), icon=":material/error:")
else:
    answered(found_answer)
