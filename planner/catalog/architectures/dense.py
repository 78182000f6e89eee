"""Dense decoders: Llama, Mistral, Qwen2, Qwen3, Gemma, Phi-3, GLM-4, Cohere, Granite, OLMo 2, StarCoder2 and kin."""

from planner.catalog.architectures.base import (
    DECODER_NAMES,
    FULL,
    SLIDING,
    Architecture,
    Decoder,
    Names,
    build,
    dense_ffn,
    layer_count,
    scoped,
    sliding_window,
    softmax_attention,
    stack,
    windowed,
)
from planner.catalog.config_fields import Fields
from planner.domain.model import GemmRole, QkNorm, SoftmaxAttention

PHI3_NAMES: Names = {
    **DECODER_NAMES,
    GemmRole.QKV: ("self_attn.qkv_proj",),
    GemmRole.GATE_UP: ("mlp.gate_up_proj",),
}
INTERNLM2_NAMES: Names = {
    **DECODER_NAMES,
    GemmRole.QKV: ("attention.wqkv",),
    GemmRole.ATTENTION_OUT: ("attention.wo",),
    GemmRole.GATE_UP: ("feed_forward.w1", "feed_forward.w3"),
    GemmRole.DOWN: ("feed_forward.w2",),
}
GEMMA3_DEFAULTS: dict[str, object] = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
"""Published Gemma 3 configs leave out what equals these defaults of their config class (transformers)."""
FC_NAMES: Names = {**DECODER_NAMES, GemmRole.GATE_UP: ("mlp.c_fc",), GemmRole.DOWN: ("mlp.c_proj",)}
UP_NAMES: Names = {**DECODER_NAMES, GemmRole.GATE_UP: ("mlp.up_proj",)}


def llama(fields: Fields) -> Decoder:
    """Llama 1 to 3, Mistral, Yi, Code Llama, InternLM3, Granite (vllm/model_executor/models/llama.py)."""
    bias = fields.flag("qkv_bias", "attention_bias", "bias")
    output_bias = fields.flag("attention_bias", "bias") or fields.flag("bias_o_proj")
    attention = softmax_attention(fields, bias=bias, output_bias=output_bias)
    if not fields.has("layer_types"):
        attention = windowed(attention, sliding_window(fields))
    ffn = dense_ffn(fields, bias=fields.flag("mlp_bias"))
    return build(fields, stack(scoped(fields, attention), [ffn] * layer_count(fields)))


def smollm3(fields: Fields) -> Decoder:
    """SmolLM 3 (transformers' own class under vLLM); its sliding window is off unless asked for."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"))
    if fields.flag("use_sliding_window"):
        raise fields.refuse("use_sliding_window is not understood")
    ffn = dense_ffn(fields, bias=fields.flag("mlp_bias"))
    count = layer_count(fields)
    return build(fields, stack([attention] * count, [ffn] * count), tied=True)


def glm(fields: Fields) -> Decoder:
    """GLM-4 9B of the first series (transformers' own class under vLLM)."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"), output_bias=False)
    count = layer_count(fields)
    return build(fields, stack([attention] * count, [dense_ffn(fields)] * count), names=PHI3_NAMES)


def seed_oss(fields: Fields) -> Decoder:
    """Seed-OSS (transformers' own class under vLLM)."""
    attention = softmax_attention(
        fields, bias=fields.flag("attention_bias"), output_bias=fields.flag("attention_out_bias")
    )
    ffn = dense_ffn(fields, bias=fields.flag("mlp_bias"))
    count = layer_count(fields)
    return build(fields, stack([attention] * count, [ffn] * count))


def exaone4(fields: Fields) -> Decoder:
    """EXAONE 4: norms after each block (vllm/model_executor/models/exaone4.py)."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"), qk_norm=QkNorm.PER_HEAD)
    ffn = dense_ffn(fields, bias=fields.flag("mlp_bias"))
    return build(fields, stack(scoped(fields, attention), [ffn] * layer_count(fields)))


def ernie(fields: Fields) -> Decoder:
    """ERNIE 4.5 dense (vllm/model_executor/models/ernie45.py)."""
    attention = softmax_attention(fields, bias=fields.flag("use_bias"))
    ffn = dense_ffn(fields, bias=fields.flag("use_bias"))
    count = layer_count(fields)
    return build(fields, stack([attention] * count, [ffn] * count), tied=True)


def qwen2(fields: Fields) -> Decoder:
    """Qwen 2 and 2.5, MiMo 7B (vllm/model_executor/models/qwen2.py)."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias", default=True), output_bias=False)
    return _qwen(fields, attention)


