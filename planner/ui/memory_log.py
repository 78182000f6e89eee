"""The Memory page's last part: a pasted start-up log beside the prediction for what it describes."""

import streamlit as st

from planner.assemble.log_check import LogCheck
from planner.catalog.load import gpus
from planner.domain.base import InputError
from planner.export.table import csv_text
from planner.ui import memory_tables
from planner.ui.memory_answers import LogAsk, log_checked
from planner.ui.uploads import without_folder

LOG_MB = 20
HERE = {
    "add --gpu": "choose it beside the log",
    "add --weight-dtype or the checkpoint's own --model": "choose the checkpoint itself as the model in the sidebar",
    "add --model": "switch to the model of the sidebar",
}
"""What the command line's advice means on this page."""


def compare_log(model: str) -> None:
    """Asks for a log and shows its figures beside the predicted ones; one line where that cannot be done."""
    with st.expander("Compare with your start-up log", icon=":material/difference:"):
        left, right = st.columns([3, 2], gap="medium")
        with left:
            pasted = st.text_area(
                "What vLLM printed when it started",
                key="memory_log",
                height=204,
                placeholder="Paste the log here, whole or in part.",
                help="Any release from 0.8, with or without prefixes, one rank or many. It is read as text.",
            )
        with right:
            upload = st.file_uploader(
                "or upload it",
                type=["txt", "log"],
                key="memory_log_file",
                max_upload_size=LOG_MB,
                help="The log as a text file. It counts before the pasted text.",
            )
            gpu = st.selectbox(
                "GPU, where the log names none",
                [gpu.name for gpu in gpus() if gpu.vllm_backend],
                index=None,
                key="memory_log_gpu",
                placeholder="not chosen",
                help="Many logs do not say on which GPU the engine ran.",
            )
            own_model = st.toggle(
                "Take the sidebar's model",
                key="memory_log_model",
                help="Instead of the one that the log names; needed where that was a folder of another machine.",
            )
        if upload is None and not (pasted or "").strip():
            return
        try:
            text = _text(upload.getvalue()) if upload is not None else pasted or ""
            check = log_checked(LogAsk(text, gpu, model, own_model=own_model))
        except InputError as error:
            st.error(_said_here(str(error)), icon=":material/error:")
        else:
            _show(check)


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the file is not UTF-8 text (byte {error.start})") from None


def _show(check: LogCheck) -> None:
    case = check.case
    table = memory_tables.log_table(check)
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
        st.markdown(
            f"**{case.model.name} on {case.gpu.name}, TP {case.parallelism.tp}: one GPU**".replace(
                "$", "\\$"
            ),
            width="content",
        )
        st.download_button(
            "CSV",
            data=lambda: csv_text(table.columns, table.rows),
            file_name="memory-log.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            key="memory_log_csv",
            help="The comparison with every column.",
        )
    st.dataframe(
        table.frame,
        hide_index=True,
        height="content",
        key="memory_log_table",
        placeholder="",
        column_config=memory_tables.COLUMN_CONFIG,
    )
    if check.notes:
        st.markdown("\n".join(f"- {_said_here(note)}" for note in check.notes).replace("$", "\\$"))


def _said_here(message: str) -> str:
    for there, here in HERE.items():
        message = message.replace(there, here)
    return without_folder(message)
