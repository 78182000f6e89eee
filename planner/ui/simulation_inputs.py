"""The fields of the Simulate page: a deployment and its load. What is left empty is the sidebar's, or the plan's."""

from typing import NamedTuple

import streamlit as st

from planner.assemble.deployment import Engine, Formats
from planner.assemble.question import ANY, AUTO
from planner.assemble.traffic import RATE_SCALES, TrafficAsked
from planner.catalog.load import gpus
from planner.catalog.table import LARGEST_BYTES
from planner.catalog.traces import JSON_LINES_SUFFIX
from planner.planning.simulate import MOST_REQUESTS
from planner.ui import answers
from planner.ui.format import number
from planner.ui.memory_answers import MemoryAsk
from planner.ui.memory_inputs import DEFAULT_GPU, MOST_TOKENS, Seed, halves
from planner.ui.simulation_answers import SimulationAsk
from planner.ui.uploads import kept

USERS, RATE, TRACE = "users", "rate", "trace"
DEFAULT_USERS = 32
MOST_USERS = 100_000
MB_BYTES = 1_000_000
AS_SIDEBAR = "Empty: the sidebar's."


class Start(NamedTuple):
    """What empty fields stand for: the sidebar, and the cheapest plan of the Size page where there is one."""

    fields: dict[str, object]
    seed: Seed | None
    share_ratio: float = 1.0
    """Of the sidebar's rate, what one replica of the plan gets at the peak; without a plan, all of it."""

    def number(self, name: str) -> float:
        """A figure of the sidebar."""
        value = self.fields.get(name)
        return float(value) if isinstance(value, int | float) else 0.0

    @property
    def max_model_len(self) -> int | None:
        """The sidebar's longest request."""
        return int(self.number("max_model_len")) or None


def start() -> Start:
    """Where the page starts from."""
    fields: dict[str, object] = st.session_state[answers.FIELDS_KEY]
    alone = Start(fields, None)
    history: answers.History = st.session_state.get(answers.HISTORY_KEY, answers.History())
    if history.ask is None or history.ask.model != fields["model"]:
        return alone
    answer = answers.answered(history.ask)
    plans = answer.recommendation.plans
    if not plans:
        return alone
    share = answer.question.reserve.peak_ratio / plans[0].fleet.replicas
    return Start(fields, Seed.of(history.ask, plans[0]), share)


def simulation_inputs() -> SimulationAsk | None:
    """Draws the fields and gives what they ask; None while a trace is awaited."""
    known = start()
    deployment = _deployment(known)
    traffic = _traffic(known)
    if traffic is None:
        return None
    promised = (known.number(name) or None for name in ("ttft_p95_ms", "tpot_p95_ms"))
    return SimulationAsk(deployment, traffic, *promised)


def _deployment(known: Start) -> MemoryAsk:
    seed = known.seed
    names = [gpu.name for gpu in gpus() if gpu.vllm_backend]
    left, right = halves()
    with left:
        standard = seed.gpu if seed else DEFAULT_GPU
        chosen = st.selectbox(
            "GPU",
            names,
            index=None,
            key="simulate_gpu",
            bind="query-params",
            placeholder=standard,
            help=f"The accelerator. Empty: that of the cheapest plan on the Size page, else {DEFAULT_GPU}.",
        )
        gpu = chosen or standard
    follows = seed is not None and gpu == seed.gpu
    with right:
        tp = _count(
            "TP",
            "tp",
            most=64,
            placeholder=f"{seed.tp}" if seed is not None and follows else "smallest",
            about="Tensor-parallel degree (--tensor-parallel-size). Empty: the plan's on its GPU, else the smallest "
            "that fits.",
        )
        pp = _count(
            "PP",
            "pp",
            most=64,
            placeholder=f"{seed.pp}" if seed is not None and follows else "1",
            about="Pipeline-parallel degree (--pipeline-parallel-size). Empty: the plan's on its GPU, else 1.",
        )
    if seed is not None and follows:
        tp, pp = tp or seed.tp, pp or seed.pp
    with st.expander("Engine flags", icon=":material/tune:"):
        ep, engine = _engine(known)
    model = str(known.fields["model"])
    return MemoryAsk(model, gpu, tp, pp or 1, ep=ep, formats=_formats(known), engine=engine)


