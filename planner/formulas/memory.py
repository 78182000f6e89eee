"""One GPU's memory as vLLM divides it: weights, profiling peak, CUDA graphs, and the rest for KV cache."""

from math import ceil, log2
from typing import NamedTuple

from planner.domain.base import Frozen
from planner.domain.deployment import EngineSettings, MemoryBudget, Parallelism
from planner.domain.evidence import Estimate
from planner.domain.hardware import Gpu
from planner.formulas.activations import (
    ActivationShape,
    Batch,
    ForwardMemory,
    latent_context_tokens,
)
from planner.formulas.cuda_graphs import GraphPlan, graph_bytes, kernels_of_model
from planner.formulas.encoder import encoder_profile
from planner.formulas.engine_defaults import (
    DEFAULT_BLOCK_SIZE_TOKENS,
    EngineVersion,
    capture_limit,
    capture_sizes,
)
from planner.formulas.kv_cache import KvLayout
from planner.formulas.load_target import load_target
from planner.formulas.moe_workspace import KernelSite
from planner.formulas.profile_rules import ProfileRules, fuses_all_reduce, profile_rules
from planner.formulas.sampler import sampler_state_bytes, sampling_bytes

BLOCK_TABLE_BYTES = 4
"""One entry."""


class MeasuredRange(Frozen):
    """The deployments whose start-up logs were fitted: V1 runner, no pipeline, data or expert parallelism, CUDA
    graphs on, neither adapters nor a draft model."""

    gpus: tuple[str, ...]
    capabilities: tuple[str, ...]
    """Compute capabilities of these."""
    tensor_parallel: tuple[int, ...]
    max_num_seqs: tuple[int, ...]
    max_num_batched_tokens: tuple[int, ...]
    releases: tuple[tuple[int, int], tuple[int, int]]
    """The oldest and the newest, as (0, 20): later patches of it are within."""

    def holds(self, card: "Card", engine: EngineSettings) -> bool:
        """The card, its degree and the batch are among those measured."""
        return (
            card.gpu.name in self.gpus
            and card.parallelism.tp in self.tensor_parallel
            and engine.max_num_seqs in self.max_num_seqs
            and engine.max_num_batched_tokens in self.max_num_batched_tokens
        )

    def is_near(self, card: "Card", version: EngineVersion) -> bool:
        """The same kind of card, a degree between those measured, and so the release."""
        tp, degrees = card.parallelism.tp, self.tensor_parallel
        oldest, newest = self.releases
        return (
            card.gpu.compute_capability in self.capabilities
            and any(degree <= tp for degree in degrees)
            and any(degree >= tp for degree in degrees)
            and oldest <= version[:2] <= newest
        )


class MemoryCoefficients(Frozen):
    """What no architecture tells about the engine's memory; fitted on start-up logs."""

    non_torch_bytes: Estimate
    """Growth outside torch's allocator after the start-up snapshot: kernels loaded, library workspaces."""
    collective_bytes: Estimate
    """More of it for each doubling of the tensor-parallel ranks: NCCL's connections."""
    fused_all_reduce_bytes: Estimate
    """More of it where FlashInfer fuses all-reduce and norm: buffers that all ranks see. A constant as seen at TP 4
    and 8: each of three buffers (512 MiB, it seems) is rounded up to what the driver recommends for multicast, and
    no source tells that. TP 2, whose buffers are larger before rounding, was not measured."""
    cuda_graph_bytes_per_kernel: Estimate
    """One kernel in one captured graph takes this much, beside the pool that graphs share."""
    overhead_relative_error: float
    """Half-width of the 90 % interval on everything outside weights and KV cache, as a share of it, within what was
    measured: models, tensor-parallel degrees or releases left out of the fit, whichever it misses most."""
    sibling_relative_error: float
    """The same where the card, its tensor-parallel degree or the batch was not measured and all else was: GPUs left
    out of the fit, or the above if wider."""
    untested_relative_error: float
    """The same beyond: how far one generation of releases lies from what another tells, or the above if wider."""
    measured: MeasuredRange
    """Where the first of these holds."""
    provenance: str


class Resident(NamedTuple):
    """What loading leaves on one GPU [bytes]."""

    weights_bytes: int
    draft_bytes: int = 0
    lora_bytes: int = 0


class Charges(NamedTuple):
    """What a GPU holds beside its KV cache, the same under any `gpu_memory_utilization` [bytes]."""

    resident: Resident
    activation_bytes: int
    cuda_graph_bytes: int
    non_torch_bytes: int
    relative_error: float
    """Half-width of the 90 % interval on the last three together, as a share of them."""

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return sum(self.resident) + self.activation_bytes + self.cuda_graph_bytes + self.non_torch_bytes


