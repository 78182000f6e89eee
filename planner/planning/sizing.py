"""Does a replica start at all? Backend, formats, divisibility and memory, then its step model."""

from typing import NamedTuple

from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, MemoryBudget, Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.hardware import Gpu
from planner.domain.model import Model
from planner.domain.plan import Bottleneck
from planner.domain.units import bytes_to_gib
from planner.formulas.activations import ActivationShape, activation_shape
from planner.formulas.dtype_support import kv_dtype_problem, weight_dtype_problem
from planner.formulas.engine_defaults import engine_rules
from planner.formulas.gemms import check_parallelism
from planner.formulas.kv_cache import KvLayout, kv_layout
from planner.formulas.memory import Card, Resident, memory_budget
from planner.formulas.operators import GpuOperators
from planner.formulas.step import Cluster, StepModel, compile_step
from planner.formulas.weights import weights_bytes
from planner.planning.facts import Facts


class Refusal(NamedTuple):
    """Why something does not work, without saying for whom."""

    bottleneck: Bottleneck
    need: float
    have: float
    unit: str
    reason: str


class Placed(NamedTuple):
    """A model on GPUs that can run it; whether it fits depends on the engine settings."""

    model: Model
    gpu: Gpu
    parallelism: Parallelism
    kv_dtype: KvDtype
    cluster: Cluster
    operators: GpuOperators
    weights_bytes: int
    kv: KvLayout
    card: Card
    engine_version: str


class _Sharded(NamedTuple):
    weights_bytes: int
    activations: ActivationShape


class Sizer:
    """Places models on GPUs and remembers what layouts share: weights, KV pages, step models."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._sharded: dict[tuple[int, Parallelism], _Sharded | str] = {}
        self._kv: dict[tuple[int, Parallelism, KvDtype, str], KvLayout] = {}
        self._kept: dict[int, Model] = {}

    def place(
        self,
        model: Model,
        gpu: Gpu,
        parallelism: Parallelism,
        *,
        kv_dtype: KvDtype,
        cluster: Cluster,
        engine_version: str = "",
    ) -> Placed | Refusal:
        """The model on these GPUs, or why vLLM would not start it there.

        Raises `InputError` where `engine_version` is not a vLLM version.
        """
        if not gpu.vllm_backend:
            return Refusal(
                Bottleneck.BACKEND, 1, 0, "backend", f"{gpu.name} does not run the vLLM kernels modelled here"
            )
        problem = weight_dtype_problem(model.weight_dtype, gpu) or kv_dtype_problem(kv_dtype, gpu)
        if problem is not None:
            return Refusal(Bottleneck.DTYPE, 1, 0, "support", problem)
        sharded = self._shard(model, parallelism)
        if isinstance(sharded, str):
            return Refusal(Bottleneck.PARALLELISM, parallelism.gpus, parallelism.tp, "ranks", sharded)
        key = (id(model), parallelism, kv_dtype, engine_version)
        if key not in self._kv:
            self._kv[key] = kv_layout(
                model,
                parallelism,
                kv_dtype,
                engine_version=engine_version,
                async_scheduling=engine_rules(engine_version).async_scheduling,
            )
        return Placed(
            model=model,
            gpu=gpu,
            parallelism=parallelism,
            kv_dtype=kv_dtype,
            cluster=cluster,
            operators=self._facts.operators_for(gpu),
            weights_bytes=sharded.weights_bytes,
            kv=self._kv[key],
            card=Card(gpu, parallelism, sharded.activations),
            engine_version=engine_version,
        )

    def _shard(self, model: Model, parallelism: Parallelism) -> _Sharded | str:
        """What one rank holds, or why the model cannot be divided so; models are told apart by identity."""
        key = (id(model), parallelism)
        self._kept[id(model)] = model
        if key not in self._sharded:
            problem = check_parallelism(model, parallelism)
            self._sharded[key] = problem or _Sharded(
                weights_bytes(model, parallelism), activation_shape(model, parallelism)
            )
        return self._sharded[key]

    def budget(self, placed: Placed, engine: EngineSettings) -> MemoryBudget:
        """One GPU's memory under these settings; `fits` says whether the engine starts."""
        resident = Resident(placed.weights_bytes)
        return memory_budget(placed.card, resident, placed.kv, engine, self._facts.memory)

    def step(self, placed: Placed) -> StepModel:
        """The replica's iteration time."""
        return compile_step(
            placed.model,
            placed.parallelism,
            placed.kv_dtype,
            placed.operators,
            placed.cluster,
            engine_version=placed.engine_version,
        )


def check_length(max_model_len: int, model: Model) -> None:
    """Raises `InputError` where vLLM does not start at this length without being told to."""
    if max_model_len > model.max_position:
        raise InputError(
            f"max_model_len must be at most {model.max_position} for {model.name}, got {max_model_len}"
        )


def memory_refusal(placed: Placed, budget: MemoryBudget, engine: EngineSettings) -> Refusal:
    """Why a replica does not start for lack of memory, with the two numbers."""
    request_bytes = placed.kv.reserved_bytes(engine.max_model_len, engine.max_num_batched_tokens)
    weights_gib, overhead_gib, request_gib, have_gib = (
        bytes_to_gib(size)
        for size in (budget.weights_bytes, budget.overhead_bytes, request_bytes, budget.requested_bytes)
    )
    need_gib = weights_gib + overhead_gib + request_gib
    return Refusal(
        Bottleneck.MEMORY,
        need_gib,
        have_gib,
        "GiB per GPU",
        f"weights {weights_gib:.1f} GiB, overhead {overhead_gib:.1f} GiB and one request of "
        f"{engine.max_model_len} tokens {request_gib:.1f} GiB need {need_gib:.1f} GiB of the {have_gib:.1f} GiB "
        f"that the engine may use on one {placed.gpu.name}",
    )
