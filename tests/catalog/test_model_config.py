"""Reading config.json: what is understood comes out right, what is not is refused by name."""

import json
from pathlib import Path

import pytest

from planner.catalog.model_config import MAX_CONFIG_BYTES, parse_model, read_config
from planner.catalog.models import bundled_models, load_model
from planner.domain.base import InputError
from planner.domain.dtypes import WeightDtype
from planner.domain.model import (
    DenseFfn,
    GemmRole,
    LatentAttention,
    LinearAttention,
    MambaMixer,
    Model,
    MoeFfn,
    QkNorm,
    SoftmaxAttention,
)

BROKEN = Path(__file__).parent / "broken_configs"
LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
FP8_CHANNEL = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
            "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
        }
    },
}


def parsed(config: dict[str, object], **changes: object) -> Model:
    return parse_model({**config, **changes}, name="test")


def softmax(model: Model, layer: int) -> SoftmaxAttention:
    attention = model.layer_kinds[model.layer_pattern[layer]].attention
    assert isinstance(attention, SoftmaxAttention)
    return attention


def roles_stored(model: Model, layer: int) -> set[GemmRole]:
    return {role for role, _ in model.layer_kinds[model.layer_pattern[layer]].quantized}


def test_dense() -> None:
    model = parsed(LLAMA)
    assert model.layers == 32
    assert softmax(model, 0).head_dim == 128
    assert not model.tied_embeddings
    assert model.activation_dtype is WeightDtype.BF16
    assert model.quantization is None


def test_null_fields_count_as_absent() -> None:
    assert parsed(LLAMA, head_dim=None, quantization_config=None, attention_bias=None) == parsed(LLAMA)


def test_remote_code_is_never_followed() -> None:
    hostile = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    assert parsed(LLAMA, auto_map=hostile) == parsed(LLAMA)


def test_architecture_follows_from_the_model_type_where_it_is_unambiguous() -> None:
    config = {name: value for name, value in LLAMA.items() if name != "architectures"}
    assert parsed(config, model_type="llama") == parsed(LLAMA)
    assert parsed(config, model_type="qwen3").architecture == "Qwen3ForCausalLM"


def test_first_known_of_several_architectures_is_taken() -> None:
    model = parsed(LLAMA, architectures=["SomethingNew", "LlamaForCausalLM"])
    assert model.architecture == "LlamaForCausalLM"


def test_interleaved_windows() -> None:
    # Gemma 3: five sliding layers, then a full one.
    model = parsed(
        {**LLAMA, "architectures": ["Gemma3ForCausalLM"]}, sliding_window=1024, num_hidden_layers=12
    )
    assert [softmax(model, i).window_tokens for i in range(6)] == [1024] * 5 + [None]
    assert softmax(model, 0).qk_norm is QkNorm.PER_HEAD
    assert model.tied_embeddings


def test_qwen2_window_is_off_unless_asked_for() -> None:
    config = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 4096}
    assert softmax(parsed(config, use_sliding_window=False), 31).window_tokens is None
    asked = parsed(config, use_sliding_window=True, max_window_layers=28)
    assert [softmax(asked, i).window_tokens for i in (27, 28)] == [None, 4096]


def test_mixture_with_dense_first_layers_and_latent_attention() -> None:
    model = load_model("deepseek-ai/DeepSeek-V3")
    kinds = [model.layer_kinds[i] for i in model.layer_pattern]
    assert all(isinstance(kind.attention, LatentAttention) for kind in kinds)
    assert [isinstance(kind.ffn, DenseFfn) for kind in kinds] == [True] * 3 + [False] * 58
    moe = kinds[-1].ffn
    assert isinstance(moe, MoeFfn)
    assert (moe.experts, moe.experts_per_token, moe.shared_intermediate) == (256, 8, 2048)
    assert moe.correction_bias


def test_shared_indexer_layers_have_no_indexer_of_their_own() -> None:
    config = json.loads((bundled("zai-org/GLM-5")).read_text(encoding="utf-8"))
    config["indexer_types"] = ["full", "shared"] * 39
    model = parse_model(config, name="glm")
    first, second = (model.layer_kinds[model.layer_pattern[i]].attention for i in (4, 5))
    assert isinstance(first, LatentAttention)
    assert isinstance(second, LatentAttention)
    assert first.indexer_heads > 0
    assert second.indexer_heads == 0
    assert first.indexer_topk == second.indexer_topk == 2048


def bundled(name: str) -> Path:
    return next(entry.path for entry in bundled_models() if entry.name == name)


def test_linear_hybrid_in_a_wrapper() -> None:
    model = load_model("Qwen/Qwen3.5-35B-A3B")
    kinds = [model.layer_kinds[i].attention for i in model.layer_pattern]
    assert [isinstance(kind, LinearAttention) for kind in kinds[:8]] == [True, True, True, False] * 2
    full = kinds[3]
    assert isinstance(full, SoftmaxAttention)
    assert full.output_gate
    assert model.vision is not None
    assert (model.vision.layers, model.vision.hidden, model.vision.output_width) == (27, 1152, 2048)


