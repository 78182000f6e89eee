"""Legal ways to buy and to lay out a replica, before anything is computed about them."""

from collections.abc import Iterable
from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.hardware import Instance, Interconnect, Offer, Price, Purchase
from planner.domain.plan import Supply
from planner.formulas.step import Cluster
from planner.serving.fleet import stages_per_instance

TENSOR_PARALLEL = (1, 2, 4, 8, 16, 32, 64)
PIPELINE_PARALLEL = (2, 4, 8, 16)
NETWORK_FLOOR_GBPS = 10.0
"""Assumed between instances where the catalog does not know."""
BITS_PER_GBIT = 1e9
BITS_PER_BYTE = 8


class Site(NamedTuple):
    """One instance type in one region, with everything it is sold for."""

    instance: Instance
    region: str
    wanted: tuple[Price, ...]
    """The prices the question asks about."""
    prices: tuple[Price, ...]
    """All of them, to show what other purchases would cost."""


class Replica(NamedTuple):
    """A model variant laid out on GPUs: what memory and speed depend on, shared by many sites."""

    variant: int
    """Index into the question's variants."""
    gpu: str
    parallelism: Parallelism
    kv_dtype: KvDtype
    cluster: Cluster


def sites(offers: Iterable[Offer], supply: Supply) -> tuple[Site, ...]:
    """Offers inside the supply, grouped by instance type and region."""
    grouped: dict[tuple[str, str, str], tuple[Instance, list[Price]]] = {}
    for offer in offers:
        if _allowed(offer.instance, offer.price.region, supply):
            key = (offer.instance.provider, offer.instance.instance_type, offer.price.region)
            grouped.setdefault(key, (offer.instance, []))[1].append(offer.price)
    found = []
    for (_, _, region), (instance, prices) in grouped.items():
        wanted = tuple(price for price in prices if price.purchase in supply.purchases)
        if wanted:
            found.append(Site(instance, region, wanted, tuple(prices)))
    return tuple(found)


def _allowed(instance: Instance, region: str, supply: Supply) -> bool:
    return (
        (not supply.providers or instance.provider in supply.providers)
        and (not supply.regions or region in supply.regions)
        and (not supply.gpus or instance.gpu in supply.gpus)
    )


def tensor_degrees(instance: Instance, supply: Supply) -> tuple[int, ...]:
    """Tensor-parallel degrees that one instance can hold, within the supply's limit."""
    limit = min(instance.gpu_count, supply.max_tp)
    return tuple(tp for tp in TENSOR_PARALLEL if tp <= limit)


def pipeline_degrees(supply: Supply) -> tuple[int, ...]:
    """Pipeline degrees above 1 to try, shortest first."""
    return tuple(pp for pp in PIPELINE_PARALLEL if pp <= supply.max_pp)


def cluster_of(instance: Instance, parallelism: Parallelism) -> Cluster:
    """The wires under one replica; reduced to what matters so that equal replicas compare equal."""
    stages = stages_per_instance(instance.gpu_count, parallelism.tp)
    crosses = parallelism.pp > stages
    network_gbps = instance.network_gbps or NETWORK_FLOOR_GBPS
    return Cluster(
        interconnect=instance.interconnect if parallelism.gpus > 1 else Interconnect.NONE,
        network_bytes_per_s=network_gbps * BITS_PER_GBIT / BITS_PER_BYTE if crosses else 0.0,
        stages_per_instance=stages if crosses else parallelism.pp,
    )


def replica_on(instance: Instance, variant: int, kv_dtype: KvDtype, parallelism: Parallelism) -> Replica:
    """A layout on the GPUs of one instance type."""
    return Replica(variant, instance.gpu, parallelism, kv_dtype, cluster_of(instance, parallelism))


def price_of(prices: Iterable[Price], purchase: Purchase) -> Price | None:
    """The price of one way to pay, if it is sold that way."""
    return next((price for price in prices if price.purchase is purchase), None)