def qwen3(fields: Fields) -> Decoder:
    """Qwen 3 (vllm/model_executor/models/qwen3.py)."""
    bias = fields.flag("attention_bias")
    return _qwen(fields, softmax_attention(fields, bias=bias, output_bias=bias, qk_norm=QkNorm.PER_HEAD))


def _qwen(fields: Fields, attention: SoftmaxAttention) -> Decoder:
    count = layer_count(fields)
    default = None
    if fields.flag("use_sliding_window"):
        first = fields.whole("max_window_layers", default=0, low=0)
        default = [FULL if i < first else SLIDING for i in range(count)]
    attentions = scoped(fields, attention, default)
    # Text parts cut out of Qwen3-VL leave out the flag, and their config class ties by default.
    tied = fields.text("model_type") in {"qwen3_vl_text", "qwen2_5_vl_text"}
    return build(fields, stack(attentions, [dense_ffn(fields)] * count), tied=tied)


def phi3(fields: Fields) -> Decoder:
    """Phi-3 and Phi-4 (vllm/model_executor/models/phi3.py)."""
    attention = windowed(softmax_attention(fields), sliding_window(fields))
    count = layer_count(fields)
    return build(fields, stack([attention] * count, [dense_ffn(fields)] * count), names=PHI3_NAMES)


def internlm2(fields: Fields) -> Decoder:
    """InternLM 2 and 2.5 (vllm/model_executor/models/internlm2.py)."""
    attention = softmax_attention(fields, bias=fields.flag("bias"))
    count = layer_count(fields)
    return build(fields, stack([attention] * count, [dense_ffn(fields)] * count), names=INTERNLM2_NAMES)


def gemma(fields: Fields) -> Decoder:
    """Gemma 1 (vllm/model_executor/models/gemma.py)."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"))
    count = layer_count(fields)
    return build(fields, stack([attention] * count, [dense_ffn(fields)] * count), tied=True)


def gemma2(fields: Fields) -> Decoder:
    """Gemma 2: every other layer slides (vllm/model_executor/models/gemma2.py)."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"))
    count = layer_count(fields)
    alternating = [FULL if i % 2 else SLIDING for i in range(count)]
    attentions = scoped(fields, attention, alternating)
    return build(fields, stack(attentions, [dense_ffn(fields)] * count, norms=4), tied=True)


def gemma3(fields: Fields) -> Decoder:
    """Gemma 3: five sliding layers to a full one (vllm/model_executor/models/gemma3.py)."""
    present = {name: value for name, value in fields.values.items() if value is not None}
    fields = Fields({**GEMMA3_DEFAULTS, **present}, fields.where)
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"), qk_norm=QkNorm.PER_HEAD)
    count = layer_count(fields)
    period = fields.whole("sliding_window_pattern", "_sliding_window_pattern", default=6)
    pattern = [SLIDING if (i + 1) % period else FULL for i in range(count)]
    attentions = scoped(fields, attention, pattern)
    return build(fields, stack(attentions, [dense_ffn(fields)] * count, norms=4), tied=True)