def test_mamba_hybrid() -> None:
    model = load_model("nvidia/Nemotron-H-56B-Base-8K")
    kinds = [model.layer_kinds[i] for i in model.layer_pattern]
    assert sum(isinstance(kind.attention, MambaMixer) for kind in kinds) == 54
    assert sum(isinstance(kind.attention, SoftmaxAttention) for kind in kinds) == 10
    assert sum(isinstance(kind.ffn, DenseFfn) for kind in kinds) == 54


def test_layers_that_differ_in_shape() -> None:
    model = load_model("nvidia/Llama-3_3-Nemotron-Super-49B-v1")
    # ffn_mult 2.625: 2/3 x 2.625 x 8192 = 14336, already a multiple of 256.
    ffn = model.layer_kinds[model.layer_pattern[0]].ffn
    assert isinstance(ffn, DenseFfn)
    assert ffn.intermediate == 14336
    assert any(kind.attention is None for kind in model.layer_kinds)


def test_wrapper_flag_says_whether_embeddings_are_tied() -> None:
    text = {name: value for name, value in LLAMA.items() if name != "architectures"}
    wrapper = {"architectures": ["Qwen3VLForConditionalGeneration"], "text_config": text}
    assert parsed({**wrapper, "tie_word_embeddings": True}).tied_embeddings
    assert not parsed({**wrapper, "tie_word_embeddings": False}).tied_embeddings


def test_text_type_of_qwen3_vl_ties_by_default() -> None:
    config = {**LLAMA, "architectures": ["Qwen3ForCausalLM"]}
    assert parsed(config, model_type="qwen3_vl_text").tied_embeddings
    assert not parsed(config, model_type="qwen3").tied_embeddings


def test_gptq() -> None:
    model = parsed(LLAMA, quantization_config=GPTQ)
    assert model.quantization is not None
    assert model.quantization.dtype is WeightDtype.GPTQ
    assert model.quantization.group_size == 128
    assert roles_stored(model, 0) == {
        GemmRole.QKV,
        GemmRole.ATTENTION_OUT,
        GemmRole.GATE_UP,
        GemmRole.DOWN,
    }


def test_skipped_modules_by_rule_and_by_layer() -> None:
    skip_rule = {**GPTQ, "dynamic": {r"-:.*self_attn.*": {}}}
    assert roles_stored(parsed(LLAMA, quantization_config=skip_rule), 0) == {GemmRole.GATE_UP, GemmRole.DOWN}
    skip_layer = {
        **FP8_CHANNEL,
        "ignore": ["lm_head", "model.layers.3.mlp*", "model.layers.4.self_attn.o_proj"],
    }
    model = parsed(LLAMA, quantization_config=skip_layer)
    assert roles_stored(model, 3) == {GemmRole.QKV, GemmRole.ATTENTION_OUT}
    assert roles_stored(model, 4) == {GemmRole.QKV, GemmRole.GATE_UP, GemmRole.DOWN}
    assert len(model.layer_kinds) == 3


def test_wrapped_names_mean_the_same_modules() -> None:
    for spelling in ("model.language_model.layers.0.mlp*", "language_model.model.layers.0.mlp*"):
        model = parsed(LLAMA, quantization_config={**FP8_CHANNEL, "ignore": [spelling]})
        assert roles_stored(model, 0) == {GemmRole.QKV, GemmRole.ATTENTION_OUT}


def test_mxfp4_is_for_experts_alone() -> None:
    model = load_model("openai/gpt-oss-20b")
    assert roles_stored(model, 0) == {GemmRole.EXPERTS}
    assert softmax(model, 0).window_tokens == 128
    assert softmax(model, 1).window_tokens is None
    assert softmax(model, 0).sinks


def test_modelopt_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    hf_quant = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
    }
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(hf_quant), encoding="utf-8")
    model = load_model(str(tmp_path))
    assert model.quantization is not None
    assert model.quantization.dtype is WeightDtype.FP8
    assert model.quantization.kv_fp8
    assert not model.quantization.dynamic_activations


@pytest.mark.parametrize(
    ("config", "beside"),
    [
        ("m_config.json", "m_hf_quant_config.json"),
        ("m.json", "m_hf_quant_config.json"),
        ("config.json", "hf_quant_config.json"),
    ],
)
def test_quantisation_file_beside_any_config_name(tmp_path: Path, config: str, beside: str) -> None:
    (tmp_path / config).write_text(json.dumps(LLAMA), encoding="utf-8")
    (tmp_path / beside).write_text('{"quantization": {"quant_algo": "NVFP4"}}', encoding="utf-8")
    assert read_config(tmp_path / config).hf_quant == {"quantization": {"quant_algo": "NVFP4"}}


