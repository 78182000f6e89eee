"""The fields of the Memory page: one deployment of the sidebar's model. What is not empty stands in the URL."""

from collections.abc import Callable
from math import ceil
from typing import Literal, NamedTuple, TypeVar

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from planner.assemble.deployment import Engine, Formats
from planner.assemble.question import ANY, AUTO, Ask
from planner.catalog.load import find_gpu, gpus
from planner.catalog.models import bundled_models, load_model
from planner.domain.base import InputError
from planner.domain.deployment import LoraSlots
from planner.domain.plan import Plan
from planner.formulas.engine_defaults import NEWEST_TESTED_VERSION, server_defaults
from planner.ui import answers
from planner.ui.memory_answers import MemoryAsk

DEFAULT_GPU = "H100-SXM-80GB"
DEFAULT_SPECULATIVE_TOKENS = 4
SEED_KEY, BY_HAND_KEY = "memory_seed", "memory_by_hand"
UNSET: dict[str, str | int | None] = {"gpu": DEFAULT_GPU, "tp": None, "pp": None}
"""Fields that start from the plan, and which value of theirs does not stand in the URL."""
MOST_TOKENS = 100_000_000
AskedT = TypeVar("AskedT")


class Seed(NamedTuple):
    """The deployment that the Size page found, which the fields start from."""

    ask: Ask
    gpu: str
    tp: int
    pp: int
    formats: Formats

    @classmethod
    def of(cls, ask: Ask, plan: Plan) -> "Seed":
        """The seed that a plan is."""
        candidate = plan.candidate
        return cls(
            ask=ask,
            gpu=candidate.instance.gpu,
            tp=candidate.parallelism.tp,
            pp=candidate.parallelism.pp,
            formats=Formats(candidate.weight_dtype.value, candidate.kv_dtype.value),
        )


class RoomAsked(NamedTuple):
    """The length and the batch for which the room in the KV cache is told; None for the default."""

    context_tokens: int | None
    batch: int | None


class Defaults(NamedTuple):
    """What stands for an empty field, as its placeholder."""

    max_model_len: str
    max_num_seqs: str = "default"
    max_num_batched_tokens: str = "default"
    gpu_memory_utilization: str = "default"


def follow_the_plan() -> None:
    """Sets GPU and degrees to those of the cheapest plan of the question answered last, until the user sets them."""
    history: answers.History = st.session_state.get(answers.HISTORY_KEY, answers.History())
    seed: Seed | None = st.session_state.get(SEED_KEY)
    if seed is None and any(f"memory_{name}" in st.query_params for name in UNSET):
        _set_by_hand()
    if (
        history.ask is None
        or (seed is not None and seed.ask == history.ask)
        or BY_HAND_KEY in st.session_state
    ):
        return
    plans = answers.answered(history.ask).recommendation.plans
    if not plans:
        return
    seed = Seed.of(history.ask, plans[0])
    st.session_state[SEED_KEY] = seed
    for name, value in zip(UNSET, (seed.gpu, seed.tp, seed.pp if seed.pp > 1 else None), strict=True):
        key = f"memory_{name}"
        if key not in st.session_state and value != UNSET[name]:
            st.query_params[key] = str(value)  # a field that was never drawn does not write it
        st.session_state[key] = value


def _set_by_hand() -> None:
    st.session_state[BY_HAND_KEY] = True


def typical_request_tokens() -> int:
    """Prompt and answer of the sidebar's mean request."""
    fields = st.session_state[answers.FIELDS_KEY]
    tokens = float(fields.get("input_tokens") or 0.0) + float(fields.get("output_tokens") or 0.0)
    return max(1, min(ceil(tokens), MOST_TOKENS))


def memory_inputs() -> tuple[MemoryAsk, RoomAsked]:
    """Draws the fields and gives what they ask."""
    return deployment_inputs(_room)


