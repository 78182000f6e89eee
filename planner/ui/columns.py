"""How columns of plans are shown, wherever there is a table of them."""

from streamlit import column_config

PLAN_COLUMN_CONFIG = {
    "$/month": column_config.NumberColumn(format="localized", help="At the price shown, 730 h."),
    "$/M tokens": column_config.NumberColumn(format="$%.2f", help="Per million tokens at the mean load."),
    "Busy": column_config.NumberColumn(format="%g %%", help="Peak load over capacity within the promise."),
}
