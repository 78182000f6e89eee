"""One deployment under one stream of requests: placed, sized, and simulated iteration by iteration."""

from math import ceil
from typing import NamedTuple

import numpy as np

from planner.domain.base import InputError
from planner.domain.deployment import Parallelism
from planner.domain.evidence import LatencyRanges
from planner.domain.model import Model
from planner.domain.workload import Slo, Workload
from planner.formulas.arrays import IntArray
from planner.formulas.host_time import NO_HOST_TIME, HostTime
from planner.formulas.memory import captured_sizes
from planner.planning.basis import has_rough_kernels
from planner.planning.facts import Facts
from planner.planning.predict import OPEN_LOOP_SPAN_S, REQUESTS_PER_USER, Case, Sized, size
from planner.planning.sizing import Placed, Sizer
from planner.serving.arrivals import drawn_stream
from planner.serving.lockstep import Load, simulate_in_step
from planner.serving.measures import Measures, Requests, Share, measures_of, requests_of
from planner.serving.scheduler_types import RequestStream
from planner.serving.simulation import Replica, compiler_notes, replica, simulate

LEAST_OPEN_REQUESTS = 200
MOST_REQUESTS = 100_000
"""Unless more are asked for."""
LARGEST_REQUESTS = 1_000_000


class Traffic(NamedTuple):
    """Requests and how they are sent; `users` above 0: so many in flight, each sent when another ends."""

    stream: RequestStream
    users: int = 0


class Simulation(NamedTuple):
    """What became of the traffic; without requests and measures where the engine does not start."""

    sized: Sized
    requests: Requests | None = None
    measures: Measures | None = None
    ranges: LatencyRanges | None = None
    """Where 90 % of measured mean TTFTs and TPOTs lie; None where no measured run tells."""
    notes: tuple[str, ...] = ()


def drawn_traffic(workload: Workload, seed: int) -> Traffic:
    """Requests of a workload: those it asks for, or ten a user, or ten minutes of an open loop.

    Raises:
        InputError: more are asked for than are simulated.
    """
    count = workload.num_requests
    if count is not None and count > LARGEST_REQUESTS:
        raise InputError(f"num_requests must be at most {LARGEST_REQUESTS:,} to be simulated, got {count}")
    if workload.concurrency is not None:
        count = count or min(REQUESTS_PER_USER * workload.concurrency, MOST_REQUESTS)
        return Traffic(drawn_stream(workload, count, seed), workload.concurrency)
    spanned = ceil(OPEN_LOOP_SPAN_S * (workload.requests_per_s or 0.0))
    count = count or min(max(spanned, LEAST_OPEN_REQUESTS), MOST_REQUESTS)
    return Traffic(drawn_stream(workload, count, seed))


def simulated(case: Case, traffic: Traffic, slo: Slo, facts: Facts) -> Simulation:
    """`simulated_by` for one deployment alone."""
    return simulated_by(Sizer(facts), case, traffic, slo)


def simulated_by(sizer: Sizer, case: Case, traffic: Traffic, slo: Slo) -> Simulation:
    """Serves the traffic on a deployment; `case.workload` is not read, `sizer` remembers what layouts share.

    Data-parallel ranks take requests in turn; those of an MoE model wait for each other. Pipeline stages work on as
    many batches at once, each with its part of the slots and of the cache.

    Raises:
        InputError: every request is longer than `max_model_len`, or one needs more blocks than the cache has.
    """
    sized = size(case, sizer)
    if sized.refusal is not None or sized.placed is None or sized.budget is None:
        return Simulation(sized)
    stream, notes = _served(case, traffic.stream)
    one = engine_of(case, sized, sizer, sizer.facts.host)
    engines = case.parallelism.dp * case.parallelism.pp
    together = ranks_together(sized.placed.model, case.parallelism)
    shares = _shares(one, Traffic(stream, traffic.users), engines, together)
    requests = requests_of(shares)
    measures = measures_of(requests, shares, slo, engines=engines)
    stages = case.parallelism.pp
    if stages > 1:
        notes.append(f"the pipeline is simulated as {stages} engines that share slots and cache evenly")
    if together > 1:
        notes.append(
            f"each of the {together} ranks waits in every step as long as it would for the others on average"
        )
    if one.host == NO_HOST_TIME:
        notes.append("the time that engine and front end spend outside the GPU is not counted")
    notes += compiler_notes()
    rough = has_rough_kernels(sized.placed.model)
    band = sizer.facts.accuracy.band(sized.placed.basis, gpu=case.gpu.name, rough_kernels=rough)
    ranges = None if band is None else band.ranges(ttft_s=measures.ttft.mean_s, tpot_s=measures.tpot.mean_s)
    return Simulation(sized, requests, measures, ranges, tuple(notes))


