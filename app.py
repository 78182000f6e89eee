"""Entry of the dashboard: `streamlit run app.py`."""

from planner.ui.shell import run

run()
