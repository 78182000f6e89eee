"""The frame of the dashboard: page title, top navigation, sidebar, then the page."""

from pathlib import Path

import streamlit as st

from planner.ui.inputs import sidebar

SIDEBAR_PX = 340
VIEWS = Path(__file__).resolve().parent / "views"


def run() -> None:
    """Draws the dashboard; called once per interaction."""
    st.set_page_config(
        page_title="LLM serving planner",
        layout="wide",
        initial_sidebar_state=SIDEBAR_PX,
    )
    page = st.navigation(
        [
            st.Page(VIEWS / "size.py", title="Size", icon=":material/straighten:", default=True),
            st.Page(VIEWS / "compare.py", title="Compare", icon=":material/scatter_plot:"),
            st.Page(VIEWS / "catalog.py", title="Catalog", icon=":material/menu_book:"),
        ],
        position="top",
    )
    with st.sidebar:
        sidebar()
    page.run()
