"""The generation before Llama, with layer norms and biases: GPT-2, GPT-NeoX, OPT, Falcon."""

from planner.catalog.architectures.base import (
    Architecture,
    Decoder,
    Names,
    build,
    dense_ffn,
    hidden_size,
    layer_count,
    softmax_attention,
    stack,
)
from planner.catalog.config_fields import TOKENS_MAX, Fields
from planner.domain.model import DenseFfn, GemmRole

GPT2_NAMES: Names = {
    GemmRole.QKV: ("attn.c_attn",),
    GemmRole.ATTENTION_OUT: ("attn.c_proj",),
    GemmRole.GATE_UP: ("mlp.c_fc",),
    GemmRole.DOWN: ("mlp.c_proj",),
}
NEOX_NAMES: Names = {
    GemmRole.QKV: ("attention.query_key_value",),
    GemmRole.ATTENTION_OUT: ("attention.dense",),
    GemmRole.GATE_UP: ("mlp.dense_h_to_4h",),
    GemmRole.DOWN: ("mlp.dense_4h_to_h",),
}
FALCON_NAMES: Names = {
    **NEOX_NAMES,
    GemmRole.QKV: ("self_attention.query_key_value",),
    GemmRole.ATTENTION_OUT: ("self_attention.dense",),
}
OPT_NAMES: Names = {
    GemmRole.QKV: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    GemmRole.ATTENTION_OUT: ("self_attn.out_proj",),
    GemmRole.GATE_UP: ("fc1",),
    GemmRole.DOWN: ("fc2",),
}
OPT_POSITION_OFFSET = 2
"""OPT's position table starts with two unused rows."""


def gpt2(fields: Fields) -> Decoder:
    """GPT-2 (vllm/model_executor/models/gpt2.py)."""
    attention = softmax_attention(fields, bias=True)
    inner = fields.whole("n_inner", default=4 * hidden_size(fields), high=10_000_000)
    ffn = DenseFfn(intermediate=inner, gated=False, bias=True)
    count = layer_count(fields)
    layers = stack([attention] * count, [ffn] * count, norm_bias=True)
    positions = fields.whole("n_positions", default=1024, high=TOKENS_MAX)
    return build(fields, layers, tied=True, norm_bias=True, position_embeddings=positions, names=GPT2_NAMES)


def gpt_neox(fields: Fields) -> Decoder:
    """GPT-NeoX and Pythia (transformers' own classes under vLLM)."""
    bias = fields.flag("attention_bias", default=True)
    attention = softmax_attention(fields, bias=bias)
    ffn = dense_ffn(fields, gated=False, bias=True)
    count = layer_count(fields)
    layers = stack([attention] * count, [ffn] * count, norm_bias=True)
    return build(fields, layers, norm_bias=True, names=NEOX_NAMES)


def opt(fields: Fields) -> Decoder:
    """OPT (vllm/model_executor/models/opt.py)."""
    hidden = hidden_size(fields)
    if fields.whole("word_embed_proj_dim", default=hidden) != hidden:
        raise fields.refuse("word_embed_proj_dim other than hidden_size is not understood")
    if not fields.flag("do_layer_norm_before", default=True):
        raise fields.refuse("do_layer_norm_before false is not understood")
    bias = fields.flag("enable_bias", default=True)
    attention = softmax_attention(fields, bias=bias)
    ffn = dense_ffn(fields, "ffn_dim", gated=False, bias=bias)
    count = layer_count(fields)
    layers = stack([attention] * count, [ffn] * count, norm_bias=True)
    positions = fields.whole("max_position_embeddings", high=TOKENS_MAX) + OPT_POSITION_OFFSET
    return build(fields, layers, tied=True, norm_bias=True, position_embeddings=positions, names=OPT_NAMES)


def falcon(fields: Fields) -> Decoder:
    """Falcon 7B, 40B, 180B (vllm/model_executor/models/falcon.py)."""
    if fields.flag("alibi"):
        raise fields.refuse("alibi is not understood")
    heads = fields.whole("num_attention_heads", "n_head", high=100_000)
    grouped = fields.flag("new_decoder_architecture")
    kv_heads = heads
    if grouped:
        kv_heads = fields.whole("num_kv_heads", "n_head_kv", default=heads, high=100_000)
    elif fields.flag("multi_query", default=True):
        kv_heads = 1
    bias = fields.flag("bias")
    own = Fields({**fields.values, "num_key_value_heads": kv_heads}, fields.where)
    attention = softmax_attention(own, bias=bias)
    width = fields.whole("ffn_hidden_size", default=4 * hidden_size(fields), high=10_000_000)
    ffn = DenseFfn(intermediate=width, gated=False, bias=bias)
    parallel = fields.flag("parallel_attn", default=True)
    norms = fields.whole("num_ln_in_parallel_attn", default=2 if grouped or not parallel else 1, high=2)
    count = layer_count(fields)
    layers = stack([attention] * count, [ffn] * count, norms=norms, norm_bias=True)
    return build(fields, layers, tied=True, norm_bias=True, names=FALCON_NAMES)


ARCHITECTURES: dict[str, Architecture] = {
    "GPT2LMHeadModel": gpt2,
    "GPTNeoXForCausalLM": gpt_neox,
    "OPTForCausalLM": opt,
    "FalconForCausalLM": falcon,
}
