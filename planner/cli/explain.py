"""`explain`: where the time of one step goes, and what binds it."""

from typing import Annotated

import typer

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.catalog.atomic import check_outputs
from planner.catalog.models import model_files
from planner.cli.explain_report import show_step, write_step
from planner.cli.options import (
    AsJson,
    AsyncScheduling,
    BlockSize,
    CalibrationDir,
    CsvFile,
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
from planner.cli.screen import note
from planner.domain.base import InputError
from planner.planning.explain import StepAsked, explained


def explain(
    *,
    model: ModelName,
    gpu: GpuName,
    batch: Annotated[
        int, typer.Option("--batch", help="Sequences that decode in the step, on each data-parallel rank.")
    ] = 0,
    context_tokens: Annotated[
        int | None, typer.Option("--context-tokens", help="Tokens of each of them in the KV cache.")
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", help="Tokens of a whole prompt in the same step.")
    ] = 0,
    tp: Tp = 1,
    pp: Pp = 1,
    dp: Dp = 1,
    ep: ExpertParallel = False,
    weight_dtype: WeightFormat = "auto",
    kv_dtype: KvFormat = "auto",
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
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
    calibration_dir: CalibrationDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Take one step apart: time by operator and type of layer against its roofline, and what binds."""
    check_outputs(csv, inputs=model_files(model))
    facts = facts_for(calibration_dir=calibration_dir)
    engine = Engine(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
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
    if context_tokens is None and batch:
        raise InputError("--context-tokens is missing: how many tokens the sequences of --batch have")
    answer = explained(case, StepAsked(batch, context_tokens or 0, prompt_tokens), facts)
    for text in answer.notes:
        note(f"note: {text}")
    if csv is not None:
        write_step(csv, answer)
        note(f"wrote {csv}")
    show_step(case, answer, as_json=as_json)
    if answer.sized.refusal is not None:
        raise typer.Exit(1)
