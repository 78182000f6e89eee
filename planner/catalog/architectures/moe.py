"""Mixtures of experts with softmax attention: Mixtral, Qwen MoE, gpt-oss, MiniMax, GLM-4.5, Llama 4 and kin."""

from planner.catalog.architectures.base import (
    DECODER_NAMES,
    FULL,
    SLIDING,
    Architecture,
    Decoder,
    Names,
    build,
    dense_ffn,
    experts_per_token,
    layer_count,
    per_layer,
    scoped,
    sliding_window,
    softmax_attention,
    sparse_after,
    stack,
    windowed,
)
from planner.catalog.config_fields import TOKENS_MAX, Fields
from planner.domain.model import DenseFfn, Ffn, GemmRole, MoeFfn, QkNorm, SoftmaxAttention

W123_NAMES: Names = {
    **DECODER_NAMES,
    GemmRole.EXPERTS: (
        "block_sparse_moe.experts.0.w1",
        "block_sparse_moe.experts.0.w2",
        "block_sparse_moe.experts.0.w3",
    ),
}
GPT_OSS_NAMES: Names = {**DECODER_NAMES, GemmRole.EXPERTS: ("mlp.experts",)}
LLAMA4_NAMES: Names = {
    **DECODER_NAMES,
    GemmRole.GATE_UP: ("feed_forward.gate_proj", "feed_forward.up_proj"),
    GemmRole.DOWN: ("feed_forward.down_proj",),
    GemmRole.SHARED_GATE_UP: (
        "feed_forward.shared_expert.gate_proj",
        "feed_forward.shared_expert.up_proj",
    ),
    GemmRole.SHARED_DOWN: ("feed_forward.shared_expert.down_proj",),
    GemmRole.EXPERTS: ("feed_forward.experts.0.gate_proj", "feed_forward.experts.0.down_proj"),
}


def mixtral(fields: Fields) -> Decoder:
    """Mixtral (vllm/model_executor/models/mixtral.py)."""
    attention = windowed(softmax_attention(fields), sliding_window(fields))
    return _uniform(fields, attention, _local_moe(fields), names=W123_NAMES)


def granite_moe(fields: Fields) -> Decoder:
    """Granite 3 MoE (vllm/model_executor/models/granitemoe.py)."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"))
    return _uniform(fields, attention, _local_moe(fields), names=W123_NAMES)


def olmoe(fields: Fields) -> Decoder:
    """OLMoE (vllm/model_executor/models/olmoe.py)."""
    experts = fields.whole("num_experts", high=100_000)
    moe = MoeFfn(
        experts=experts,
        experts_per_token=experts_per_token(fields, experts),
        intermediate=fields.whole("intermediate_size"),
    )
    attention = softmax_attention(fields, qk_norm=QkNorm.ALL_HEADS)
    return _uniform(fields, attention, moe, names=DECODER_NAMES)


def phi_moe(fields: Fields) -> Decoder:
    """Phi-3.5-MoE: layer norms, biased attention and head (vllm/model_executor/models/phimoe.py)."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"))
    attention = windowed(attention, sliding_window(fields))
    count = layer_count(fields)
    layers = stack([attention] * count, [_local_moe(fields)] * count, norm_bias=True)
    head_bias = fields.flag("lm_head_bias")
    return build(fields, layers, norm_bias=True, head_bias=head_bias, names=W123_NAMES)


def minimax_m2(fields: Fields) -> Decoder:
    """MiniMax M2 (vllm/model_executor/models/minimax_m2.py)."""
    if 0 in fields.wholes("attn_type_list"):
        raise fields.refuse("attn_type_list asks for linear attention, which MiniMax M2 does not have")
    attention = softmax_attention(
        fields,
        bias=fields.flag("attention_bias"),
        output_bias=False,
        qk_norm=QkNorm.ALL_HEADS_SPLIT,
    )
    moe = _local_moe(fields).model_copy(
        update={"router_fp32": True, "correction_bias": fields.flag("use_routing_bias")}
    )
    return _uniform(fields, attention, moe, names=W123_NAMES)


def _local_moe(fields: Fields) -> MoeFfn:
    experts = fields.whole("num_local_experts", high=100_000)
    return MoeFfn(
        experts=experts,
        experts_per_token=experts_per_token(fields, experts),
        intermediate=fields.whole("intermediate_size"),
    )


