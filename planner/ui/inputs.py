"""The sidebar: the question in the order a user thinks of it. What differs from the defaults stands in the URL."""

from collections.abc import Iterable, Sequence

import streamlit as st

from planner.assemble.question import ANY, AUTO
from planner.catalog.load import find_preset, presets
from planner.catalog.load import offers as catalog_offers
from planner.catalog.models import bundled_models
from planner.domain.base import InputError
from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Offer, Purchase
from planner.domain.plan import Reserve, Supply
from planner.domain.workload import Preset
from planner.ui import answers
from planner.ui.uploads import kept

DEFAULT_PRESET = "chat"
DEFAULT_MODEL = "meta-llama/Llama-3.1-70B"
WEIGHT_CHOICES = (AUTO, ANY, *(dtype.value for dtype in WeightDtype))
KV_CHOICES = (AUTO, "fp8", ANY)
UPLOAD_MB = 8

Fields = dict[str, object]
"""Flat values of an `Ask`, by its field names."""


def preset_fields(preset: Preset) -> dict[str, float]:
    """What a preset puts into the sidebar, by widget key; 0 ms promises nothing."""
    return {
        "requests_per_s": float(preset.requests_per_s),
        "input_tokens": float(preset.input_tokens),
        "output_tokens": float(preset.output_tokens),
        "prefix_hit_ratio": float(preset.prefix_hit_ratio),
        "arrival_cv": float(preset.arrival_cv),
        "ttft_p95_ms": float(preset.ttft_p95_ms or 0.0),
        "tpot_p95_ms": float(preset.tpot_p95_ms or 0.0),
    }


def sidebar() -> None:
    """Draws the sidebar and leaves the question, or what is wrong with it, for the pages."""
    st.session_state.setdefault(answers.FIELDS_KEY, {})
    preset = _preset()
    fields = {**_model(), **_traffic(preset), **_promise(preset)}
    supply, advanced = st.container(), st.expander("Advanced", icon=":material/tune:")
    with advanced:
        more = _advanced(preset)
    with supply:
        offers, st.session_state[answers.PROBLEM_KEY] = _offers(more)
        fields |= _supply(offers)
    st.session_state[answers.FIELDS_KEY] = fields | more


def _preset() -> Preset:
    chosen = st.selectbox(
        "Preset",
        [preset.name for preset in presets()],
        index=[preset.name for preset in presets()].index(DEFAULT_PRESET),
        key="preset",
        bind="query-params",
        on_change=_fill_from_preset,
        help="A typical workload. Choosing one fills traffic and promise below; change them as you like.",
    )
    preset = find_preset(chosen)
    st.caption(preset.description)
    return preset


def _fill_from_preset() -> None:
    for key, value in preset_fields(find_preset(st.session_state["preset"])).items():
        st.session_state[key] = value


def _model() -> Fields:
    with st.container(border=True):
        st.markdown("**Model**", help="What is served.")
        names = [model.name for model in bundled_models()]
        model = st.selectbox(
            "Model",
            names,
            index=names.index(DEFAULT_MODEL),
            key="model",
            bind="query-params",
            accept_new_options=True,
            label_visibility="collapsed",
            help="A bundled model, or type a Hugging Face id or the path of a config.json.",
        )
        dtype = st.selectbox(
            "Weights",
            WEIGHT_CHOICES,
            key="weight_dtype",
            bind="query-params",
            help=f"`{AUTO}`: as the checkpoint is. `{ANY}`: also the quantised formats that may be cheaper.",
        )
        own = _own_config()
    return {"model": own or model, "weight_dtype": dtype}


def _own_config() -> str | None:
    """Path of the config.json that the user uploaded or pasted; None where there is none."""
    with st.popover("Your own config.json", icon=":material/upload_file:", width="stretch"):
        st.caption("It takes the place of the model above. It is read as data; nothing in it is executed.")
        upload = st.file_uploader(
            "Upload",
            type="json",
            key="config_upload",
            max_upload_size=UPLOAD_MB,
            help="The config.json of the checkpoint, as on Hugging Face.",
        )
        pasted = st.text_area(
            "or paste", key="config_paste", height=160, help="The text of a config.json, braces included."
        )
    if upload is not None:
        name = "your-model.json" if upload.name == "config.json" else upload.name.rpartition("/")[2]
        return str(kept(upload.getvalue(), name))
    if pasted and pasted.strip():
        return str(kept(pasted.encode(), "pasted.json"))
    return None


