"""What the program asks of the facts: GPUs, instances, offers, presets, and the user's own prices."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import NamedTuple

from planner.catalog.nearest import fold, unknown
from planner.catalog.paths import data_dir
from planner.catalog.read import read_gpus, read_instances, read_presets, read_prices
from planner.catalog.table import Columns, Row, read_rows
from planner.domain.base import InputError
from planner.domain.hardware import Confidence, Gpu, Instance, Interconnect, Offer, Price, Purchase
from planner.domain.workload import Preset

ALL_REGIONS = "all"
"""Region of a price that holds wherever the provider sells."""

LARGEST_USD_PER_HOUR = 1_000_000
LARGEST_GPU_COUNT = 1024

OVERRIDE_COLUMNS = Columns(
    ("provider", "instance_type"),
    (
        *("region", "purchase", "usd_per_hour", "discount_ratio"),
        *("gpu", "gpu_count", "interconnect", "as_of", "notes"),
    ),
)


@cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of `data/gpus.csv`, in the file's order. Raises InputError on a malformed row."""
    return read_gpus(data_dir() / "gpus.csv")


@cache
def instances() -> tuple[Instance, ...]:
    """The rentable shapes of `data/instances.csv`. Raises InputError on a malformed row."""
    return read_instances(data_dir() / "instances.csv")


@cache
def prices() -> tuple[Price, ...]:
    """The prices of `data/prices.csv`, trusted or not. Raises InputError on a malformed row."""
    return read_prices(data_dir() / "prices.csv")


@cache
def presets() -> tuple[Preset, ...]:
    """The workloads of `data/presets/*.toml`, by name. Raises InputError on a malformed file."""
    return read_presets(data_dir() / "presets")


def find_gpu(text: str) -> Gpu:
    """The GPU of this name or alias, whatever its case and separators.

    Raises InputError with the nearest names where there is none.

    >>> find_gpu("NVIDIA H100 80GB HBM3").name
    'H100-SXM-80GB'
    """
    key = fold(text)
    found = _gpu_index().get(key) or _gpu_index().get(key.removeprefix("nvidia"))
    if found is None:
        raise unknown("GPU", text, [gpu.name for gpu in gpus()])
    return found


def find_preset(name: str) -> Preset:
    """The preset of this name, whatever its case and separators. Raises InputError with the nearest names.

    >>> find_preset("Long-Context").name
    'long_context'
    """
    for preset in presets():
        if fold(preset.name) == fold(name):
            return preset
    raise unknown("preset", name, [preset.name for preset in presets()])


@cache
def offers(include_untrusted: bool = False) -> tuple[Offer, ...]:
    """Instances joined with their prices; undated and low-confidence prices only where asked for.

    Raises InputError where a price names an instance that `data/instances.csv` does not have.
    """
    return join(instances(), (price for price in prices() if include_untrusted or price.is_trusted))


def hidden_offers(providers: tuple[str, ...] = ()) -> int:
    """How many prices of these providers (empty: of all) are undated or second-hand, so shown only where asked for.

    >>> hidden_offers(("crusoe",))
    0
    """
    hidden = (price for price in prices() if not price.is_trusted)
    return sum(not providers or price.provider in providers for price in hidden)


def join(shapes: Iterable[Instance], priced: Iterable[Price]) -> tuple[Offer, ...]:
    """Each price with the instance it is of. Raises InputError where there is no such instance."""
    by_name = {(shape.provider, shape.instance_type): shape for shape in shapes}
    joined = []
    for price in priced:
        shape = by_name.get((price.provider, price.instance_type))
        if shape is None:
            raise InputError(
                f"a price names {price.provider} {price.instance_type}, which is no known instance"
            )
        joined.append(Offer(instance=shape, price=price))
    return tuple(joined)


