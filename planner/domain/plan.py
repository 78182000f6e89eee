"""The question a user asks, and the answer: plans that work and the reasons of those that do not."""

from enum import StrEnum

from pydantic import Field

from planner.domain.base import Frozen
from planner.domain.deployment import EngineSettings, MemoryBudget, Parallelism
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.evidence import Basis, LatencyRanges
from planner.domain.hardware import Instance, Price, Purchase
from planner.domain.model import Model
from planner.domain.workload import Slo, Workload


class Bottleneck(StrEnum):
    """Why a candidate was rejected, or what binds a plan that works."""

    BACKEND = "backend"
    """vLLM's kernels on this accelerator are not modelled here."""
    EVIDENCE = "evidence"
    """Nothing but a data sheet tells how fast the GPU is."""
    DTYPE = "dtype"
    """The GPU cannot run these weights or this KV cache."""
    PARALLELISM = "parallelism"
    """The tensor or pipeline degree does not divide the model."""
    MEMORY = "memory"
    """Weights and one request do not fit."""
    TTFT = "ttft"
    TPOT = "tpot"
    BUDGET = "budget"
    KV_CACHE = "kv_cache"
    """Binds a plan: more requests at once would not fit."""
    THROUGHPUT = "throughput"
    """Binds a plan: the replica is busy, latency would still allow more."""


class CapacityMethod(StrEnum):
    """How the rate that a replica carries within the promise was found."""

    STEADY = "steady"
    """In closed form."""
    SIMULATE = "simulate"
    """By bisection on the simulated scheduler."""


class Supply(Frozen):
    """What may be bought. Empty tuples allow everything."""

    providers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    purchases: tuple[Purchase, ...] = (Purchase.ON_DEMAND,)
    budget_usd_per_month: float | None = Field(default=None, gt=0)
    max_tp: int = Field(default=16, ge=1, le=64)
    max_pp: int = Field(default=2, ge=1, le=16)
    kv_dtypes: tuple[KvDtype, ...] = (KvDtype.AUTO,)
    weakest_basis: Basis = Basis.TRANSFERRED
    """Plans on a weaker basis are rejected."""


class Reserve(Frozen):
    """How much more than the mean load is bought."""

    peak_ratio: float = Field(default=1.5, ge=1, le=100)
    """Peak request rate over the mean one; replicas are bought for the peak."""
    headroom_ratio: float = Field(default=0.2, ge=0, lt=1)
    """Share of the SLO-bound capacity left unused at the peak."""
    spare_replicas: int = Field(default=0, ge=0, le=1000)
    """Replicas beyond what the peak needs (1 is N+1)."""


class Question(Frozen):
    """Everything a plan depends on, apart from the catalog and the coefficients."""

    variants: tuple[Model, ...] = Field(min_length=1)
    """The model in every weight format that may be served, the checkpoint as it is first."""
    workload: Workload
    slo: Slo
    supply: Supply = Supply()
    reserve: Reserve = Reserve()
    max_model_len: int | None = Field(default=None, ge=1)
    """None: room for twice the prompt and answer, as far as the model goes."""
    engine_version: str = ""
    previous_usd_per_month: float | None = Field(default=None, gt=0)
    """What the user's previous choice costs, to state the saving against it."""


class Latency(Frozen):
    """Predicted latency of one replica under its load."""

    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    tpot_p95_s: float
    tpot_p99_s: float


class Candidate(Frozen):
    """One way to buy and run a replica, before it is known whether it works."""

    instance: Instance
    price: Price
    parallelism: Parallelism
    weight_dtype: WeightDtype
    kv_dtype: KvDtype


class Fleet(Frozen):
    """Replicas packed into instances."""

    replicas: int = Field(ge=1)
    instances: int = Field(ge=1)
    stranded_gpus: int = Field(ge=0)
    """GPUs paid for that hold no replica."""


class Cost(Frozen):
    """What the fleet costs."""

    usd_per_hour: float
    usd_per_month: float
    usd_per_million_tokens: float
    """Input and output tokens together, at the mean load."""
    usd_per_million_input_tokens: float
    usd_per_million_output_tokens: float
    usd_per_month_by_purchase: dict[Purchase, float]
    """The same fleet paid in every way this instance is sold in this region."""


class Plan(Frozen):
    """A candidate that meets the promise, with what it takes and what it costs."""

    candidate: Candidate
    engine: EngineSettings
    fleet: Fleet
    cost: Cost
    latency: Latency
    memory: MemoryBudget
    capacity_requests_per_s: float
    """Of all instances together, within the SLO."""
    replica_requests_per_s: float
    """Capacity of one replica within the SLO."""
    capacity_method: CapacityMethod = CapacityMethod.STEADY
    """Where capacity, replicas, latency and running requests come from."""
    steady_replica_requests_per_s: float = 0.0
    """Capacity of one replica in closed form."""
    running_requests: float
    """Mean requests running at once on one replica at the peak load."""
    utilization_ratio: float
    """Peak load over capacity."""
    binding_constraint: Bottleneck
    basis: Basis
    rough_kernels: bool = False
    """Much of the model's time is in the kernels that are least sure: experts, or weights of 4 bits."""
    basis_detail: str
    expected_error_ratio: float
    """Median TPOT error of this basis on measured runs."""
    ranges: LatencyRanges | None = None
    """90 % ranges of TTFT p95 and TPOT p95, as wide as measured means are uncertain; None where no run tells."""
    saving_usd_per_month: float = 0.0
    """Against the dearest plan that works."""
    saving_vs_previous_usd_per_month: float | None = None
    """Against the user's previous choice, where one was given."""
    pareto: bool = False
    """On the front of cost against TPOT."""
    warnings: tuple[str, ...] = ()

    @property
    def steady_capacity_requests_per_s(self) -> float:
        """What all instances together carry in closed form."""
        return self.steady_replica_requests_per_s * self.fleet.replicas

    @property
    def capacity_disagreement_ratio(self) -> float | None:
        """Closed form over simulation, less one; None where nothing was simulated."""
        if self.capacity_method is CapacityMethod.STEADY:
            return None
        return self.steady_replica_requests_per_s / self.replica_requests_per_s - 1.0


class Rejection(Frozen):
    """A candidate that does not work, and by how much."""

    candidate: Candidate
    bottleneck: Bottleneck
    need: float
    have: float
    unit: str
    reason: str

    @property
    def miss_ratio(self) -> float:
        """How far the need is from what there is: 1 is just enough, larger is worse."""
        worse, better = (self.need, self.have) if self.unit != "ms" else (self.have, self.need)
        return worse / better if better > 0 else float("inf")


class Recommendation(Frozen):
    """The answer: plans best first, and every candidate that was turned down."""

    plans: tuple[Plan, ...]
    rejections: tuple[Rejection, ...]
    offers_considered: int
    settings_tried: int
    """Engine settings evaluated over all candidates."""

    @property
    def candidates(self) -> int:
        """Answered plus rejected."""
        return len(self.plans) + len(self.rejections)
