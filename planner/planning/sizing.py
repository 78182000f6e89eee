"""Does a replica start at all? Backend, formats, divisibility and memory, then its step model."""

from typing import NamedTuple

from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, MemoryBudget, Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.evidence import Basis
from planner.domain.hardware import Gpu
from planner.domain.model import Model
from planner.domain.plan import Bottleneck
from planner.domain.units import bytes_to_gib
from planner.formulas.activations import ActivationShape, activation_shape
from planner.formulas.draft import draft_bytes, draft_problem
from planner.formulas.dtype_support import kv_dtype_problem, weight_dtype_problem
from planner.formulas.engine_defaults import engine_rules
from planner.formulas.gemms import check_parallelism, check_unrefined_blocks
from planner.formulas.kv_cache import KvLayout, kv_layout
from planner.formulas.kv_offload import offloading_problem
from planner.formulas.kv_paging import KvPaging, default_paging, paging_problem
from planner.formulas.load_target import LoadTarget, load_target
from planner.formulas.lora import lora_bytes, lora_index_bytes
from planner.formulas.lora_support import lora_problem
from planner.formulas.memory import Card, Charges, Resident, charges, divided
from planner.formulas.operators import GpuOperators
from planner.formulas.step import Cluster, StepModel, compile_step
from planner.formulas.tuning import step_tuning
from planner.formulas.vision import loaded_model
from planner.formulas.weights import weights_bytes
from planner.planning.basis import basis_of
from planner.planning.facts import Facts

BLOCK_SIZE_STEP = 16
"""Attention kernels on GPUs read whole multiples of so many tokens."""


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
    target: LoadTarget
    kv: KvLayout
    card: Card
    paging: KvPaging
    basis: Basis
    """What a prediction of its times rests on."""


_Key = tuple[int, int, Parallelism, KvDtype, Cluster, KvPaging]


class Sizer:
    """Places models on GPUs and remembers what layouts share: kernels, KV pages, memory, step models.

    Models and GPUs are told apart by identity.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._sharded: dict[tuple[int, Parallelism], ActivationShape | str] = {}
        self._kv: dict[tuple[int, Parallelism, KvDtype, KvPaging], KvLayout] = {}
        self._operators: dict[int, GpuOperators] = {}
        self._charges: dict[tuple[_Key, EngineSettings], Charges] = {}
        self._steps: dict[_Key, StepModel] = {}
        self._kept: dict[int, Model | Gpu] = {}

    def place(
        self,
        model: Model,
        gpu: Gpu,
        parallelism: Parallelism,
        *,
        kv_dtype: KvDtype,
        cluster: Cluster,
        paging: KvPaging | None = None,
    ) -> Placed | Refusal:
        """The model on these GPUs, or why vLLM would not start it there.

        Without `paging` the cache is paged as the newest release tested does by default. Raises `InputError`
        where its `engine_version` is not a vLLM version.
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
        paging = default_paging(gpu, model, kv_dtype) if paging is None else paging
        if not engine_rules(paging.engine_version).refines_expert_blocks:
            problem = check_unrefined_blocks(model, parallelism)
            if problem is not None:
                return Refusal(Bottleneck.PARALLELISM, parallelism.gpus, parallelism.tp, "ranks", problem)
        problem = paging_problem(model, paging)
        if problem is not None:
            return Refusal(Bottleneck.DTYPE, 1, 0, "support", problem)
        key = (id(model), parallelism, kv_dtype, paging)
        if key not in self._kv:
            self._kv[key] = kv_layout(model, parallelism, kv_dtype, paging)
        operators = self._operators_of(gpu)
        return Placed(
            model=model,
            gpu=gpu,
            parallelism=parallelism,
            kv_dtype=kv_dtype,
            cluster=cluster,
            operators=operators._replace(
                tuning=step_tuning(model, gpu, parallelism, self.facts.tuning, paging.engine_version)
            ),
            target=load_target(gpu, paging.engine_version),
            kv=self._kv[key],
            card=Card(gpu, parallelism, sharded, self._kv[key].block_size),
            paging=paging,
            basis=basis_of(
                model, parallelism, operators, self.facts.tuning.deployments, paging.engine_version
            ),
        )

    def _shard(self, model: Model, parallelism: Parallelism) -> ActivationShape | str:
        """What one rank computes with, or why the model cannot be divided so."""
        key = (id(model), parallelism)
        self._kept[id(model)] = model
        if key not in self._sharded:
            problem = check_parallelism(model, parallelism)
            self._sharded[key] = problem or activation_shape(model, parallelism)
        return self._sharded[key]

    def _operators_of(self, gpu: Gpu) -> GpuOperators:
        """Its kernels, looked up once."""
        self._kept[id(gpu)] = gpu
        if id(gpu) not in self._operators:
            self._operators[id(gpu)] = self.facts.operators_for(gpu)
        return self._operators[id(gpu)]

    def budget(self, placed: Placed, engine: EngineSettings) -> MemoryBudget:
        """One GPU's memory under these settings; `fits` says whether the engine starts."""
        key = (self._key(placed), engine.model_copy(update={"gpu_memory_utilization": 1.0}))
        if key not in self._charges:
            resident = _resident(placed, engine)
            self._charges[key] = charges(placed.card, resident, engine, self.facts.memory)
        return divided(placed.gpu, self._charges[key], placed.kv, engine)

    def step(self, placed: Placed) -> StepModel:
        """The replica's iteration time; `placed` as `place` makes it."""
        key = self._key(placed)
        if key not in self._steps:
            self._steps[key] = step_of(placed)
        return self._steps[key]

    def _key(self, placed: Placed) -> _Key:
        """Its model and GPU are kept, so that no others take their identities."""
        self._kept |= {id(placed.model): placed.model, id(placed.gpu): placed.gpu}
        return (
            id(placed.model),
            id(placed.gpu),
            placed.parallelism,
            placed.kv_dtype,
            placed.cluster,
            placed.paging,
        )


