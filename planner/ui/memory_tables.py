"""Tables of the Memory page: the parts of a card, deployments side by side, tensors, a log beside its prediction."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
from streamlit import column_config

from planner.assemble.log_check import LogCheck
from planner.domain.deployment import MemoryBudget
from planner.domain.units import bytes_to_gib
from planner.export.format import logged_figure, relative_error
from planner.export.memory import DEPLOYMENT_COLUMNS, deployment_row, part_rows
from planner.export.memory_detail import Row, group_rows
from planner.export.table import Cell
from planner.planning.memory_questions import Change
from planner.planning.predict import Case, Sized

CHANGE_COLUMNS = ("change", "flags", *DEPLOYMENT_COLUMNS)
LOG_COLUMNS = ("what", "predicted", "actual", "unit", "error_ratio", "line_number")
COLUMN_CONFIG = {
    "Fits": column_config.TextColumn(help="One request of max_model_len tokens fits."),
    **{
        name: column_config.NumberColumn(format="%.2f")
        for name in ("GiB", "Card, GiB", "Weights, GiB", "KV cache, GiB")
    },
    "KV tokens": column_config.NumberColumn(format="localized", help="As vLLM logs it."),
    "Concurrency": column_config.NumberColumn(
        format="%.2f", help="Requests of max_model_len tokens that fit at once, as vLLM logs it."
    ),
    "Missing, GiB": column_config.NumberColumn(
        format="%.2f", help="What one GPU lacks for one request of max_model_len tokens."
    ),
    "Of all": column_config.ProgressColumn(format="%.1f %%", min_value=0.0, max_value=100.0),
    "Share": column_config.NumberColumn(format="%.1f %%", help="Of the card."),
    "Bytes": column_config.NumberColumn(format="localized", help="On this GPU, all copies together."),
    "Copies": column_config.NumberColumn(format="localized"),
    "Tensors": column_config.NumberColumn(format="localized"),
    "Page, bytes a layer": column_config.TextColumn(alignment="right"),
    "Predicted": column_config.TextColumn(alignment="right"),
    "Actual": column_config.TextColumn(alignment="right"),
    "Error": column_config.TextColumn(alignment="right", help="Predicted over actual, less one."),
    "Line": column_config.NumberColumn(help="Of the log, counted from 1."),
}


Columns = Sequence[str]
Rows = Sequence[Sequence[Cell]]


class Tabled(NamedTuple):
    """A table as people read it, and the same for another program."""

    frame: pd.DataFrame
    columns: Columns
    rows: Rows


def part_table(budget: MemoryBudget) -> pd.DataFrame:
    """The parts of a card, the card itself last."""
    return pd.DataFrame.from_records(
        [{"Part": name, "GiB": size_gib, "Share": 100 * share} for name, size_gib, share in part_rows(budget)]
    )


def change_table(case: Case, sized: Sized, changes: Iterable[Change]) -> Tabled:
    """The deployment as it is, then with each change."""
    all_of_them = (Change("as it is", "", case, sized), *changes)
    named = [
        {"Change": change.what, **_figures(change.sized), "Flags": change.flags} for change in all_of_them
    ]
    rows = [(change.what, change.flags, *deployment_row(change.case, change.sized)) for change in all_of_them]
    return Tabled(_frame(named), CHANGE_COLUMNS, rows)


def tp_table(options: Sequence[tuple[Case, Sized]]) -> Tabled:
    """The deployment at every tensor-parallel degree that divides the model."""
    named = [{"TP": case.parallelism.tp, **_figures(sized)} for case, sized in options]
    return Tabled(_frame(named), DEPLOYMENT_COLUMNS, [deployment_row(*option) for option in options])


def gpu_options_table(options: Sequence[tuple[Case, Sized]]) -> Tabled:
    """The deployment on every GPU, smallest card first."""
    named = [
        {
            "GPU": case.gpu.name,
            "Card, GiB": bytes_to_gib(case.gpu.memory_bytes),
            **_figures(sized),
        }
        for case, sized in options
    ]
    for row, (_, sized) in zip(named, options, strict=True):
        row["Why not"] = sized.refusal.reason if sized.refusal is not None and sized.budget is None else None
    return Tabled(_frame(named), DEPLOYMENT_COLUMNS, [deployment_row(*option) for option in options])


def _figures(sized: Sized) -> dict[str, object]:
    budget = sized.budget
    missing_bytes = budget.shortfall_bytes if budget else 0
    return {
        "Fits": "yes" if sized.refusal is None else "no",
        "KV tokens": budget.kv_cache_tokens if budget else None,
        "Concurrency": budget.max_concurrency if budget else None,
        "Weights, GiB": budget.weights_gib if budget else None,
        "KV cache, GiB": bytes_to_gib(budget.kv_cache_bytes) if budget else None,
        "Missing, GiB": bytes_to_gib(missing_bytes) if missing_bytes else None,
    }


def _frame(records: Sequence[dict[str, object]]) -> pd.DataFrame:
    """A table without the columns that say nothing."""
    return pd.DataFrame.from_records(records).dropna(axis="columns", how="all")


def tensor_table(rows: Iterable[Row]) -> pd.DataFrame:
    """Every tensor of the fullest rank."""
    titles = ("Part", "Group", "Tensor", "Shape on this GPU", "Copies", "Format", "Bytes")
    return pd.DataFrame.from_records([_plain(row) for row in rows], columns=titles)


def group_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Tensors summed by group, with their share of all that is stored."""
    groups = group_rows(rows)
    total_bytes = sum(size_bytes for *_, size_bytes in groups)
    return pd.DataFrame.from_records(
        [
            {
                "Part": part,
                "Group": group,
                "Of all": 100 * size_bytes / total_bytes,
                "GiB": bytes_to_gib(size_bytes),
                "Tensors": tensors,
                "Bytes": size_bytes,
            }
            for part, group, tensors, size_bytes in groups
        ]
    )


def kv_group_table(rows: Iterable[Row]) -> pd.DataFrame:
    """Layers that share a block table."""
    titles = (
        "Kind",
        "Layers",
        "Tokens a block",
        "Page, bytes a layer",
        "Padding, bytes a block",
        "Window, tokens",
        "States",
    )
    frame = pd.DataFrame.from_records([_plain(row) for row in rows], columns=titles)
    return frame.dropna(axis="columns", how="all")


def _plain(row: Row) -> tuple[Cell, ...]:
    """Names of formats and roles as text."""
    return tuple(str(cell) if isinstance(cell, str) else cell for cell in row)


def log_table(check: LogCheck) -> Tabled:
    """What a log says beside what is predicted."""
    frame = pd.DataFrame.from_records(
        [
            {
                "What": row.what,
                "Predicted": logged_figure(row.predicted, row.unit),
                "Actual": logged_figure(row.actual, row.unit),
                "Error": relative_error(row.error_ratio),
                "Line": row.line_number,
            }
            for row in check.rows
        ]
    )
    return Tabled(frame.astype({"Line": "Int64"}), LOG_COLUMNS, check.rows)
