"""`simulate`: one deployment under one stream of requests, iteration by iteration."""

from pathlib import Path
from typing import Annotated

import typer

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.assemble.traffic import TrafficAsked, traffic_asked
from planner.catalog.atomic import check_outputs
from planner.catalog.models import model_files
from planner.cli.options import (
    AsJson,
    AsyncScheduling,
    BlockSize,
    CalibrationDir,
    DisableHybridKvCacheManager,
    Dp,
    EnforceEager,
    EngineVersion,
    ExpertParallel,
    GpuMemoryGib,
    GpuMemoryUtilization,
    GpuName,
    KvCacheMemoryGib,
    KvFormat,
    LongPrefillTokenThreshold,
    MaxModelLen,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    ModelName,
    NoMultimodal,
    NoPrefixCaching,
    Pp,
    Tp,
    WeightFormat,
)
from planner.cli.screen import note, working
from planner.cli.simulate_report import SimulationAnswer, show_simulation, write_page, write_requests
from planner.domain.base import InputError
from planner.domain.units import ms_to_seconds
from planner.domain.workload import Slo
from planner.planning.simulate import simulated

MOST_ASKED = 1_000_000
LARGEST_SEED = 2**63 - 1


def simulate(
    *,
    model: ModelName,
    gpu: GpuName,
    tp: Tp = 1,
    pp: Pp = 1,
    dp: Dp = 1,
    ep: ExpertParallel = False,
    weight_dtype: WeightFormat = "auto",
    kv_dtype: KvFormat = "auto",
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
    long_prefill_token_threshold: LongPrefillTokenThreshold = None,
    gpu_memory_utilization: GpuMemoryUtilization = None,
    gpu_memory_gib: GpuMemoryGib = None,
    kv_cache_memory_gib: KvCacheMemoryGib = None,
    engine_version: EngineVersion = "",
    enforce_eager: EnforceEager = False,
    async_scheduling: AsyncScheduling = None,
    block_size: BlockSize = None,
    no_prefix_caching: NoPrefixCaching = False,
    disable_hybrid_kv_cache_manager: DisableHybridKvCacheManager = False,
    no_multimodal: NoMultimodal = False,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="Closed loop: requests in flight.")
    ] = None,
    requests_per_s: Annotated[
        float | None, typer.Option("--requests-per-s", help="Open loop: mean rate of arrivals.")
    ] = None,
    arrival_cv: Annotated[
        float | None,
        typer.Option("--arrival-cv", help="Spread of the gaps: 0 constant, 1 Poisson (the default)."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE", help="Requests as recorded: Azure CSV or Mooncake .jsonl."),
    ] = None,
    rate_scale: Annotated[
        float | None, typer.Option("--rate-scale", help="Send the trace so many times as fast.")
    ] = None,
    input_tokens: Annotated[
        float | None, typer.Option("--input-tokens", help="Tokens of a prompt, cached ones included.")
    ] = None,
    output_tokens: Annotated[
        float | None, typer.Option("--output-tokens", help="Tokens of an answer.")
    ] = None,
    length_low_ratio: Annotated[
        float | None,
        typer.Option("--length-low-ratio", help="Lengths are uniform from this share of those given; 1."),
    ] = None,
    prefix_hit_ratio: Annotated[
        float | None,
        typer.Option("--prefix-hit-ratio", help="Share of each prompt found in the prefix cache; 0."),
    ] = None,
    num_requests: Annotated[
        int | None,
        typer.Option(
            "--num-requests",
            min=1,
            max=MOST_ASKED,
            help="Requests sent; 10 a user, ten minutes of an open loop or the whole trace if left out.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of lengths and arrivals drawn.")
    ] = 0,
    ttft_p95_ms: Annotated[
        float | None, typer.Option("--ttft-p95-ms", help="Goodput counts requests with a TTFT up to this.")
    ] = None,
    tpot_p95_ms: Annotated[
        float | None, typer.Option("--tpot-p95-ms", help="Goodput counts requests with a TPOT up to this.")
    ] = None,
    calibration_dir: CalibrationDir = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write every request to FILE.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.html", help="Draw latencies and the run over time as a page."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate vLLM's scheduler under one stream of requests; nothing is dropped as warm-up."""
    check_outputs(csv, plot, inputs=(*model_files(model), trace))
    slo = _slo(ttft_p95_ms, tpot_p95_ms)
    facts = facts_for(calibration_dir=calibration_dir)
    engine = Engine(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        long_prefill_token_threshold=long_prefill_token_threshold,
        gpu_memory_utilization=gpu_memory_utilization,
        enforce_eager=enforce_eager,
        async_scheduling=async_scheduling,
        engine_version=engine_version,
        block_size=block_size,
        prefix_caching=not no_prefix_caching,
        hybrid_kv_cache_manager=not disable_hybrid_kv_cache_manager,
        multimodal=not no_multimodal,
        kv_cache_memory_gib=kv_cache_memory_gib,
    )
    case = deployment(
        model,
        gpu_named(gpu, gpu_memory_gib, calibration_dir=calibration_dir),
        parallelism_of(tp, pp, dp, ep=ep),
        Formats(weight_dtype, kv_dtype),
        engine,
    )
    traffic, changed = traffic_asked(
        TrafficAsked(
            concurrency=concurrency,
            requests_per_s=requests_per_s,
            trace=trace,
            rate_scale=rate_scale,
            arrival_cv=arrival_cv,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            length_low_ratio=length_low_ratio,
            prefix_hit_ratio=prefix_hit_ratio,
            num_requests=num_requests,
            seed=seed,
        )
    )
    with working("simulating; the first run is compiling the scheduler, once"):
        found = simulated(case, traffic, slo, facts)
    for text in (*changed, *found.notes):
        note(f"note: {text}")
    answer = SimulationAnswer(case, traffic, slo, found)
    if csv is not None:
        write_requests(csv, found.requests)
        note(f"wrote {csv}")
    if plot is not None:
        write_page(plot, answer)
        note(f"wrote {plot}")
    show_simulation(answer, as_json=as_json)
    if found.sized.refusal is not None:
        raise typer.Exit(1)


def _slo(ttft_ms: float | None, tpot_ms: float | None) -> Slo:
    limits = {"--ttft-p95-ms": ttft_ms, "--tpot-p95-ms": tpot_ms}
    for name, limit_ms in limits.items():
        if limit_ms is not None and not 0 < limit_ms < float("inf"):
            raise InputError(f"{name} must be a finite number above 0, got {limit_ms:g}")
    return Slo(
        ttft_p95_s=None if ttft_ms is None else ms_to_seconds(ttft_ms),
        tpot_p95_s=None if tpot_ms is None else ms_to_seconds(tpot_ms),
    )
