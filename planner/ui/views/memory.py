"""Memory: what one GPU of a deployment holds, what would give it room, and your own log beside it."""

import streamlit as st

from planner.domain.base import InputError
from planner.domain.deployment import MemoryBudget
from planner.export.memory import logged_lines
from planner.export.memory_detail import (
    KV_GROUP_COLUMNS,
    TENSOR_COLUMNS,
    kv_group_rows,
    tensor_rows,
)
from planner.export.table import csv_text
from planner.formulas.engine_defaults import parse_version
from planner.formulas.engine_rules_text import named_rules
from planner.formulas.kv_cache import resolve_kv_dtype
from planner.formulas.kv_offload import host_cache
from planner.formulas.memory import kv_tokens_interval
from planner.planning.memory_questions import longest_context, sequences_held
from planner.planning.sizing import Placed
from planner.ui import answers, charts, memory_tables
from planner.ui.format import count, gib, kib, number, percent, short
from planner.ui.memory_answers import MemoryAnswer, memory_answered
from planner.ui.memory_inputs import follow_the_plan, halves, memory_inputs, typical_request_tokens
from planner.ui.memory_log import compare_log
from planner.ui.uploads import is_kept, without_folder

CHART = {"displayModeBar": False}


def headline(answer: MemoryAnswer) -> None:
    """Whether it fits, by how much, and what deployment that is."""
    case, sized = answer.case, answer.sized
    budget, refusal = sized.budget, sized.refusal
    if refusal is None and budget is not None:
        st.subheader(
            f"Fits: {number(budget.max_concurrency)} requests of {budget.max_model_len:,} tokens at once",
            anchor=False,
        )
    elif budget is not None:
        st.subheader(f"Does not fit: {gib(budget.shortfall_bytes)} per GPU are missing", anchor=False)
    else:
        st.subheader("Does not start", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(deployment_line(answer).replace("$", "\\$"), width="content")
        if not case.gpu.memory_observed:
            st.badge(
                "card size not seen",
                icon=":material/warning:",
                color="orange",
                help="No driver's report of this card's memory is known; its data sheet is taken.",
            )
    if refusal is not None:
        st.caption(f"{refusal.reason[:1].upper()}{refusal.reason[1:]}.".replace("$", "\\$"))


def deployment_line(answer: MemoryAnswer) -> str:
    """Model, GPUs, layout, formats and release in a line."""
    case = answer.case
    model, layout = case.model, case.parallelism
    name = answers.OWN_CHECKPOINT if is_kept(ask.model) else model.name
    kv = resolve_kv_dtype(model, case.kv_dtype, case.engine.engine_version)
    degrees = [f"TP {layout.tp}"] + ([f"PP {layout.pp}"] if layout.pp > 1 else [])
    parts = [
        without_folder(name),
        f"{layout.gpus} × {case.gpu.name}",
        ", ".join(degrees) + (", expert parallel" if layout.ep else ""),
        f"{model.weight_dtype.value} weights",
        f"{kv.value} KV cache",
        f"vLLM {parse_version(case.engine.engine_version)}",
    ]
    return " · ".join(parts)


def tile(label: str, value: str, below: str, about: str) -> None:
    """A figure with what qualifies it."""
    st.container().metric(
        label,
        value,
        delta=below,
        delta_color="off",
        delta_arrow="off",
        border=True,
        height="stretch",
        help=about,
    )


def tiles(answer: MemoryAnswer, budget: MemoryBudget, placed: Placed) -> None:
    """The figures that a deployment is judged by."""
    case, sized, engine = answer.case, answer.sized, answer.case.engine
    low, high = kv_tokens_interval(budget, placed.kv, engine)
    tokens = room.context_tokens or min(typical_request_tokens(), case.model.max_position)
    batch = room.batch or engine.max_num_seqs
    left, right = halves()
    with left:
        tile(
            "KV tokens",
            f"{budget.kv_cache_tokens:,}",
            f"{short(low)} to {short(high)}" if high else "no request fits",
            "Tokens that the KV cache holds, as vLLM logs it; below, the 90 % interval.",
        )
        tile(
            "Concurrency",
            f"{number(budget.max_concurrency)}×",
            f"of {budget.max_model_len:,} tokens",
            "Requests of max_model_len tokens that fit at once, as vLLM logs it.",
        )
    with right:
        tile(
            "Weights",
            gib(budget.loaded_bytes),
            f"{percent(budget.loaded_bytes / budget.total_bytes)} of the card",
            "What loading takes of each GPU, as vLLM logs it: model, draft model and adapter slots.",
        )
        tile(
            "KV cache",
            gib(budget.kv_cache_bytes),
            f"{percent(budget.kv_cache_bytes / budget.total_bytes)} of the card",
            "What is left for the KV cache of each GPU, as vLLM logs it; negative where the rest is too large.",
        )
    left, right = halves()
    with left:
        smallest_tp_tile(answer)
        tile(
            "KV per token",
            kib(budget.kv_bytes_per_token),
            f"{short(budget.kv_blocks)} blocks of {budget.block_size}",
            "By how much one more token grows a sequence's cache on each GPU; below, the blocks of the cache.",
        )
    with right:
        tile(
            "Largest batch",
            f"{sequences_held(sized, tokens):,}",
            f"at {tokens:,} tokens",
            "Sequences of the length chosen below that the KV cache holds at once.",
        )
        tile(
            "Longest sequence",
            f"{longest_context(case, sized, batch):,}",
            f"at a batch of {batch:,}",
            "Tokens that each of so many sequences held at once can have, up to what the model can attend to.",
        )


def smallest_tp_tile(answer: MemoryAnswer) -> None:
    """The least tensor-parallel degree that fits."""
    least = answer.smallest_tp
    tile(
        "Smallest TP",
        f"{least}" if least else "none",
        "that fits" if least else "fits up to 64",
        "The least tensor-parallel degree at which the engine starts on this GPU.",
    )


def card(answer: MemoryAnswer, budget: MemoryBudget) -> None:
    """The card as a bar, as a table, and as vLLM would log it."""
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.markdown("**Memory of each GPU**")
        st.plotly_chart(charts.memory_bar(budget), key="memory_card", config=CHART)
    with right:
        st.dataframe(
            memory_tables.part_table(budget),
            hide_index=True,
            height="content",
            column_config=memory_tables.COLUMN_CONFIG,
            key="memory_parts",
        )
    if answer.sized.refusal is None:
        st.markdown("**vLLM would log**", help="At start-up, in these words or those of its release.")
        st.code("\n".join(logged_lines(budget)), language=None, wrap_lines=True)
        host_memory(answer)


def host_memory(answer: MemoryAnswer) -> None:
    """What host memory holds where KV blocks are offloaded."""
    case, placed = answer.case, answer.sized.placed
    if case.engine.kv_offload_bytes and placed is not None:
        host = host_cache(case.model, placed.kv, case.parallelism, case.engine)
        st.caption(
            f"Host memory keeps {host.tokens:,} tokens more in {count(host.blocks, 'block')}, "
            f"{gib(host.bytes_per_rank)} for each GPU."
        )


def tabled(table: memory_tables.Tabled, name: str, about: str) -> None:
    """A table with its caption and its download."""
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
        st.caption(about, width="content")
        download(table.columns, table.rows, name)
    st.dataframe(
        table.frame,
        hide_index=True,
        key=f"memory_{name}",
        height="content" if len(table.frame) <= 10 else "auto",
        column_config=memory_tables.COLUMN_CONFIG,
        placeholder="",
    )


def download(columns: memory_tables.Columns, rows: memory_tables.Rows, name: str) -> None:
    """A button for the same as a file."""
    st.download_button(
        "CSV",
        data=lambda: csv_text(columns, rows),
        file_name=f"memory-{name}.csv",
        mime="text/csv",
        on_click="ignore",
        icon=":material/download:",
        key=f"memory_{name}_csv",
        help="This table with every column, for a spreadsheet or another program.",
    )


def options(answer: MemoryAnswer) -> None:
    """What would give room, and the same deployment on other degrees and GPUs."""
    case = answer.case
    room_tab, tp_tab, gpu_tab = st.tabs(["What would give room", "Every TP", "Every GPU"])
    with room_tab:
        tabled(
            memory_tables.change_table(case, answer.sized, answer.changes),
            "changes",
            "One change at a time, least harmful first; fp8 and int4 change the model's answers.",
        )
    with tp_tab:
        tabled(
            memory_tables.tp_table(answer.by_tp),
            "tp",
            f"The same on {case.gpu.name}, at every TP that divides it.",
        )
    with gpu_tab:
        tabled(
            memory_tables.gpu_options_table(answer.by_gpu),
            "gpu",
            f"The same at TP {case.parallelism.tp} on every GPU, smallest first, with vLLM's defaults for each.",
        )


def detail(answer: MemoryAnswer, placed: Placed, kv_cache_bytes: int) -> None:
    """Every tensor, every KV group, and the rules of the release."""
    case = answer.case
    with st.expander("Tensor by tensor, and the rules of this vLLM release", icon=":material/grid_view:"):
        tensors, groups = tensor_rows(case, placed, kv_cache_bytes), kv_group_rows(placed)
        sums, every, kv, rules = st.tabs(["By group", "Tensors", "KV groups", "Rules"])
        with sums:
            st.dataframe(
                memory_tables.group_table(tensors),
                hide_index=True,
                height="content",
                key="memory_groups",
                column_config=memory_tables.COLUMN_CONFIG,
            )
        with every:
            tabled(
                memory_tables.Tabled(memory_tables.tensor_table(tensors), TENSOR_COLUMNS, tensors),
                "tensors",
                "Of the fullest GPU; copies of one shape are one row.",
            )
        with kv:
            tabled(
                memory_tables.Tabled(memory_tables.kv_group_table(groups), KV_GROUP_COLUMNS, groups),
                "kv_groups",
                "Layers that share a block table.",
            )
        with rules:
            for rule in named_rules(
                case.model, case.gpu, case.engine, case.kv_dtype, parallelism=case.parallelism
            ):
                st.markdown(f"- {rule}")


def answered(answer: MemoryAnswer) -> None:
    """Everything about a deployment that is legal."""
    sized = answer.sized
    with head:
        headline(answer)
        if sized.budget is not None and sized.placed is not None:
            tiles(answer, sized.budget, sized.placed)
    if sized.budget is not None:
        card(answer, sized.budget)
    options(answer)
    if sized.budget is not None and sized.placed is not None:
        detail(answer, sized.placed, sized.budget.kv_cache_bytes)


follow_the_plan()
head = st.container()
with st.container(border=True):
    ask, room = memory_inputs()
try:
    found = memory_answered(ask)
except InputError as error:
    head.error(without_folder(str(error)), icon=":material/error:")
else:
    answered(found)
compare_log(ask.model)