def _uniform(fields: Fields, attention: SoftmaxAttention, moe: MoeFfn, *, names: Names) -> Decoder:
    count = layer_count(fields)
    return build(fields, stack([attention] * count, [moe] * count), names=names)


def gpt_oss(fields: Fields) -> Decoder:
    """gpt-oss: sinks, biases, every other layer slides (vllm/model_executor/models/gpt_oss.py)."""
    attention = softmax_attention(fields, bias=True).model_copy(update={"sinks": True})
    count = layer_count(fields)
    attentions = scoped(fields, attention, [FULL if i % 2 else SLIDING for i in range(count)])
    moe = _local_moe(fields).model_copy(update={"bias": True})
    return build(fields, stack(attentions, [moe] * count), names=GPT_OSS_NAMES)


def qwen2_moe(fields: Fields) -> Decoder:
    """Qwen 1.5 and 2 MoE (vllm/model_executor/models/qwen2_moe.py)."""
    attention = softmax_attention(fields, bias=fields.flag("qkv_bias", default=True), output_bias=False)
    count = layer_count(fields)
    return build(fields, stack([attention] * count, qwen_ffns(fields)))


def qwen3_moe(fields: Fields) -> Decoder:
    """Qwen 3 MoE (vllm/model_executor/models/qwen3_moe.py)."""
    attention = softmax_attention(
        fields, bias=fields.flag("attention_bias"), output_bias=False, qk_norm=QkNorm.PER_HEAD
    )
    # Text parts cut out of Qwen3-VL leave out the flag, and their config class ties by default.
    tied = fields.text("model_type") == "qwen3_vl_moe_text"
    count = layer_count(fields)
    return build(fields, stack([attention] * count, qwen_ffns(fields)), tied=tied)


def qwen_ffns(fields: Fields) -> list[Ffn]:
    """Experts in every `decoder_sparse_step`-th layer outside `mlp_only_layers`, dense blocks elsewhere."""
    experts = fields.whole("num_experts", high=100_000)
    moe = MoeFfn(
        experts=experts,
        experts_per_token=experts_per_token(fields, experts),
        intermediate=fields.whole("moe_intermediate_size"),
        shared_intermediate=fields.whole("shared_expert_intermediate_size", default=0, low=0),
        shared_gate=fields.whole("shared_expert_intermediate_size", default=0, low=0) > 0,
    )
    step = fields.whole("decoder_sparse_step", default=1)
    only_dense = set(fields.wholes("mlp_only_layers"))
    sparse = [(i + 1) % step == 0 and i not in only_dense for i in range(layer_count(fields))]
    if all(sparse):
        return [moe] * len(sparse)
    dense = dense_ffn(fields)
    return [moe if is_sparse else dense for is_sparse in sparse]


def routed(fields: Fields, *, router_fp32: bool = False, correction_bias: bool = False) -> MoeFfn:
    """Experts with DeepSeek's field names, shared ones included."""
    experts = fields.whole("n_routed_experts", "num_experts", "num_local_experts", high=100_000)
    intermediate = fields.whole("moe_intermediate_size")
    shared = fields.whole("n_shared_experts", "num_shared_experts", default=0, low=0, high=1000)
    return MoeFfn(
        experts=experts,
        experts_per_token=experts_per_token(fields, experts),
        intermediate=intermediate,
        shared_intermediate=intermediate * shared,
        router_fp32=router_fp32,
        correction_bias=correction_bias,
    )


def glm4_moe(fields: Fields) -> Decoder:
    """GLM-4.5 to 4.7 (vllm/model_executor/models/glm4_moe.py)."""
    qk_norm = QkNorm.PER_HEAD if fields.flag("use_qk_norm") else QkNorm.NONE
    attention = softmax_attention(
        fields, bias=fields.flag("attention_bias"), output_bias=False, qk_norm=qk_norm
    )
    moe = routed(fields, router_fp32=True, correction_bias=True)
    count = layer_count(fields)
    first_dense = fields.whole("first_k_dense_replace", default=0, low=0)
    ffns = sparse_after(dense_ffn(fields), moe, count, first_dense)
    return build(fields, stack([attention] * count, ffns))