def _formats(known: Start) -> Formats:
    """The sidebar's formats; for `any` those of the plan, else the checkpoint's own."""
    found = known.seed.formats if known.seed else Formats()
    weight, kv = str(known.fields["weight_dtype"]), str(known.fields["kv_dtype"])
    return Formats(found.weight if weight == ANY else weight or AUTO, found.kv if kv == ANY else kv or AUTO)


def _engine(known: Start) -> tuple[bool, Engine]:
    """Expert parallelism, and the flags of the scheduler."""
    left, right = halves()
    with left:
        length = _count(
            "Max model length",
            "max_model_len",
            placeholder=str(known.max_model_len or "the model's"),
            about="--max-model-len: longer requests are turned away. Empty: the sidebar's, else the model's own.",
        )
        seqs = _count(
            "Max sequences",
            "max_num_seqs",
            placeholder="default",
            about="--max-num-seqs: sequences of one step. Empty: vLLM's default for this GPU.",
        )
    with right:
        tokens = _count(
            "Batched tokens",
            "max_num_batched_tokens",
            placeholder="default",
            about="--max-num-batched-tokens: tokens of one step. Empty: vLLM's default for this GPU.",
        )
        utilization = _share(
            "GPU utilization",
            "gpu_memory_utilization",
            placeholder="default",
            about="--gpu-memory-utilization: the share of the card that the engine may use. Empty: vLLM's default.",
        )
    with st.container(horizontal=True):
        ep = _switch("Expert parallel", "ep", "Experts are spread over the GPUs whole.")
        eager = _switch("Enforce eager", "enforce_eager", "No CUDA graphs are captured (--enforce-eager).")
        caching = _switch("Prefix caching", "prefix_caching", "--enable-prefix-caching.", on=True)
    engine = Engine(
        max_model_len=length or known.max_model_len,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        gpu_memory_utilization=utilization,
        enforce_eager=eager,
        engine_version=str(known.fields["engine_version"]),
        prefix_caching=caching,
    )
    return ep, engine


def _traffic(known: Start) -> TrafficAsked | None:
    load = st.segmented_control(
        "Load",
        [USERS, RATE, TRACE],
        default=USERS,
        key="simulate_load",
        bind="query-params",
        help="users: so many at once, each sends again when answered. rate: requests a second, sent whether or not "
        "there is room. trace: traffic as you recorded it.",
    )
    if load == TRACE:
        return _recorded()
    left, right = halves()
    with left:
        if load == RATE:
            asked = TrafficAsked(requests_per_s=_rate(known), arrival_cv=_burstiness(known))
        else:
            users = _count(
                "Users",
                "users",
                most=MOST_USERS,
                placeholder=f"{DEFAULT_USERS}",
                about=f"Requests in flight at any time. Empty: {DEFAULT_USERS}.",
            )
            asked = TrafficAsked(concurrency=users or DEFAULT_USERS)
    with right:
        prompt = _tokens("Input tokens", "input_tokens", known, "Tokens of a prompt, cached ones included.")
        output = _tokens("Output tokens", "output_tokens", known, "Tokens of an answer.")
    left, right = halves()
    with left:
        hits = _share(
            "Prefix hits",
            "prefix_hit_ratio",
            most=0.99,
            placeholder=f"{known.number('prefix_hit_ratio'):g}",
            about=f"Share of each prompt found in the prefix cache. {AS_SIDEBAR}",
        )
        low = _share(
            "Shortest length",
            "length_low_ratio",
            placeholder="1",
            about="Lengths are uniform between this share of those given and those given. Empty: 1, all alike.",
        )
    with right:
        requests, seed = _requests("10 a user" if load != RATE else "ten minutes"), _seed()
    return asked._replace(
        input_tokens=prompt,
        output_tokens=output,
        prefix_hit_ratio=known.number("prefix_hit_ratio") if hits is None else hits,
        length_low_ratio=low,
        num_requests=requests,
        seed=seed,
    )