class Card(NamedTuple):
    """One GPU of a replica and what the profiling run computes on it."""

    gpu: Gpu
    parallelism: Parallelism
    activations: ActivationShape
    block_size: int = DEFAULT_BLOCK_SIZE_TOKENS
    """Tokens of a KV block as it is paged (`KvLayout.block_size`)."""


def memory_budget(
    card: Card, resident: Resident, kv: KvLayout, engine: EngineSettings, coefficients: MemoryCoefficients
) -> MemoryBudget:
    """How one GPU's memory divides under these settings; a shortfall is a negative KV cache, never hidden.

    Raises:
        InputError: `engine.engine_version` is not a vLLM version.
    """
    return divided(card.gpu, charges(card, resident, engine, coefficients), kv, engine)


def charges(
    card: Card, resident: Resident, engine: EngineSettings, coefficients: MemoryCoefficients
) -> Charges:
    """What comes off one GPU's memory before the KV cache under these settings.

    CUDA graphs do since vLLM 0.20 (Model Runner V2: 0.29); before, they took what the utilization leaves free.

    Raises:
        InputError: `engine.engine_version` is not a vLLM version.
    """
    charged = engine_profile_rules(card, engine).charges_cuda_graphs
    return Charges(
        resident,
        activation_peak_bytes(card, engine),
        cuda_graph_bytes(card, engine, coefficients) if charged else 0,
        non_torch_bytes(card, engine, coefficients),
        overhead_relative_error(card, engine, coefficients),
    )


def divided(gpu: Gpu, charged: Charges, kv: KvLayout, engine: EngineSettings) -> MemoryBudget:
    """One GPU's memory with the rest for KV cache.

    `KV = ceil(total x gpu_memory_utilization) - resident - peak - CUDA graphs - non-torch growth`
    (vllm/v1/worker/gpu_worker.py, determine_available_memory). A KV cache given in bytes is taken as it is, and what
    it leaves, or lacks, is outside: vLLM does not look at the utilization then.
    """
    total, taken = gpu.memory_bytes, charged.size_bytes
    requested = min(ceil(total * engine.gpu_memory_utilization), total)
    available = requested - taken
    if engine.kv_cache_memory_bytes is not None:
        available = engine.kv_cache_memory_bytes
    limits = (available, engine.max_model_len, engine.max_num_batched_tokens)
    return MemoryBudget(
        total_bytes=total,
        outside_bytes=total - taken - available,
        weights_bytes=charged.resident.weights_bytes,
        draft_bytes=charged.resident.draft_bytes,
        lora_bytes=charged.resident.lora_bytes,
        activation_bytes=charged.activation_bytes,
        cuda_graph_bytes=charged.cuda_graph_bytes,
        non_torch_bytes=charged.non_torch_bytes,
        kv_cache_bytes=available,
        kv_cache_tokens=kv.tokens(*limits),
        kv_blocks=kv.blocks(available),
        block_size=kv.block_size,
        kv_bytes_per_token=float(kv.bytes_per_token),
        max_concurrency=kv.max_concurrency(*limits),
        max_model_len=engine.max_model_len,
        request_bytes=kv.reserved_bytes(engine.max_model_len, engine.max_num_batched_tokens),
        relative_error=charged.relative_error,
    )


def overhead_relative_error(card: Card, engine: EngineSettings, coefficients: MemoryCoefficients) -> float:
    """Half-width of the 90 % interval on all but weights and KV cache, by how near the measured deployments are."""
    layout = card.parallelism
    rules = engine_profile_rules(card, engine)
    is_plain = layout.pp == layout.dp == 1 and not layout.ep and not engine.enforce_eager
    is_plain = is_plain and engine.lora is None and engine.speculation is None and not rules.v2_runner
    if not is_plain or not coefficients.measured.is_near(card, rules.version):
        return coefficients.untested_relative_error
    if coefficients.measured.holds(card, engine):
        return coefficients.overhead_relative_error
    return coefficients.sibling_relative_error


def kv_tokens_interval(budget: MemoryBudget, kv: KvLayout, engine: EngineSettings) -> tuple[int, int]:
    """90 % interval of `kv_cache_tokens`, from that of everything outside weights and KV cache [tokens].

    A KV cache given in bytes has none.
    """
    given = engine.kv_cache_memory_bytes is not None
    spread_bytes = 0.0 if given else budget.relative_error * budget.overhead_bytes
    limits = (engine.max_model_len, engine.max_num_batched_tokens)
    least = kv.tokens(budget.kv_cache_bytes - spread_bytes, *limits)
    return least, kv.tokens(budget.kv_cache_bytes + spread_bytes, *limits)