def deployment_inputs(beside: Callable[[Defaults], AskedT]) -> tuple[MemoryAsk, AskedT]:
    """Draws the fields of a deployment, and `beside` among them; gives what both ask."""
    fields = st.session_state[answers.FIELDS_KEY]
    model = str(fields["model"])
    left, right = halves()
    with left:
        gpu = _gpu()
        version = _version(str(fields["engine_version"]))
    with right:
        tp = _number(
            "TP",
            "tp",
            most=64,
            placeholder="smallest",
            about="Tensor-parallel degree (--tensor-parallel-size). Empty: the smallest that fits.",
        )
        pp = _number(
            "PP",
            "pp",
            most=64,
            placeholder="1",
            about="Pipeline-parallel degree (--pipeline-parallel-size): GPUs that divide the layers. Empty: 1.",
        )
    defaults = _defaults(model, gpu, version, fields.get("max_model_len"))
    engine = _limits(defaults)._replace(engine_version=version)
    left, right = halves("bottom")
    with left:
        asked = beside(defaults)
    with right:
        ep = _switch(
            "Expert parallel", "ep", "Experts are spread over the GPUs whole (--enable-expert-parallel)."
        )
        eager = _switch("Enforce eager", "enforce_eager", "No CUDA graphs are captured (--enforce-eager).")
    with st.expander("LoRA, draft model, offloading and more flags", icon=":material/tune:"):
        engine = _more(engine._replace(enforce_eager=eager))
    length = engine.max_model_len or fields.get("max_model_len")
    engine = engine._replace(max_model_len=int(length) if length else None)
    ask = MemoryAsk(model, gpu, tp, pp or 1, ep=ep, formats=_formats(fields), engine=engine)
    return ask, asked


def _room(defaults: Defaults) -> RoomAsked:
    return RoomAsked(
        _number(
            "Sequence length",
            "context_tokens",
            placeholder=f"{typical_request_tokens()}",
            about="Say how many sequences of so many tokens are held at once. "
            "Empty: prompt and answer of the sidebar.",
        ),
        _number(
            "Batch",
            "batch",
            placeholder=defaults.max_num_seqs,
            about="Say how long so many sequences held at once can be. Empty: max_num_seqs.",
        ),
    )


def halves(vertical_alignment: Literal["top", "bottom"] = "top") -> tuple[DeltaGenerator, DeltaGenerator]:
    """Room for two things on the left and two on the right; on a phone the right half goes below the left."""
    left, right = st.columns(2, gap="xsmall", vertical_alignment=vertical_alignment)
    left, right = (half.container(horizontal=True, gap="xsmall", wrap=False) for half in (left, right))
    return left, right


def _gpu() -> str:
    names = [gpu.name for gpu in gpus() if gpu.vllm_backend]
    return st.selectbox(
        "GPU",
        names,
        index=names.index(DEFAULT_GPU),
        key="memory_gpu",
        bind="query-params",
        on_change=_set_by_hand,
        help="The accelerator. It starts as that of the cheapest plan on the Size page.",
    )


def _version(of_sidebar: str) -> str:
    text = st.text_input(
        "vLLM version",
        key="memory_engine_version",
        bind="query-params",
        placeholder=of_sidebar or NEWEST_TESTED_VERSION,
        help="Memory follows the release, for example 0.11.0. Empty: the sidebar's, else the newest known.",
    )
    return (text or "").strip() or of_sidebar


def _defaults(model: str, gpu: str, version: str, of_sidebar: object) -> Defaults:
    """What vLLM would choose; in words where the model or the version is not understood."""
    try:
        length = of_sidebar or load_model(model).max_position
        chosen = server_defaults(find_gpu(gpu), version)
    except InputError:
        return Defaults("the model's")
    return Defaults(
        f"{length}",
        f"{chosen.max_num_seqs}",
        f"{chosen.max_num_batched_tokens}",
        f"{chosen.gpu_memory_utilization:g}",
    )


def _limits(defaults: Defaults) -> Engine:
    left, right = halves()
    with left:
        length = _number(
            "Max model length",
            "max_model_len",
            placeholder=defaults.max_model_len,
            about="--max-model-len: one request of so many tokens must fit. Empty: the sidebar's longest request, "
            "else the model's own.",
        )
        seqs = _number(
            "Max sequences",
            "max_num_seqs",
            placeholder=defaults.max_num_seqs,
            about="--max-num-seqs: sequences of one step. Empty: vLLM's default for this GPU.",
        )
    with right:
        tokens = _number(
            "Batched tokens",
            "max_num_batched_tokens",
            placeholder=defaults.max_num_batched_tokens,
            about="--max-num-batched-tokens: tokens of one step. Empty: vLLM's default for this GPU.",
        )
        utilization = st.number_input(
            "GPU utilization",
            min_value=0.0,
            max_value=1.0,
            value=None,
            step=0.01,
            format="%g",
            key="memory_gpu_memory_utilization",
            bind="query-params",
            placeholder=defaults.gpu_memory_utilization,
            help="--gpu-memory-utilization: the share of the card that the engine may use. Empty: vLLM's default.",
        )
    return Engine(
        max_model_len=length,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        gpu_memory_utilization=utilization,
    )


