"""Hybrids and layers that differ in shape: Qwen3-Next, Qwen3.5, Nemotron-H, Nemotron-NAS, Gemma 4."""

from planner.catalog.architectures.base import (
    DECODER_NAMES,
    FULL,
    LINEAR,
    SLIDING,
    Architecture,
    Decoder,
    Names,
    build,
    dense_ffn,
    experts_per_token,
    hidden_size,
    layer_count,
    layer_types,
    needed_window,
    softmax_attention,
    stack,
    windowed,
)
from planner.catalog.architectures.moe import qwen_ffns
from planner.catalog.config_fields import LAYERS_MAX, Fields, shown
from planner.domain.model import (
    DenseFfn,
    Ffn,
    GemmRole,
    Layer,
    LinearAttention,
    MambaMixer,
    MoeFfn,
    QkNorm,
    SoftmaxAttention,
)

STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}

NEMOTRON_H_NAMES: Names = {
    GemmRole.QKV: ("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
    GemmRole.ATTENTION_OUT: ("mixer.o_proj",),
    GemmRole.MAMBA_IN: ("mixer.in_proj",),
    GemmRole.MAMBA_OUT: ("mixer.out_proj",),
    GemmRole.GATE_UP: ("mixer.up_proj",),
    GemmRole.DOWN: ("mixer.down_proj",),
    GemmRole.SHARED_GATE_UP: ("mixer.shared_experts.up_proj",),
    GemmRole.SHARED_DOWN: ("mixer.shared_experts.down_proj",),
    GemmRole.LATENT_IN: ("mixer.fc1_latent_proj",),
    GemmRole.LATENT_OUT: ("mixer.fc2_latent_proj",),
    GemmRole.EXPERTS: ("mixer.experts.0.up_proj", "mixer.experts.0.down_proj"),
}
GEMMA4_NAMES: Names = {**DECODER_NAMES, GemmRole.EXPERTS: ("experts.0.gate_proj", "experts.0.down_proj")}


def qwen3_next(fields: Fields) -> Decoder:
    """Qwen3-Next (vllm/model_executor/models/qwen3_next.py)."""
    return build(fields, stack(_qwen_mixers(fields), qwen_ffns(fields)))


def qwen3_5(fields: Fields) -> Decoder:
    """Qwen3.5 dense (vllm/model_executor/models/qwen3_5.py)."""
    return build(fields, stack(_qwen_mixers(fields), [dense_ffn(fields)] * layer_count(fields)))


def _qwen_mixers(fields: Fields) -> list[SoftmaxAttention | LinearAttention]:
    """Gated delta nets with a full attention in every fourth layer."""
    if fields.flag("layer_scale"):
        raise fields.refuse("layer_scale is not understood")
    count = layer_count(fields)
    interval = fields.whole("full_attention_interval", default=4)
    types = layer_types(fields, count, (LINEAR, FULL)) or [
        LINEAR if (i + 1) % interval else FULL for i in range(count)
    ]
    full = softmax_attention(
        fields, bias=fields.flag("qkv_bias"), output_bias=False, qk_norm=QkNorm.PER_HEAD
    ).model_copy(update={"output_gate": fields.flag("attn_output_gate", default=True)})
    key_heads = fields.whole("linear_num_key_heads", high=100_000)
    value_heads = fields.whole("linear_num_value_heads", high=100_000)
    if value_heads % key_heads:
        raise fields.refuse(
            f"linear_num_value_heads {value_heads} is not a multiple of linear_num_key_heads {key_heads}"
        )
    linear = LinearAttention(
        key_heads=key_heads,
        value_heads=value_heads,
        key_head_dim=fields.whole("linear_key_head_dim", high=65_536),
        value_head_dim=fields.whole("linear_value_head_dim", high=65_536),
        conv_kernel=fields.whole("linear_conv_kernel_dim", high=1024),
        state_bytes_per_value=_state_bytes(fields, "mamba_ssm_dtype", silent="auto"),
    )
    return [full if kind == FULL else linear for kind in types]


def _state_bytes(fields: Fields, field: str, *, silent: str) -> int:
    """Bytes a value of the recurrent state; `silent` is what vLLM takes where the config does not say."""
    name = fields.text(field, default=silent)
    if name not in STATE_BYTES:
        raise fields.refuse(f"{field} {shown(name)} is not understood; known: {', '.join(STATE_BYTES)}")
    return STATE_BYTES[name]


def nemotron_h(fields: Fields) -> Decoder:
    """Nemotron-H and Nemotron 3: a mixer or a feed-forward block a layer (vllm/.../nemotron_h.py)."""
    pattern = _nemotron_pattern(fields)
    makers = {"M": _mamba, "*": _nemotron_attention, "-": _nemotron_dense, "E": _nemotron_moe}
    unknown = sorted(set(pattern) - set(makers))
    if unknown:
        raise fields.refuse(f"hybrid_override_pattern holds {shown(unknown[0])}; known: M * - E")
    made = {letter: makers[letter](fields) for letter in set(pattern)}
    return build(fields, [made[letter] for letter in pattern], names=NEMOTRON_H_NAMES)


def _nemotron_pattern(fields: Fields) -> str:
    blocks = fields.texts("layers_block_type")
    if blocks:
        letters = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}
        unknown = [block for block in blocks if block not in letters]
        if unknown:
            raise fields.refuse(f"layers_block_type holds {shown(unknown[0])}; known: {', '.join(letters)}")
        pattern = "".join(letters[block] for block in blocks)
    else:
        pattern = fields.text("hybrid_override_pattern")
    if not 1 <= len(pattern) <= LAYERS_MAX:
        raise fields.refuse(f"hybrid_override_pattern must name 1 to {LAYERS_MAX} layers, got {len(pattern)}")
    declared = fields.optional_whole("num_hidden_layers", high=LAYERS_MAX)
    if declared is not None and declared != len(pattern):
        raise fields.refuse(
            f"hybrid_override_pattern has {len(pattern)} layers but num_hidden_layers is {declared}"
        )
    return pattern


