"""One calibration run in detail: its errors, its figures, its tables, and everything of it as a file."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from planner.domain.base import InputError
from planner.export.calibration_figures import coverage, parity_of_steps, residuals, roofline
from planner.export.calibration_run_figures import sensors
from planner.export.table import csv_text
from planner.ui import calibration_tables as tables
from planner.ui.calibration_answers import RunAnswer
from planner.ui.format import percent
from planner.ui.memory_inputs import halves
from planner.ui.uploads import without_folder

CHART = {"displayModeBar": False}
LEFT_OUT = "A fit of this run alone, each step predicted without it"
PARITY_TITLES = {"before the fit": "today", "fitted to this run": "left out"}
"""What the panels of the report's figure show here."""


def plain(text: str) -> str:
    """Words of a file as Markdown shows them: no formula, no link, no emphasis."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#$~|:" else sign for sign in text)


def problem(error: InputError | str) -> str:
    """One clear line, whatever a file put into it."""
    return plain(without_folder(" ".join(str(error).split()))[:500])


def ratio(value: float | None) -> str:
    """A share in percent, or that there is none."""
    return "not known" if value is None else percent(value)


def frame(rows: pd.DataFrame, key: str) -> None:
    """A table as this page shows them."""
    st.dataframe(
        rows,
        hide_index=True,
        height="content",
        key=key,
        placeholder="",
        column_config=tables.COLUMN_CONFIG,
    )


def heading(text: str, about: str = "") -> None:
    """What stands above a table or a figure."""
    st.markdown(f"**{text}**", help=about or None)


def details(answer: RunAnswer, key: str) -> None:
    """Everything about one run; `key` tells the widgets of two runs on one page apart."""
    headline(answer)
    tiles(answer)
    for line in answer.problems:
        st.warning(problem(line), icon=":material/info:")
    with np.errstate(all="ignore"):
        figures(answer, key)
    if answer.regions:
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
            heading("|Predicted / measured − 1| of its steps", "Medians by kind and tokens of a step.")
            points_download(answer, key)
        before = "Before" if answer.today_s is None else "Today"
        frame(tables.region_table(answer.regions, before=before), f"calibration_{key}_regions")
    elif answer.run.points:
        points_download(answer, key)
    more(answer, key)


def headline(answer: RunAnswer) -> None:
    """What was measured on what."""
    run = answer.run
    target, machine, engine = run.target, run.machine, run.engine
    parts = [
        without_folder(target.model),
        f"{target.tp} × {machine.gpu}",
        f"{target.weight_dtype.value} weights",
        f"KV {target.kv_dtype.value}",
        f"vLLM {engine.engine_version}" if engine is not None else "the engine did not start",
        tables.END_TITLES[run.end],
    ]
    st.markdown(" · ".join(map(plain, parts)))
    if run.end_reason:
        st.caption(problem(run.end_reason))


def tiles(answer: RunAnswer) -> None:
    """The figures that a run is judged by."""
    run, points = answer.run, answer.examined.points
    disturbed = sum(bool(point.disturbed) for point in points)
    left, right = halves()
    with left:
        tile(
            "Left-out error",
            ratio(answer.left_out_ratio),
            f"repetitions spread {ratio(answer.noise_ratio)}",
            f"Median of |predicted / measured - 1|. {LEFT_OUT}; to first order. Below, how far the repetitions of one "
            "step lie from their median: no prediction can be much better.",
        )
        tile(
            "Today's error",
            ratio(answer.today_ratio),
            "fitted to runs" if answer.fit is not None else "without any run",
            f"The same by {today(answer)}.",
        )
    with right:
        tile(
            "Shapes",
            f"{len(points):,}",
            f"{disturbed:,} disturbed",
            "Steps measured, each by the median of its repetitions. Disturbed: others used the device, or it "
            "throttled, every time they were tried.",
        )
        failed = sum(bool(point.failed) for point in run.points)
        tile(
            "Points tried",
            f"{len(run.points):,}",
            f"{failed:,} failed",
            "With repetitions of disturbed ones. Failed: out of memory or time, which lowers the grid.",
        )


def tile(label: str, value: str, below: str, about: str) -> None:
    """A figure with what qualifies it."""
    st.metric(
        label,
        value,
        delta=below,
        delta_color="off",
        delta_arrow="off",
        border=True,
        height="stretch",
        help=about,
    )


def today(answer: RunAnswer) -> str:
    """What predictions for the run's device rest on now."""
    if answer.fit is not None:
        return f"the coefficients that predictions rest on now, fitted to runs on {answer.fit.fitted_on}"
    steps = answer.examined.steps
    if steps is not None and steps.deployment.is_plain:
        return "assumed efficiencies, since no kernel table covers this device"
    return "kernel tables and what is known of hosts, since no run was fitted for this device"