def llama4(fields: Fields) -> Decoder:
    """Llama 4 text: chunked local layers, experts interleaved (vllm/model_executor/models/llama4.py)."""
    count = layer_count(fields)
    attention = softmax_attention(fields)
    chunk = fields.optional_whole("attention_chunk_size", high=TOKENS_MAX)
    local = attention.model_copy(update={"chunk_tokens": chunk})
    # A one marks layers with rotary positions, which are the local ones.
    if fields.values.get("no_rope_layers"):
        is_local = per_layer(fields, "no_rope_layers", count)
    else:
        period = fields.whole("no_rope_layer_interval", default=4)
        is_local = [int((i + 1) % period != 0) for i in range(count)]
    experts = fields.whole("num_local_experts", high=100_000)
    width = fields.whole("intermediate_size")
    moe = MoeFfn(
        experts=experts,
        experts_per_token=experts_per_token(fields, experts),
        intermediate=width,
        shared_intermediate=width,
    )
    step = fields.whole("interleave_moe_layer_step", default=1, low=0)
    sparse = [step > 0 and (i + 1) % step == 0 for i in range(count)]
    dense: Ffn = moe if all(sparse) else dense_ffn(fields, "intermediate_size_mlp")
    layers = stack(
        [local if flag else attention for flag in is_local],
        [moe if flag else dense for flag in sparse],
    )
    return build(fields, layers, names=LLAMA4_NAMES)


def mimo_v2(fields: Fields) -> Decoder:
    """MiMo V2 Flash: sliding layers have their own heads and sinks (vllm/model_executor/models/mimo_v2.py)."""
    count = layer_count(fields)
    bias = fields.flag("attention_bias")
    full = softmax_attention(fields, bias=bias, output_bias=False)
    sliding = softmax_attention(fields, prefix="swa_", bias=bias, output_bias=False).model_copy(
        update={
            "window_tokens": fields.whole("sliding_window_size", "sliding_window", high=TOKENS_MAX),
            "sinks": fields.flag("add_swa_attention_sink_bias"),
        }
    )
    if fields.flag("add_full_attention_sink_bias"):
        raise fields.refuse("add_full_attention_sink_bias is not understood")
    router_fp32 = fields.text("moe_router_dtype", default="float32") == "float32"
    moe = routed(fields, router_fp32=router_fp32, correction_bias=True)
    dense: DenseFfn = dense_ffn(fields)
    layers = stack(
        [sliding if flag else full for flag in per_layer(fields, "hybrid_layer_pattern", count)],
        [moe if flag else dense for flag in per_layer(fields, "moe_layer_freq", count)],
    )
    return build(fields, layers)


def ernie_moe(fields: Fields) -> Decoder:
    """ERNIE 4.5 MoE (vllm/model_executor/models/ernie45_moe.py)."""
    count = layer_count(fields)
    attention = softmax_attention(fields, bias=fields.flag("use_bias"))
    experts = fields.whole("moe_num_experts", high=100_000)
    width = fields.whole("moe_intermediate_size")
    moe = MoeFfn(
        experts=experts,
        experts_per_token=experts_per_token(fields, experts, "moe_k"),
        intermediate=width,
        shared_intermediate=width * fields.whole("moe_num_shared_experts", default=0, low=0, high=1000),
        router_fp32=True,
        correction_bias=True,
    )
    dense = dense_ffn(fields, bias=fields.flag("use_bias"))
    first = fields.whole("moe_layer_start_index", default=0, low=0)
    last = fields.whole("moe_layer_end_index", default=count - 1, low=0)
    every = fields.whole("moe_layer_interval", default=1)
    ffns = [moe if (i + 1) % every == 0 and first <= i <= last else dense for i in range(count)]
    return build(fields, stack([attention] * count, ffns), tied=True)


ARCHITECTURES: dict[str, Architecture] = {
    "MixtralForCausalLM": mixtral,
    "GraniteMoeForCausalLM": granite_moe,
    "OlmoeForCausalLM": olmoe,
    "PhiMoEForCausalLM": phi_moe,
    "MiniMaxM2ForCausalLM": minimax_m2,
    "GptOssForCausalLM": gpt_oss,
    "Qwen2MoeForCausalLM": qwen2_moe,
    "Qwen3MoeForCausalLM": qwen3_moe,
    "Glm4MoeForCausalLM": glm4_moe,
    "Llama4ForCausalLM": llama4,
    "MiMoV2FlashForCausalLM": mimo_v2,
    "Ernie4_5_MoeForCausalLM": ernie_moe,
}
