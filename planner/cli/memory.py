"""`memory`: one GPU's memory under one deployment, as vLLM's start-up log would print it."""

from typing import Annotated

import typer

from planner.assemble import facts_for
from planner.catalog.load import gpus
from planner.cli.deployment import Engine, Formats, deployment, gpu_named, model_files, parallelism_of
from planner.cli.memory_report import Room, memory_json, print_memory
from planner.cli.memory_solve import Asked, Unknown, show_solution, solve
from planner.cli.options import (
    AsJson,
    CalibrationDir,
    CsvFile,
    Dp,
    EngineVersion,
    GpuMemoryGib,
    GpuMemoryUtilization,
    KvFormat,
    MaxModelLen,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    ModelName,
    Pp,
    Tp,
    WeightFormat,
)
from planner.cli.screen import note, show_json
from planner.domain.base import InputError
from planner.domain.hardware import Gpu
from planner.export.atomic import check_outputs
from planner.export.memory import PART_COLUMNS, part_rows
from planner.export.table import write_csv
from planner.planning.predict import size
from planner.planning.sizing import Sizer


def memory(
    *,
    model: ModelName,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="A GPU of `catalog list gpus`; not needed with --solve gpu."),
    ] = None,
    tp: Tp = 1,
    pp: Pp = 1,
    dp: Dp = 1,
    weight_dtype: WeightFormat = "auto",
    kv_dtype: KvFormat = "auto",
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
    gpu_memory_utilization: GpuMemoryUtilization = None,
    gpu_memory_gib: GpuMemoryGib = None,
    engine_version: EngineVersion = "",
    context_tokens: Annotated[
        int | None,
        typer.Option("--context-tokens", min=1, help="Say how many sequences of this length are held."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Say how long so many sequences held at once can be."),
    ] = None,
    unknown: Annotated[
        Unknown | None, typer.Option("--solve", help="Leave this open and answer it directly.")
    ] = None,
    calibration_dir: CalibrationDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Divide one GPU's memory as vLLM would."""
    check_outputs(csv, inputs=model_files(model))
    cards = _cards(gpu, gpu_memory_gib, unknown)
    cases = tuple(
        deployment(
            model,
            card,
            parallelism_of(tp, pp, dp),
            Formats(weight_dtype, kv_dtype),
            Engine(
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                gpu_memory_utilization=gpu_memory_utilization,
                engine_version=engine_version,
            ),
        )
        for card in cards
    )
    sizer = Sizer(facts_for(calibration_dir=calibration_dir))
    if unknown is not None:
        asked = Asked(unknown, cases, context_tokens, batch)
        solution = solve(asked, sizer)
        show_solution(asked, solution, csv=csv, as_json=as_json)
        if solution.value is None:
            raise typer.Exit(1)
        return
    (case,) = cases
    sized = size(case, sizer)
    room = Room(case, sized, context_tokens=context_tokens, batch=batch)
    if csv is not None:
        write_csv(csv, PART_COLUMNS, part_rows(sized.budget) if sized.budget else [])
        note(f"wrote {csv}")
    if as_json:
        show_json(memory_json(case, sized, sizer, room))
    else:
        print_memory(case, sized, sizer, room)
    if sized.refusal is not None:
        raise typer.Exit(1)


def _cards(gpu: str | None, memory_gib: float | None, unknown: Unknown | None) -> tuple[Gpu, ...]:
    """The card asked about, or those of the catalog that vLLM runs on."""
    if unknown is not Unknown.GPU:
        if gpu is None:
            raise InputError("--gpu is missing: a GPU of `catalog list gpus`")
        return (gpu_named(gpu, memory_gib),)
    if gpu is not None or memory_gib is not None:
        raise InputError("--solve gpu leaves the GPU open: give no --gpu and no --gpu-memory-gib")
    return tuple(card for card in gpus() if card.vllm_backend)