def figures(answer: RunAnswer, key: str) -> None:
    """Parity by two sets of coefficients, the map of what was measured, and what else the run tells."""
    found, predictions = answer.examined, answer.examined.predictions
    if predictions is not None and answer.today_s is not None:
        heading(
            "Predicted against measured",
            f"Today: by {today(answer)}. Left out: {LEFT_OUT[:1].lower()}{LEFT_OUT[1:]}; the strip holds 90 % "
            "of these. Hollow: the step was disturbed.",
        )
        shown = predictions._replace(before_s=answer.today_s, fitted_s=predictions.left_out_s)
        figure = parity_of_steps(found, shown)
        figure.for_each_annotation(lambda title: title.update(text=PARITY_TITLES.get(title.text, title.text)))
        figure.update_xaxes(dtick="D2", exponentformat="none")
        figure.update_yaxes(dtick="D2", exponentformat="none")
        draw(figure, f"{key}_parity")
    covered = coverage(found)
    if covered is not None:
        heading("Shapes that were measured", "Coloured by the error of their prediction.")
        draw(covered, f"{key}_coverage")
    watched = None if answer.run.series is None else sensors(answer.run.series)
    if predictions is None and watched is None:
        return
    with st.expander("Residuals, roofline, sensors over time", icon=":material/query_stats:"):
        if predictions is not None:
            heading("Predicted / measured − 1", "Bars: the spread of the repetitions.")
            draw(residuals(found, predictions), f"{key}_residuals")
            heading(
                "Roofline",
                "Work of a step over what moves for it, under the rates that the device could reach.",
            )
            draw(roofline(found, predictions), f"{key}_roofline")
        if watched is not None:
            heading("Sensors over time")
            draw(watched, f"{key}_sensors")


def draw(figure: go.Figure, key: str) -> None:
    """A figure as this page shows them."""
    st.plotly_chart(figure, key=f"calibration_{key}", config=CHART)


def points_download(answer: RunAnswer, key: str) -> None:
    """Every point with everything that is known of it."""
    st.download_button(
        "Every point, CSV",
        data=lambda: csv_text(tables.POINT_COLUMNS, tables.point_rows(answer)),
        file_name=f"{answer.run.run_id}.csv",
        mime="text/csv",
        on_click="ignore",
        icon=":material/download:",
        key=f"calibration_{key}_csv",
        help="All points: repetitions, sensors, predictions; disturbed and failed ones too.",
    )


def more(answer: RunAnswer, key: str) -> None:
    """Serving runs, memory, and what the run says is missing."""
    run = answer.run
    serving, memory = tables.serving_table(answer), tables.memory_table(run)
    if not serving.empty:
        heading(
            "Served in the engine's own process",
            "Closed loops without network. Predicted by the simulated scheduler on a fit of the run's steps alone, so "
            "these are left out too.",
        )
        frame(serving, f"calibration_{key}_serving")
    if not memory.empty:
        heading("Memory")
        frame(memory, f"calibration_{key}_memory")
    for note in run.notes:
        st.caption(problem(f"{note[:1].upper()}{note[1:]}."))