def apply_price_overrides(offers: Iterable[Offer], path: Path) -> tuple[Offer, ...]:
    """Offers with the user's prices in place of the catalog's, and with what only the user can buy.

    The CSV has `provider`, `instance_type` and either `usd_per_hour` or `discount_ratio` (0-1). `region` and
    `purchase` narrow a row; empty or `*` means all that are offered. `instance_type` may be `*` with a
    discount. With `gpu` and `gpu_count` (and `interconnect`) a row may name an instance the catalog lacks.
    Rows apply from top to bottom, each to the prices as the rows above left them: general discounts first.
    Raises InputError naming file, line, column and the legal values.
    """
    book = _Book(offers)
    known: _Known = {}
    for shape in (*instances(), *(offer.instance for offer in book.offers.values())):
        known.setdefault(fold(shape.provider), {})[shape.instance_type.casefold()] = shape
    for row in read_rows(path, OVERRIDE_COLUMNS):
        override = _override(row)
        for shape in _shapes(override, known):
            for region, purchase in _targets(override, shape, book):
                offer = _priced(override, shape, (region, purchase), book)
                if offer is not None:
                    book.add(offer)
    return tuple(book.offers.values())


class _Place(NamedTuple):
    provider: str
    instance_type: str
    region: str
    purchase: Purchase


class _Override(NamedTuple):
    """One row of the user's price file; None means all."""

    row: Row
    provider: str
    instance_type: str | None
    region: str | None
    purchase: Purchase | None
    usd_per_hour: float | None
    discount_ratio: float | None
    as_of: str


_Known = dict[str, dict[str, Instance]]
"""Instances by folded provider and type."""


