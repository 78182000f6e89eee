"""One step as a sum of parts: every operator of every type of layer as a step model of its own.

They are evaluated by the functions that evaluate the whole, so parts and whole cannot disagree.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KV_BYTES, KvDtype
from planner.domain.model import (
    DenseFfn,
    GemmRole,
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
)
from planner.formulas.arrays import FloatArray, IntArray
from planner.formulas.engine_defaults import engine_rules
from planner.formulas.kv_cache import resolve_kv_dtype
from planner.formulas.layer_time import AttentionPart, OtherWork, Rank, attention_parts, layer_parts
from planner.formulas.operators import GpuOperators
from planner.formulas.step import (
    GRID_TOKENS,
    Cluster,
    StepModel,
    compile_step,
    decode_step_s,
    hops_s,
    mixed_step_s,
    stack,
)

OUTSIDE_LAYERS = "outside the layers"


class Operator(StrEnum):
    """What takes time in a step."""

    QKV = "qkv"
    """Projections into the mixer: queries, keys and values, latents, or a linear mixer's inputs."""
    ATTENTION_DECODE = "attention_decode"
    ATTENTION_PREFILL = "attention_prefill"
    INDEXER = "indexer"
    """The scorer of sparse attention, its projections included."""
    OUT_PROJECTION = "out_projection"
    ROUTER = "router"
    EXPERTS = "experts"
    SHARED_EXPERTS = "shared_experts"
    LATENT_PROJECTIONS = "latent_projections"
    """Into and out of the width that the experts work in."""
    DENSE_MLP = "dense_mlp"
    ALL_REDUCE = "all_reduce"
    ELEMENTWISE = "elementwise"
    HEAD = "head"
    HOPS = "hops"
    """Activations handed from pipeline stage to stage."""
    HOST = "host"
    LAUNCHES = "launches"
    """What the GPU waits for kernels to be launched."""


OPERATORS: Mapping[GemmRole | OtherWork, Operator] = {
    GemmRole.QKV: Operator.QKV,
    GemmRole.ATTENTION_OUT: Operator.OUT_PROJECTION,
    GemmRole.MLA_DOWN: Operator.QKV,
    GemmRole.MLA_Q_UP: Operator.QKV,
    GemmRole.MLA_KV_UP: Operator.QKV,
    GemmRole.INDEXER: Operator.INDEXER,
    GemmRole.LINEAR_IN: Operator.QKV,
    GemmRole.LINEAR_GATES: Operator.QKV,
    GemmRole.LINEAR_OUT: Operator.OUT_PROJECTION,
    GemmRole.MAMBA_IN: Operator.QKV,
    GemmRole.MAMBA_OUT: Operator.OUT_PROJECTION,
    GemmRole.GATE_UP: Operator.DENSE_MLP,
    GemmRole.DOWN: Operator.DENSE_MLP,
    GemmRole.SHARED_GATE_UP: Operator.SHARED_EXPERTS,
    GemmRole.SHARED_DOWN: Operator.SHARED_EXPERTS,
    GemmRole.ROUTER: Operator.ROUTER,
    GemmRole.LATENT_IN: Operator.LATENT_PROJECTIONS,
    GemmRole.LATENT_OUT: Operator.LATENT_PROJECTIONS,
    GemmRole.EXPERTS: Operator.EXPERTS,
    GemmRole.HEAD: Operator.HEAD,
    OtherWork.ALL_REDUCE: Operator.ALL_REDUCE,
    OtherWork.ELEMENTWISE: Operator.ELEMENTWISE,
}
ATTENTION_KERNELS = (
    (Operator.ATTENTION_DECODE, Operator.ATTENTION_PREFILL),
    (Operator.INDEXER, Operator.INDEXER),
)
"""What the kernels of one layer's attention are for, decoding and prompts."""


class Layout(NamedTuple):
    """A model on one replica's GPUs."""

    model: Model
    parallelism: Parallelism
    kv_dtype: KvDtype
    ops: GpuOperators
    cluster: Cluster
    engine_version: str = ""

    def step(self) -> StepModel:
        """Its iteration time."""
        return compile_step(
            self.model,
            self.parallelism,
            self.kv_dtype,
            self.ops,
            self.cluster,
            engine_version=self.engine_version,
        )


class StepLoad(NamedTuple):
    """What one step computes on each data-parallel rank."""

    sequences: int
    """Decoding, one token each."""
    context_tokens: float
    """Of each."""
    prompt_tokens: int = 0
    """Of one whole prompt in the same step."""
    padding_tokens: int = 0
    """Added to reach a captured size."""
    host_s: float = 0.0
    """Of the step, on top of the GPU's."""
    chain_s: float = 0.0
    """Beside the GPU: no step is shorter."""
    launch_s: float = 0.0
    """The host's, for launches of kernels that no CUDA graph holds: on top of both."""

    def step_s(self, gpu_s: float) -> float:
        """The step of which the GPU computes so long."""
        return max(gpu_s + self.host_s, max(self.chain_s, self.host_s) + self.launch_s)

    def launch_wait_s(self, gpu_s: float) -> float:
        """How much longer the step is for its launches."""
        return self.step_s(gpu_s) - self._replace(launch_s=0.0).step_s(gpu_s)


