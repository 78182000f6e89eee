"""The frame of the dashboard: page title, top navigation, sidebar, then the page."""

from pathlib import Path

import streamlit as st

from planner.ui.forgetting import forget_what_was_refitted
from planner.ui.inputs import sidebar

SIDEBAR_PX = 340
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#0f6b62"/>'
    '<path d="M3 12V8h2.5v4zm3.7 0V4h2.6v8zm3.8 0V6H13v6z" fill="#fff"/></svg>'
)
"""Bars on green; drawn here because an icon's name would be fetched from the network."""
VIEWS = Path(__file__).resolve().parent / "views"


def run() -> None:
    """Draws the dashboard; called once per interaction."""
    forget_what_was_refitted()
    st.set_page_config(
        page_title="LLM serving planner",
        page_icon=FAVICON,
        layout="wide",
        initial_sidebar_state=SIDEBAR_PX,
    )
    page = st.navigation(
        [
            st.Page(VIEWS / "size.py", title="Size", icon=":material/straighten:", default=True),
            st.Page(VIEWS / "compare.py", title="Compare", icon=":material/scatter_plot:"),
            st.Page(VIEWS / "memory.py", title="Memory", icon=":material/memory:"),
            st.Page(VIEWS / "simulate.py", title="Simulate", icon=":material/timeline:"),
            st.Page(VIEWS / "step.py", title="Step", icon=":material/stacked_bar_chart:"),
            st.Page(VIEWS / "calibration.py", title="Calibration", icon=":material/tune:"),
            st.Page(VIEWS / "catalog.py", title="Catalog", icon=":material/menu_book:"),
        ],
        position="top",
    )
    with st.sidebar:
        sidebar()
    page.run()