def _more(engine: Engine) -> Engine:
    """Flags that few deployments need."""
    left, right = halves()
    with left:
        loras = _number(
            "LoRA slots",
            "max_loras",
            most=1024,
            placeholder="none",
            about="--max-loras: adapters on the card at once (with --enable-lora). Empty: no adapters.",
        )
        rank = _number(
            "LoRA rank",
            "max_lora_rank",
            most=1024,
            placeholder=f"{LoraSlots().max_lora_rank}",
            disabled=loras is None,
            about="--max-lora-rank: the largest rank of an adapter. Empty: vLLM's default.",
        )
    with right:
        draft = st.selectbox(
            "Draft model",
            [model.name for model in bundled_models()],
            index=None,
            key="memory_draft_model",
            bind="query-params",
            accept_new_options=True,
            placeholder="none",
            help="Speculative decoding with this model beside the other. A bundled model, or type a Hugging Face id.",
        )
        speculative = _number(
            "Draft tokens",
            "num_speculative_tokens",
            most=64,
            placeholder=f"{DEFAULT_SPECULATIVE_TOKENS}",
            disabled=draft is None,
            about="Tokens that the draft model proposes in each step (num_speculative_tokens).",
        )
    left, right = halves("bottom")
    with left:
        offloaded_gib = st.number_input(
            "KV offload, GiB",
            min_value=0.0,
            value=None,
            step=16.0,
            format="%g",
            key="memory_kv_offloading_gib",
            bind="query-params",
            placeholder="none",
            help="--kv-offloading-size: host memory for KV blocks that leave the card, all GPUs together.",
        )
    with right.container(horizontal=True):
        caching = _switch("Prefix caching", "prefix_caching", "--enable-prefix-caching.", on=True)
        hybrid = _switch(
            "Hybrid KV manager",
            "hybrid_kv_cache_manager",
            "Off: every layer is paged like full attention (--disable-hybrid-kv-cache-manager).",
            on=True,
        )
        multimodal = _switch(
            "Multimodal",
            "multimodal",
            "Off: no images or videos are taken, so their encoder is not profiled (--limit-mm-per-prompt 0).",
            on=True,
        )
    return engine._replace(
        enable_lora=loras is not None,
        max_loras=loras,
        max_lora_rank=rank if loras is not None else None,
        draft_model=draft,
        num_speculative_tokens=(speculative or DEFAULT_SPECULATIVE_TOKENS) if draft else None,
        kv_offloading_gib=offloaded_gib or None,
        prefix_caching=caching,
        hybrid_kv_cache_manager=hybrid,
        multimodal=multimodal,
    )


def _number(
    label: str,
    name: str,
    *,
    about: str,
    most: int = MOST_TOKENS,
    placeholder: str | None = None,
    disabled: bool = False,
) -> int | None:
    return st.number_input(
        label,
        min_value=1,
        max_value=most,
        value=None,
        key=f"memory_{name}",
        bind="query-params",
        on_change=_set_by_hand if name in UNSET else None,
        placeholder=placeholder,
        disabled=disabled,
        help=about,
    )


def _switch(label: str, name: str, about: str, *, on: bool = False) -> bool:
    return st.toggle(label, value=on, key=f"memory_{name}", bind="query-params", help=about)


def _formats(fields: dict[str, object]) -> Formats:
    """The sidebar's formats; for `any` those of the plan on the Size page, else the checkpoint's own."""
    seed: Seed | None = st.session_state.get(SEED_KEY)
    found = seed.formats if seed is not None and seed.ask.model == fields["model"] else Formats()
    weight, kv = str(fields["weight_dtype"]), str(fields["kv_dtype"])
    return Formats(found.weight if weight == ANY else weight or AUTO, found.kv if kv == ANY else kv or AUTO)
