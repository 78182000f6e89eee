"""`plan`: the main job, from a question to ranked recommendations."""

from pathlib import Path
from typing import Annotated

import typer

from planner.assemble.question import Ask
from planner.cli.options import AsJson, CalibrationDir
from planner.cli.plan_answer import DEFAULT_METHOD, DEFAULT_TOP, Outputs, answer
from planner.cli.question_file import merged
from planner.domain.base import InputError
from planner.domain.plan import CapacityMethod


def _usual(field: str, text: str) -> str:
    """Help of an option with the value that `Ask` gives its field where it is left out."""
    value = Ask.model_fields[field].default
    return f"{text} [default: {','.join(value) if isinstance(value, tuple) else value}]"


def plan(
    *,
    question: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE.toml]", help="The question as a file: keys named like the options."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A bundled name, a Hugging Face id, or a path to a config.json.")
    ] = None,
    weight_dtype: Annotated[
        list[str] | None,
        typer.Option(help=_usual("weight_dtype", "auto, any, or formats such as fp8 (commas between).")),
    ] = None,
    kv_dtype: Annotated[
        list[str] | None, typer.Option(help=_usual("kv_dtype", "auto, any, bf16, fp16 or fp8."))
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A workload of `catalog list presets`.")] = None,
    input_tokens: Annotated[float | None, typer.Option(help="Prompt length [tokens].")] = None,
    output_tokens: Annotated[float | None, typer.Option(help="Answer length [tokens].")] = None,
    prefix_hit_ratio: Annotated[
        float | None, typer.Option(help="Share of prompt tokens in the prefix cache, 0-1.")
    ] = None,
    arrival_cv: Annotated[
        float | None, typer.Option(help="Spread of the gaps between requests: 1 is Poisson.")
    ] = None,
    requests_per_s: Annotated[float | None, typer.Option(help="Mean request rate.")] = None,
    ttft_p95_ms: Annotated[float | None, typer.Option(help="Time to first token promised [ms].")] = None,
    tpot_p95_ms: Annotated[float | None, typer.Option(help="Time per output token promised [ms].")] = None,
    provider: Annotated[list[str] | None, typer.Option(help="Only these providers.")] = None,
    region: Annotated[list[str] | None, typer.Option(help="Only these regions.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="Only these GPUs.")] = None,
    purchase: Annotated[
        list[str] | None,
        typer.Option(help=_usual("purchase", "on_demand, reserved_1y, reserved_3y, spot or any.")),
    ] = None,
    budget_usd_per_month: Annotated[float | None, typer.Option(help="At most this a month.")] = None,
    peak_ratio: Annotated[
        float | None, typer.Option(help=_usual("peak_ratio", "Peak request rate over the mean one."))
    ] = None,
    headroom_ratio: Annotated[
        float | None,
        typer.Option(help=_usual("headroom_ratio", "Share of capacity kept free at the peak, 0-1.")),
    ] = None,
    spare_replicas: Annotated[
        int | None, typer.Option(help=_usual("spare_replicas", "Replicas beyond need: 1 is N+1."))
    ] = None,
    max_tp: Annotated[
        int | None, typer.Option(help=_usual("max_tp", "Largest tensor-parallel degree."))
    ] = None,
    max_pp: Annotated[
        int | None, typer.Option(help=_usual("max_pp", "Largest pipeline-parallel degree."))
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest sequence served [tokens].")] = None,
    engine_version: Annotated[str | None, typer.Option(help="vLLM release.")] = None,
    include_untrusted: Annotated[
        bool,
        typer.Option(
            "--include-untrusted",
            help="Also undated and low-confidence prices, and GPUs known from a datasheet.",
        ),
    ] = False,
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own prices (CSV).")] = None,
    previous: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An earlier recommendation CSV to compare with.")
    ] = None,
    previous_usd_per_month: Annotated[
        float | None, typer.Option(help="What the present choice costs, to compare with.")
    ] = None,
    method: Annotated[
        CapacityMethod | None,
        typer.Option(
            help="simulate: the cheapest are sized again by simulating the scheduler; steady: closed form alone. "
            f"[default: {DEFAULT_METHOD}]"
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(help=f"Recommendations shown. [default: {DEFAULT_TOP}]")] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the recommendations to FILE.")
    ] = None,
    rejections: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every rejected candidate to FILE.")
    ] = None,
    as_json: AsJson = False,
    calibration_dir: CalibrationDir = None,
) -> None:
    """Rank what to rent for a model and its traffic."""
    options = {
        "model": model,
        "weight_dtype": _listed(weight_dtype),
        "kv_dtype": _listed(kv_dtype),
        "preset": preset,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "prefix_hit_ratio": prefix_hit_ratio,
        "arrival_cv": arrival_cv,
        "requests_per_s": requests_per_s,
        "ttft_p95_ms": ttft_p95_ms,
        "tpot_p95_ms": tpot_p95_ms,
        "provider": _listed(provider),
        "region": _listed(region),
        "gpu": _listed(gpu),
        "purchase": _listed(purchase),
        "budget_usd_per_month": budget_usd_per_month,
        "peak_ratio": peak_ratio,
        "headroom_ratio": headroom_ratio,
        "spare_replicas": spare_replicas,
        "max_tp": max_tp,
        "max_pp": max_pp,
        "max_model_len": max_model_len,
        "engine_version": engine_version,
        "include_untrusted": include_untrusted or None,
        "prices": prices,
        "previous": previous,
        "previous_usd_per_month": previous_usd_per_month,
        "method": None if method is None else method.value,
        "top": top,
        "calibration_dir": calibration_dir,
    }
    values = merged(question, options)
    if not values.get("model"):
        raise InputError("plan needs a model: give --model, or a question file with one")
    found = answer(values, Outputs(csv, rejections, as_json), question)
    if not found:
        raise typer.Exit(1)


def _listed(values: list[str] | None) -> str | None:
    """Options given several times, as one comma-separated text."""
    return ",".join(values) if values else None
