"""Traces as Azure and Mooncake publish them, and rows that are neither."""

from pathlib import Path

import numpy as np
import pytest

from planner.catalog.traces import read_trace
from planner.domain.base import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no published traces beside this checkout")


def csv_file(folder: Path, rows: str, header: str = HEADER) -> Path:
    path = folder / "trace.csv"
    path.write_text(header + rows, encoding="utf-8")
    return path


def json_file(folder: Path, text: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_dates_become_seconds_from_the_first(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "2023-11-16 23:59:59.9000000,374,44\n2023-11-17 00:00:00.1000000,396,109\n\n")
    trace = read_trace(path)
    assert trace.sent_s == pytest.approx([0.0, 0.2])
    assert trace.prompt_tokens.tolist() == [374, 396]
    assert trace.output_tokens.tolist() == [44, 109]
    assert trace.prefix_ids is None
    assert trace.lengthened == 0


def test_rows_are_sorted_by_time_and_keep_their_lengths(tmp_path: Path) -> None:
    trace = read_trace(csv_file(tmp_path, "12.5,3,30\n10,1,10\n12.5,4,40\n11,2,20\n"))
    assert trace.sent_s == pytest.approx([0.0, 1.0, 2.5, 2.5])
    assert trace.prompt_tokens.tolist() == [1, 2, 3, 4]
    assert trace.output_tokens.tolist() == [10, 20, 30, 40]


def test_no_tokens_are_one_token_and_counted_once_a_request(tmp_path: Path) -> None:
    trace = read_trace(csv_file(tmp_path, "0,0,0\n1,5,0\n2,0,5\n3,5,5\n"))
    assert trace.lengthened == 3
    assert trace.prompt_tokens.tolist() == [1, 5, 1, 5]
    assert trace.output_tokens.tolist() == [1, 1, 5, 5]


def test_json_lines_are_milliseconds_with_prefixes(tmp_path: Path) -> None:
    trace = read_trace(
        json_file(
            tmp_path,
            '{"timestamp": 3000, "input_length": 700, "output_length": 5, "hash_ids": [7, 9]}\n'
            '{"timestamp": 1500, "input_length": 600, "output_length": 6, "hash_ids": [7, 8], "more": 1}\n'
            '{"timestamp": 3500.5, "input_length": 10, "output_length": 1}\n',
        )
    )
    assert trace.sent_s == pytest.approx([0.0, 1.5, 2.0005])
    assert trace.prefix_ids == ((7, 8), (7, 9), ())
    assert trace.prefix_block_tokens == 512


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ("1,2\n", ":2: 2 cells"),
        ("1,2,3\nx,2,3\n", ':3: column TIMESTAMP is "x"; seconds throughout'),
        ("x,2,3\n", ':2: column TIMESTAMP is "x"; a date and time'),
        ("2023-11-16 10:00:00,2,3\n5,2,3\n", ":3: column TIMESTAMP"),
        ("nan,2,3\n", ":2: column TIMESTAMP"),
        ("1e300,2,3\n", ":2: column TIMESTAMP"),
        (",2,3\n", ":2: column TIMESTAMP"),
        ("1,-2,3\n", ':2: column ContextTokens is "-2"'),
        ("1,2.5,3\n", ':2: column ContextTokens is "2.5"'),
        ("1,2,1e9\n", ':2: column GeneratedTokens is "1e9"'),
        ("1,2,inf\n", ':2: column GeneratedTokens is "inf"'),
        ("0,2,3\n40000000,2,3\n", "more than a year"),
        ("", "no requests"),
    ],
)
def test_a_bad_csv_row_names_file_and_line(tmp_path: Path, rows: str, wanted: str) -> None:
    path = csv_file(tmp_path, rows)
    with pytest.raises(InputError) as refused:
        read_trace(path)
    assert str(refused.value).startswith(str(path))
    assert wanted in str(refused.value)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("[1]", "is not a JSON object"),
        ("{", "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', "timestamp is"),
        ('{"timestamp": true, "input_length": 1, "output_length": 1}', "timestamp is"),
        ('{"timestamp": 1e400, "input_length": 1, "output_length": 1}', "timestamp is"),
        ('{"input_length": 1, "output_length": 1}', "timestamp is missing"),
        ('{"timestamp": 0, "input_length": -1, "output_length": 1}', "input_length is"),
        ('{"timestamp": 0, "input_length": 1.5, "output_length": 1}', "input_length is"),
        ('{"timestamp": 0, "input_length": 1}', "output_length is missing"),
        ('{"timestamp": 0, "input_length": 1, "output_length": "9"}', "output_length is"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1.5]}', "hash_ids is"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": "ab"}', "hash_ids is"),
        (
            f'{{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [{10**40}]}}',
            "hash_ids is",
        ),
    ],
)
def test_a_bad_json_line_names_file_and_line(tmp_path: Path, line: str, wanted: str) -> None:
    good = '{"timestamp": 0, "input_length": 1, "output_length": 1}\n'
    path = json_file(tmp_path, f"{good}\n{line}\n")
    with pytest.raises(InputError) as refused:
        read_trace(path)
    assert str(refused.value).startswith(f"{path}:3: ")
    assert wanted in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown column"):
        read_trace(csv_file(tmp_path, "1,2\n", header="input_length,output_length\n"))


def test_a_file_without_end_is_refused() -> None:
    if not Path("/dev/zero").is_char_device():
        pytest.skip("no /dev/zero on this system")
    with pytest.raises(InputError, match="larger than"):
        read_trace(Path("/dev/zero"))


@needs_shared
def test_the_published_azure_trace() -> None:
    """19,366 conversations in just under an hour."""
    trace = read_trace(SHARED / "azure2023_conv.csv")
    assert trace.prompt_tokens.size == 19_366
    assert 3400 < trace.sent_s[-1] < 3600
    assert np.all(np.diff(trace.sent_s) >= 0)


@needs_shared
def test_the_published_mooncake_trace() -> None:
    trace = read_trace(SHARED / "mooncake_conversation.jsonl")
    assert trace.prompt_tokens.size == 12_031
    assert trace.prefix_ids is not None
    blocks = np.array([len(ids) for ids in trace.prefix_ids])
    assert np.all(blocks <= -(-trace.prompt_tokens // trace.prefix_block_tokens))
