"""One GPU's memory as vLLM divides it: weights, profiling peak, CUDA graphs, and the rest for KV cache."""

from math import ceil
from typing import NamedTuple

from planner.domain.base import Frozen
from planner.domain.deployment import EngineSettings, MemoryBudget, Parallelism
from planner.domain.evidence import Estimate
from planner.domain.hardware import Gpu
from planner.formulas.activations import ActivationShape, ForwardPeak
from planner.formulas.engine_defaults import EngineRules, capture_limit, capture_sizes, engine_rules
from planner.formulas.kv_cache import KvLayout


class MemoryCoefficients(Frozen):
    """What no architecture tells about the engine's memory; fitted on start-up logs."""

    non_torch_bytes: Estimate
    """Growth outside torch's allocator after the start-up snapshot: kernels loaded, library workspaces."""
    collective_bytes: Estimate
    """More of it where ranks talk to each other: all-reduce buffers."""
    cuda_graph_bytes_per_layer: Estimate
    """One captured step size takes this much in each layer, beside the shared pool."""
    overhead_relative_error: float
    """Half-width of the 90 % interval on everything outside weights and KV cache, as a share of it."""
    provenance: str


class Resident(NamedTuple):
    """What loading leaves on one GPU [bytes]."""

    weights_bytes: int
    draft_bytes: int = 0
    lora_bytes: int = 0


class Card(NamedTuple):
    """One GPU of a replica and what the profiling run computes on it."""

    gpu: Gpu
    parallelism: Parallelism
    activations: ActivationShape


def memory_budget(
    card: Card, resident: Resident, kv: KvLayout, engine: EngineSettings, coefficients: MemoryCoefficients
) -> MemoryBudget:
    """How one GPU's memory divides under these settings; a shortfall is a negative KV cache, never hidden.

    `KV = ceil(total x gpu_memory_utilization) - resident - peak - CUDA graphs - non-torch growth`
    (vllm/v1/worker/gpu_worker.py, determine_available_memory). CUDA graphs come off it since vLLM 0.20;
    before, they took what the utilization leaves free.

    Raises:
        InputError: `engine.engine_version` is not a vLLM version.
    """
    rules = engine_rules(engine.engine_version)
    requested = min(ceil(card.gpu.memory_bytes * engine.gpu_memory_utilization), card.gpu.memory_bytes)
    forward = _forward_peak(card)
    activation = activation_peak_bytes(card, engine, rules)
    graphs = _cuda_graph_bytes(card, forward, engine, coefficients) if rules.charges_cuda_graphs else 0
    non_torch = non_torch_bytes(card.parallelism, coefficients)
    available = requested - sum(resident) - activation - graphs - non_torch
    limits = (available, engine.max_model_len, engine.max_num_batched_tokens)
    return MemoryBudget(
        total_bytes=card.gpu.memory_bytes,
        outside_bytes=card.gpu.memory_bytes - requested,
        weights_bytes=resident.weights_bytes,
        draft_bytes=resident.draft_bytes,
        lora_bytes=resident.lora_bytes,
        activation_bytes=activation,
        cuda_graph_bytes=graphs,
        non_torch_bytes=non_torch,
        kv_cache_bytes=available,
        kv_cache_tokens=kv.tokens(*limits),
        kv_blocks=kv.blocks(available),
        block_size=kv.block_size,
        kv_bytes_per_token=float(kv.bytes_per_token),
        max_concurrency=kv.max_concurrency(*limits),
        max_model_len=engine.max_model_len,
        relative_error=coefficients.overhead_relative_error,
    )


def kv_tokens_interval(budget: MemoryBudget, kv: KvLayout, engine: EngineSettings) -> tuple[int, int]:
    """90 % interval of `kv_cache_tokens`, from that of everything outside weights and KV cache [tokens]."""
    spread_bytes = budget.relative_error * budget.overhead_bytes
    limits = (engine.max_model_len, engine.max_num_batched_tokens)
    least = kv.tokens(budget.kv_cache_bytes - spread_bytes, *limits)
    return least, kv.tokens(budget.kv_cache_bytes + spread_bytes, *limits)


def activation_peak_bytes(card: Card, engine: EngineSettings, rules: EngineRules) -> int:
    """Peak of the profiling run above the weights [bytes]: the forward pass or the sampling, not both."""
    tokens = engine.max_num_batched_tokens
    sampling = card.activations.sampling_bytes(tokens, engine.max_num_seqs, sorts=rules.sampler_sorts)
    return max(_forward_peak(card).size_bytes(tokens), sampling)


def cuda_graph_bytes(card: Card, engine: EngineSettings, coefficients: MemoryCoefficients) -> int:
    """CUDA graphs as vLLM estimates them [bytes]: a pool for the largest step, and a little a graph."""
    return _cuda_graph_bytes(card, _forward_peak(card), engine, coefficients)


def captured_sizes(card: Card, engine: EngineSettings) -> tuple[int, ...]:
    """Step sizes this engine captures as CUDA graphs on this card, ascending [tokens]."""
    return capture_sizes(
        engine.max_num_seqs,
        engine.max_num_batched_tokens,
        limit=capture_limit(card.gpu, card.activations.architecture, engine.engine_version),
        engine_version=engine.engine_version,
    )


def non_torch_bytes(parallelism: Parallelism, coefficients: MemoryCoefficients) -> int:
    """Growth outside torch's allocator after the start-up snapshot [bytes]."""
    collective = coefficients.collective_bytes.value if parallelism.tp > 1 else 0.0
    return round(coefficients.non_torch_bytes.value + collective)


def _forward_peak(card: Card) -> ForwardPeak:
    # On Hopper vLLM runs block-quantised experts through DeepGEMM.
    return card.activations.forward_deep_gemm if card.gpu.is_hopper else card.activations.forward


def _cuda_graph_bytes(
    card: Card, forward: ForwardPeak, engine: EngineSettings, coefficients: MemoryCoefficients
) -> int:
    if engine.enforce_eager:
        return 0
    sizes = captured_sizes(card, engine)
    layers = -(-card.activations.layers // card.parallelism.pp)
    pool = forward.size_bytes(sizes[-1]) if sizes else 0
    return pool + round(len(sizes) * layers * coefficients.cuda_graph_bytes_per_layer.value)
