"""`memory`: one GPU's memory under one deployment, as vLLM's start-up log would print it."""

from pathlib import Path

import typer

from planner.assemble import facts_for
from planner.cli.deployment import Engine, Formats, deployment, gpu_named, model_files, parallelism_of
from planner.cli.options import (
    AsJson,
    CalibrationDir,
    CsvFile,
    Dp,
    EngineVersion,
    GpuMemoryGib,
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
from planner.cli.screen import Json, note, records, say, show_json, show_table
from planner.domain.deployment import MemoryBudget
from planner.domain.plan import Bottleneck
from planner.domain.units import bytes_to_gib
from planner.export.atomic import check_outputs
from planner.export.format import number, percent
from planner.export.memory import memory_parts
from planner.export.table import write_csv
from planner.planning.candidates import TENSOR_PARALLEL
from planner.planning.facts import Facts
from planner.planning.predict import Case, predict
from planner.planning.sizing import Refusal

BAR_WIDTH = 40
MARKS = {
    "weights": "W",
    "draft model": "D",
    "LoRA slots": "L",
    "activations": "a",
    "CUDA graphs": "g",
    "non-torch": "n",
    "KV cache": "K",
    "outside the engine": ".",
}
"""What stands for each part of a card in the bar."""


def memory(
    *,
    model: ModelName,
    gpu: GpuName,
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
    calibration_dir: CalibrationDir = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Divide one GPU's memory as vLLM would."""
    check_outputs(csv, inputs=model_files(model))
    case = deployment(
        model,
        gpu_named(gpu, gpu_memory_gib),
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
    if not show_memory(case, facts_for(calibration_dir=calibration_dir), csv=csv, as_json=as_json):
        raise typer.Exit(1)


def show_memory(case: Case, facts: Facts, *, csv: Path | None, as_json: bool) -> bool:
    """Prints and writes the budget of a deployment; False where the engine would not start."""
    prediction = predict([case], facts)[0]
    budget, refusal = prediction.memory, prediction.refusal
    columns = ("part", "gib", "share_ratio")
    rows = [] if budget is None else budget_rows(budget)
    if csv is not None:
        write_csv(csv, columns, rows)
        note(f"wrote {csv}")
    if as_json:
        show_json(
            {
                **_deployment_json(case),
                "fits": refusal is None,
                "reason": refusal.reason if refusal else None,
                "parts": records(columns, rows),
                **(budget_json(budget) if budget else {}),
                "smallest_tp_that_fits": smallest_tp(case, facts) if refusal else case.parallelism.tp,
            }
        )
    else:
        if budget is not None:
            _print(case, budget)
        if refusal is not None:
            _print_refusal(case, budget, refusal, facts)
    return refusal is None


def budget_rows(budget: MemoryBudget) -> list[tuple[str, float, float]]:
    """Part, GiB and share of the card, the card itself last."""
    rows = [*memory_parts(budget), ("card", budget.total_bytes)]
    return [(name, bytes_to_gib(size), size / budget.total_bytes) for name, size in rows]


def budget_json(budget: MemoryBudget) -> dict[str, Json]:
    """What vLLM logs about a budget, by the names of the runs table where it has them."""
    return {
        "weights_bytes_per_gpu": budget.weights_bytes,
        "weights_gib_per_gpu": budget.weights_gib,
        "kv_cache_gib_per_gpu": bytes_to_gib(budget.kv_cache_bytes),
        "kv_cache_tokens": budget.kv_cache_tokens,
        "kv_bytes_per_token": budget.kv_bytes_per_token,
        "kv_blocks": budget.kv_blocks,
        "block_size": budget.block_size,
        "max_concurrency": budget.max_concurrency,
        "max_model_len": budget.max_model_len,
        "shortfall_gib": shortfall_gib(budget),
    }


def shortfall_gib(budget: MemoryBudget) -> float:
    """How much is missing for one request of `max_model_len` tokens [GiB]; 0 where it fits."""
    if budget.fits:
        return 0.0
    if budget.max_concurrency > 0 and budget.kv_cache_bytes > 0:
        return bytes_to_gib(budget.kv_cache_bytes * (1.0 / budget.max_concurrency - 1.0))
    return bytes_to_gib(-budget.kv_cache_bytes + budget.kv_bytes_per_token * budget.max_model_len)


def smallest_tp(case: Case, facts: Facts) -> int | None:
    """The least tensor-parallel degree at which the deployment starts; None where none does."""
    cases = [
        case._replace(parallelism=case.parallelism.model_copy(update={"tp": tp})) for tp in TENSOR_PARALLEL
    ]
    found = predict(cases, facts)
    return next((tp for tp, one in zip(TENSOR_PARALLEL, found, strict=True) if one.refusal is None), None)


def _deployment_json(case: Case) -> dict[str, Json]:
    return {
        "model": case.model.name,
        "gpu": case.gpu.name,
        "tp": case.parallelism.tp,
        "pp": case.parallelism.pp,
        "dp": case.parallelism.dp,
        "max_num_seqs": case.engine.max_num_seqs,
        "max_num_batched_tokens": case.engine.max_num_batched_tokens,
        "gpu_memory_utilization": case.engine.gpu_memory_utilization,
    }


def _print(case: Case, budget: MemoryBudget) -> None:
    layout, engine = case.parallelism, case.engine
    degrees = f"TP {layout.tp}" + "".join(
        f", {name} {degree}" for name, degree in (("PP", layout.pp), ("DP", layout.dp)) if degree > 1
    )
    rows = [[name, number(gib), percent(share)] for name, gib, share in budget_rows(budget)]
    show_table(f"{case.model.name} on {case.gpu.name}, {degrees}: one GPU", ["part", "GiB", "share"], rows)
    say(f"  [{bar(budget)}]")
    say(f"  {', '.join(f'{MARKS[part.name]} {part.name}' for part in memory_parts(budget))}")
    say()
    say(f"GPU KV cache size: {budget.kv_cache_tokens:,} tokens")
    say(f"Maximum concurrency for {budget.max_model_len:,} tokens per request: {budget.max_concurrency:.2f}x")
    say(
        f"{budget.kv_bytes_per_token:,.0f} bytes of KV cache per token and GPU, "
        f"{budget.kv_blocks:,} blocks of {budget.block_size} tokens"
    )
    note(
        f"settings: max_num_seqs {engine.max_num_seqs}, max_num_batched_tokens {engine.max_num_batched_tokens}, "
        f"gpu_memory_utilization {engine.gpu_memory_utilization:g}"
    )


def _print_refusal(case: Case, budget: MemoryBudget | None, refusal: Refusal, facts: Facts) -> None:
    say()
    say(f"Does not start: {refusal.reason}.")
    if budget is not None:
        say(f"{number(shortfall_gib(budget))} GiB per GPU are missing.")
    if refusal.bottleneck in (Bottleneck.MEMORY, Bottleneck.PARALLELISM):
        least = smallest_tp(case, facts)
        say(f"The smallest TP that fits is {least}." if least else "No tensor-parallel degree up to 64 fits.")


def bar(budget: MemoryBudget) -> str:
    """The card as a row of letters; what does not fit runs over its end.

    A part is never narrower than its share by more than one letter.
    """
    text, end_bytes = "", 0
    for part in memory_parts(budget):
        end_bytes += max(part.size_bytes, 0)
        text += MARKS[part.name] * (round(BAR_WIDTH * end_bytes / budget.total_bytes) - len(text))
    return text
