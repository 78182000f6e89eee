"""A layer's tensors outside its matrix products: norms, convolutions, biases of routing, states' constants."""

from collections.abc import Iterator

from planner.domain.deployment import Parallelism
from planner.domain.model import (
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
    MoeFfn,
    QkNorm,
    QuantMethod,
    SoftmaxAttention,
)
from planner.formulas.tensors import FP32, PlainTensor


def small_tensors(model: Model, layer: Layer, parallelism: Parallelism) -> Iterator[PlainTensor]:
    """The small tensors of one layer of one rank."""
    dtype = model.activation_dtype
    if layer.norms:
        yield PlainTensor("norm", "layer_norms", (layer.norms * (1 + layer.norm_bias), model.hidden), dtype)
    if layer.scalars:
        yield PlainTensor("norm", "scalars", (layer.scalars,), dtype)
    match layer.attention:
        case SoftmaxAttention():
            yield from _softmax_small(layer.attention, parallelism.tp, dtype)
            yield from _cache_scales(model, dtype, latent=False)
        case LatentAttention():
            yield from _latent_small(layer.attention, dtype)
            yield from _cache_scales(model, dtype, latent=True)
        case LinearAttention():
            yield from _linear_small(layer.attention, parallelism.tp, dtype)
        case MambaMixer():
            yield from _mamba_small(layer.attention, parallelism.tp, dtype)
    if isinstance(layer.ffn, MoeFfn) and layer.ffn.correction_bias:
        yield PlainTensor("ffn", "correction_bias", (layer.ffn.experts,), FP32)


def _cache_scales(model: Model, dtype: str, *, latent: bool) -> Iterator[PlainTensor]:
    """Room for scales that the checkpoint may have of queries, keys, values and probabilities.

    vllm/model_executor/layers/quantization: kv_cache.py (fp8 and modelopt), and the scales with zero points of
    compressed_tensors.py. Only modelopt's also stand beside latent attention.
    """
    method = QuantMethod.OTHER if model.quantization is None else model.quantization.method
    if method is QuantMethod.MODELOPT or (method is QuantMethod.FP8 and not latent):
        yield PlainTensor("attention", "cache_scales", (4,), dtype)
    elif method is QuantMethod.COMPRESSED_TENSORS and not latent:
        yield PlainTensor("attention", "cache_scales", (3,), FP32)
        yield PlainTensor("attention", "cache_zero_points", (3,), dtype)


def _softmax_small(attention: SoftmaxAttention, tp: int, dtype: str) -> Iterator[PlainTensor]:
    heads, kv_heads = attention.heads, attention.kv_heads
    if attention.qk_norm is QkNorm.ALL_HEADS_SPLIT:
        heads, kv_heads = heads // tp, max(1, kv_heads // tp)
    elif attention.qk_norm is QkNorm.PER_HEAD:
        heads = kv_heads = 1
    if attention.qk_norm is not QkNorm.NONE:
        yield PlainTensor("norm", "qk_norm", ((heads + kv_heads) * attention.head_dim,), dtype)
    if attention.sinks:
        yield PlainTensor("attention", "sinks", (attention.heads // tp,), dtype)


def _latent_small(attention: LatentAttention, dtype: str) -> Iterator[PlainTensor]:
    yield PlainTensor("norm", "latent_norms", (attention.kv_lora_rank + (attention.q_lora_rank or 0),), dtype)
    if attention.indexer_heads:
        yield PlainTensor("norm", "indexer_norm", (2, attention.indexer_head_dim), FP32)


def _linear_small(attention: LinearAttention, tp: int, dtype: str) -> Iterator[PlainTensor]:
    keys = attention.key_heads * attention.key_head_dim // tp
    values = attention.value_heads * attention.value_head_dim // tp
    heads = attention.value_heads // tp
    yield PlainTensor("attention", "convolution", (2 * keys + values, attention.conv_kernel), dtype)
    yield PlainTensor("attention", "dt_bias", (heads,), dtype)
    yield PlainTensor("attention", "decay", (heads,), FP32)
    yield PlainTensor("norm", "output_norm", (attention.value_head_dim,), dtype)


def _mamba_small(mixer: MambaMixer, tp: int, dtype: str) -> Iterator[PlainTensor]:
    heads = mixer.heads // tp
    channels = heads * mixer.head_dim + 2 * mixer.groups_on_rank(tp) * mixer.state_size
    yield PlainTensor("attention", "convolution", (channels, mixer.conv_kernel + mixer.conv_bias), dtype)
    yield PlainTensor("attention", "decay", (heads,), FP32)
    yield PlainTensor("attention", "skip_and_dt_bias", (2, heads), dtype)
    yield PlainTensor("norm", "output_norm", (heads * mixer.head_dim,), dtype)