def test_mixed_precision_module_by_module() -> None:
    hf_quant = {
        "quantization": {
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {
                **{f"model.layers.{i}.self_attn.q_proj": {"quant_algo": "FP8"} for i in range(32)},
                **{
                    f"model.layers.{i}.mlp.down_proj": {"quant_algo": "W4A16_NVFP4", "group_size": 16}
                    for i in range(32)
                },
                "lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
            },
        }
    }
    model = parse_model(LLAMA, name="mixed", hf_quant=hf_quant)
    stored = {role: how.dtype for role, how in model.layer_kinds[0].quantized}
    assert stored == {GemmRole.QKV: WeightDtype.FP8, GemmRole.DOWN: WeightDtype.NVFP4}
    assert model.head_quantization is not None


def test_byte_order_mark_and_infinity_elsewhere_are_tolerated(tmp_path: Path) -> None:
    # Published Nemotron 3 configs hold "time_step_limit": [0.0, Infinity].
    text = json.dumps({**LLAMA, "time_step_limit": [0.0, float("inf")]})
    file = tmp_path / "any name.json"
    file.write_text(text, encoding="utf-8-sig")
    assert load_model(str(file)).layers == 32


BROKEN_SAYS = {
    "architecture_not_list.json": "architectures must be a list",
    "architecture_not_text.json": "architectures must hold strings only, got 42",
    "boolean_width.json": "intermediate_size must be a whole number from 1 to 1000000, got True",
    "broken_pattern.json": "no regular expression",
    "deeply_nested.json": "nested too deeply",
    "deeply_nested_open.json": "nested too deeply",
    "empty.json": "not JSON",
    "empty_object.json": "architectures and model_type are missing",
    "fractional_width.json": "hidden_size must be a whole number from 1 to 1000000, got 4096.5",
    "heads_do_not_divide.json": "hidden_size 4096 is not a multiple of num_attention_heads 33",
    "hostile_pattern.json": "too involved",
    "huge_layers.json": "num_hidden_layers must be a whole number from 1 to 1000, got 1000000000000",
    "infinite_width.json": "hidden_size must be a whole number from 1 to 1000000, got inf",
    "kv_heads_do_not_divide.json": "32 is not a multiple of num_key_value_heads 7",
    "layer_types_too_short.json": "layer_types has 31 entries",
    "list_at_top.json": "must be a JSON object",
    "long_integer.json": "too long to be read",
    "missing_width.json": "hidden_size is missing",
    "nan_layers.json": "NaN",
    "negative_heads.json": "num_attention_heads must be a whole number from 1 to 100000, got -32",
    "no_architecture.json": "architectures and model_type are missing",
    "no_config_groups.json": "config_groups is missing",
    "not_json.json": "not JSON at line 1",
    "not_modelled.json": "DeepseekV4ForCausalLM is not modelled: compressed sparse attention",
    "not_utf8.json": "not UTF-8 at byte 64",
    "null_at_top.json": "must be a JSON object",
    "odd_block.json": "weight_block_size must be [128, 128]",
    "quantization_not_object.json": "quantization_config must be an object",
    "string_at_top.json": "must be a JSON object",
    "text_config_not_object.json": "text_config must be an object",
    "text_width.json": "hidden_size must be a whole number from 1 to 1000000, got '4096'",
    "three_bits.json": "bits must be 4, got 3",
    "topk_exceeds_experts.json": "num_experts_per_tok 9 exceeds the 8 experts",
    "truncated.json": "not JSON",
    "unknown_architecture.json": "the nearest known is LlamaForCausalLM",
    "unknown_dtype.json": "dtype 'int3' is not understood",
    "unknown_layer_type.json": "'retention' is not understood",
    "unknown_quantization.json": "quant_method 'bitsandbytes' is not understood",
    "unknown_type.json": "model_type 'something_else'",
    "utf16.json": "not UTF-8 at byte 0",
    "window_missing.json": "sliding_window is missing",
    "zero_group.json": "group_size must be -1 or above 0, got 0",
    "zero_layers.json": "num_hidden_layers must be a whole number from 1 to 1000, got 0",
}


def test_every_broken_file_has_its_message() -> None:
    assert {file.name for file in BROKEN.iterdir()} == set(BROKEN_SAYS)


@pytest.mark.parametrize("name", sorted(BROKEN_SAYS))
def test_broken_file_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError) as refusal:
        load_model(str(BROKEN / name))
    message = str(refusal.value)
    assert BROKEN_SAYS[name] in message
    assert name in message
    assert "\n" not in message


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.json"
    file.write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(InputError, match="larger than 8 MiB"):
        read_config(file)


def test_missing_file_and_folder_without_config(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_config(path)
