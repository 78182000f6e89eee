"""`export vllm`: the engine command of one deployment."""

import typer

from planner.assemble import facts_for
from planner.catalog.models import load_model
from planner.cli.deployment import Engine, Formats, deployment, gpu_named, model_files, parallelism_of
from planner.cli.options import (
    AsJson,
    CalibrationDir,
    CsvFile,
    EngineVersion,
    GpuMemoryUtilization,
    GpuName,
    KvFormat,
    MaxModelLen,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    ModelName,
    Pp,
    Tp,
    WeightFormat,
)
from planner.cli.screen import note, say, show_json
from planner.domain.deployment import Layout
from planner.export.atomic import check_outputs
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
    weight_dtype: WeightFormat = "auto",
    kv_dtype: KvFormat = "auto",
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
    gpu_memory_utilization: GpuMemoryUtilization = None,
    engine_version: EngineVersion = "",
    calibration_dir: CalibrationDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Print the `vllm serve` command of a deployment, checked to fit in memory."""
    check_outputs(csv, inputs=model_files(model))
    case = deployment(
        model,
        gpu_named(gpu),
        parallelism_of(tp, pp),
        Formats(weight_dtype, kv_dtype),
        Engine(
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            engine_version=engine_version,
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
