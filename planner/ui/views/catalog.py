"""Catalog: the facts an answer rests on, each with its source and date, and the user's own prices."""

import streamlit as st

from planner.catalog.check import CatalogReport, check_catalog
from planner.catalog.load import gpus, instances, offers, presets
from planner.catalog.models import bundled_models
from planner.domain.base import InputError
from planner.domain.hardware import Purchase
from planner.ui import answers, tables
from planner.ui.format import count
from planner.ui.uploads import PRICE_TEMPLATE, without_folder


@st.cache_data(ttl="1h", show_spinner=False)
def report() -> CatalogReport:
    """The relations across all rows, tested."""
    return check_catalog()


@st.fragment
def price_tab() -> None:
    """Instances and prices, filtered."""
    untrusted = st.toggle(
        "Show untrusted prices",
        key="catalog_untrusted",
        help="Rows without a date or from a source of low confidence. A plan uses them only where you ask for it.",
    )
    rows = offers(include_untrusted=untrusted)
    left, middle, right = st.columns(3)
    providers = left.multiselect(
        "Provider",
        sorted({o.instance.provider for o in rows}),
        key="catalog_provider",
        placeholder="any",
        help="Seller.",
    )
    names = middle.multiselect(
        "GPU",
        sorted({o.instance.gpu for o in rows}),
        key="catalog_gpu",
        placeholder="any",
        help="Accelerator.",
    )
    ways = right.multiselect(
        "Purchase",
        list(Purchase),
        format_func=lambda way: tables.PURCHASE_TITLES[way],
        key="catalog_purchase",
        placeholder="any",
        help="How it is paid for.",
    )
    shown = [
        o
        for o in rows
        if (not providers or o.instance.provider in providers)
        and (not names or o.instance.gpu in names)
        and (not ways or o.price.purchase in ways)
    ]
    st.caption(f"{len(shown):,} of {count(len(rows), 'price')}, {count(len(instances()), 'instance type')}.")
    st.dataframe(tables.offer_table(shown), hide_index=True, key="catalog_prices", height=480)


def own_prices_tab() -> None:
    """How to bring prices, and what they changed."""
    st.markdown(
        "Upload your prices in the sidebar under *Advanced*. A row names an instance and either `usd_per_hour` or "
        "`discount_ratio`; an empty `region` or `purchase` means all. With `gpu` and `gpu_count` it may name an "
        "instance that the catalog does not have."
    )
    st.download_button(
        "Template",
        data=PRICE_TEMPLATE,
        file_name="my-prices.csv",
        mime="text/csv",
        on_click="ignore",
        icon=":material/download:",
        key="price_template",
        help="Three example rows: a contract price, a discount, your own hardware.",
    )
    prices = st.session_state[answers.FIELDS_KEY].get("prices")
    if prices is None:
        return
    try:
        mine = answers.facts(False, str(prices)).offers
    except InputError as error:
        st.error(without_folder(str(error)), icon=":material/error:")
        return
    catalog = set(offers())
    changed = [offer for offer in mine if offer not in catalog]
    st.success(f"{count(len(changed), 'price')} of yours in place of the catalog's.", icon=":material/check:")
    st.dataframe(tables.offer_table(changed), hide_index=True, key="own_prices")


def check_tab(found: CatalogReport) -> None:
    """What the tables hold, and what does not fit."""
    if found.ok:
        st.success(
            "Every row passes: names, references, rates, prices and dates fit together.",
            icon=":material/check:",
        )
    else:
        st.error(f"{count(len(found.problems), 'row')} do not fit.", icon=":material/error:")
        st.dataframe([problem.model_dump() for problem in found.problems], hide_index=True, key="problems")
    st.markdown(
        f"{count(found.gpus, 'GPU')}, {count(found.instances, 'instance type')} from "
        f"{count(len(found.providers), 'provider')}, {count(found.prices, 'price')} of which {found.trusted_prices:,} "
        f"are trusted, from {found.oldest_price} to {found.newest_price}; {found.stale_prices:,} of them are older "
        "than 90 days."
    )
    if found.exceptions:
        st.markdown("Known exceptions:\n" + "\n".join(f"- {exception}" for exception in found.exceptions))


gpu_tab, prices, model_tab, preset_tab, own, check = st.tabs(
    ["GPUs", "Instances and prices", "Models", "Presets", "Your prices", "Check"]
)
with gpu_tab:
    st.dataframe(tables.gpu_table(gpus()), hide_index=True, key="catalog_gpus", height=560, placeholder="")
with prices:
    price_tab()
with model_tab:
    st.dataframe(tables.model_table(bundled_models()), hide_index=True, key="catalog_models", height=560)
with preset_tab:
    st.dataframe(tables.preset_table(presets()), hide_index=True, key="catalog_presets")
with own:
    own_prices_tab()
with check:
    check_tab(report())
