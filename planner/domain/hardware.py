"""GPUs, instances and their prices: facts, each with its source and date."""

from enum import StrEnum

from pydantic import Field

from planner.domain.base import Frozen
from planner.domain.dtypes import ComputeDtype


class Confidence(StrEnum):
    """How far a fact may be trusted; `low` and undated rows are hidden unless asked for."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


BRIDGED_NAMES = ("PCIe", "NVL", "RTX", "A40")
"""Cards, as opposed to modules on a board with NVSwitch."""


class Gpu(Frozen):
    """One accelerator as its maker and its driver describe it."""

    name: str
    vendor: str
    architecture: str
    compute_capability: str
    """CUDA compute capability ("9.0") or the vendor's target name ("gfx942"); empty where there is none."""
    aliases: tuple[str, ...] = ()
    """Other spellings, NVML device names among them."""
    memory_bytes: int = Field(gt=0)
    """What the driver reports as total where that was observed, else a conservative estimate (`memory_observed`)."""
    memory_observed: bool
    memory_bandwidth_bytes_per_s: float = Field(gt=0)
    peak_flop_per_s: dict[ComputeDtype, float]
    """Dense (not sparse) tensor rate per dtype; absent means the hardware has no such path."""
    nvlink_bytes_per_s: float = Field(ge=0)
    """GPU-to-GPU fabric (NVLink, Infinity Fabric), both directions together; 0 means PCIe only."""
    pcie_bytes_per_s: float = Field(ge=0)
    """Both directions together."""
    power_w: float | None = Field(default=None, gt=0)
    """Board power limit; None where the maker publishes none (TPU)."""
    sm_count: int | None = None
    vllm_backend: str = ""
    """`cuda` or `rocm` where this planner models vLLM's kernels; empty where it does not (TPU, Gaudi)."""
    source: str
    as_of: str
    confidence: Confidence
    notes: str = ""

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def is_hopper(self) -> bool:
        """Compute capability 9.x: where vLLM's Hopper kernels run."""
        return self.compute_capability.startswith("9.")

    @property
    def is_datacenter_blackwell(self) -> bool:
        """Compute capability 10.x (B200, B300 and theirs with Grace), which has kernels of its own."""
        return self.compute_capability.startswith("10.")

    @property
    def has_nvlink_bridges(self) -> bool:
        """Bridges join a few of these GPUs, and no switch: nothing is sent to all ranks at once (multicast)."""
        return self.nvlink_bytes_per_s > 0 and any(mark in self.name for mark in BRIDGED_NAMES)


class Interconnect(StrEnum):
    """How the GPUs of one instance reach each other."""

    NONE = "none"
    PCIE = "pcie"
    NVLINK_PAIR = "nvlink_pair"
    """Bridges join GPUs two by two; larger groups talk over PCIe."""
    NVLINK = "nvlink"
    NVSWITCH = "nvswitch"
    INFINITY_FABRIC = "infinity_fabric"


class Instance(Frozen):
    """A thing that can be rented: a shape, without a price."""

    provider: str
    instance_type: str
    gpu: str
    gpu_count: int = Field(gt=0)
    interconnect: Interconnect
    vcpus: int | None = None
    memory_gib: float | None = None
    network_gbps: float | None = None
    source: str
    as_of: str
    notes: str = ""
    """What a buyer should know of the shape (retired series, sold as spot only, a slice of a rack)."""


class Purchase(StrEnum):
    """How capacity is paid for."""

    ON_DEMAND = "on_demand"
    RESERVED_1Y = "reserved_1y"
    RESERVED_3Y = "reserved_3y"
    SPOT = "spot"


class Price(Frozen):
    """What one instance costs an hour, in one region, paid in one way."""

    provider: str
    instance_type: str
    region: str
    purchase: Purchase
    usd_per_hour: float = Field(gt=0)
    as_of: str
    """ISO date or month; empty where the source gives none (then hidden unless asked for)."""
    source: str
    confidence: Confidence
    notes: str = ""

    @property
    def is_trusted(self) -> bool:
        """True where the row has a date and is not of low confidence."""
        return bool(self.as_of) and self.confidence is not Confidence.LOW


class Offer(Frozen):
    """An instance joined with one of its prices: what a plan buys."""

    instance: Instance
    price: Price
