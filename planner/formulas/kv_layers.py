"""What one layer keeps of a sequence on one rank: keys and values, a compressed latent, or a state."""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from planner.domain.model import Attention, LatentAttention, LinearAttention, MambaMixer, SoftmaxAttention

SCALE_GROUP_VALUES = 128
"""Values of an fp8 latent or indexer key that share one scale (DeepSeek V3.2)."""
SCALE_BYTES = 4
ROPE_BYTES_PER_VALUE = 2
"""The rotary part of an fp8 sparse-MLA row stays in 16 bits."""
CONV_BYTES_PER_VALUE = 2
"""The convolution window of a recurrent layer is kept in the model's own 16-bit dtype."""


class CacheKind(StrEnum):
    """How the memory of a layer grows with a sequence."""

    FULL = "full"
    SLIDING = "sliding_window"
    CHUNKED = "chunked_local"
    STATE = "state"
    """Constant: a recurrent state (Mamba, gated delta net)."""


class LayerCache(NamedTuple):
    """What one layer keeps of a sequence on one rank."""

    kind: CacheKind
    bytes_per_token: int = 0
    state_bytes: int = 0
    window_tokens: int | None = None
    """Tokens still seen: the sliding window or the chunk; None where all are."""
    latent: bool = False
    """MLA: kernels index it in whole token rows, so its pages cannot be padded freely."""
    shape: tuple[int, ...] = ()
    """KV heads of the rank and the widths of a key and a value: equal bytes in another shape are another group."""


class CacheFormat(NamedTuple):
    """How values are stored, and what speculation adds to a state."""

    bytes_per_value: int
    packs_fp8_latent: bool = True
    """Sparse MLA keeps fp8 latents with their scales and a 16-bit rotary part in one row (fp8_ds_mla)."""
    num_speculative_tokens: int = 0
    """A convolution window holds that many more positions, to step back to the last token accepted."""


def layer_caches(attention: Attention, tp: int, stored: CacheFormat) -> Iterator[LayerCache]:
    """The caches of one layer on one of `tp` ranks."""
    match attention:
        case SoftmaxAttention():
            yield _softmax_cache(attention, tp, stored.bytes_per_value)
        case LatentAttention():
            yield from _latent_caches(attention, stored)
        case LinearAttention():
            state_bytes = linear_state_bytes(attention, tp, stored.num_speculative_tokens)
            yield LayerCache(CacheKind.STATE, state_bytes=state_bytes)
        case MambaMixer():
            state_bytes = mamba_state_bytes(attention, tp, stored.num_speculative_tokens)
            yield LayerCache(CacheKind.STATE, state_bytes=state_bytes)


def local_kv_heads(kv_heads: int, tp: int) -> int:
    """KV heads of one rank; where TP exceeds them each head is on tp / kv_heads ranks.

    vllm/config/model.py, get_num_kv_heads.

    >>> [local_kv_heads(8, tp) for tp in (1, 4, 8, 16)]
    [8, 2, 1, 1]
    """
    return max(1, kv_heads // tp)


def linear_state_bytes(attention: LinearAttention, tp: int, num_speculative_tokens: int = 0) -> int:
    """State of one gated-delta-net layer: convolution window and recurrent matrix of each value head [bytes].

    `(k - 1 + speculated) x (2 key_dim + value_dim)/tp x 2 + value_heads/tp x value_head_dim x key_head_dim x
    bytes` (vllm/model_executor/layers/mamba/mamba_utils.py, gated_delta_net_state_shape).
    """
    key_width = attention.key_heads * attention.key_head_dim
    value_width = attention.value_heads * attention.value_head_dim
    window = attention.conv_kernel - 1 + num_speculative_tokens
    conv_values = _share(2 * key_width + value_width, tp) * window
    matrix_values = _share(attention.value_heads, tp) * attention.value_head_dim * attention.key_head_dim
    return conv_values * CONV_BYTES_PER_VALUE + matrix_values * attention.state_bytes_per_value


def mamba_state_bytes(mixer: MambaMixer, tp: int, num_speculative_tokens: int = 0) -> int:
    """State of one Mamba-2 layer: convolution window and SSM state of each head [bytes].

    `(k - 1 + speculated) x (heads x head_dim + 2 groups x state)/tp x 2 + heads/tp x head_dim x state x bytes`;
    groups that TP does not divide are repeated until every rank has its own (mamba2_state_shape).
    """
    groups = mixer.groups if mixer.groups % tp == 0 else tp
    conv_width = mixer.heads * mixer.head_dim + 2 * groups * mixer.state_size
    conv_values = _share(conv_width, tp) * (mixer.conv_kernel - 1 + num_speculative_tokens)
    ssm_values = _share(mixer.heads, tp) * mixer.head_dim * mixer.state_size
    return conv_values * CONV_BYTES_PER_VALUE + ssm_values * mixer.state_bytes_per_value


def _softmax_cache(attention: SoftmaxAttention, tp: int, bytes_per_value: int) -> LayerCache:
    heads = local_kv_heads(attention.kv_heads, tp)
    full = LayerCache(
        CacheKind.FULL,
        heads * (attention.head_dim + attention.v_head_dim) * bytes_per_value,
        shape=(heads, attention.head_dim, attention.v_head_dim),
    )
    if attention.window_tokens is not None:
        return full._replace(kind=CacheKind.SLIDING, window_tokens=attention.window_tokens)
    if attention.chunk_tokens is not None:
        return full._replace(kind=CacheKind.CHUNKED, window_tokens=attention.chunk_tokens)
    return full


def _latent_caches(attention: LatentAttention, stored: CacheFormat) -> Iterator[LayerCache]:
    latent, rope = attention.kv_lora_rank, attention.qk_rope_head_dim
    row = (latent + rope) * stored.bytes_per_value
    is_sparse = bool(attention.indexer_heads or attention.indexer_topk)
    if is_sparse and stored.bytes_per_value == 1 and stored.packs_fp8_latent:
        row = _with_scales(latent) + rope * ROPE_BYTES_PER_VALUE
    yield LayerCache(CacheKind.FULL, row, latent=True, shape=(1, latent + rope))
    if attention.indexer_heads:
        key = attention.indexer_head_dim
        yield LayerCache(CacheKind.FULL, _with_scales(key), latent=True, shape=(1, key))


def _with_scales(values: int) -> int:
    return values + values // SCALE_GROUP_VALUES * SCALE_BYTES


def _share(width: int, tp: int) -> int:
    return -(-width // tp)
