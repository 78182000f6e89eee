"""What one rank multiplies, and which splits vLLM refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.model_config import parse_model
from planner.catalog.models import bundled_models, load_model
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import Model
from planner.formulas.gemms import (
    Gemm,
    GemmRole,
    check_parallelism,
    expert_block,
    head_gemm,
    layer_gemms,
    padded_vocab,
)
from planner.formulas.quantized import quantizable_roles, with_weight_dtype
from planner.formulas.weights import weight_tensors

BUNDLED = tuple(entry.name for entry in bundled_models())


def shapes(model: Model, layer: int, parallelism: Parallelism) -> dict[GemmRole, tuple[int, int]]:
    products = layer_gemms(model, model.layer_pattern[layer], parallelism)
    return {gemm.role: (gemm.n, gemm.k) for gemm in products.gemms}


def test_dense_layer() -> None:
    model = load_model("meta-llama/Llama-3.1-70B")
    assert shapes(model, 0, Parallelism(tp=8)) == {
        GemmRole.QKV: (8 * 128 + 2 * 128, 8192),
        GemmRole.ATTENTION_OUT: (8192, 8 * 128),
        GemmRole.GATE_UP: (2 * 3584, 8192),
        GemmRole.DOWN: (8192, 3584),
    }
    assert head_gemm(model, Parallelism(tp=8))[:3] == (GemmRole.HEAD, 128256 // 8, 8192)


def test_key_value_heads_are_repeated_past_their_number() -> None:
    model = load_model("meta-llama/Llama-3.1-70B")
    assert shapes(model, 0, Parallelism(tp=16))[GemmRole.QKV] == (4 * 128 + 2 * 128, 8192)


def test_gated_attention_projects_its_gate_with_the_queries() -> None:
    model = load_model("Qwen/Qwen3.5-35B-A3B")
    # 16 heads of 256, twice for the gate, and 2 key-value heads.
    assert shapes(model, 3, Parallelism())[GemmRole.QKV] == (2 * 16 * 256 + 2 * 2 * 256, 2048)
    linear = shapes(model, 0, Parallelism(tp=2))
    # 16 key heads and 32 value heads of 128: queries, keys, values and their gate on two ranks.
    assert linear[GemmRole.LINEAR_IN] == ((2 * 16 + 2 * 32) * 128 // 2, 2048)
    assert linear[GemmRole.LINEAR_GATES] == (2 * 32 // 2, 2048)
    assert linear[GemmRole.LINEAR_OUT] == (2048, 32 * 128 // 2)


def test_latent_projections() -> None:
    got = shapes(load_model("deepseek-ai/DeepSeek-V3.2"), 10, Parallelism(tp=8))
    assert got[GemmRole.MLA_DOWN] == (1536 + 512 + 64, 7168)
    assert got[GemmRole.MLA_Q_UP] == (16 * 192, 1536)
    assert got[GemmRole.MLA_KV_UP] == (16 * 256, 512)
    assert got[GemmRole.SHARED_DOWN] == (7168, 2048 // 8)


def test_experts_of_a_rank() -> None:
    model = load_model("deepseek-ai/DeepSeek-V3")
    sliced = layer_gemms(model, model.layer_pattern[10], Parallelism(tp=8)).experts
    assert sliced is not None
    assert (sliced.local_experts, sliced.intermediate, sliced.ep) == (256, 256, False)
    whole = layer_gemms(model, model.layer_pattern[10], Parallelism(tp=8, dp=3, ep=True)).experts
    assert whole is not None
    # 256 experts over 24 ranks: the fullest hold 11.
    assert (whole.local_experts, whole.intermediate, whole.ep) == (11, 2048, True)


def test_latent_experts_work_in_the_latent_width() -> None:
    model = load_model("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8")
    layer = next(i for i, index in enumerate(model.layer_pattern) if model.layer_kinds[index].ffn is not None)
    products = layer_gemms(model, model.layer_pattern[layer], Parallelism(tp=4))
    assert products.experts is not None
    assert (products.experts.inputs, products.experts.intermediate) == (1024, 2688 // 4)
    assert products.experts.up_width == 2688 // 4
    assert shapes(model, layer, Parallelism(tp=4))[GemmRole.LATENT_IN] == (1024, 4096)


def test_mxfp4_slices_are_padded_to_whole_groups() -> None:
    model = load_model("openai/gpt-oss-120b")
    widths = {}
    for tp in (1, 2, 4, 8):
        experts = layer_gemms(model, 0, Parallelism(tp=tp)).experts
        assert experts is not None
        widths[tp] = experts.intermediate
    assert widths == {1: 2880, 2: 1440, 4: 736, 8: 384}


def test_refined_scale_blocks_of_sliced_experts() -> None:
    model = load_model("MiniMaxAI/MiniMax-M2.5")
    blocks = {}
    for tp in (4, 8, 16):
        experts = layer_gemms(model, 0, Parallelism(tp=tp)).experts
        assert experts is not None
        blocks[tp] = expert_block(experts)
    # 1536 / 8 = 192 and 1536 / 16 = 96 do not hold whole blocks of 128.
    assert blocks == {4: 128, 8: 64, 16: 32}


@pytest.mark.parametrize(
    ("name", "parallelism", "reason"),
    [
        ("meta-llama/Llama-3.1-8B", {"tp": 3}, "attention heads 32"),
        ("meta-llama/Llama-3.1-8B", {"tp": 64}, "attention heads 32"),
        ("meta-llama/Llama-3.1-8B", {"pp": 33}, "exceeds the 32 layers"),
        ("meta-llama/Llama-3.1-8B", {"tp": 2, "ep": True}, "mixture of experts"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", {"tp": 16}, "attention heads 40"),
        ("nvidia/Nemotron-H-56B-Base-8K", {"tp": 16}, "mamba groups 8"),
        ("mistralai/Mixtral-8x7B-v0.1", {"tp": 16}, "exceeds the 8 experts"),
        ("Qwen/Qwen3-30B-A3B-FP8", {"tp": 16}, "fp8 block"),
        ("mistralai/Mixtral-8x7B-v0.1", {"tp": 4, "dp": 4, "ep": True}, "exceed the 8 experts"),
    ],
)
def test_refused_splits(name: str, parallelism: dict[str, int | bool], reason: str) -> None:
    problem = check_parallelism(load_model(name), Parallelism.model_validate(parallelism))
    assert problem is not None
    assert reason in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("name", "parallelism"),
    [
        ("meta-llama/Llama-3.1-8B", {"tp": 16}),
        ("meta-llama/Llama-3.1-405B", {"tp": 8, "pp": 2}),
        ("deepseek-ai/DeepSeek-R1", {"tp": 16}),
        ("Qwen/Qwen3-30B-A3B-FP8", {"tp": 8}),
        ("Qwen/Qwen3-235B-A22B-FP8", {"tp": 8, "ep": True}),
        ("openai/gpt-oss-120b", {"tp": 8}),
        ("MiniMaxAI/MiniMax-M2.5", {"tp": 16}),
    ],
)
def test_accepted_splits(name: str, parallelism: dict[str, int | bool]) -> None:
    assert check_parallelism(load_model(name), Parallelism.model_validate(parallelism)) is None


def test_groups_that_a_slice_would_cut() -> None:
    # Qwen2.5-like: 13824 / 8 = 1728 inputs of the down projection are not whole groups of 128.
    config: dict[str, object] = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 5120,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "intermediate_size": 13824,
        "vocab_size": 152064,
    }
    model = with_weight_dtype(parse_model(config, name="qwen"), WeightDtype.AWQ)
    assert check_parallelism(model, Parallelism(tp=4)) is None
    assert "awq group" in (check_parallelism(model, Parallelism(tp=8)) or "")


@given(st.sampled_from(BUNDLED), st.sampled_from([1, 2, 4, 8, 16]), st.booleans())
def test_products_are_the_weights(name: str, tp: int, ep: bool) -> None:
    """Every product reads one weight of the same shape, and nothing else is a matrix."""
    model = load_model(name)
    parallelism = Parallelism(tp=tp, ep=ep and model.has_moe)
    if check_parallelism(model, parallelism) is not None:
        return
    products = [head_gemm(model, parallelism)] if not model.tied_embeddings else []
    for index in range(len(model.layer_kinds)):
        products += layer_gemms(model, index, parallelism).gemms
    weights = {
        (tensor.name, tensor.shape)
        for tensor in weight_tensors(model, parallelism)
        if tensor.name in set(GemmRole) and tensor.group != "vision"
    }
    assert {(gemm.role, (gemm.n, gemm.k)) for gemm in products} == weights
    assert all(gemm.n > 0 and gemm.k > 0 for gemm in products)


@given(st.sampled_from(BUNDLED), st.sampled_from([2, 4, 8]))
def test_split_projections_add_up(name: str, tp: int) -> None:
    """Row-parallel slices together read all inputs."""
    model = load_model(name)
    if check_parallelism(model, Parallelism(tp=tp)) is not None:
        return
    down = {
        GemmRole.DOWN,
        GemmRole.SHARED_DOWN,
        GemmRole.ATTENTION_OUT,
        GemmRole.MAMBA_OUT,
        GemmRole.LINEAR_OUT,
    }
    for index in range(len(model.layer_kinds)):
        whole = layer_gemms(model, index, Parallelism()).gemms
        part = layer_gemms(model, index, Parallelism(tp=tp)).gemms
        assert [_inputs(g, down, 1) for g in whole] == [_inputs(g, down, tp) for g in part]


def _inputs(gemm: Gemm, row_parallel: set[GemmRole], tp: int) -> tuple[GemmRole, int]:
    return gemm.role, gemm.k * (tp if gemm.role in row_parallel else 1)


@pytest.mark.parametrize("name", BUNDLED)
def test_only_what_can_be_quantised_is(name: str) -> None:
    for kind in load_model(name).layer_kinds:
        assert {role for role, _ in kind.quantized} <= quantizable_roles(kind)


def test_vocabulary_padding() -> None:
    assert [padded_vocab(rows) for rows in (1, 64, 65, 128256)] == [64, 64, 128, 128256]