def _traffic(preset: Preset) -> Fields:
    with st.container(border=True):
        st.markdown("**Traffic**", help="What users send on average, and how much more at the peak.")
        default = preset_fields(preset)
        rate = st.number_input(
            "Requests per second",
            min_value=0.0,
            value=default["requests_per_s"],
            step=1.0,
            format="%g",
            key="requests_per_s",
            bind="query-params",
            help="Mean rate over a day. The peak ratio says how much more arrives at the busiest time.",
        )
        left, right = st.columns(2)
        input_tokens = left.number_input(
            "Input tokens",
            min_value=0.0,
            value=default["input_tokens"],
            step=128.0,
            format="%g",
            key="input_tokens",
            bind="query-params",
            help="Mean prompt length, prefix-cache hits included.",
        )
        output_tokens = right.number_input(
            "Output tokens",
            min_value=0.0,
            value=default["output_tokens"],
            step=32.0,
            format="%g",
            key="output_tokens",
            bind="query-params",
            help="Mean answer length.",
        )
        peak = left.number_input(
            "Peak ratio",
            min_value=0.0,
            value=Reserve().peak_ratio,
            step=0.1,
            format="%g",
            key="peak_ratio",
            bind="query-params",
            help="Peak request rate over the mean one, 1 or more. Replicas are bought for the peak.",
        )
        hits = right.number_input(
            "Prefix hits",
            min_value=0.0,
            max_value=0.99,
            value=default["prefix_hit_ratio"],
            step=0.05,
            format="%g",
            key="prefix_hit_ratio",
            bind="query-params",
            help="Share of prompt tokens found in the prefix cache: shared system prompts, earlier turns. 0 to 0.99.",
        )
    return {
        "requests_per_s": rate,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "peak_ratio": peak,
        "prefix_hit_ratio": hits,
    }


def _promise(preset: Preset) -> Fields:
    with st.container(border=True):
        st.markdown(
            "**Latency promised**", help="95 of 100 requests shall be at least this fast. 0 promises nothing."
        )
        default = preset_fields(preset)
        left, right = st.columns(2)
        ttft = left.number_input(
            "TTFT p95, ms",
            min_value=0.0,
            value=default["ttft_p95_ms"],
            step=100.0,
            format="%g",
            key="ttft_p95_ms",
            bind="query-params",
            help="Time to first token, queueing included. 0: no promise.",
        )
        tpot = right.number_input(
            "TPOT p95, ms",
            min_value=0.0,
            value=default["tpot_p95_ms"],
            step=5.0,
            format="%g",
            key="tpot_p95_ms",
            bind="query-params",
            help="Time per output token after the first: 50 ms is 20 tokens a second. 0: no promise.",
        )
    return {"ttft_p95_ms": ttft or None, "tpot_p95_ms": tpot or None}


def _offers(fields: Fields) -> tuple[Sequence[Offer], str | None]:
    """What is for sale under the advanced settings; the catalog alone where the user's files are not understood."""
    untrusted, prices = bool(fields["include_untrusted"]), fields.get("prices")
    try:
        return answers.facts(untrusted, str(prices) if prices else None).offers, None
    except InputError as error:
        return catalog_offers(include_untrusted=untrusted), str(error)


