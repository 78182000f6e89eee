"""Files of results as plain documents: read whole, bounded in size, named by content."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from planner.domain.base import InputError

LARGEST_BYTES = 512 * 2**20
LARGEST_YAML_BYTES = 32 * 2**20
"""YAML is read a hundred times slower than JSON."""
MOST_NODES = 5_000_000
"""Values of a YAML document, whose references can make many of few."""
YAML_SUFFIXES = (".yaml", ".yml")
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
"""Of a pair; one alone can be written in JSON and in no file."""


class ResultFile(NamedTuple):
    """A file as it was read."""

    path: Path
    sha256: str
    documents: tuple[JsonValue, ...]
    """Several where a tool appended its results to one file."""


def read_documents(path: Path) -> ResultFile:
    """The JSON or YAML documents of a file.

    NaN, Infinity and figures beyond what a float holds become texts, so that they are refused where a figure is
    needed and kept where none is.

    Raises:
        InputError: not readable, empty, too large, or not whole JSON (YAML by its suffix).
    """
    limit = LARGEST_YAML_BYTES if path.suffix.lower() in YAML_SUFFIXES else LARGEST_BYTES
    content = _content(path, limit)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text in UTF-8; a result in JSON is needed") from None
    if not text.strip():
        raise InputError(f"{path}: empty; a result in JSON is needed")
    is_yaml = path.suffix.lower() in YAML_SUFFIXES
    try:
        documents = _json(_yaml_as_json(text) if is_yaml else text)
    except RecursionError:
        raise InputError(f"{path}: nested too deeply for a result") from None
    except (TypeError, ValueError) as error:
        name = "YAML" if is_yaml else "JSON"
        raise InputError(f"{path}: not whole {name}: {' '.join(str(error).split())[:200]}") from None
    return ResultFile(path, hashlib.sha256(content).hexdigest(), documents)


def _content(path: Path, limit: int) -> bytes:
    try:
        is_folder, is_other = path.is_dir(), path.exists() and not path.is_file()
        if is_folder or is_other:
            raise InputError(f"{path}: {'a folder; name a file in it' if is_folder else 'not a plain file'}")
        is_large = path.stat().st_size > limit
        content = b"" if is_large else path.read_bytes()
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{str(path)[:200]}: cannot be read: {reason}") from None
    if is_large:
        raise InputError(f"{path}: larger than {limit // 2**20} MiB; leave the details of each request out")
    return content


def _json(text: str) -> tuple[JsonValue, ...]:
    """One document after the other, with nothing but blanks between them."""
    decoder = json.JSONDecoder(parse_constant=str, parse_float=_figure)
    found: list[JsonValue] = []
    at = 0
    while at < len(text):
        while at < len(text) and text[at].isspace():
            at += 1
        if at < len(text):
            document, at = decoder.raw_decode(text, at)
            found.append(document)
    if _HALF_CHARACTER.search(text):
        whole = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")
        found = json.loads(whole)
    return tuple(found)


def _figure(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _yaml_as_json(text: str) -> str:
    """The document with days as texts and without references to its own parts.

    Raises:
        ValueError: not whole YAML, or its references unfold to more than a result can hold.
    """
    import yaml

    try:
        document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    waiting = [document]
    for _node in range(MOST_NODES):
        if not waiting:
            return json.dumps(document, default=str)
        node = waiting.pop()
        if isinstance(node, dict):
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    raise ValueError(f"more than {MOST_NODES:,} values")


def read_beside(path: Path, name: str) -> Mapping[str, JsonValue]:
    """A document that a tool leaves beside its results; empty where it is not there.

    Raises:
        InputError: it is there and cannot be read.
    """
    beside = path.with_name(name)
    if not beside.is_file():
        return {}
    document = read_documents(beside).documents[0]
    return document if isinstance(document, dict) else {}