def _mamba(fields: Fields) -> Layer:
    heads = fields.whole("mamba_num_heads", high=100_000)
    groups = fields.whole("n_groups", "mamba_n_groups", high=100_000)
    if heads % groups:
        raise fields.refuse(f"mamba_num_heads {heads} is not a multiple of n_groups {groups}")
    mixer = MambaMixer(
        heads=heads,
        head_dim=fields.whole("mamba_head_dim", high=65_536),
        state_size=fields.whole("ssm_state_size", high=65_536),
        groups=groups,
        conv_kernel=fields.whole("conv_kernel", high=1024),
        conv_bias=fields.flag("use_conv_bias", default=True),
        projection_bias=fields.flag("use_bias"),
        state_bytes_per_value=_state_bytes(fields, "mamba_ssm_cache_dtype", silent="float32"),
    )
    return Layer(attention=mixer, ffn=None, norms=1)


def _nemotron_attention(fields: Fields) -> Layer:
    if not fields.has("head_dim") and fields.has("attention_head_dim"):
        fields = Fields({**fields.values, "head_dim": fields.get("attention_head_dim")}, fields.where)
    return Layer(attention=softmax_attention(fields), ffn=None, norms=1)


def _nemotron_dense(fields: Fields) -> Layer:
    ffn = dense_ffn(fields, gated=False, bias=fields.flag("mlp_bias"))
    return Layer(attention=None, ffn=ffn, norms=1)


def _nemotron_moe(fields: Fields) -> Layer:
    if fields.flag("mlp_bias"):
        raise fields.refuse("mlp_bias with experts is not understood")
    experts = fields.whole("n_routed_experts", high=100_000)
    shared = fields.whole("n_shared_experts", default=0, low=0, high=1000)
    shared_width = fields.whole("moe_shared_expert_intermediate_size") if shared else 0
    ffn = MoeFfn(
        experts=experts,
        experts_per_token=experts_per_token(fields, experts),
        intermediate=fields.whole("moe_intermediate_size"),
        gated=False,
        shared_intermediate=shared * shared_width,
        correction_bias=True,
        latent=fields.optional_whole("moe_latent_size"),
    )
    return Layer(attention=None, ffn=ffn, norms=1)


def nemotron_nas(fields: Fields) -> Decoder:
    """Nemotron Super and Ultra found by architecture search (vllm/.../nemotron_nas.py)."""
    blocks = fields.sections("block_configs")
    if len(blocks) != layer_count(fields):
        raise fields.refuse(
            f"block_configs has {len(blocks)} entries but num_hidden_layers is {layer_count(fields)}"
        )
    return build(fields, [_nas_layer(fields, block) for block in blocks])


