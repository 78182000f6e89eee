"""The tables of a data folder, parsed and typed; a malformed row is refused by file, line and column."""

import math
import tomllib
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from planner.catalog.releases import RELEASES_FILE, Release, read_releases
from planner.catalog.table import Columns, Row, read_rows
from planner.domain.base import InputError
from planner.domain.dtypes import ComputeDtype
from planner.domain.hardware import Confidence, Gpu, Instance, Interconnect, Price, Purchase
from planner.domain.units import gb_to_bytes, gib_to_bytes, tflop_to_flop
from planner.domain.workload import Preset

RATE_COLUMNS: dict[ComputeDtype, str] = {
    ComputeDtype.FP32: "fp32_tflops",
    ComputeDtype.TF32: "tf32_tflops",
    ComputeDtype.BF16: "bf16_tflops",
    ComputeDtype.FP16: "fp16_tflops",
    ComputeDtype.FP8: "fp8_tflops",
    ComputeDtype.INT8: "int8_tops",
    ComputeDtype.FP4: "fp4_tflops",
}

GPU_COLUMNS = Columns(
    (
        *("name", "vendor", "architecture", "compute_capability", "aliases", "memory_gib", "memory_observed"),
        *("memory_bandwidth_gb_per_s", *RATE_COLUMNS.values(), "nvlink_gb_per_s", "pcie_gb_per_s", "power_w"),
        *("sm_count", "vllm_backend", "source", "as_of", "confidence", "notes"),
    )
)
INSTANCE_COLUMNS = Columns(
    (
        *("provider", "instance_type", "gpu", "gpu_count", "interconnect", "vcpus", "memory_gib"),
        *("network_gbps", "source", "as_of", "notes"),
    )
)
PRICE_COLUMNS = Columns(
    (
        *("provider", "instance_type", "region", "purchase", "usd_per_hour"),
        *("as_of", "source", "confidence", "notes"),
    )
)


class Catalog(NamedTuple):
    """Every table of a data folder."""

    gpus: tuple[Gpu, ...]
    instances: tuple[Instance, ...]
    prices: tuple[Price, ...]
    presets: tuple[Preset, ...]
    releases: tuple[Release, ...]


def read_catalog(folder: Path) -> Catalog:
    """All tables of a data folder. Raises InputError at the first malformed row."""
    return Catalog(
        gpus=read_gpus(folder / "gpus.csv"),
        instances=read_instances(folder / "instances.csv"),
        prices=read_prices(folder / "prices.csv"),
        presets=read_presets(folder / "presets"),
        releases=read_releases(folder / RELEASES_FILE),
    )


def read_gpus(path: Path) -> tuple[Gpu, ...]:
    """GPUs of a table in the columns of `data/README.md`. Raises InputError (file, line, column)."""
    return tuple(_gpu(row) for row in read_rows(path, GPU_COLUMNS))


def read_instances(path: Path) -> tuple[Instance, ...]:
    """Instances of a table in the columns of `data/README.md`. Raises InputError (file, line, column)."""
    return tuple(_instance(row) for row in read_rows(path, INSTANCE_COLUMNS))


def read_prices(path: Path) -> tuple[Price, ...]:
    """Prices of a table in the columns of `data/README.md`. Raises InputError (file, line, column)."""
    return tuple(_price(row) for row in read_rows(path, PRICE_COLUMNS))


def read_presets(folder: Path) -> tuple[Preset, ...]:
    """Presets of a folder, one `NAME.toml` each, sorted by name. Raises InputError (file, key)."""
    return tuple(_preset(path) for path in sorted(folder.glob("*.toml")))


def _gpu(row: Row) -> Gpu:
    return Gpu(
        name=row.text("name"),
        vendor=row.text("vendor"),
        architecture=row.text("architecture"),
        compute_capability=row.optional_text("compute_capability"),
        aliases=tuple(alias for alias in row.optional_text("aliases").split("|") if alias),
        memory_bytes=gib_to_bytes(row.number("memory_gib")),
        memory_observed=row.flag("memory_observed"),
        memory_bandwidth_bytes_per_s=gb_to_bytes(row.number("memory_bandwidth_gb_per_s")),
        peak_flop_per_s={
            dtype: tflop_to_flop(rate)
            for dtype, column in RATE_COLUMNS.items()
            if (rate := row.optional_number(column)) is not None
        },
        nvlink_bytes_per_s=gb_to_bytes(row.number("nvlink_gb_per_s", zero_is_legal=True)),
        pcie_bytes_per_s=gb_to_bytes(row.number("pcie_gb_per_s", zero_is_legal=True)),
        power_w=row.optional_number("power_w"),
        sm_count=row.optional_count("sm_count"),
        vllm_backend=row.optional_text("vllm_backend"),
        source=row.text("source"),
        as_of=row.optional_date("as_of"),
        confidence=row.choice("confidence", Confidence),
        notes=row.optional_text("notes"),
    )


def _instance(row: Row) -> Instance:
    return Instance(
        provider=row.text("provider"),
        instance_type=row.text("instance_type"),
        gpu=row.text("gpu"),
        gpu_count=row.count("gpu_count"),
        interconnect=row.choice("interconnect", Interconnect),
        vcpus=row.optional_count("vcpus"),
        memory_gib=row.optional_number("memory_gib"),
        network_gbps=row.optional_number("network_gbps"),
        source=row.text("source"),
        as_of=row.optional_date("as_of"),
        notes=row.optional_text("notes"),
    )


def _price(row: Row) -> Price:
    return Price(
        provider=row.text("provider"),
        instance_type=row.text("instance_type"),
        region=row.text("region"),
        purchase=row.choice("purchase", Purchase),
        usd_per_hour=row.number("usd_per_hour"),
        as_of=row.optional_date("as_of"),
        source=row.text("source"),
        confidence=row.choice("confidence", Confidence),
        notes=row.optional_text("notes"),
    )


def _preset(path: Path) -> Preset:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file: {error}") from None
    for key, value in document.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{path}: {key} is {value}; a finite number is needed")
    try:
        return Preset.model_validate({"name": path.stem, **document})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
