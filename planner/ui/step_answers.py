"""From the fields of the Step page to its answer; equal fields are answered once."""

from typing import NamedTuple

import pandas as pd
import streamlit as st
from streamlit import column_config

from planner.domain.units import seconds_to_ms
from planner.export.breakdown import (
    OPERATOR_TITLES,
    by_time,
    layers_title,
    relief_rows,
)
from planner.formulas.breakdown import Breakdown
from planner.planning.explain import StepAsked, StepExplained, explained
from planner.planning.predict import Case
from planner.ui.answers import facts
from planner.ui.memory_answers import MemoryAsk, memory_answered

COLUMN_CONFIG = {
    **{name: column_config.NumberColumn(format="%.3f") for name in ("Time, ms", "Roofline, ms", "Step, ms")},
    "Share": column_config.ProgressColumn(format="%.1f %%", min_value=0.0, max_value=100.0),
    "Roofline / time": column_config.NumberColumn(
        format="%.0f %%", help="100 %: as fast as the data sheet allows."
    ),
    "Saved": column_config.ProgressColumn(format="%.1f %%", min_value=0.0, max_value=100.0),
    "Binds": column_config.TextColumn(
        help="What the part would gain most from: compute, memory bandwidth, latency of kernels, communication, host."
    ),
}


class StepAnswer(NamedTuple):
    """A deployment, and one of its steps taken apart."""

    case: Case
    step: StepExplained


@st.cache_resource(ttl="1h", max_entries=24, show_spinner=False)
def step_answered(ask: MemoryAsk, asked: StepAsked) -> StepAnswer:
    """The answer for one step of a deployment. Raises `InputError` where a field is not legal."""
    case = memory_answered(ask).case
    return StepAnswer(case, explained(case, asked, facts(False, None)))


def part_table(found: Breakdown) -> pd.DataFrame:
    """Every part of the step, longest first."""
    return pd.DataFrame.from_records(
        [
            {
                "Layers": layers_title(part),
                "Operator": OPERATOR_TITLES[part.operator],
                "Time, ms": seconds_to_ms(part.time_s),
                "Share": 100 * part.time_s / found.step_s,
                "Roofline, ms": None if part.roofline_s is None else seconds_to_ms(part.roofline_s),
                "Roofline / time": None if part.efficiency_ratio is None else 100 * part.efficiency_ratio,
                "Binds": part.binds.value,
            }
            for part in by_time(found)
        ]
    )


def relief_table(found: Breakdown) -> pd.DataFrame:
    """What the step would take with each resource infinitely fast, largest gain first."""
    return pd.DataFrame.from_records(
        [
            {
                "Infinitely fast": what.value,
                "Step, ms": seconds_to_ms(time_s),
                "Saved": 100 * saved,
            }
            for what, time_s, saved in relief_rows(found)
        ]
    )
