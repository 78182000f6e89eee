"""What the benchmarks read besides the project itself: all of it optional."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from planner.assemble.traffic import TrafficAsked, traffic_asked
from planner.planning.simulate import Traffic
from planner.serving.arrivals import plain_stream

SHARED = Path(__file__).resolve().parents[2] / "shared"
TRACE = SHARED / "traces" / "azure2023_conv.csv"
MEASURED = SHARED / "truth" / "e2e_train.csv"
PEER = SHARED / "truth" / "aiconfigurator_train.csv"
LIKE_TRACE_SEED = 0


class Inputs(NamedTuple):
    """Paths are None where there is no such file."""

    trace: Path | None = None
    """Requests as recorded (the Azure LLM inference trace 2023, conversations)."""
    measured: Path | None = None
    """A runs table with measured TTFT and TPOT."""
    peer: Path | None = None
    """aiconfigurator's predictions for the same `run_id`s."""
    vidur_python: str | None = None
    """The interpreter that has `vidur`."""
    left_out: bool = False
    """Also measure errors with each model left out of the fit (minutes)."""
    repeats: int = 5


class Lengths(NamedTuple):
    """Tokens of prompts or answers, in requests as recorded."""

    mean: float
    deviation: float
    longest: int


PROMPTS = Lengths(1154.7, 1108.8, 14_050)
ANSWERS = Lengths(211.1, 162.9, 1000)
REQUESTS = 19_366
REQUESTS_PER_S = 5.53
"""Of the Azure conversation trace (github.com/Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv)."""


def trace_or_like_it(trace: Path | None, requests: int | None = None) -> tuple[Traffic, str]:
    """The recorded requests, or drawn ones with the same statistics, and which of the two they are.

    Raises:
        InputError: the trace cannot be read.
    """
    if trace is not None:
        return traffic_asked(TrafficAsked(trace=trace, num_requests=requests))[0], trace.name
    return like_trace(requests or REQUESTS), "drawn, lengths and rate as in the Azure conversation trace"


def like_trace(requests: int) -> Traffic:
    """Lognormal lengths with the trace's means and deviations, cut at its longest; Poisson arrivals at its rate."""
    random = np.random.default_rng(LIKE_TRACE_SEED)
    drawn = []
    for mean, deviation, longest in (PROMPTS, ANSWERS):
        variance = np.log1p((deviation / mean) ** 2)
        tokens = random.lognormal(np.log(mean) - variance / 2.0, np.sqrt(variance), requests)
        drawn.append(np.clip(np.rint(tokens), 1, longest).astype(np.int64))
    sent_s = np.cumsum(random.exponential(1.0 / REQUESTS_PER_S, requests))
    return Traffic(plain_stream(sent_s, *drawn))
