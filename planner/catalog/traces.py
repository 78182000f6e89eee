"""Recorded traffic: when requests came, how long they were, and which prompts began alike."""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from planner.catalog.nearest import shown
from planner.catalog.table import LARGEST_BYTES, Columns, Row, read_rows, read_text
from planner.domain.base import InputError
from planner.formulas.arrays import FloatArray, IntArray

CSV_COLUMNS = Columns(required=("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
JSON_LINES_SUFFIX = ".jsonl"
JSON_BLOCK_TOKENS = 512
"""Prompt tokens that one of `hash_ids` stands for."""
LARGEST_TOKENS = 10_000_000
LARGEST_ID = 2**62
LARGEST_MS = 1e15
LONGEST_S = 366 * 86400.0


class Trace(NamedTuple):
    """Requests in the order of their sending [N]."""

    sent_s: FloatArray
    """From 0."""
    prompt_tokens: IntArray
    output_tokens: IntArray
    prefix_ids: tuple[tuple[int, ...], ...] | None
    """For each request the blocks its prompt begins with, equal ids for equal tokens; None: not recorded."""
    prefix_block_tokens: int
    lengthened: int
    """Requests whose prompt or answer of no tokens was taken for one of one token."""


class _Request(NamedTuple):
    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_ids: tuple[int, ...] = ()


def read_trace(path: Path) -> Trace:
    """A trace as published by Azure (CSV) or Mooncake (JSON lines, where the file is called `.jsonl`).

    CSV: `TIMESTAMP` [ISO date and time, or s], `ContextTokens`, `GeneratedTokens`. JSON lines: `timestamp` [ms],
    `input_length`, `output_length` and perhaps `hash_ids`, one for each 512 tokens of the prompt.

    Raises:
        InputError: the file cannot be read or is too large, a row is not what it must be, there is none, or they span
            more than a year.
    """
    is_json = path.suffix.lower() == JSON_LINES_SUFFIX
    requests = sorted(_json_requests(path) if is_json else _csv_requests(path), key=lambda one: one.at_s)
    if not requests:
        raise InputError(f"{path}: no requests in it")
    sent_s = np.array([one.at_s for one in requests])
    if sent_s[-1] - sent_s[0] > LONGEST_S:
        raise InputError(f"{path}: its requests span more than a year; are the times in the right unit?")
    prompts = np.array([one.prompt_tokens for one in requests], dtype=np.int64)
    outputs = np.array([one.output_tokens for one in requests], dtype=np.int64)
    return Trace(
        sent_s=sent_s - sent_s[0],
        prompt_tokens=np.maximum(prompts, 1),
        output_tokens=np.maximum(outputs, 1),
        prefix_ids=tuple(one.prefix_ids for one in requests) if is_json else None,
        prefix_block_tokens=JSON_BLOCK_TOKENS,
        lengthened=int(np.count_nonzero((prompts == 0) | (outputs == 0))),
    )


def _csv_requests(path: Path) -> Iterator[_Request]:
    is_number: bool | None = None
    for row in read_rows(path, CSV_COLUMNS):
        text = row.text("TIMESTAMP")
        at_s = _number(text)
        if is_number is None:
            is_number = at_s is not None
        if is_number is (at_s is None):
            raise row.error("TIMESTAMP", "seconds throughout, or a date and time throughout,")
        yield _Request(
            at_s=_moment_s(row, text) if at_s is None else at_s,
            prompt_tokens=_tokens(row, "ContextTokens"),
            output_tokens=_tokens(row, "GeneratedTokens"),
        )


def _number(text: str) -> float | None:
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST_MS else None


def _moment_s(row: Row, text: str) -> float:
    """A date and time; without a zone it is UTC, since only differences count."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise row.error("TIMESTAMP", "a date and time (2023-11-16 18:17:03.98) or seconds") from None


def _tokens(row: Row, column: str) -> int:
    value = row.number(column, zero_is_legal=True)
    if value != int(value) or value > LARGEST_TOKENS:
        raise row.error(column, f"a whole number up to {LARGEST_TOKENS:,}")
    return int(value)


def _json_requests(path: Path) -> Iterator[_Request]:
    text = read_text(path, LARGEST_BYTES, "a trace of ours")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise InputError(f'{path}:{number}: "{shown(line.strip())}" is not a JSON object')
        yield _json_request(f"{path}:{number}", fields)


def _json_request(where: str, fields: dict[str, Any]) -> _Request:
    """One line of a JSON trace; fields that are not named here are passed over."""
    at_ms = fields.get("timestamp")
    if not _is_number(at_ms, -LARGEST_MS, LARGEST_MS):
        raise InputError(f"{where}: timestamp is {_said(at_ms)}; milliseconds are needed")
    ids = fields.get("hash_ids", [])
    if not isinstance(ids, list) or not all(type(one) is int and abs(one) <= LARGEST_ID for one in ids):
        raise InputError(f"{where}: hash_ids is {_said(ids)}; a list of whole numbers is needed")
    return _Request(
        at_s=fields["timestamp"] / 1e3,
        prompt_tokens=_json_tokens(where, fields, "input_length"),
        output_tokens=_json_tokens(where, fields, "output_length"),
        prefix_ids=tuple(ids),
    )


def _json_tokens(where: str, fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if not _is_number(value, 0, LARGEST_TOKENS) or fields[name] != int(fields[name]):
        raise InputError(
            f"{where}: {name} is {_said(value)}; a whole number from 0 to {LARGEST_TOKENS:,} is needed"
        )
    return int(fields[name])


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _said(value: object) -> str:
    return "missing" if value is None else f'"{shown(json.dumps(value))}"'