def step_of(placed: Placed) -> StepModel:
    """A placed replica's iteration time."""
    return compile_step(
        placed.model,
        placed.parallelism,
        placed.kv_dtype,
        placed.operators,
        placed.cluster,
        engine_version=placed.paging.engine_version,
    )


def loading_target(placed: Placed, engine: EngineSettings) -> LoadTarget:
    """What decides the layout of weights under these settings."""
    return placed.target._replace(batched_tokens=engine.max_num_batched_tokens, lora=engine.lora is not None)


def _resident(placed: Placed, engine: EngineSettings) -> Resident:
    """What loading leaves on one GPU: the model, and what the settings keep beside it."""
    target = loading_target(placed, engine)
    draft = lora = 0
    if engine.speculation is not None:
        draft = draft_bytes(engine.speculation, placed.parallelism, target)
    if engine.lora is not None:
        version = engine.engine_version
        lora = lora_bytes(placed.model, placed.parallelism, engine.lora, engine_version=version)
        lora += lora_index_bytes(engine)
    weights = weights_bytes(loaded_model(placed.model, engine), placed.parallelism, target)
    return Resident(weights, draft, lora)


def check_extras(model: Model, parallelism: Parallelism, engine: EngineSettings) -> None:
    """Raises `InputError` where vLLM would not start with these flags, whatever the memory."""
    problem = extras_problem(model, parallelism, engine)
    if problem is None and engine.max_num_seqs > engine.max_num_batched_tokens:
        problem = (
            f"max_num_seqs must be at most max_num_batched_tokens, {engine.max_num_batched_tokens}, "
            f"got {engine.max_num_seqs}"
        )
    if problem is None and engine.block_size % BLOCK_SIZE_STEP:
        problem = f"block_size must be a multiple of {BLOCK_SIZE_STEP}, got {engine.block_size}"
    if problem is not None:
        raise InputError(problem)


def extras_problem(model: Model, parallelism: Parallelism, engine: EngineSettings) -> str | None:
    """Why vLLM would not start with these adapters, this draft or this offloading, None where it would."""
    version = engine.engine_version
    problem = None
    if engine.lora is not None:
        problem = lora_problem(model, parallelism, engine.lora, engine_version=version)
    if problem is None and engine.speculation is not None:
        problem = draft_problem(model, engine.speculation, parallelism, engine_version=version)
    if problem is None and engine.kv_offload_bytes:
        problem = offloading_problem(version)
    return problem


def _given_cache_refusal(placed: Placed, budget: MemoryBudget) -> Refusal:
    """Why a KV cache given in bytes is too small for one request, or too large for the card."""
    cache_gib, request_gib, card_gib = (
        bytes_to_gib(size) for size in (budget.kv_cache_bytes, budget.request_bytes, budget.total_bytes)
    )
    if budget.kv_cache_bytes < budget.request_bytes:
        reason = (
            f"one request of {budget.max_model_len} tokens needs {request_gib:.1f} GiB of the {cache_gib:.1f} GiB "
            "of KV cache that are given"
        )
        return Refusal(Bottleneck.MEMORY, request_gib, cache_gib, "GiB per GPU", reason)
    taken_gib = bytes_to_gib(budget.loaded_bytes + budget.overhead_bytes)
    reason = (
        f"{cache_gib:.1f} GiB of KV cache as given and {taken_gib:.1f} GiB of weights and overhead are more than the "
        f"{card_gib:.1f} GiB of one {placed.gpu.name}"
    )
    return Refusal(Bottleneck.MEMORY, cache_gib + taken_gib, card_gib, "GiB per GPU", reason)


def check_length(max_model_len: int, model: Model) -> None:
    """Raises `InputError` where vLLM does not start at this length without being told to."""
    if max_model_len > model.max_position:
        raise InputError(
            f"max_model_len must be at most {model.max_position} for {model.name}, got {max_model_len}"
        )


def memory_refusal(placed: Placed, budget: MemoryBudget, engine: EngineSettings) -> Refusal:
    """Why a replica does not start for lack of memory, with the two numbers."""
    extras = (("draft model", budget.draft_bytes), ("adapters", budget.lora_bytes))
    loaded = " + ".join(["weights", *(name for name, size_bytes in extras if size_bytes)])
    loaded_gib, overhead_gib, request_gib, have_gib = (
        bytes_to_gib(size)
        for size in (budget.loaded_bytes, budget.overhead_bytes, budget.request_bytes, budget.requested_bytes)
    )
    if engine.kv_cache_memory_bytes is not None:
        return _given_cache_refusal(placed, budget)
    need_gib = loaded_gib + overhead_gib + request_gib
    return Refusal(
        Bottleneck.MEMORY,
        need_gib,
        have_gib,
        "GiB per GPU",
        f"{loaded} {loaded_gib:.1f} GiB, overhead {overhead_gib:.1f} GiB and one request of "
        f"{engine.max_model_len} tokens {request_gib:.1f} GiB need {need_gib:.1f} GiB of the {have_gib:.1f} GiB "
        f"that the engine may use on one {placed.gpu.name}",
    )
