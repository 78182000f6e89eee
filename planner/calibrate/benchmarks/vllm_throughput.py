"""Results of `vllm bench throughput --output-json` (benchmarks/throughput.py, main): all requests at once, offline.

The file has prompt and output tokens in one sum, and no latency.
"""

import math
from collections.abc import Mapping

from pydantic import JsonValue

from planner.calibrate.benchmarks.fields import Fields
from planner.calibrate.benchmarks.reading import LoadSaid, Reading, noted_facts
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkMeasures, BenchmarkTool

AGREEMENT_RATIO = 1e-3
NOTES = (
    "offline: all requests at once, in the engine's own process; throughput alone was measured",
    "a server's front end is in predictions and not in this run",
)


def is_throughput(document: Mapping[str, JsonValue]) -> bool:
    """Whether an object is such a result."""
    return {"elapsed_time", "num_requests", "total_num_tokens"} <= set(document)


def read_throughput(document: Mapping[str, JsonValue], where: str) -> Reading:
    """One run.

    Raises:
        InputError: a field is missing, is no figure, or contradicts another.
    """
    fields = Fields(document, where)
    requests = int(fields.needed("num_requests", low=1, high=1e9))
    elapsed_s = fields.needed("elapsed_time", low=1e-6, high=1e6)
    tokens = fields.needed("total_num_tokens", low=2)
    told = fields.number("requests_per_second")
    if told is not None and not math.isclose(told, requests / elapsed_s, rel_tol=AGREEMENT_RATIO):
        raise InputError(
            f"{where}: requests_per_second is not num_requests / elapsed_time: was the file edited?"
        )
    facts, load_facts = noted_facts(fields)
    return Reading(
        BenchmarkTool.VLLM_THROUGHPUT,
        where,
        fields.text("model_id"),
        facts if facts.engine else facts.model_copy(update={"engine": "vllm"}),
        load_facts,
        LoadSaid(
            tokens_per_request=tokens / requests, concurrency=min(requests, 10**6), num_requests=requests
        ),
        BenchmarkMeasures(requests_per_s=requests / elapsed_s, duration_s=elapsed_s, completed=requests),
        fields.unread(),
        notes=NOTES,
    )
