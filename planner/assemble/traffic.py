"""The requests of a simulation as options describe them: drawn from a workload, or read from a trace."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from planner.assemble.question import first_problem
from planner.catalog.traces import Trace, read_trace
from planner.domain.base import InputError
from planner.domain.workload import Workload
from planner.planning.simulate import Traffic, drawn_traffic
from planner.serving.arrivals import plain_stream, with_prefixes

RATE_SCALES = (1e-3, 1e3)


class TrafficAsked(NamedTuple):
    """Traffic as given; None is left out."""

    concurrency: int | None = None
    requests_per_s: float | None = None
    trace: Path | None = None
    rate_scale: float | None = None
    arrival_cv: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    length_low_ratio: float | None = None
    prefix_hit_ratio: float | None = None
    num_requests: int | None = None
    seed: int = 0


def traffic_asked(asked: TrafficAsked) -> tuple[Traffic, tuple[str, ...]]:
    """The requests to simulate, and what was changed in them.

    Raises:
        InputError: not exactly one kind of load, options that do not go with it or are missing, a value out of range,
            or a trace that cannot be read.
    """
    _check_one_kind(asked)
    if asked.trace is not None:
        return _recorded(asked, read_trace(asked.trace))
    given = {name: value for name, value in asked._asdict().items() if value is not None and name != "seed"}
    for name in ("input_tokens", "output_tokens"):
        if name not in given:
            raise InputError(f"{_option(name)} is missing: give the tokens of a prompt and of an answer")
    try:
        workload = Workload(**given)
    except ValidationError as error:
        raise InputError(first_problem(error)) from None
    return drawn_traffic(workload, asked.seed), ()


def _check_one_kind(asked: TrafficAsked) -> None:
    kinds = [name for name in ("concurrency", "requests_per_s", "trace") if getattr(asked, name) is not None]
    if len(kinds) != 1:
        raise InputError(
            "give one of --concurrency (closed loop), --requests-per-s (open loop) and --trace FILE, "
            + (f"not {' and '.join(map(_option, kinds))}" if kinds else "none is there")
        )
    lengths = ("input_tokens", "output_tokens", "length_low_ratio", "prefix_hit_ratio")
    apart = {
        "concurrency": ("arrival_cv", "rate_scale"),
        "requests_per_s": ("rate_scale",),
        "trace": ("arrival_cv", *lengths),
    }
    for name in apart[kinds[0]]:
        if getattr(asked, name) is not None:
            raise InputError(f"{_option(name)} does not go with {_option(kinds[0])}")


def _recorded(asked: TrafficAsked, trace: Trace) -> tuple[Traffic, tuple[str, ...]]:
    scale = 1.0 if asked.rate_scale is None else asked.rate_scale
    if not RATE_SCALES[0] <= scale <= RATE_SCALES[1]:
        raise InputError(f"--rate-scale must be from {RATE_SCALES[0]:g} to {RATE_SCALES[1]:g}, got {scale:g}")
    first = slice(asked.num_requests)
    stream = plain_stream(
        np.asarray(trace.sent_s[first] / scale), trace.prompt_tokens[first], trace.output_tokens[first]
    )
    if trace.prefix_ids is not None:
        stream = with_prefixes(stream, trace.prefix_ids[first], trace.prefix_block_tokens)
    notes: tuple[str, ...] = ()
    if trace.lengthened:
        notes = (f"requests without a prompt or an answer, taken for one token: {trace.lengthened:,}",)
    return Traffic(stream), notes


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
