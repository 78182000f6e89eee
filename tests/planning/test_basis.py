"""What a prediction rests on follows from what was run and whose kernel tables there are."""

import pytest

from planner.assemble.question import facts_for
from planner.catalog.load import find_gpu
from planner.catalog.models import load_model, with_weight_dtype
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.evidence import Basis
from planner.formulas.tuning import RunDeployment, model_shape
from planner.planning.basis import basis_detail, basis_of, has_rough_kernels

MODEL = load_model("meta-llama/Llama-3.1-8B")
OTHER = load_model("Qwen/Qwen3-32B")
RUN = RunDeployment(
    model_shape=model_shape(MODEL),
    weight_dtype=WeightDtype.BF16,
    gpu="H100-SXM-80GB",
    gpu_architecture="Hopper",
    tp=2,
    runs=7,
    decode_ratio=1.1,
    prompt_ratio=0.9,
)


@pytest.mark.parametrize(
    ("gpu", "tp", "basis", "said"),
    [
        ("H100-SXM-80GB", 2, Basis.MEASURED, "7 runs of this model, format and TP on H100-SXM-80GB"),
        ("H100-SXM-80GB", 4, Basis.CALIBRATED, "7 runs of this model and format at TP 2 on H100-SXM-80GB"),
        ("H200-SXM-141GB", 2, Basis.OPERATORS, "7 runs of this model, format and TP on H100-SXM-80GB"),
        ("H200-SXM-141GB", 4, Basis.OPERATORS, "7 runs of this model and format at TP 2 on H100-SXM-80GB"),
        ("A100-SXM-80GB", 2, Basis.OPERATORS, "kernel tables of A100-SXM-80GB"),
        ("H20", 4, Basis.TRANSFERRED, "7 runs of this model and format at TP 2 on H100-SXM-80GB"),
        ("MI300X", 2, Basis.DATASHEET, "scaled by datasheet to MI300X"),
    ],
)
def test_every_gpu_has_its_basis(gpu: str, tp: int, basis: Basis, said: str) -> None:
    operators = facts_for().operators_for(find_gpu(gpu))
    assert basis_of(MODEL, Parallelism(tp=tp), operators, (RUN,)) is basis
    assert basis_detail(MODEL, Parallelism(tp=tp), operators, (RUN,)).endswith(said)


def test_another_format_model_or_layout_was_not_measured() -> None:
    operators = facts_for().operators_for(find_gpu("H100-SXM-80GB"))
    fp8 = with_weight_dtype(MODEL, WeightDtype.FP8)
    for model, parallelism in (
        (fp8, Parallelism(tp=2)),
        (OTHER, Parallelism(tp=2)),
        (MODEL, Parallelism(tp=2, pp=2)),
        (MODEL, Parallelism(tp=2, dp=2)),
    ):
        assert basis_of(model, parallelism, operators, (RUN,)) is Basis.CALIBRATED
    assert basis_of(MODEL, Parallelism(tp=2), operators, ()) is Basis.OPERATORS


@pytest.mark.parametrize(
    ("model", "weight_dtype", "rough"),
    [
        ("Qwen/Qwen3-32B", None, False),
        ("Qwen/Qwen3-32B", WeightDtype.FP8, False),
        ("Qwen/Qwen3-32B", WeightDtype.INT4, True),
        ("Qwen/Qwen3-32B-AWQ", None, True),
        ("Qwen/Qwen3-30B-A3B", None, True),
        ("openai/gpt-oss-120b", None, True),
        ("deepseek-ai/DeepSeek-V3", None, True),
    ],
)
def test_experts_and_weights_of_four_bits_are_least_sure(
    model: str, weight_dtype: WeightDtype | None, rough: bool
) -> None:
    assert has_rough_kernels(load_model(model, weight_dtype=weight_dtype)) is rough
