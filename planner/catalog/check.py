"""Relations across rows that a wrong figure would break; known exceptions stand here by name, with the reason."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

from planner.catalog.nearest import fold
from planner.catalog.paths import data_dir
from planner.catalog.read import Catalog, read_catalog
from planner.domain.base import Frozen
from planner.domain.dtypes import ComputeDtype
from planner.domain.hardware import Gpu, Instance, Interconnect, Price, Purchase

STALE_DAYS = 90
LINEAR_TOLERANCE = 0.15
"""How far prices per GPU of one shape class may lie from their median."""
LARGEST_USD_PER_GPU_HOUR = 50.0

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
            yield Problem(table="instances.csv", row=_shape_name(shape), message=f"has unknown GPU {shape.gpu}")
    for price in catalog.prices:
        if f"{price.provider} {price.instance_type}" not in shapes:
            yield Problem(table="prices.csv", row=_price_name(price), message="is of an unknown instance")


def _rates_fit_together(catalog: Catalog) -> Iterator[Problem]:
    for gpu in catalog.gpus:
        rates = gpu.peak_flop_per_s
        bf16, fp16 = rates.get(ComputeDtype.BF16), rates.get(ComputeDtype.FP16)
        for dtype in (ComputeDtype.FP8, ComputeDtype.INT8):
            if bf16 and dtype in rates and abs(rates[dtype] / bf16 - 2) > 0.02 and not _doubles_int8(gpu, dtype):
                yield Problem(table="gpus.csv", row=gpu.name, message=f"{dtype} is not twice bf16")
        if bf16 and fp16 and bf16 != fp16:
            yield Problem(table="gpus.csv", row=gpu.name, message="bf16 and fp16 differ")
        if not bf16 and not fp16:
            yield Problem(table="gpus.csv", row=gpu.name, message="has no 16-bit rate")


def _doubles_int8(gpu: Gpu, dtype: ComputeDtype) -> bool:
    """GeForce halves the rate of 16-bit and fp8 products with fp32 sums, not that of int8."""
    return dtype is ComputeDtype.INT8 and gpu.name.startswith("RTX ") and gpu.name[4].isdigit()
