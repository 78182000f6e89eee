"""Multi-head latent attention: DeepSeek V2 to V3.2, Kimi K2, GLM-5."""

from planner.catalog.architectures.base import (
    Architecture,
    Decoder,
    build,
    dense_ffn,
    layer_count,
    sparse_after,
    stack,
)
from planner.catalog.architectures.moe import routed
from planner.catalog.config_fields import TOKENS_MAX, Fields, shown
from planner.domain.model import Ffn, LatentAttention, MoeFfn


def deepseek(fields: Fields) -> Decoder:
    """DeepSeek V2, V3, R1 and Kimi K2 (vllm/model_executor/models/deepseek_v2.py)."""
    count = layer_count(fields)
    return build(fields, stack([_attention(fields)] * count, _ffns(fields)))


def glm_lite(fields: Fields) -> Decoder:
    """GLM-4.7 Flash: latent attention with GLM-4.5's experts (vllm/.../glm4_moe_lite.py)."""
    count = layer_count(fields)
    moe = routed(fields, router_fp32=True, correction_bias=True)
    first_dense = fields.whole("first_k_dense_replace", default=1, low=0)
    every = fields.whole("moe_layer_freq", default=1)
    ffns = sparse_after(dense_ffn(fields), moe, count, first_dense, every)
    return build(fields, stack([_attention(fields)] * count, ffns))


def sparse_deepseek(fields: Fields) -> Decoder:
    """DeepSeek V3.2 and GLM-5: an indexer chooses the tokens to attend to (vllm/models/deepseek_v32)."""
    dense = _attention(fields)
    chosen = {"indexer_topk": fields.whole("index_topk", high=TOKENS_MAX)}
    indexed = dense.model_copy(
        update={
            **chosen,
            "indexer_heads": fields.whole("index_n_heads", high=100_000),
            "indexer_head_dim": fields.whole("index_head_dim", high=65_536),
        }
    )
    follower = dense.model_copy(update=chosen)
    attentions = [indexed if own else follower for own in _own_indexer(fields)]
    return build(fields, stack(attentions, _ffns(fields)))


def _own_indexer(fields: Fields) -> list[bool]:
    """Which layers choose tokens themselves; the others reuse the choice of the layer before them."""
    count = layer_count(fields)
    types = fields.texts("indexer_types")
    if types:
        if len(types) != count or not set(types) <= {"full", "shared"}:
            raise fields.refuse("indexer_types must say full or shared once a layer")
        return [kind == "full" for kind in types]
    if fields.has("index_topk_pattern"):
        raise fields.refuse("index_topk_pattern without indexer_types is not understood")
    every = fields.whole("index_topk_freq", default=1)
    offset = fields.whole("index_skip_topk_offset", default=2, low=0)
    return [max(i - offset + 1, 0) % every == 0 for i in range(count)]


def _attention(fields: Fields) -> LatentAttention:
    if fields.flag("attention_bias"):
        raise fields.refuse("attention_bias with latent attention is not understood")
    return LatentAttention(
        heads=fields.whole("num_attention_heads", high=100_000),
        q_lora_rank=fields.optional_whole("q_lora_rank"),
        kv_lora_rank=fields.whole("kv_lora_rank"),
        qk_nope_head_dim=fields.whole("qk_nope_head_dim", high=65_536),
        qk_rope_head_dim=fields.whole("qk_rope_head_dim", high=65_536),
        v_head_dim=fields.whole("v_head_dim", high=65_536),
    )


def _ffns(fields: Fields) -> list[Ffn]:
    count = layer_count(fields)
    dense = dense_ffn(fields)
    if not fields.has("n_routed_experts"):
        return [dense] * count
    method = fields.text("topk_method", default="greedy")
    if method not in {"noaux_tc", "greedy", "group_limited_greedy"}:
        raise fields.refuse(f"topk_method {shown(method)} is not understood")
    moe: MoeFfn = routed(fields, correction_bias=method == "noaux_tc")
    first_dense = fields.whole("first_k_dense_replace", default=0, low=0)
    return sparse_after(dense, moe, count, first_dense, fields.whole("moe_layer_freq", default=1))


ARCHITECTURES: dict[str, Architecture] = {
    "DeepseekV2ForCausalLM": deepseek,
    "DeepseekV3ForCausalLM": deepseek,
    "DeepseekV32ForCausalLM": sparse_deepseek,
    "Glm4MoeLiteForCausalLM": glm_lite,
    "GlmMoeDsaForCausalLM": sparse_deepseek,
}