def chosen(stream: RequestStream, rows: IntArray) -> RequestStream:
    """Some requests of a stream, their prefix blocks numbered anew."""
    lengths = np.diff(stream.prefix_start)[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = np.arange(starts[-1]) + np.repeat(stream.prefix_start[rows] - starts[:-1], lengths)
    _, numbers = np.unique(stream.prefix_ids[places], return_inverse=True)
    return RequestStream(
        sent_s=stream.sent_s[rows],
        prompt_tokens=stream.prompt_tokens[rows],
        output_tokens=stream.output_tokens[rows],
        cached_tokens=stream.cached_tokens[rows],
        priority=stream.priority[rows],
        prefix_start=starts,
        prefix_ids=numbers.astype(np.int64),
        prefix_block_tokens=stream.prefix_block_tokens,
    )


def _served(case: Case, stream: RequestStream) -> tuple[RequestStream, list[str]]:
    """What the server takes of the stream, and what was changed."""
    notes = []
    longest = case.engine.max_model_len
    fits = stream.prompt_tokens + stream.output_tokens <= longest
    if not fits.any():
        raise InputError(f"every request, prompt and answer, is longer than max_model_len, {longest} tokens")
    if not fits.all():
        left_out = int(np.count_nonzero(~fits))
        notes.append(
            f"left out, longer than max_model_len, {longest} tokens: {left_out:,} of {fits.size:,} requests"
        )
        stream = chosen(stream, np.flatnonzero(fits))
    if not case.engine.enable_prefix_caching and (stream.prefix_ids.size or stream.cached_tokens.any()):
        notes.append("prefix caching is off: every prompt is computed")
        stream = stream._replace(
            cached_tokens=np.zeros_like(stream.cached_tokens),
            prefix_start=np.zeros_like(stream.prefix_start),
            prefix_ids=np.zeros(0, dtype=np.int64),
        )
    return stream, notes


def engine_of(case: Case, sized: Sized, sizer: Sizer, host: HostTime) -> Replica:
    """One rank's engine; of a pipeline, one of the batches that are in it."""
    placed, budget, engine = sized.placed, sized.budget, case.engine
    assert placed is not None
    assert budget is not None
    host = placed.operators.host_on(host)
    one = replica(sizer.step(placed), placed.kv, budget.kv_cache_bytes, engine, host, captured(placed, case))
    stages = case.parallelism.pp
    if stages == 1:
        return one
    # A long request may take more than its batch's part.
    blocks = max(one.pool.blocks // stages, min(one.pool.blocks, placed.kv.blocks(budget.request_bytes)))
    slots = ceil(engine.max_num_seqs / stages)
    return one._replace(
        pool=one.pool._replace(blocks=blocks), engine=engine.model_copy(update={"max_num_seqs": slots})
    )


def ranks_together(model: Model, parallelism: Parallelism) -> int:
    """Data-parallel ranks whose steps last as long as the longest of them: all of an MoE model, otherwise each alone
    (vllm/v1/engine/core.py, DPEngineCoreProc)."""
    return parallelism.dp if model.has_moe else 1


def captured(placed: Placed, case: Case) -> tuple[int, ...]:
    """Sizes with a CUDA graph, ascending."""
    return () if case.engine.enforce_eager else captured_sizes(placed.card, case.engine)


def _shares(one: Replica, traffic: Traffic, engines: int, together: int) -> list[Share]:
    """The stream dealt in turn to the engines that get something to do."""
    count = traffic.stream.prompt_tokens.size
    dealt = min(engines, count, traffic.users or engines)
    rows = [np.arange(number, count, dealt, dtype=np.int64) for number in range(dealt)]
    loads = [
        Load(
            traffic.stream if dealt == 1 else chosen(traffic.stream, rows[number]),
            traffic.users // dealt + (number < traffic.users % dealt),
        )
        for number in range(dealt)
    ]
    ranks = min(together, dealt)
    if ranks > 1:
        outs = simulate_in_step(one, loads, ranks)
    else:
        outs = [simulate(one, load.stream, users=load.users) for load in loads]
    return [Share(one, load.stream, row, out) for load, row, out in zip(loads, rows, outs, strict=True)]