def glm4(fields: Fields) -> Decoder:
    """GLM-4 0414 (vllm/model_executor/models/glm4.py)."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"), output_bias=False)
    count = layer_count(fields)
    layers = stack([attention] * count, [dense_ffn(fields)] * count, norms=4)
    return build(fields, layers, names=PHI3_NAMES)


def cohere(fields: Fields) -> Decoder:
    """Command R and R+: attention and feed-forward beside each other (vllm/model_executor/models/commandr.py)."""
    attention = _cohere_attention(fields)
    count = layer_count(fields)
    return build(fields, stack([attention] * count, [dense_ffn(fields)] * count, norms=1), tied=True)


def cohere2(fields: Fields) -> Decoder:
    """Command R7B and A: three sliding layers to a full one (vllm/model_executor/models/commandr.py).

    A sliding layer also sees the token `sliding_window` back (vLLM since 0.29; one token less before).
    """
    attention = _cohere_attention(fields)
    count = layer_count(fields)
    period = fields.whole("sliding_window_pattern", "_sliding_window_pattern", default=4)
    attentions = [
        one if one.window_tokens is None else windowed(one, one.window_tokens + 1)
        for one in scoped(fields, attention, [SLIDING if (i + 1) % period else FULL for i in range(count)])
    ]
    return build(fields, stack(attentions, [dense_ffn(fields)] * count, norms=1), tied=True)


def _cohere_attention(fields: Fields) -> SoftmaxAttention:
    qk_norm = QkNorm.ALL_HEADS_SPLIT if fields.flag("use_qk_norm") else QkNorm.NONE
    return softmax_attention(fields, bias=fields.flag("attention_bias"), qk_norm=qk_norm)


def olmo2(fields: Fields) -> Decoder:
    """OLMo 2 and 3 (vllm/model_executor/models/olmo2.py)."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"), qk_norm=QkNorm.ALL_HEADS)
    return build(fields, stack(scoped(fields, attention), [dense_ffn(fields)] * layer_count(fields)))


def starcoder2(fields: Fields) -> Decoder:
    """StarCoder 2: layer norms and biases throughout (vllm/model_executor/models/starcoder2.py)."""
    bias = fields.flag("use_bias", default=True)
    attention = windowed(softmax_attention(fields, bias=bias), sliding_window(fields))
    ffn = dense_ffn(fields, gated=False, bias=bias)
    count = layer_count(fields)
    layers = stack([attention] * count, [ffn] * count, norm_bias=True)
    return build(fields, layers, tied=True, norm_bias=True, names=FC_NAMES)


def nemotron(fields: Fields) -> Decoder:
    """Nemotron 4 and Minitron: squared ReLU, layer norms (vllm/model_executor/models/nemotron.py)."""
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"))
    ffn = dense_ffn(fields, gated=False, bias=fields.flag("mlp_bias"))
    count = layer_count(fields)
    layers = stack([attention] * count, [ffn] * count, norm_bias=True)
    return build(fields, layers, norm_bias=True, names=UP_NAMES)


def hunyuan(fields: Fields) -> Decoder:
    """Hunyuan dense (vllm/model_executor/models/hunyuan_v1.py)."""
    qk_norm = QkNorm.PER_HEAD if fields.flag("use_qk_norm") else QkNorm.NONE
    attention = softmax_attention(fields, bias=fields.flag("attention_bias"), qk_norm=qk_norm)
    if fields.flag("use_cla"):
        raise fields.refuse("use_cla (keys and values shared between layers) is not understood")
    count = layer_count(fields)
    return build(fields, stack([attention] * count, [dense_ffn(fields)] * count))


ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": llama,
    "LLaMAForCausalLM": llama,
    "MistralForCausalLM": llama,
    "Ministral3ForCausalLM": llama,
    "InternLM3ForCausalLM": llama,
    "GraniteForCausalLM": llama,
    "InternLM2ForCausalLM": internlm2,
    "Ernie4_5ForCausalLM": ernie,
    "Qwen2ForCausalLM": qwen2,
    "MiMoForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "SmolLM3ForCausalLM": smollm3,
    "GlmForCausalLM": glm,
    "SeedOssForCausalLM": seed_oss,
    "Exaone4ForCausalLM": exaone4,
    "Phi3ForCausalLM": phi3,
    "GemmaForCausalLM": gemma,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Glm4ForCausalLM": glm4,
    "CohereForCausalLM": cohere,
    "Cohere2ForCausalLM": cohere2,
    "Olmo2ForCausalLM": olmo2,
    "Olmo3ForCausalLM": olmo2,
    "Starcoder2ForCausalLM": starcoder2,
    "NemotronForCausalLM": nemotron,
    "HunYuanDenseV1ForCausalLM": hunyuan,
}
