"""`export vllm`: the engine command of one deployment."""

import typer

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.catalog.atomic import check_outputs
from planner.catalog.models import load_model, model_files
from planner.cli.options import (
    AsJson,
    BlockSize,
    CalibrationDir,
    CsvFile,
    DisableHybridKvCacheManager,
    Dp,
    DraftModel,
    EnableLora,
    EnforceEager,
    EngineVersion,
    ExpertParallel,
    FullyShardedLoras,
    GpuMemoryUtilization,
    GpuName,
    KvCacheMemoryGib,
    KvFormat,
    KvOffloadingGib,
    MaxLoraRank,
    MaxLoras,
    MaxModelLen,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    ModelName,
    NoMultimodal,
    NoPrefixCaching,
    NumSpeculativeTokens,
    Pp,
    Tp,
    WeightFormat,
)
from planner.cli.screen import note, say, show_json
from planner.domain.deployment import Layout
from planner.export.format import number
from planner.export.table import Cell, write_csv
from planner.export.vllm import missing_checkpoint, serve_command
from planner.planning.predict import predict

app = typer.Typer(help="Turn a deployment into what other tools read.", rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Keeps `vllm` a sub-command although it is the only one."""


@app.command("vllm")
def vllm(
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
    gpu_memory_utilization: GpuMemoryUtilization = None,
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
    calibration_dir: CalibrationDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Print the `vllm serve` command of a deployment, checked to fit in memory."""
    check_outputs(csv, inputs=model_files(model) + model_files(draft_model or model))
    case = deployment(
        model,
        gpu_named(gpu, calibration_dir=calibration_dir),
        parallelism_of(tp, pp, dp, ep=ep),
        Formats(weight_dtype, kv_dtype),
        Engine(
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            engine_version=engine_version,
            enforce_eager=enforce_eager,
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
        ),
    )
    prediction = predict([case], facts_for(calibration_dir=calibration_dir))[0]
    layout = Layout(
        weight_dtype=case.model.weight_dtype,
        kv_dtype=case.kv_dtype,
        parallelism=case.parallelism,
    )
    checkpoint = load_model(model)
    command = serve_command(checkpoint, case.engine, layout)
    missing = missing_checkpoint(checkpoint, layout.weight_dtype)
    refusal = prediction.refusal
    row: dict[str, Cell] = {
        "model": checkpoint.name,
        "gpu": case.gpu.name,
        "tp": tp,
        "pp": pp,
        "dp": dp,
        "fits": refusal is None,
        "reason": refusal.reason if refusal else None,
        "engine_command": command,
        "warnings": missing,
    }
    if csv is not None:
        write_csv(csv, tuple(row), [tuple(row.values())])
        note(f"wrote {csv}")
    if as_json:
        show_json(row)
    elif refusal is None:
        say(command)
    if missing and not as_json:
        note(f"warning: {missing}")
    if refusal is not None:
        budget = prediction.memory
        short = f"; {number(refusal.need - refusal.have)} GiB per GPU are missing" if budget else ""
        note(f"does not start: {refusal.reason}{short}")
        raise typer.Exit(1)
