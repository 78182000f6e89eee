"""Which formats vLLM runs on which GPU."""

import pytest

from planner.catalog.load import find_gpu, gpus
from planner.domain.dtypes import ComputeDtype, KvDtype, WeightDtype
from planner.formulas.dtype_support import compute_dtype, kv_dtype_problem, weight_dtype_problem

FOUR_BIT = (WeightDtype.INT4, WeightDtype.AWQ, WeightDtype.GPTQ)


@pytest.mark.parametrize(
    ("gpu", "runs"),
    [
        ("V100-32GB", "fp16"),
        ("T4", "fp16 fp8 fp8_block int8 int4 awq gptq nvfp4"),
        ("A100-SXM-80GB", "bf16 fp16 fp8 fp8_block int8 int4 awq gptq mxfp4 nvfp4"),
        ("L40S", "bf16 fp16 fp8 fp8_block int8 int4 awq gptq mxfp4 nvfp4"),
        ("H100-SXM-80GB", "bf16 fp16 fp8 fp8_block int8 int4 awq gptq mxfp4 nvfp4"),
        ("B200", "bf16 fp16 fp8 fp8_block int4 awq gptq mxfp4 nvfp4"),
        ("MI300X", "bf16 fp16 fp8 fp8_block int8 int4 awq gptq mxfp4"),
    ],
)
def test_weight_dtypes_by_gpu(gpu: str, runs: str) -> None:
    supported = {dtype.value for dtype in WeightDtype if weight_dtype_problem(dtype, find_gpu(gpu)) is None}
    assert supported == set(runs.split())


def test_a_problem_names_the_dtype_the_gpu_and_what_is_needed() -> None:
    problem = weight_dtype_problem(WeightDtype.BF16, find_gpu("T4"))
    assert problem is not None
    assert all(word in problem for word in ("bf16", "T4", "8.0", "7.5", "fp16"))


@pytest.mark.parametrize(
    ("gpu", "fp8", "bf16"),
    [
        ("T4", False, False),
        ("A100-SXM-80GB", True, True),
        ("H100-SXM-80GB", True, True),
        ("MI300X", True, True),
    ],
)
def test_kv_dtypes_by_gpu(gpu: str, fp8: bool, bf16: bool) -> None:
    card = find_gpu(gpu)
    assert (kv_dtype_problem(KvDtype.FP8, card) is None) is fp8
    assert (kv_dtype_problem(KvDtype.BF16, card) is None) is bf16
    assert kv_dtype_problem(KvDtype.AUTO, card) is None
    assert kv_dtype_problem(KvDtype.FP16, card) is None


@pytest.mark.parametrize(
    ("dtype", "gpu", "multiplied"),
    [
        (WeightDtype.BF16, "H100-SXM-80GB", ComputeDtype.BF16),
        (WeightDtype.FP16, "H100-SXM-80GB", ComputeDtype.FP16),
        (WeightDtype.FP8, "H100-SXM-80GB", ComputeDtype.FP8),
        (WeightDtype.FP8_BLOCK, "L40S", ComputeDtype.FP8),
        (WeightDtype.FP8, "A100-SXM-80GB", ComputeDtype.BF16),
        (WeightDtype.INT8, "A100-SXM-80GB", ComputeDtype.INT8),
        (WeightDtype.MXFP4, "H100-SXM-80GB", ComputeDtype.BF16),
        (WeightDtype.MXFP4, "B200", ComputeDtype.BF16),
        (WeightDtype.NVFP4, "H100-SXM-80GB", ComputeDtype.BF16),
        (WeightDtype.NVFP4, "B200", ComputeDtype.FP4),
        (WeightDtype.AWQ, "T4", ComputeDtype.FP16),
    ],
)
def test_what_the_tensor_cores_multiply(dtype: WeightDtype, gpu: str, multiplied: ComputeDtype) -> None:
    assert compute_dtype(dtype, find_gpu(gpu)) is multiplied


@pytest.mark.parametrize("gpu", [gpu.name for gpu in gpus() if gpu.vllm_backend])
def test_what_runs_has_a_rate(gpu: str) -> None:
    card = find_gpu(gpu)
    for dtype in WeightDtype:
        if weight_dtype_problem(dtype, card) is None:
            assert card.peak_flop_per_s[compute_dtype(dtype, card)] > 0, dtype
    for dtype in FOUR_BIT:
        assert compute_dtype(dtype, card) in (ComputeDtype.BF16, ComputeDtype.FP16)


@pytest.mark.parametrize("gpu", [gpu.name for gpu in gpus() if not gpu.vllm_backend])
def test_accelerators_outside_vllm_run_nothing_here(gpu: str) -> None:
    assert all(weight_dtype_problem(dtype, find_gpu(gpu)) is not None for dtype in WeightDtype)
