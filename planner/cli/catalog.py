"""`catalog check` and `catalog list`: what the program knows, and whether it hangs together."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from planner.catalog.atomic import check_outputs
from planner.catalog.check import CatalogReport, check_catalog
from planner.catalog.load import gpus, instances, presets, prices
from planner.catalog.models import bundled_models
from planner.cli.options import AsJson, CsvFile
from planner.cli.screen import note, records, say, show_json, show_table
from planner.domain.dtypes import ComputeDtype
from planner.domain.units import GB_BYTES, TERA, bytes_to_gib
from planner.export.table import Cell, write_csv

app = typer.Typer(help="GPUs, instances, prices, models and presets.", rich_markup_mode=None)


class Topic(StrEnum):
    """What can be listed."""

    GPUS = "gpus"
    INSTANCES = "instances"
    PRICES = "prices"
    MODELS = "models"
    PRESETS = "presets"


class Listing(NamedTuple):
    """One table of the catalog."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    unseen: tuple[str, ...] = ()
    """Columns too long for a screen; CSV and JSON have them."""


@app.command("check")
def check(
    folder: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="A data folder other than the shipped one."),
    ] = None,
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """Read every table and test the relations across rows; exit 1 where something does not fit."""
    check_outputs(csv, inputs=folder.glob("*.csv") if folder else ())
    report = check_catalog(folder)
    columns = ("table", "row", "message")
    rows = [(problem.table, problem.row, problem.message) for problem in report.problems]
    if csv is not None:
        write_csv(csv, columns, rows)
        note(f"wrote {csv}")
    if as_json:
        show_json({**report.model_dump(mode="json"), "ok": report.ok})
    else:
        _show_report(report)
        if rows:
            show_table("Problems", columns, rows)
    if not report.ok:
        raise typer.Exit(1)


def _show_report(report: CatalogReport) -> None:
    say(f"{report.gpus} GPUs, {report.instances} instances of {len(report.providers)} providers")
    say(
        f"{report.prices} prices, {report.trusted_prices} of them dated and trusted "
        f"({report.oldest_price} to {report.newest_price}, {report.stale_prices} older than 90 days)"
    )
    say(f"{len(bundled_models())} models, {report.presets} presets, {report.releases} vLLM releases")
    for exception in report.exceptions:
        say(f"known exception: {exception}")
    say("nothing wrong" if report.ok else f"{len(report.problems)} problems")


@app.command("list")
def list_(
    topic: Annotated[Topic, typer.Argument(help="What to list.")],
    text: Annotated[str, typer.Option("--filter", metavar="TEXT", help="Only rows that contain TEXT.")] = "",
    csv: CsvFile = None,
    as_json: AsJson = False,
) -> None:
    """List one table of the catalog."""
    check_outputs(csv)
    listing = LISTINGS[topic]()
    wanted = text.casefold()
    rows = [row for row in listing.rows if any(wanted in str(cell).casefold() for cell in row)]
    if csv is not None:
        write_csv(csv, listing.columns, rows)
        note(f"wrote {csv}")
    if as_json:
        show_json(records(listing.columns, rows))
    else:
        seen = [index for index, column in enumerate(listing.columns) if column not in listing.unseen]
        headers = [listing.columns[index].replace("_", " ") for index in seen]
        show_table("", headers, [[_shown(row[index]) for index in seen] for row in rows])
        note(f"{len(rows)} of {len(listing.rows)} {topic.value}")


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:,g}" if isinstance(cell, float) else str(cell)


def _gpus() -> Listing:
    def rate(dtype: ComputeDtype, peaks: dict[ComputeDtype, float]) -> float | None:
        return peaks[dtype] / TERA if dtype in peaks else None

    return Listing(
        (
            *("name", "memory_gib", "memory_observed", "bandwidth_gb_per_s"),
            *("bf16_tflop_per_s", "fp16_tflop_per_s", "fp8_tflop_per_s", "nvlink_gb_per_s"),
            *("power_w", "vllm_backend", "as_of", "confidence"),
        ),
        [
            (
                gpu.name,
                bytes_to_gib(gpu.memory_bytes),
                gpu.memory_observed,
                gpu.memory_bandwidth_bytes_per_s / GB_BYTES,
                rate(ComputeDtype.BF16, gpu.peak_flop_per_s),
                rate(ComputeDtype.FP16, gpu.peak_flop_per_s),
                rate(ComputeDtype.FP8, gpu.peak_flop_per_s),
                gpu.nvlink_bytes_per_s / GB_BYTES,
                gpu.power_w,
                gpu.vllm_backend or "none",
                gpu.as_of,
                gpu.confidence.value,
            )
            for gpu in gpus()
        ],
        unseen=("memory_observed", "power_w"),
    )


def _instances() -> Listing:
    return Listing(
        (
            *("provider", "instance_type", "gpu_count", "gpu", "interconnect"),
            *("vcpus", "memory_gib", "network_gbps", "as_of", "notes"),
        ),
        [
            (
                shape.provider,
                shape.instance_type,
                shape.gpu_count,
                shape.gpu,
                shape.interconnect.value,
                shape.vcpus,
                shape.memory_gib,
                shape.network_gbps,
                shape.as_of,
                shape.notes,
            )
            for shape in instances()
        ],
    )


def _prices() -> Listing:
    return Listing(
        ("provider", "instance_type", "region", "purchase", "usd_per_hour", "as_of", "confidence", "trusted"),
        [
            (
                price.provider,
                price.instance_type,
                price.region,
                price.purchase.value,
                price.usd_per_hour,
                price.as_of,
                price.confidence.value,
                price.is_trusted,
            )
            for price in prices()
        ],
    )


def _models() -> Listing:
    return Listing(
        ("name", "architecture", "aliases", "as_of", "source"),
        [
            (model.name, model.architecture, ", ".join(model.aliases), model.as_of, model.source)
            for model in bundled_models()
        ],
        unseen=("source",),
    )


def _presets() -> Listing:
    return Listing(
        (
            *("name", "title", "input_tokens", "output_tokens", "requests_per_s"),
            *("ttft_p95_ms", "tpot_p95_ms", "prefix_hit_ratio", "arrival_cv", "description"),
        ),
        [
            (
                preset.name,
                preset.title,
                preset.input_tokens,
                preset.output_tokens,
                preset.requests_per_s,
                preset.ttft_p95_ms,
                preset.tpot_p95_ms,
                preset.prefix_hit_ratio,
                preset.arrival_cv,
                preset.description,
            )
            for preset in presets()
        ],
        unseen=("description",),
    )


LISTINGS: dict[Topic, Callable[[], Listing]] = {
    Topic.GPUS: _gpus,
    Topic.INSTANCES: _instances,
    Topic.PRICES: _prices,
    Topic.MODELS: _models,
    Topic.PRESETS: _presets,
}
