"""What lies on the card after loading that no checkpoint holds: rotary tables, scales of attention, workspaces."""

from collections.abc import Iterator

from planner.domain.dtypes import WeightDtype
from planner.domain.model import LatentAttention, Model, SoftmaxAttention
from planner.domain.units import MIB_BYTES
from planner.formulas.load_target import LoadTarget
from planner.formulas.tensors import FP32, PlainTensor, WeightTensor, plain

BUFFER = "buffer"
ATTENTION_SCALES = 7
"""Scales of queries, keys, values and probabilities and three ranges (vllm/attention/layer.py), one fp32 each."""
MLA_WORKSPACE_BYTES = 128 * MIB_BYTES
"""Of FlashInfer's and of CUTLASS's MLA, each (vllm/v1/attention/backends/mla)."""
DEEP_GEMM_WORKSPACE_BYTES = 32 * MIB_BYTES
"""Kept by DeepGEMM from its first use on (csrc/jit/device_runtime.hpp)."""


def buffer_tensors(model: Model, layers: int, target: LoadTarget) -> Iterator[WeightTensor]:
    """The buffers of a rank with `layers` layers of attention."""
    if not layers:
        return
    for table in model.rotary:
        dtype = FP32 if table.fp32 else model.activation_dtype
        yield plain(PlainTensor(BUFFER, "rotary_table", (table.rows, table.width), dtype))
    yield WeightTensor(
        BUFFER, "attention_scales", (1,), ATTENTION_SCALES * layers, FP32, 4 * ATTENTION_SCALES * layers
    )
    if model.vision is not None and model.vision.deepstack_layers:
        shape = (target.batched_tokens, model.hidden)
        one = plain(PlainTensor(BUFFER, "deepstack_embeddings", shape, model.activation_dtype))
        yield one.times(model.vision.deepstack_layers)
    latent = [kind.attention for kind in model.layer_kinds if isinstance(kind.attention, LatentAttention)]
    topk = max((attention.indexer_topk for attention in latent), default=0)
    if topk:
        yield plain(PlainTensor(BUFFER, "topk_indices", (target.batched_tokens, topk), FP32))
    if latent:
        yield from _mla_workspaces(target)
    blocks = (how.dtype is WeightDtype.FP8_BLOCK for kind in model.layer_kinds for _, how in kind.quantized)
    if target.has_deep_gemm and any(blocks):
        yield _workspace("deep_gemm_workspace", DEEP_GEMM_WORKSPACE_BYTES)


def grows_with_batch(model: Model) -> bool:
    """True where a buffer is as long as the largest step."""
    if model.vision is not None and model.vision.deepstack_layers:
        return True
    return any(
        isinstance(kind.attention, LatentAttention) and kind.attention.indexer_topk
        for kind in model.layer_kinds
    )


def has_attention_scales(model: Model, kind_index: int) -> bool:
    """Layers of this kind hold attention with a KV cache."""
    return isinstance(model.layer_kinds[kind_index].attention, SoftmaxAttention | LatentAttention)


def _mla_workspaces(target: LoadTarget) -> Iterator[WeightTensor]:
    """Made when their module is imported, which trying each backend in turn does, chosen or not.

    vllm/platforms/cuda.py, get_valid_backends (before 0.11.1 only the chosen one was imported); since 0.25 FlashInfer's
    is made at its first use, and since 0.24 RTX Blackwell tries neither.
    """
    is_tried = target.has_flashinfer and not (target.capability[0] == 12 and target.since(24))
    if is_tried and not target.since(25):
        yield _workspace("flashinfer_mla_workspace", MLA_WORKSPACE_BYTES)
    if target.is_datacenter_blackwell:
        yield _workspace("cutlass_mla_workspace", MLA_WORKSPACE_BYTES)


def _workspace(name: str, size_bytes: int) -> WeightTensor:
    return WeightTensor(BUFFER, name, (size_bytes,), 1, "byte", size_bytes)