def _nas_layer(fields: Fields, block: Fields) -> Layer:
    attention, ffn = block.section("attention"), block.section("ffn")
    if attention is None or ffn is None:
        raise block.refuse("attention and ffn are needed")
    for part, name in (
        (attention, "replace_with_linear"),
        (ffn, "replace_with_linear"),
        (attention, "window_length"),
    ):
        if part.has(name) and part.get(name) is not False:
            raise part.refuse(f"{name} is not understood")
    mixer = None if attention.flag("no_op") else _nas_attention(fields, attention)
    dense = None if ffn.flag("no_op") else _nas_ffn(fields, ffn)
    return Layer(attention=mixer, ffn=dense, norms=(mixer is not None) + (dense is not None))


def _nas_attention(fields: Fields, block: Fields) -> SoftmaxAttention:
    heads = fields.whole("num_attention_heads", high=100_000)
    group = block.whole("n_heads_in_group", high=100_000)
    if heads % group:
        raise block.refuse(f"n_heads_in_group {group} does not divide num_attention_heads {heads}")
    bias = fields.flag("attention_bias")
    own = Fields({**fields.values, "num_key_value_heads": heads // group}, fields.where)
    return softmax_attention(own, bias=bias)


def _nas_ffn(fields: Fields, block: Fields) -> DenseFfn:
    """Two thirds of `ffn_mult` times the hidden width, rounded up to 256."""
    ratio = block.number("ffn_mult", low=0.01, high=1000)
    width = int(2 * ratio * hidden_size(fields) / 3)
    return DenseFfn(intermediate=-(-width // 256) * 256, bias=fields.flag("mlp_bias"))


def gemma4(fields: Fields) -> Decoder:
    """Gemma 4 text, dense or with experts beside the dense block (vllm/model_executor/models/gemma4.py)."""
    for name in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if fields.whole(name, default=0, low=0):
            raise fields.refuse(f"{name} above 0 is not understood")
    if fields.flag("use_double_wide_mlp"):
        raise fields.refuse("use_double_wide_mlp is not understood")
    count = layer_count(fields)
    types = layer_types(fields, count, (FULL, SLIDING))
    if types is None:
        raise fields.refuse("layer_types is missing")
    sliding = windowed(
        softmax_attention(fields, bias=fields.flag("attention_bias"), qk_norm=QkNorm.PER_HEAD),
        needed_window(fields),
    )
    full = _gemma4_full(fields)
    ffn, norms, scalars = _gemma4_ffn(fields)
    made = {
        SLIDING: Layer(attention=sliding, ffn=ffn, norms=norms, scalars=scalars),
        FULL: Layer(attention=full, ffn=ffn, norms=norms, scalars=scalars),
    }
    return build(fields, [made[kind] for kind in types], tied=True, names=GEMMA4_NAMES)


def _gemma4_full(fields: Fields) -> SoftmaxAttention:
    """Full layers have wider heads, and may share one projection between keys and values."""
    own: dict[str, object] = {**fields.values, "head_dim": fields.get("global_head_dim", "head_dim")}
    shared = fields.flag("attention_k_eq_v")
    if shared and fields.has("num_global_key_value_heads"):
        own["num_key_value_heads"] = fields.get("num_global_key_value_heads")
    attention = softmax_attention(
        Fields(own, fields.where), bias=fields.flag("attention_bias"), qk_norm=QkNorm.PER_HEAD
    )
    return attention.model_copy(update={"keys_are_values": shared})


def _gemma4_ffn(fields: Fields) -> tuple[Ffn, int, int]:
    """The feed-forward block with the norms and learned scales of its layer."""
    dense = dense_ffn(fields)
    if not fields.flag("enable_moe_block"):
        return dense, 4, 0
    experts = fields.whole("num_experts", high=100_000)
    moe = MoeFfn(
        experts=experts,
        experts_per_token=experts_per_token(fields, experts, "top_k_experts"),
        intermediate=fields.whole("moe_intermediate_size"),
        parallel_dense=dense,
    )
    return moe, 7, hidden_size(fields) + experts


ARCHITECTURES: dict[str, Architecture] = {
    "Qwen3NextForCausalLM": qwen3_next,
    "Qwen3_5ForCausalLM": qwen3_5,
    "Qwen3_5MoeForCausalLM": qwen3_next,
    "NemotronHForCausalLM": nemotron_h,
    "DeciLMForCausalLM": nemotron_nas,
    "Gemma4ForCausalLM": gemma4,
}