def _rate(known: Start) -> float:
    standard = known.share_ratio * known.number("requests_per_s")
    rate = st.number_input(
        "Requests per second",
        min_value=1e-3,
        max_value=1e5,
        value=None,
        format="%g",
        key="simulate_requests_per_s",
        bind="query-params",
        placeholder=number(standard),
        help="Sent to this replica on average. Empty: its share of the peak under the cheapest plan of the Size page, "
        "else all that the sidebar says.",
    )
    return standard if rate is None else rate


def _burstiness(known: Start) -> float:
    cv = st.number_input(
        "Burstiness",
        min_value=0.0,
        max_value=20.0,
        value=None,
        step=0.1,
        format="%g",
        key="simulate_arrival_cv",
        bind="query-params",
        placeholder=f"{known.number('arrival_cv'):g}",
        help=f"Spread of the gaps between requests: 0 constant, 1 Poisson, other values gamma. {AS_SIDEBAR}",
    )
    return known.number("arrival_cv") if cv is None else cv


def _recorded() -> TrafficAsked | None:
    left, right = st.columns([3, 2], gap="medium")
    with left:
        upload = st.file_uploader(
            "Trace",
            type=["csv", "jsonl"],
            key="simulate_trace",
            max_upload_size=LARGEST_BYTES // MB_BYTES,
            help="CSV with TIMESTAMP, ContextTokens, GeneratedTokens (as Azure published), or JSON lines with "
            "timestamp in ms, input_length, output_length and perhaps hash_ids (as Mooncake published).",
        )
    with right:
        scale = st.number_input(
            "Speed",
            min_value=RATE_SCALES[0],
            max_value=RATE_SCALES[1],
            value=1.0,
            format="%g",
            key="simulate_rate_scale",
            bind="query-params",
            help="The trace is sent so many times as fast: 0.5 halves its rate.",
        )
        requests = _requests("all")
    if upload is None:
        return None
    is_json = upload.name.lower().endswith(JSON_LINES_SUFFIX)
    file = kept(upload.getvalue(), f"trace{JSON_LINES_SUFFIX}" if is_json else "trace.csv")
    return TrafficAsked(trace=file, rate_scale=scale, num_requests=requests)


def _requests(standard: str) -> int | None:
    return _count(
        "Requests",
        "num_requests",
        most=MOST_REQUESTS,
        placeholder=standard,
        about="How many are sent; nothing is dropped as warm-up.",
    )


def _seed() -> int:
    return st.number_input(
        "Seed",
        min_value=0,
        max_value=MOST_TOKENS,
        value=0,
        key="simulate_seed",
        bind="query-params",
        help="Of the lengths and arrivals that are drawn: equal seeds give equal answers.",
    )


def _tokens(label: str, name: str, known: Start, about: str) -> float:
    tokens = st.number_input(
        label,
        min_value=1.0,
        max_value=1e7,
        value=None,
        format="%g",
        key=f"simulate_{name}",
        bind="query-params",
        placeholder=f"{known.number(name):g}",
        help=f"{about} {AS_SIDEBAR}",
    )
    return known.number(name) if tokens is None else tokens


def _count(
    label: str, name: str, *, about: str, most: int = MOST_TOKENS, placeholder: str | None = None
) -> int | None:
    return st.number_input(
        label,
        min_value=1,
        max_value=most,
        value=None,
        key=f"simulate_{name}",
        bind="query-params",
        placeholder=placeholder,
        help=about,
    )


def _share(label: str, name: str, *, about: str, placeholder: str, most: float = 1.0) -> float | None:
    return st.number_input(
        label,
        min_value=0.0,
        max_value=most,
        value=None,
        step=0.05,
        format="%g",
        key=f"simulate_{name}",
        bind="query-params",
        placeholder=placeholder,
        help=about,
    )


def _switch(label: str, name: str, about: str, *, on: bool = False) -> bool:
    return st.toggle(label, value=on, key=f"simulate_{name}", bind="query-params", help=about)
