"""`memory`: one GPU's memory under one deployment, as vLLM's start-up log would print it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, memory_bytes, parallelism_of
from planner.assemble.logged_deployment import Given
from planner.assemble.question import facts_for
from planner.catalog.atomic import check_outputs
from planner.catalog.load import gpus
from planner.catalog.models import model_files
from planner.cli.memory_report import MemoryAnswer, RoomAsked, show_memory
from planner.cli.memory_solve import Asked, Unknown, check_asked, show_solution, solve
from planner.cli.options import (
    AsJson,
    BlockSize,
    CalibrationDir,
    CsvFile,
    DisableHybridKvCacheManager,
    DpGiven,
    DraftModel,
    EnableLora,
    EnforceEager,
    EngineVersion,
    ExpertParallel,
    FullyShardedLoras,
    GpuMemoryGib,
    GpuMemoryUtilization,
    KvCacheMemoryGib,
    KvFormat,
    KvOffloadingGib,
    MaxLoraRank,
    MaxLoras,
    MaxModelLen,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    NoMultimodal,
    NoPrefixCaching,
    NumSpeculativeTokens,
    PpGiven,
    TpGiven,
    WeightFormat,
)
from planner.cli.startup_log import show_log
from planner.domain.base import InputError
from planner.domain.hardware import Gpu
from planner.planning.predict import Case, size
from planner.planning.sizing import Sizer


def memory(
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", help="A bundled name, a Hugging Face id, or the path of a config.json."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="A GPU of `catalog list gpus`; not needed with --solve gpu."),
    ] = None,
    tp: TpGiven = None,
    pp: PpGiven = None,
    dp: DpGiven = None,
    ep: ExpertParallel = False,
    weight_dtype: WeightFormat = "auto",
    kv_dtype: KvFormat = "auto",
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
    gpu_memory_utilization: GpuMemoryUtilization = None,
    gpu_memory_gib: GpuMemoryGib = None,
    engine_version: EngineVersion = "",
    enforce_eager: EnforceEager = False,
    block_size: BlockSize = None,
    no_prefix_caching: NoPrefixCaching = False,
    disable_hybrid_kv_cache_manager: DisableHybridKvCacheManager = False,
    no_multimodal: NoMultimodal = False,
    kv_cache_memory_gib: KvCacheMemoryGib = None,
    kv_offloading_gib: KvOffloadingGib = None,
    enable_lora: EnableLora = False,
    max_loras: MaxLoras = None,
    max_lora_rank: MaxLoraRank = None,
    fully_sharded_loras: FullyShardedLoras = False,
    draft_model: DraftModel = None,
    num_speculative_tokens: NumSpeculativeTokens = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(
            "--context-tokens", min=1, max=10**8, help="Say how many sequences of this length are held."
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, max=10**6, help="Say how long so many sequences held at once can be."),
    ] = None,
    unknown: Annotated[
        Unknown | None, typer.Option("--solve", help="Leave this open and answer it directly.")
    ] = None,
    detail: Annotated[
        bool, typer.Option("--detail", help="List every tensor and KV group; --csv then holds the tensors.")
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log",
            metavar="FILE",
            help="Compare a vLLM start-up log (- for standard input) with what is predicted for it; "
            "other options count before the log.",
        ),
    ] = None,
    calibration_dir: CalibrationDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Divide one GPU's memory as vLLM would."""
    read = [path for name in (model, draft_model) if name is not None for path in model_files(name)]
    check_outputs(csv, inputs=(*read, *([log] if log is not None else ())))
    facts = facts_for(calibration_dir=calibration_dir)
    if log is not None:
        if unknown is not None or detail:
            raise InputError("--log stands alone: give no --solve and no --detail")
        given = Given(
            model=model,
            gpu=gpu,
            gpu_memory_gib=gpu_memory_gib,
            tp=tp,
            pp=pp,
            dp=dp,
            weight_dtype=_unless_auto(weight_dtype),
            kv_dtype=_unless_auto(kv_dtype),
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            engine_version=engine_version or None,
            ep=ep or None,
            enforce_eager=enforce_eager or None,
            block_size=block_size,
            enable_prefix_caching=False if no_prefix_caching else None,
            hybrid_kv_cache_manager=False if disable_hybrid_kv_cache_manager else None,
            multimodal=False if no_multimodal else None,
            kv_cache_memory_bytes=memory_bytes("kv_cache_memory_gib", kv_cache_memory_gib),
        )
        if enable_lora or draft_model is not None or kv_offloading_gib is not None:
            raise InputError(
                "adapters, draft model and offloading of a log are read from it: give no options for them"
            )
        show_log(log, given, facts=facts, csv=csv, as_json=as_json)
        return
    if model is None:
        raise InputError(
            "--model is missing: a bundled name, a Hugging Face id, or the path of a config.json"
        )
    engine = Engine(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        gpu_memory_utilization=gpu_memory_utilization,
        enforce_eager=enforce_eager,
        engine_version=engine_version,
        block_size=block_size,
        prefix_caching=not no_prefix_caching,
        hybrid_kv_cache_manager=not disable_hybrid_kv_cache_manager,
        multimodal=not no_multimodal,
        kv_cache_memory_gib=kv_cache_memory_gib,
        kv_offloading_gib=kv_offloading_gib,
        enable_lora=enable_lora,
        max_loras=max_loras,
        max_lora_rank=max_lora_rank,
        fully_sharded_loras=fully_sharded_loras,
        draft_model=draft_model,
        num_speculative_tokens=num_speculative_tokens,
    )
    least = 1 if unknown is Unknown.TP else tp
    parallelism = parallelism_of(*(1 if degree is None else degree for degree in (least, pp, dp)), ep=ep)
    formats = Formats(weight_dtype, kv_dtype)
    cards = _cards(gpu, gpu_memory_gib, unknown, calibration_dir)
    cases = tuple(deployment(model, card, parallelism, formats, engine) for card in cards)
    _check_context(context_tokens, cases)
    sizer = Sizer(facts)
    if unknown is not None:
        if detail:
            raise InputError("--solve and --detail are two questions: give one of them")
        asked = Asked(unknown, cases, context_tokens, batch)
        check_asked(asked)
        solution = solve(asked, sizer)
        show_solution(asked, solution, csv=csv, as_json=as_json)
        works = solution.value is not None
    else:
        (case,) = cases
        room = RoomAsked(context_tokens or case.engine.max_model_len, batch or case.engine.max_num_seqs)
        answer = MemoryAnswer(case, size(case, sizer), room)
        works = answer.sized.refusal is None
        show_memory(answer, sizer, detail=detail, csv=csv, as_json=as_json)
    if not works:
        raise typer.Exit(1)


def _check_context(context_tokens: int | None, cases: Sequence[Case]) -> None:
    """Raises `InputError` where sequences are asked about that the engine would not take."""
    longest = min(case.engine.max_model_len for case in cases)
    if context_tokens is not None and context_tokens > longest:
        raise InputError(f"--context-tokens must be at most max_model_len, {longest}, got {context_tokens}")


def _unless_auto(name: str) -> str | None:
    return None if name.strip().lower() in ("", "auto") else name


def _cards(
    gpu: str | None, memory_gib: float | None, unknown: Unknown | None, calibration_dir: Path | None
) -> tuple[Gpu, ...]:
    """The card asked about, or those of the catalog that vLLM runs on."""
    if unknown is not Unknown.GPU:
        if gpu is None:
            raise InputError("--gpu is missing: a GPU of `catalog list gpus`")
        return (gpu_named(gpu, memory_gib, calibration_dir=calibration_dir),)
    if gpu is not None or memory_gib is not None:
        raise InputError("--solve gpu leaves the GPU open: give no --gpu and no --gpu-memory-gib")
    return tuple(card for card in gpus() if card.vllm_backend)