class _Book:
    """Offers by place, in their order, and the regions and purchases that each instance is offered in."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        self.offers: dict[_Place, Offer] = {}
        self._purchases: dict[tuple[str, str], dict[str, list[Purchase]]] = {}
        for offer in offers:
            self.add(offer)

    def add(self, offer: Offer) -> None:
        place = _place(offer)
        if place not in self.offers:
            by_region = self._purchases.setdefault((place.provider, place.instance_type), {})
            by_region.setdefault(place.region, []).append(place.purchase)
        self.offers[place] = offer

    def purchases(self, shape: Instance) -> Mapping[str, Sequence[Purchase]]:
        return self._purchases.get((shape.provider, shape.instance_type), {})


def _place(offer: Offer) -> _Place:
    price = offer.price
    return _Place(price.provider, price.instance_type, price.region, price.purchase)


def _named(row: Row, column: str) -> str | None:
    text = row.optional_text(column)
    return None if text in ("", "*") else text


def _override(row: Row) -> _Override:
    instance_type = None if row.text("instance_type") == "*" else row.text("instance_type")
    price, discount = row.optional_number("usd_per_hour"), row.optional_number("discount_ratio")
    if (price is None) == (discount is None):
        raise row.error("usd_per_hour", "a price here or a ratio in discount_ratio (one of the two)")
    if price is not None and price > LARGEST_USD_PER_HOUR:
        raise row.error("usd_per_hour", f"a price above 0 up to {LARGEST_USD_PER_HOUR:,}")
    if discount is not None and discount >= 1:
        raise row.error("discount_ratio", "a ratio above 0 and below 1")
    if price is not None and instance_type is None:
        raise row.error("instance_type", "one instance type (* goes with discount_ratio only)")
    return _Override(
        row=row,
        provider=row.text("provider"),
        instance_type=instance_type,
        region=_named(row, "region"),
        purchase=row.choice("purchase", Purchase) if _named(row, "purchase") else None,
        usd_per_hour=price,
        discount_ratio=discount,
        as_of=row.optional_date("as_of") or date.fromtimestamp(row.path.stat().st_mtime).isoformat(),
    )


def _shapes(override: _Override, known: _Known) -> list[Instance]:
    """The instances a row speaks of: known ones, or a new one, which is known from then on."""
    provider, wanted, row = fold(override.provider), override.instance_type, override.row
    sold = known.get(provider, {})
    if wanted is None and sold:
        return list(sold.values())
    if wanted is not None:
        key = wanted.casefold()
        if key not in sold and _named(row, "gpu"):
            sold = known.setdefault(provider, {})
            sold[key] = _new_instance(override, wanted)
        if key in sold:
            return [sold[key]]
    if sold and wanted is not None:
        error = unknown("instance_type", wanted, [shape.instance_type for shape in sold.values()])
    else:
        providers = {shape.provider for shapes in known.values() for shape in shapes.values()}
        error = unknown("provider", override.provider, sorted(providers))
    raise InputError(f"{row.path}:{row.line}: {error} (a new instance needs gpu and gpu_count)")


def _new_instance(override: _Override, instance_type: str) -> Instance:
    row = override.row
    try:
        gpu = find_gpu(row.text("gpu"))
    except InputError as error:
        raise InputError(f"{row.path}:{row.line}: column gpu: {error}") from None
    count = row.count("gpu_count")
    if count > LARGEST_GPU_COUNT:
        raise row.error("gpu_count", f"a whole number from 1 to {LARGEST_GPU_COUNT}")
    if row.optional_text("interconnect"):
        interconnect = row.choice("interconnect", Interconnect)
    else:
        interconnect = Interconnect.NONE if count == 1 else Interconnect.PCIE
    return Instance(
        provider=override.provider,
        instance_type=instance_type,
        gpu=gpu.name,
        gpu_count=count,
        interconnect=interconnect,
        source=f"{row.path.name}:{row.line}",
        as_of=override.as_of,
    )


def _targets(override: _Override, shape: Instance, book: _Book) -> Iterator[tuple[str, Purchase]]:
    """The regions and purchases a row prices: those it names, else those the instance is offered in."""
    offered = book.purchases(shape)
    for region in [override.region] if override.region else list(offered) or [ALL_REGIONS]:
        if override.purchase:
            yield region, override.purchase
        else:
            purchases = list(offered.get(region, ())) or [Purchase.ON_DEMAND]
            yield from ((region, purchase) for purchase in purchases)


def _priced(override: _Override, shape: Instance, target: tuple[str, Purchase], book: _Book) -> Offer | None:
    """The offer at the user's price; None where a discount for all instances finds no price of this one."""
    region, purchase = target
    row, usd_per_hour = override.row, override.usd_per_hour
    if usd_per_hour is None:
        base = _base_price(shape, target, book)
        if base is None and override.instance_type is None:
            return None
        if base is None or override.discount_ratio is None:
            raise row.error(
                "discount_ratio", f"a catalog price of {shape.instance_type} in {region} to take it off"
            )
        usd_per_hour = base.usd_per_hour * (1 - override.discount_ratio)
    price = Price(
        provider=shape.provider,
        instance_type=shape.instance_type,
        region=region,
        purchase=purchase,
        usd_per_hour=usd_per_hour,
        as_of=override.as_of,
        source=f"{row.path.name}:{row.line}",
        confidence=Confidence.HIGH,
        notes=row.optional_text("notes") or "your price",
    )
    return Offer(instance=shape, price=price)


def _base_price(shape: Instance, target: tuple[str, Purchase], book: _Book) -> Price | None:
    """The price a discount is taken off: of that purchase, else on demand, there or in all regions."""
    region, purchase = target
    for way in (purchase, Purchase.ON_DEMAND):
        for place in (region, ALL_REGIONS):
            offer = book.offers.get(_Place(shape.provider, shape.instance_type, place, way))
            if offer is not None:
                return offer.price
    return None


@cache
def _gpu_index() -> dict[str, Gpu]:
    index: dict[str, Gpu] = {}
    for gpu in gpus():
        for name in (gpu.name, *gpu.aliases):
            if index.setdefault(fold(name), gpu) is not gpu:
                raise InputError(f'gpus.csv: "{name}" names both {index[fold(name)].name} and {gpu.name}')
    return index
