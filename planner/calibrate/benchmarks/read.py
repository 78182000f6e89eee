"""Files of results, whatever tool wrote them: told apart by their fields."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from planner.calibrate.benchmarks.documents import read_documents
from planner.calibrate.benchmarks.guidellm import is_guidellm, read_guidellm
from planner.calibrate.benchmarks.inference_perf import is_inference_perf, read_inference_perf
from planner.calibrate.benchmarks.reading import Reading, problem_of
from planner.calibrate.benchmarks.vllm_latency import is_latency, read_latency
from planner.calibrate.benchmarks.vllm_serve import is_serve, read_serve
from planner.calibrate.benchmarks.vllm_throughput import is_throughput, read_throughput
from planner.domain.base import InputError

KNOWN = "vllm bench serve, latency or throughput, guidellm or inference-perf"
MOST_LOADS = 10_000
"""Of one file."""


class ReadFile(NamedTuple):
    """The loads of one file."""

    path: Path
    sha256: str
    readings: tuple[Reading, ...]


def read_benchmarks(path: Path) -> ReadFile:
    """Every load that a file holds.

    Raises:
        InputError: not readable, not a result of a known tool, or a field that cannot be; one line with the file.
    """
    found = read_documents(path)
    documents = [
        one
        for document in found.documents
        for one in (document if isinstance(document, list) else [document])
    ]
    if not documents:
        raise InputError(f"{path}: an empty list; a result of {KNOWN} is needed")
    readings: list[Reading] = []
    for index, document in enumerate(documents):
        where = f"{path}: result {index + 1}" if len(documents) > 1 else str(path)
        if not isinstance(document, dict):
            raise InputError(f"{where}: not an object; a result of {KNOWN} is needed")
        with problem_of(where):
            readings += _readings(document, path, where)
        if len(readings) > MOST_LOADS:
            raise InputError(f"{path}: more than {MOST_LOADS:,} loads")
    return ReadFile(path, found.sha256, tuple(readings))


def _readings(document: Mapping[str, JsonValue], path: Path, where: str) -> Iterator[Reading]:
    if is_serve(document):
        yield read_serve(document, where)
    elif is_latency(document):
        yield read_latency(document, where)
    elif is_throughput(document):
        yield read_throughput(document, where)
    elif is_guidellm(document):
        yield from read_guidellm(document, where)
    elif is_inference_perf(document):
        yield read_inference_perf(document, path)
    else:
        raise InputError(f"{where}: {_meant(document)}")


def _meant(document: Mapping[str, JsonValue]) -> str:
    """What a document is that is no result."""
    if document.get("kind") == "benchmark":
        return "a record that was imported already; import the tool's own file"
    if {"run_id", "target", "points"} <= set(document):
        return "a calibration run: `fit runs` reads it where it lies"
    if {"benchmark", "metric"} <= set(document):
        return "the form of PyTorch's benchmark database; import the result beside it, without .pytorch in its name"
    return f"not a result of {KNOWN}"
