"""CSV that pandas and a spreadsheet read as it was meant."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.export.table import FORMULA_SIGNS, csv_cell, csv_text, safe_text, write_csv

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_texts_come_back_from_a_csv_reader(rows: list[tuple[str, str]]) -> None:
    text = csv_text(("a", "b"), rows)
    found = list(csv.reader(io.StringIO(text, newline="")))
    assert found[0] == ["a", "b"]
    assert found[1:] == [[safe_text(cell) for cell in row] for row in rows]


@given(TEXT)
def test_no_text_is_a_formula(text: str) -> None:
    assert not csv_cell(text).startswith(FORMULA_SIGNS)


@given(st.floats())
def test_numbers_are_finite_or_empty(value: float) -> None:
    cell = csv_cell(value)
    assert cell == "" or float(cell) == pytest.approx(value, abs=1e-6)


def test_lines_end_as_rfc_4180_says(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ("a", "b"), [('say "x", y', 1), ("ü", None)])
    assert (tmp_path / "t.csv").read_bytes() == 'a,b\r\n"say ""x"", y",1\r\nü,\r\n'.encode()
    assert pd.read_csv(tmp_path / "t.csv")["a"].tolist() == ['say "x", y', "ü"]
