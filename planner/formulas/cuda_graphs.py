"""Memory of CUDA graphs as vLLM estimates it before it sizes the KV cache."""

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import (
    GemmRole,
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
    MoeFfn,
    QkNorm,
    SoftmaxAttention,
)
from planner.formulas.gemms import layer_gemms

SOFTMAX_KERNELS = 5
"""Norm, rotation, cache write, attention and the sum of its splits."""
LATENT_KERNELS = 10
"""Two norms, rotation, two copies, cache write, attention in three parts, the second absorbed product."""
RECURRENT_KERNELS = 6
"""Norm, convolution, two for the gates, the recurrence, the gated norm."""
FFN_KERNELS = 2
"""Norm and activation."""
ROUTED_KERNELS = 9
"""Choosing experts in two, sorting tokens by them in three, two products, activation, weighted sum."""
SHARED_KERNELS = 2
"""Activation and addition of the shared expert."""
LEAST_GRAPH_BYTES = 1 << 20
"""What vLLM counts for a graph at least."""


@lru_cache(maxsize=1024)
def kernels_of_model(model: Model, parallelism: Parallelism) -> int:
    """Kernels one rank launches in a step, about: what a CUDA graph of it holds."""
    kernels = [layer_kernels(model, index, parallelism) for index in range(len(model.layer_kinds))]
    return -(-sum(kernels[kind] for kind in model.layer_pattern) // parallelism.pp)


def layer_kernels(model: Model, kind_index: int, parallelism: Parallelism) -> int:
    """Kernels of one layer: its products, what lies between them, and all-reduces where ranks talk."""
    layer = model.layer_kinds[kind_index]
    products = layer_gemms(model, kind_index, parallelism).gemms
    quantising = sum(_quantises_apart(layer, product.role) for product in products)
    blocks = (layer.attention is not None) + (layer.ffn is not None)
    all_reduces = blocks if parallelism.tp > 1 else 0
    return len(products) + quantising + _mixer_kernels(layer) + _ffn_kernels(layer) + all_reduces


class GraphPlan(NamedTuple):
    """The graphs that an engine captures."""

    sizes: tuple[int, ...]
    """Captured piece by piece, ascending [tokens]."""
    full_up_to: int
    """Sizes up to this are captured as one graph too [tokens]."""
    v2_runner: bool = False

    @property
    def counted(self) -> int:
        """Graphs that the estimate counts apart from the pool they share.

        Each way of capturing counts its first graph and as many times the second as there are more. Of the two
        first graphs the V1 runner takes the larger one, since they share the pool; the V2 runner adds both
        (profile_cudagraph_memory in vllm/v1/worker/gpu_model_runner.py and vllm/v1/worker/gpu/cudagraph_utils.py).
        """
        full = bisect_right(self.sizes, self.full_up_to)
        return len(self.sizes) + (full if self.v2_runner else max(0, full - 1))


def graph_bytes(plan: GraphPlan, kernels: int, bytes_per_kernel: float) -> int:
    """All graphs of a plan, without the pool they share [bytes]."""
    return round(plan.counted * max(LEAST_GRAPH_BYTES, kernels * bytes_per_kernel))


def _quantises_apart(layer: Layer, role: GemmRole) -> bool:
    """True where a kernel of its own brings a product's input to fp8 blocks; other formats are fused."""
    stored = layer.stored(role)
    return stored is not None and stored.dtype is WeightDtype.FP8_BLOCK


def _mixer_kernels(layer: Layer) -> int:
    match layer.attention:
        case SoftmaxAttention() as attention:
            return SOFTMAX_KERNELS + (attention.qk_norm is not QkNorm.NONE)
        case LatentAttention():
            return LATENT_KERNELS
        case LinearAttention() | MambaMixer():
            return RECURRENT_KERNELS
    return 0


def _ffn_kernels(layer: Layer) -> int:
    ffn = layer.ffn
    if ffn is None:
        return 0
    if not isinstance(ffn, MoeFfn):
        return FFN_KERNELS
    quantising = 2 * _quantises_apart(layer, GemmRole.EXPERTS)
    shared = SHARED_KERNELS if ffn.shared_intermediate or ffn.parallel_dense is not None else 0
    return 1 + ROUTED_KERNELS + quantising + shared
