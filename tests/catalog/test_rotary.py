"""Rotary tables as vLLM's get_rope makes them."""

import pytest

from planner.catalog.model_config import parse_model
from planner.catalog.models import load_model
from planner.domain.base import InputError
from planner.domain.model import RotaryTable

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("meta-llama/Llama-3.1-8B", [(131072, 128)]),
        # yarn: 4096 original positions x 40.
        ("deepseek-ai/DeepSeek-R1", [(163840, 64)]),
        # The indexer rotates in another order, with a table of its own.
        ("deepseek-ai/DeepSeek-V3.2", [(163840, 64), (163840, 64)]),
        # In the same order here.
        ("zai-org/GLM-5", [(202752, 64)]),
        # Two bases; a third of a head of 192 rotates.
        ("XiaomiMiMo/MiMo-V2-Flash", [(262144, 64), (262144, 64)]),
        # Local layers as they are, global ones stretched eight times.
        ("google/gemma-3-27b-it", [(131072 * 8, 128), (131072, 128)]),
        # Images have positions of their own: four times the rows.
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", [(4 * 262144, 128)]),
        ("Qwen/Qwen3.5-27B", [(4 * 262144, 64)]),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", [(262144, 64)]),
        ("zai-org/GLM-4.6", [(202752, 64)]),
        ("MiniMaxAI/MiniMax-M2.5", [(196608, 64)]),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", [(10485760, 128)]),
        # Global layers have heads of 512.
        ("google/gemma-4-26B-A4B", [(262144, 512), (262144, 256)]),
        ("nvidia/Nemotron-H-56B-Base-8K", []),
    ],
)
def test_bundled_models(name: str, tables: list[tuple[int, int]]) -> None:
    assert [(table.rows, table.width) for table in load_model(name).rotary] == tables


def test_gpt_oss_keeps_fp32() -> None:
    assert load_model("openai/gpt-oss-20b").rotary == (RotaryTable(rows=131072, width=64, fp32=True),)


@pytest.mark.parametrize(
    ("scaling", "rows"),
    [
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}, 4096),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "linear", "factor": 2}, 8192),
        ({"rope_type": "dynamic", "factor": 2.0}, 8192),
        # Short and long positions behind each other.
        ({"rope_type": "longrope", "original_max_position_embeddings": 1024}, 5120),
    ],
)
def test_scalings(scaling: dict[str, object], rows: int) -> None:
    model = parse_model({**LLAMA, "rope_scaling": scaling}, name="scaled")
    assert model.rotary == (RotaryTable(rows=rows, width=64),)


def test_learned_positions_need_no_table() -> None:
    gpt2 = {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 768,
        "n_layer": 2,
        "n_head": 12,
        "vocab_size": 50257,
    }
    assert parse_model({**gpt2, "n_positions": 1024}, name="gpt2").rotary == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_scaling", "yarn"),
        ("rope_scaling", {"rope_type": "yarn", "factor": "four"}),
        ("rope_scaling", {"rope_type": 3}),
        ("partial_rotary_factor", 2.0),
    ],
)
def test_what_is_not_understood_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match="model config"):
        parse_model({**LLAMA, field: value}, name="broken")
