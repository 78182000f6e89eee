"""Results of `vllm bench latency --output-json` (benchmarks/latency.py, main): one batch, again and again.

The file says neither the batch nor its lengths, and nothing about first tokens.
"""

import math
from collections.abc import Mapping

from pydantic import JsonValue

from planner.calibrate.benchmarks.fields import Fields, summary
from planner.calibrate.benchmarks.reading import LoadSaid, Reading, noted_facts
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkMeasures, BenchmarkTool

AGREEMENT_RATIO = 1e-3
NOTES = (
    "offline: a batch at once, in the engine's own process; TTFT and TPOT cannot be told apart",
    "a server's front end is in predictions and not in this run",
)


def is_latency(document: Mapping[str, JsonValue]) -> bool:
    """Whether an object is such a result."""
    return {"avg_latency", "latencies"} <= set(document)


def read_latency(document: Mapping[str, JsonValue], where: str) -> Reading:
    """One batch.

    Raises:
        InputError: a field is missing, is no figure, or contradicts another.
    """
    fields = Fields(document, where)
    mean_s = fields.latency_s("avg_latency")
    values = fields.figures("latencies")
    if mean_s is None or not values:
        raise InputError(f"{where}: no batch was measured")
    if not math.isclose(math.fsum(values) / len(values), mean_s, rel_tol=AGREEMENT_RATIO):
        raise InputError(f"{where}: avg_latency is not the mean of latencies: was the file edited?")
    stored = fields.value("percentiles")
    names = [name for name in stored if name.isdecimal()] if isinstance(stored, dict) else []
    facts, load_facts = noted_facts(fields)
    return Reading(
        BenchmarkTool.VLLM_LATENCY,
        where,
        fields.text("model_id"),
        facts if facts.engine else facts.model_copy(update={"engine": "vllm"}),
        load_facts,
        LoadSaid(),
        BenchmarkMeasures(
            e2e=summary(mean_s, {name: fields.latency_s("percentiles", name) for name in names}),
            duration_s=math.fsum(values),
        ),
        fields.unread(),
        notes=NOTES,
    )