class StepPart(NamedTuple):
    """One kernel or several of one type of layer, and the step model that has them alone."""

    layer_type: str
    operator: Operator
    step: StepModel


class _Prompt(NamedTuple):
    """One whole prompt, nothing of it cached."""

    layout: IntArray
    input_tokens: FloatArray
    cached_tokens: FloatArray


def layer_type(layer: Layer) -> str:
    """What a layer consists of, in words."""
    return " + ".join(name for name in (_mixer(layer), _feed_forward(layer)) if name) or "norms"


def _mixer(layer: Layer) -> str:
    match layer.attention:
        case None:
            return ""
        case LatentAttention():
            return "sparse latent attention" if layer.attention.indexer_topk else "latent attention"
        case LinearAttention():
            return "linear attention"
        case MambaMixer():
            return "Mamba mixer"
    if layer.attention.window_tokens:
        return "window attention"
    return "chunked attention" if layer.attention.chunk_tokens else "full attention"


def _feed_forward(layer: Layer) -> str:
    if layer.ffn is None:
        return ""
    if isinstance(layer.ffn, DenseFfn):
        return "dense MLP"
    return "dense MLP and experts" if layer.ffn.parallel_dense is not None else "experts"


def step_parts(layout: Layout) -> list[StepPart]:
    """The step model as a sum of step models, in one order whatever the coefficients."""
    whole = layout.step()
    nothing = _without_time(whole)
    model, parallelism = layout.model, layout.parallelism
    rank = Rank(
        model, parallelism, layout.ops, layout.cluster.interconnect, engine_rules(layout.engine_version)
    )
    kv_bytes = KV_BYTES[resolve_kv_dtype(model, layout.kv_dtype, layout.engine_version)]
    parts: list[StepPart] = []
    for index, kind in enumerate(model.layer_kinds):
        count, name = model.layer_pattern.count(index), layer_type(kind)
        for part in layer_parts(rank, index, GRID_TOKENS):
            step = nothing._replace(body_s=count * part.time_s)
            parts.append(StepPart(name, OPERATORS[part.what], step))
        kernels = attention_parts(kind.attention, parallelism.tp, kv_bytes, layout.ops)
        for number, kernel in enumerate(kernels):
            steps = zip(ATTENTION_KERNELS[number], _attention(kernel, count, nothing), strict=True)
            parts += [StepPart(name, operator, step) for operator, step in steps]
    between_s = hops_s(model, parallelism, layout.ops, layout.cluster)
    parts.append(StepPart(OUTSIDE_LAYERS, Operator.HOPS, nothing._replace(body_s=between_s)))
    parts.append(StepPart(OUTSIDE_LAYERS, Operator.HEAD, nothing._replace(head_s=whole.head_s)))
    return parts


def _without_time(step: StepModel) -> StepModel:
    """The same step model taking no time at all."""
    kept = ("scope_tokens", "pp")
    nothing = {name: np.zeros_like(value) for name, value in step._asdict().items() if name not in kept}
    return step._replace(**nothing)


def _attention(kernel: AttentionPart, count: int, nothing: StepModel) -> tuple[StepModel, StepModel]:
    """One attention kernel for decoding and for prompts, in the scope that the step model counts it under."""
    known = np.log(nothing.scope_tokens / kernel.scope_tokens)
    here = np.zeros_like(known)
    here[np.argmin(np.abs(known))] = count
    decode, context = kernel.decode, kernel.context
    return (
        nothing._replace(
            decode_constant_s=count * decode.constant_s,
            decode_per_sequence_s=count * decode.per_sequence_s,
            decode_per_token_s=here * decode.per_context_token_s,
        ),
        nothing._replace(
            context_constant_s=count * context.constant_s,
            context_per_token_s=count * context.per_query_token_s,
            context_per_pair_s=here * context.per_pair_s,
            context_per_past_s=here * context.per_past_token_s,
        ),
    )


def parts_s(parts: Sequence[StepPart], load: StepLoad) -> FloatArray:
    """Time of each part in this step [P]."""
    table = stack([part.step for part in parts])
    if not load.sequences:
        table = table._replace(decode_constant_s=np.zeros_like(table.decode_constant_s))
    rows = np.arange(len(parts), dtype=np.int64)
    # Layers run at the captured size, attention and head do not.
    sequences = load.sequences + np.where(table.body_s.any(axis=1), float(load.padding_tokens), 0.0)
    contexts = np.full(rows.size, float(load.context_tokens))
    if not load.prompt_tokens:
        return decode_step_s(table, rows, sequences, contexts)
    prompts = np.full(rows.size, float(load.prompt_tokens))
    prompt = _Prompt(rows, prompts, np.zeros_like(prompts))
    return mixed_step_s(table, prompt, sequences, contexts, prompts)
