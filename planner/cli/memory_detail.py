"""`memory --detail`: every tensor of the fullest rank and every KV group, for an expert to check."""

from pathlib import Path

from planner.cli.screen import Json, records, say, show_table
from planner.export.memory_detail import (
    KV_GROUP_COLUMNS,
    TENSOR_COLUMNS,
    group_rows,
    kv_group_rows,
    tensor_rows,
)
from planner.export.table import write_csv
from planner.planning.predict import Case, Sized


class Detail:
    """The tensors and KV groups of one deployment; nothing where it cannot be laid out."""

    def __init__(self, case: Case, sized: Sized) -> None:
        self._tensors, self._groups = [], []
        if sized.placed is not None and sized.budget is not None:
            self._tensors = tensor_rows(case, sized.placed, sized.budget.kv_cache_bytes)
            self._groups = kv_group_rows(sized.placed)

    def write(self, csv: Path) -> None:
        """The tensors as a CSV."""
        write_csv(csv, TENSOR_COLUMNS, self._tensors)

    def json(self) -> dict[str, Json]:
        """Both lists for a program."""
        return {
            "tensors": records(TENSOR_COLUMNS, self._tensors),
            "kv_groups": records(KV_GROUP_COLUMNS, self._groups),
        }

    def show(self) -> None:
        """Both lists and the sums by group."""
        say()
        show_table(
            "Tensors of the fullest rank",
            ["part", "group", "name", "shape on this rank", "copies", "dtype", "bytes"],
            [[*map(str, row[:4]), f"{row[4]:,}", str(row[5]), f"{row[6]:,}"] for row in self._tensors],
        )
        show_table(
            "By group",
            ["part", "group", "tensors", "bytes"],
            [
                [part, group, f"{count:,}", f"{size:,}"]
                for part, group, count, size in group_rows(self._tensors)
            ],
        )
        show_table(
            "KV groups: layers that share a block table",
            [
                "kind",
                "layers",
                "block tokens",
                "page bytes a layer",
                "padding bytes a block",
                "window",
                "states",
            ],
            [["" if cell is None else str(cell) for cell in row] for row in self._groups],
        )
