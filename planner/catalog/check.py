"""Relations across rows that a wrong figure would break; known exceptions stand here with their reason."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median

from planner.catalog.nearest import fold
from planner.catalog.paths import data_dir
from planner.catalog.read import Catalog, read_catalog
from planner.catalog.releases import RELEASES_FILE
from planner.domain.base import Frozen, InputError
from planner.domain.dtypes import ComputeDtype
from planner.domain.hardware import Gpu, Instance, Interconnect, Price, Purchase
from planner.domain.units import bytes_to_gib
from planner.formulas.engine_defaults import (
    NEWEST_TESTED_VERSION,
    OLDEST_VERSION,
    EngineVersion,
    parse_version,
)

STALE_DAYS = 90
LINEAR_TOLERANCE = 0.15
"""How far prices per GPU of one shape class may lie from their median."""
SMALLEST_USD_PER_GPU_HOUR, LARGEST_USD_PER_GPU_HOUR = 0.05, 50.0
RATE_TOLERANCE = 0.03
"""Datasheets round: the L40S has 362 TFLOP/s in bf16 and 733 in fp8."""

CHEAPER = (
    (Purchase.RESERVED_1Y, Purchase.ON_DEMAND),
    (Purchase.RESERVED_3Y, Purchase.ON_DEMAND),
    (Purchase.RESERVED_3Y, Purchase.RESERVED_1Y),
    (Purchase.SPOT, Purchase.ON_DEMAND),
)
"""Pairs (a way that commits or can be interrupted, the way whose price it must not exceed)."""

SUCCESSORS = (
    ("V100-32GB", "A100-SXM-40GB", "A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB", "B200", "B300"),
    ("A100-PCIe-40GB", "A100-PCIe-80GB", "H100-PCIe-80GB", "H100-NVL", "H200-NVL"),
    ("GH200", "GB200", "GB300"),
    ("T4", "L4"),
    ("A40", "L40", "L40S", "RTX PRO 6000"),
    ("RTX A6000", "RTX 6000 Ada", "RTX PRO 6000 WS"),
    ("RTX 4090", "RTX 5090"),
    ("MI300X", "MI325X", "MI355X"),
    ("TPU v5e", "TPU v6e"),
)
"""Products in the order they replaced each other: memory bandwidth does not fall along a line."""

VARIANTS = (
    ("V100-16GB", "V100-32GB"),
    ("A100-SXM-40GB", "A100-SXM-80GB", "A100-PCIe-40GB", "A100-PCIe-80GB"),
    ("H100-SXM-80GB", "H200-SXM-141GB"),
    ("H100-NVL", "H200-NVL"),
    ("MI300X", "MI325X"),
)
"""One chip with different memory: the same peak rates, units and compute capability."""

EXCEPTIONS = {
    "L4 is slower than T4": "GDDR6 on a 192-bit bus: 300 GB/s against 320 GB/s",
    "Gaudi 3 fp8 is not twice bf16": "the maker gives 1835 TFLOP/s for both",
}
"""Findings that are true of the world: what is found, and why it is so."""


class Problem(Frozen):
    """Something that does not fit in the tables."""

    table: str
    row: str
    message: str


class CatalogReport(Frozen):
    """What the tables hold and what does not fit."""

    gpus: int
    instances: int
    prices: int
    trusted_prices: int
    presets: int
    releases: int
    providers: tuple[str, ...]
    oldest_price: str
    newest_price: str
    stale_prices: int
    """Trusted prices older than 90 days."""
    exceptions: tuple[str, ...]
    """Known findings with their reasons."""
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """True where nothing is wrong."""
        return not self.problems


def check_catalog(folder: Path | None = None, *, today: date | None = None) -> CatalogReport:
    """Read every table of a data folder (default: the committed one) and test the relations across rows.

    Raises InputError where a row cannot be read at all.
    """
    catalog = read_catalog(folder or data_dir())
    found = [problem for check in CHECKS for problem in check(catalog)]
    excused = {message for problem in found if (message := _finding(problem)) in EXCEPTIONS}
    dates = sorted(price.as_of for price in catalog.prices if price.is_trusted)
    oldest_fresh = ((today or date.today()) - timedelta(days=STALE_DAYS)).isoformat()
    return CatalogReport(
        gpus=len(catalog.gpus),
        instances=len(catalog.instances),
        prices=len(catalog.prices),
        trusted_prices=len(dates),
        presets=len(catalog.presets),
        releases=len(catalog.releases),
        providers=tuple(dict.fromkeys(shape.provider for shape in catalog.instances)),
        oldest_price=dates[0] if dates else "",
        newest_price=dates[-1] if dates else "",
        stale_prices=sum(as_of < oldest_fresh for as_of in dates),
        exceptions=tuple(f"{finding}: {EXCEPTIONS[finding]}" for finding in sorted(excused)),
        problems=tuple(problem for problem in found if _finding(problem) not in EXCEPTIONS),
    )


def _finding(problem: Problem) -> str:
    return f"{problem.row} {problem.message}"


def _names_are_unique(catalog: Catalog) -> Iterator[Problem]:
    named: dict[str, str] = {}
    for name, times in Counter(gpu.name for gpu in catalog.gpus).items():
        if times > 1:
            yield Problem(table="gpus.csv", row=name, message=f"stands {times} times")
    for gpu in catalog.gpus:
        for alias in (gpu.name, *gpu.aliases):
            owner = named.setdefault(fold(alias), gpu.name)
            if owner != gpu.name:
                yield Problem(table="gpus.csv", row=gpu.name, message=f'has "{alias}", a name of {owner}')
    for shape, times in Counter(_shape_name(shape) for shape in catalog.instances).items():
        if times > 1:
            yield Problem(table="instances.csv", row=shape, message=f"stands {times} times")
    for price, times in Counter(_price_name(price) for price in catalog.prices).items():
        if times > 1:
            yield Problem(table="prices.csv", row=price, message=f"stands {times} times")


def _references_exist(catalog: Catalog) -> Iterator[Problem]:
    gpus = {gpu.name for gpu in catalog.gpus}
    shapes = {_shape_name(shape) for shape in catalog.instances}
    for shape in catalog.instances:
        if shape.gpu not in gpus:
            yield Problem(
                table="instances.csv", row=_shape_name(shape), message=f"has unknown GPU {shape.gpu}"
            )
    for price in catalog.prices:
        if f"{price.provider} {price.instance_type}" not in shapes:
            yield Problem(table="prices.csv", row=_price_name(price), message="is of an unknown instance")


def _rates_fit_together(catalog: Catalog) -> Iterator[Problem]:
    for gpu in catalog.gpus:
        rate = gpu.peak_flop_per_s.get
        bf16, fp16, fp8 = rate(ComputeDtype.BF16), rate(ComputeDtype.FP16), rate(ComputeDtype.FP8)
        int8, fp4 = rate(ComputeDtype.INT8), rate(ComputeDtype.FP4)
        findings = {
            "has no 16-bit rate": not (bf16 or fp16),
            "has bf16 and fp16 rates that differ": bf16 and fp16 and bf16 != fp16,
            "fp8 is not twice bf16": bf16 and fp8 and abs(fp8 / bf16 - 2) > RATE_TOLERANCE,
            "int8 is below twice bf16": bf16 and int8 and int8 / bf16 < 2 - RATE_TOLERANCE,
            "fp4 is below twice fp8": fp8 and fp4 and fp4 / fp8 < 2 - RATE_TOLERANCE,
        }
        for message, is_so in findings.items():
            if is_so:
                yield Problem(table="gpus.csv", row=gpu.name, message=message)


def _memory_fits_the_name(catalog: Catalog) -> Iterator[Problem]:
    for gpu in catalog.gpus:
        named = re.search(r"(\d+)GB$", gpu.name)
        gib = bytes_to_gib(gpu.memory_bytes)
        if named and not 0.88 * int(named[1]) <= gib <= int(named[1]):
            yield Problem(table="gpus.csv", row=gpu.name, message=f"reports {gib:.2f} GiB")


def _generations_do_not_fall_back(catalog: Catalog) -> Iterator[Problem]:
    gpus = {gpu.name: gpu for gpu in catalog.gpus}
    for line in SUCCESSORS:
        present = [gpus[name] for name in line if name in gpus]
        for older, newer in pairwise(present):
            if newer.memory_bandwidth_bytes_per_s < older.memory_bandwidth_bytes_per_s:
                yield Problem(table="gpus.csv", row=newer.name, message=f"is slower than {older.name}")


def _variants_agree(catalog: Catalog) -> Iterator[Problem]:
    gpus = {gpu.name: gpu for gpu in catalog.gpus}
    for variants in VARIANTS:
        present = [gpus[name] for name in variants if name in gpus]
        for gpu in present[1:]:
            if _chip(gpu) != _chip(present[0]):
                yield Problem(table="gpus.csv", row=gpu.name, message=f"is not the chip of {present[0].name}")


def _chip(gpu: Gpu) -> tuple[object, ...]:
    return gpu.architecture, gpu.compute_capability, gpu.sm_count, gpu.peak_flop_per_s


def _interconnects_are_possible(catalog: Catalog) -> Iterator[Problem]:
    gpus = {gpu.name: gpu for gpu in catalog.gpus}
    for shape in catalog.instances:
        gpu, link = gpus.get(shape.gpu), shape.interconnect
        if (shape.gpu_count == 1) != (link is Interconnect.NONE):
            message = f"has {shape.gpu_count} GPUs joined by {link}"
        elif gpu is None or link in (Interconnect.NONE, Interconnect.PCIE):
            continue
        elif gpu.nvlink_bytes_per_s == 0:
            message = f"has {link} between GPUs without it ({gpu.name})"
        elif (link is Interconnect.INFINITY_FABRIC) != (gpu.vendor == "AMD"):
            message = f"has {link} between {gpu.vendor} GPUs"
        else:
            continue
        yield Problem(table="instances.csv", row=_shape_name(shape), message=message)


def _commitment_is_cheaper(catalog: Catalog) -> Iterator[Problem]:
    places: dict[tuple[str, str, str], dict[Purchase, Price]] = defaultdict(dict)
    for price in catalog.prices:
        places[price.provider, price.instance_type, price.region][price.purchase] = price
    for ways in places.values():
        for cheaper, dearer in CHEAPER:
            low, high = ways.get(cheaper), ways.get(dearer)
            if low and high and low.usd_per_hour > high.usd_per_hour:
                message = f"costs {low.usd_per_hour}, more than {high.usd_per_hour} {dearer}"
                yield Problem(table="prices.csv", row=_price_name(low), message=message)


def _prices_are_linear_in_gpus(catalog: Catalog) -> Iterator[Problem]:
    shapes = {(shape.provider, shape.instance_type): shape for shape in catalog.instances}
    classes: dict[tuple[object, ...], list[tuple[Price, float]]] = defaultdict(list)
    for price in catalog.prices:
        shape = shapes.get((price.provider, price.instance_type))
        if shape is not None:
            per_gpu = price.usd_per_hour / shape.gpu_count
            classes[(*_shape_class(shape), price.region, price.purchase)].append((price, per_gpu))
    for members in classes.values():
        middle = median(per_gpu for _, per_gpu in members)
        for price, per_gpu in members:
            if abs(per_gpu / middle - 1) > LINEAR_TOLERANCE:
                message = f"costs {per_gpu:.3f} a GPU, its like {middle:.3f}"
                yield Problem(table="prices.csv", row=_price_name(price), message=message)


def _shape_class(shape: Instance) -> tuple[object, ...]:
    """What instances that differ only in their number of GPUs share: type but for digits, host per GPU."""
    family = re.sub(r"\d+", "#", shape.instance_type)
    vcpus = (shape.vcpus or 0) / shape.gpu_count
    memory_gib = (shape.memory_gib or 0) / shape.gpu_count
    return shape.provider, family, shape.gpu, round(vcpus), round(memory_gib, -1)


def _prices_are_plausible(catalog: Catalog) -> Iterator[Problem]:
    counts = {(shape.provider, shape.instance_type): shape.gpu_count for shape in catalog.instances}
    for price in catalog.prices:
        per_gpu = price.usd_per_hour / counts.get((price.provider, price.instance_type), 1)
        if not SMALLEST_USD_PER_GPU_HOUR <= per_gpu <= LARGEST_USD_PER_GPU_HOUR:
            message = f"costs {per_gpu:.3f} a GPU and hour"
            yield Problem(table="prices.csv", row=_price_name(price), message=message)
        if not re.fullmatch(r"[A-Za-z0-9-]+", price.region):
            yield Problem(table="prices.csv", row=_price_name(price), message="has no region identifier")


def _releases_follow_one_another(catalog: Catalog) -> Iterator[Problem]:
    known = []
    for release in catalog.releases:
        try:
            known.append((parse_version(release.version), release))
        except InputError as error:
            yield Problem(table=RELEASES_FILE, row=release.version, message=str(error))
            continue
        if str(known[-1][0]) != release.version:
            message = f"is written {known[-1][0]} elsewhere"
            yield Problem(table=RELEASES_FILE, row=release.version, message=message)
    for (older, before), (newer, release) in pairwise(known):
        if newer <= older:
            yield Problem(table=RELEASES_FILE, row=release.version, message=f"stands after {before.version}")
        if release.released < before.released:
            message = f"came out before {before.version}"
            yield Problem(table=RELEASES_FILE, row=release.version, message=message)
    listed = {version for version, _ in known}
    for version in _modelled_releases():
        if version not in listed:
            yield Problem(table=RELEASES_FILE, row=str(version), message="is not listed")


def _modelled_releases() -> list[EngineVersion]:
    """The first of every minor release that the engine's rules know, and the newest tested."""
    newest = parse_version(NEWEST_TESTED_VERSION)
    firsts = (EngineVersion(0, minor, 0) for minor in range(OLDEST_VERSION.minor, newest.minor + 1))
    return [*firsts, *([newest] if newest.patch else [])]


def _shape_name(shape: Instance) -> str:
    return f"{shape.provider} {shape.instance_type}"


def _price_name(price: Price) -> str:
    return f"{price.provider} {price.instance_type} {price.region} {price.purchase}"


CHECKS: tuple[Callable[[Catalog], Iterator[Problem]], ...] = (
    _names_are_unique,
    _references_exist,
    _rates_fit_together,
    _memory_fits_the_name,
    _generations_do_not_fall_back,
    _variants_agree,
    _interconnects_are_possible,
    _commitment_is_cheaper,
    _prices_are_linear_in_gpus,
    _prices_are_plausible,
    _releases_follow_one_another,
)