def activation_peak_bytes(card: Card, engine: EngineSettings) -> int:
    """Peak of the profiling run above the weights [bytes].

    The encoder runs first and leaves its outputs; then the language model, which leaves the experts' workspaces
    and the hidden states; then the sampler (vllm/v1/worker/gpu_model_runner.py, profile_run). Buffers that the
    runner made before are part of it where the release charges them.
    """
    shape, tokens = card.activations, engine.max_num_batched_tokens
    rules = engine_profile_rules(card, engine)
    batch = Batch(tokens, latent_context_tokens(engine, card.block_size), engine.max_model_len)
    forward = _forward(card, batch, engine)
    sampling = sampling_bytes(
        min(engine.max_num_seqs, tokens),
        shape.vocab,
        rules,
        tp=card.parallelism.tp,
        sm_count=card.gpu.sm_count or 0,
        drafts=engine.speculation is not None,
    )
    hidden = tokens * shape.hidden_bytes_per_token
    encoder = encoder_profile(shape.model, engine, tp=card.parallelism.tp)
    language = forward.kept_bytes + max(forward.passing_bytes, hidden + sampling)
    peak = max(encoder.peak_bytes, encoder.cached_bytes + language)
    return peak + (_runner_bytes(card, engine, rules) if rules.charges_free_memory else 0)


def cuda_graph_bytes(card: Card, engine: EngineSettings, coefficients: MemoryCoefficients) -> int:
    """CUDA graphs as vLLM estimates them [bytes]: a pool for the largest step, and a little a kernel."""
    if engine.enforce_eager:
        return 0
    plan = captured_graphs(card, engine)
    # The V1 runner captures pieces without attention metadata, as it profiles; the V2 runner with.
    context = 0 if plan.v2_runner else latent_context_tokens(engine, card.block_size)
    pool = _forward(card, Batch(max(plan.sizes, default=0), context), engine).passing_bytes
    kernels = kernels_of_model(card.activations.model, card.parallelism)
    return pool + graph_bytes(plan, kernels, coefficients.cuda_graph_bytes_per_kernel.value)


def captured_graphs(card: Card, engine: EngineSettings) -> GraphPlan:
    """The CUDA graphs this engine captures on this card: whole ones for decoding, with a draft's tokens."""
    drafted_tokens = 0 if engine.speculation is None else engine.speculation.num_speculative_tokens
    return GraphPlan(
        captured_sizes(card, engine),
        full_up_to=engine.max_num_seqs * (1 + drafted_tokens),
        v2_runner=engine_profile_rules(card, engine).v2_runner,
    )


def engine_profile_rules(card: Card, engine: EngineSettings) -> ProfileRules:
    """How this engine profiles its memory on this card."""
    drafts = engine.speculation is not None
    return profile_rules(card.activations.model, engine.engine_version, drafts=drafts)


def captured_sizes(card: Card, engine: EngineSettings) -> tuple[int, ...]:
    """Step sizes this engine captures as CUDA graphs on this card, ascending [tokens]."""
    return capture_sizes(
        engine.max_num_seqs,
        engine.max_num_batched_tokens,
        limit=capture_limit(card.gpu, card.activations.architecture, engine.engine_version),
        engine_version=engine.engine_version,
    )


def non_torch_bytes(card: Card, engine: EngineSettings, coefficients: MemoryCoefficients) -> int:
    """Growth outside torch's allocator after the start-up snapshot [bytes]."""
    doublings = log2(card.parallelism.tp)
    grown = coefficients.non_torch_bytes.value + doublings * coefficients.collective_bytes.value
    if has_fused_all_reduce(card, engine):
        grown += coefficients.fused_all_reduce_bytes.value
    return round(grown)


def has_fused_all_reduce(card: Card, engine: EngineSettings) -> bool:
    """True where this engine fuses all-reduce and norm on this card; eager engines do not compile."""
    rules = engine_profile_rules(card, engine)
    alone = card.parallelism.pp == card.parallelism.dp == 1
    fuses = fuses_all_reduce(card.gpu, card.parallelism.tp, alone=alone, version=rules.version)
    return fuses and not engine.enforce_eager


def _forward(card: Card, batch: Batch, engine: EngineSettings) -> ForwardMemory:
    target = load_target(card.gpu, engine.engine_version)._replace(lora=engine.lora is not None)
    return card.activations.forward(batch, KernelSite(target, card.parallelism))


def _runner_bytes(card: Card, engine: EngineSettings, rules: ProfileRules) -> int:
    """Buffers the runner keeps from start to end: sampler tables, block tables, embeddings of mixed inputs."""
    shape = card.activations
    kept = sampler_state_bytes(engine.max_num_seqs, shape.vocab, rules)
    if not rules.v2_runner:
        blocks = ceil(engine.max_model_len / card.block_size)
        kept += engine.max_num_seqs * blocks * BLOCK_TABLE_BYTES
    if shape.model.vision is not None:
        kept += engine.max_num_batched_tokens * shape.hidden_bytes_per_token
    return kept