def _supply(offers: Sequence[Offer]) -> Fields:
    with st.container(border=True):
        st.markdown("**Supply**", help="What may be bought. Empty fields allow everything.")
        purchases = st.multiselect(
            "Purchase",
            [purchase.value for purchase in Purchase],
            default=[Purchase.ON_DEMAND.value],
            key="purchase",
            bind="query-params",
            placeholder="any",
            help="How capacity is paid for. Reserved prices bind you for the term; spot can be taken back.",
        )
        providers = _choice(
            "Provider", "provider", {offer.instance.provider for offer in offers}, "Sellers of instances."
        )
        sold = [offer for offer in offers if not providers or offer.instance.provider in providers]
        regions = _choice(
            "Region", "region", {offer.price.region for offer in sold}, "Regions of the providers chosen."
        )
        gpus = _choice(
            "GPU", "gpu", {offer.instance.gpu for offer in sold}, "Accelerators of the providers chosen."
        )
        budget = st.number_input(
            "Budget, $/month",
            min_value=0.0,
            value=None,
            step=1000.0,
            format="%g",
            key="budget_usd_per_month",
            bind="query-params",
            placeholder="none",
            help="Dearer plans are turned down. Empty: no limit.",
        )
        previous = st.number_input(
            "You pay today, $/month",
            min_value=0.0,
            value=None,
            step=1000.0,
            format="%g",
            key="previous_usd_per_month",
            bind="query-params",
            placeholder="not given",
            help="What your present deployment costs, to state the saving against it.",
        )
        spare = st.number_input(
            "Spare replicas",
            min_value=0,
            max_value=1000,
            value=0,
            key="spare_replicas",
            bind="query-params",
            help="Replicas beyond what the peak needs: 1 is N+1.",
        )
    return {
        "purchase": tuple(purchases) or (ANY,),
        "provider": tuple(providers),
        "region": tuple(regions),
        "gpu": tuple(gpus),
        "budget_usd_per_month": budget or None,
        "previous_usd_per_month": previous or None,
        "spare_replicas": spare,
    }


def _choice(label: str, key: str, options: Iterable[str], about: str) -> list[str]:
    return st.multiselect(
        label,
        sorted(options),
        key=key,
        bind="query-params",
        placeholder="any",
        help=f"{about} Empty: any.",
    )


def _advanced(preset: Preset) -> Fields:
    left, right = st.columns(2)
    headroom = left.number_input(
        "Headroom",
        min_value=0.0,
        max_value=0.95,
        value=Reserve().headroom_ratio,
        step=0.05,
        format="%g",
        key="headroom_ratio",
        bind="query-params",
        help="Share of the capacity within the promise that is left unused even at the peak. 0 to 0.95.",
    )
    cv = right.number_input(
        "Burstiness",
        min_value=0.0,
        max_value=20.0,
        value=preset_fields(preset)["arrival_cv"],
        step=0.1,
        format="%g",
        key="arrival_cv",
        bind="query-params",
        help="Coefficient of variation of the gaps between requests: 0 even, 1 Poisson, above 1 bursts.",
    )
    max_tp = left.number_input(
        "Max TP",
        min_value=1,
        max_value=64,
        value=Supply().max_tp,
        key="max_tp",
        bind="query-params",
        help="Largest tensor-parallel degree: GPUs that share every layer.",
    )
    max_pp = right.number_input(
        "Max PP",
        min_value=1,
        max_value=16,
        value=Supply().max_pp,
        key="max_pp",
        bind="query-params",
        help="Largest pipeline-parallel degree: GPUs that divide the layers. Tried where memory asks for it.",
    )
    kv_dtype = st.selectbox(
        "KV cache",
        KV_CHOICES,
        key="kv_dtype",
        bind="query-params",
        help=f"`{AUTO}`: as the model computes. `fp8` halves the cache. `{ANY}`: the cheaper of both.",
    )
    max_model_len = st.number_input(
        "Longest request, tokens",
        min_value=1,
        max_value=100_000_000,
        value=None,
        key="max_model_len",
        bind="query-params",
        placeholder="twice prompt and answer",
        help="vLLM's --max-model-len: one request of this length must fit. Empty: twice the mean prompt and answer.",
    )
    version = st.text_input(
        "vLLM version",
        key="engine_version",
        bind="query-params",
        placeholder="newest known",
        help="Memory and defaults follow the release, for example 0.11.0. Empty: the newest known.",
    )
    untrusted = st.toggle(
        "Include untrusted facts",
        key="include_untrusted",
        bind="query-params",
        help="Also prices without a date or of low confidence, and GPUs whose speed only a data sheet tells.",
    )
    upload = st.file_uploader(
        "Your prices (CSV)",
        type="csv",
        key="prices_upload",
        max_upload_size=UPLOAD_MB,
        help="Columns: provider, instance_type, usd_per_hour or discount_ratio; the Catalog page has a template.",
    )
    fields: Fields = {
        "headroom_ratio": headroom,
        "arrival_cv": cv,
        "max_tp": max_tp,
        "max_pp": max_pp,
        "kv_dtype": kv_dtype,
        "max_model_len": max_model_len,
        "engine_version": (version or "").strip(),
        "include_untrusted": untrusted,
    }
    if upload is not None:
        fields["prices"] = kept(upload.getvalue(), "your-prices.csv")
    return fields
