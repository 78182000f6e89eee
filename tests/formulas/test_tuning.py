"""What served runs say of kernel times: whose they are, and which part of a step they change."""

from functools import cache

import numpy as np
import pytest
from pydantic import ValidationError

from planner.calibrate.store import operators_for
from planner.catalog.load import find_gpu
from planner.catalog.models import load_model
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.hardware import Interconnect
from planner.formulas.operators import UNTUNED, GpuOperators, StepTuning
from planner.formulas.step import GRID_TOKENS, Cluster, StepModel, compile_step, hops_s
from planner.formulas.tuning import (
    NO_TUNING,
    RunDeployment,
    ServingTuning,
    model_shape,
    run_deployment,
    step_tuning,
)

LLAMA, QWEN = "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-32B"
H100, H200, A100 = (find_gpu(name) for name in ("H100-SXM-80GB", "H200-SXM-141GB", "A100-SXM-80GB"))
NVSWITCH = Cluster(Interconnect.NVSWITCH, network_bytes_per_s=50e9, stages_per_instance=1)
ALTERNATIVES = (
    "Qwen/Qwen3-8B",
    "openai/gpt-oss-120b",
    "deepseek-ai/DeepSeek-V3",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
)


def was_run(
    model: str = LLAMA, *, gpu: str = "H100-SXM-80GB", tp: int = 2, decode: float = 1.1, prompt: float = 0.9
) -> RunDeployment:
    loaded = load_model(model)
    return RunDeployment(
        model_shape=model_shape(loaded),
        weight_dtype=loaded.weight_dtype,
        gpu=gpu,
        gpu_architecture=find_gpu(gpu).architecture,
        tp=tp,
        runs=10,
        decode_ratio=decode,
        prompt_ratio=prompt,
    )


def test_checkpoints_that_differ_in_their_weights_alone_share_a_shape() -> None:
    shape = model_shape(load_model(LLAMA))
    assert shape == "LlamaForCausalLM, 80 layers of 8192, vocabulary 128256"
    for other in ("meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.1-70B-Instruct"):
        assert model_shape(load_model(other)) == shape
    others = {model_shape(load_model(name)) for name in (QWEN, "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B")}
    assert len(others | {shape}) == 4


def test_a_run_is_found_on_its_gpu_and_else_on_a_sibling() -> None:
    here, sibling = was_run(decode=1.1), was_run(gpu="H200-SXM-141GB", decode=1.2)
    model, tp2 = load_model(LLAMA), Parallelism(tp=2)
    for known in ((here, sibling), (sibling, here)):
        assert run_deployment(model, H100, tp2, known) is here
        assert run_deployment(model, H200, tp2, known) is sibling
    assert run_deployment(model, H200, tp2, (here,)) is here
    assert run_deployment(model, A100, tp2, (here, sibling)) is None


@pytest.mark.parametrize(
    "parallelism",
    [
        Parallelism(tp=4),
        Parallelism(tp=1),
        Parallelism(tp=2, pp=2),
        Parallelism(tp=2, dp=2),
        Parallelism(tp=2, ep=True),
    ],
)
def test_a_run_tells_nothing_of_another_way_to_divide_the_model(parallelism: Parallelism) -> None:
    assert run_deployment(load_model(LLAMA), H100, parallelism, (was_run(),)) is None


def test_a_run_tells_nothing_of_another_format_or_model() -> None:
    quantized = load_model(LLAMA, weight_dtype=WeightDtype.FP8)
    assert run_deployment(quantized, H100, Parallelism(tp=2), (was_run(),)) is None
    assert run_deployment(load_model(QWEN), H100, Parallelism(tp=2), (was_run(),)) is None


def test_the_slowdown_is_everybodys_and_the_ratios_are_of_who_was_run() -> None:
    tuning = ServingTuning(sustained_slowdown=0.07, deployments=(was_run(decode=1.1, prompt=0.9),))
    own = step_tuning(load_model(LLAMA), H100, Parallelism(tp=2), tuning)
    assert (own.sustained_slowdown, own.decode_ratio, own.prompt_ratio) == (0.07, 1.1, 0.9)
    for model, gpu, parallelism in (
        (QWEN, H100, Parallelism(tp=2)),
        (LLAMA, A100, Parallelism(tp=2)),
        (LLAMA, H100, Parallelism(tp=2, pp=2)),
    ):
        other = step_tuning(load_model(model), gpu, parallelism, tuning)
        assert (other.sustained_slowdown, other.decode_ratio, other.prompt_ratio) == (0.07, 1.0, 1.0)
    assert step_tuning(load_model(LLAMA), H100, Parallelism(tp=2), NO_TUNING) == UNTUNED


def test_a_model_run_with_other_degrees_keeps_the_mean_of_their_decode_ratios() -> None:
    # sqrt(1.21 x 0.81) = 0.99; their prompts were computed in other shapes.
    known = (was_run(tp=2, decode=1.21, prompt=0.8), was_run(tp=8, decode=0.81, prompt=0.9))
    tuning = ServingTuning(deployments=known)
    found = step_tuning(load_model(LLAMA), H100, Parallelism(tp=4), tuning)
    assert found.decode_ratio == pytest.approx(0.99)
    assert found.prompt_ratio == 1.0
    assert step_tuning(load_model(LLAMA), H100, Parallelism(tp=8), tuning).decode_ratio == 0.81


@pytest.mark.parametrize(
    ("field", "value"), [("decode_ratio", 0.2), ("prompt_ratio", 5.0), ("tp", 0), ("runs", 0), ("tp", 2.5)]
)
def test_a_run_that_cannot_be_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        RunDeployment.model_validate({**was_run().model_dump(), field: value})


@cache
def operators() -> GpuOperators:
    return operators_for(H100, (shipped_calibration_dir(),))


def step(model: str, tuning: StepTuning, parallelism: Parallelism) -> StepModel:
    tuned = operators()._replace(tuning=tuning)
    return compile_step(load_model(model), parallelism, KvDtype.AUTO, tuned, NVSWITCH)


@pytest.mark.parametrize("model", ALTERNATIVES)
def test_ratios_change_the_part_of_a_step_that_they_were_measured_on(model: str) -> None:
    """Decoding ends at 192 scheduled tokens and prompts begin at 384, as the curves of linear layers do."""
    parallelism = Parallelism(tp=4)
    plain, tuned = (
        step(model, each, parallelism) for each in (UNTUNED, StepTuning(decode_ratio=1.2, prompt_ratio=0.9))
    )
    few, many = GRID_TOKENS <= 192, GRID_TOKENS >= 384
    ratio = tuned.body_s / plain.body_s
    assert ratio[few] == pytest.approx(1.2)
    assert ratio[many] == pytest.approx(0.9)
    assert (np.diff(ratio[~few & ~many]) < 0).all()
    assert tuned.head_s / plain.head_s == pytest.approx(1.2)
    assert tuned.decode_constant_s == pytest.approx(1.2 * plain.decode_constant_s)
    assert tuned.decode_per_sequence_s == pytest.approx(1.2 * plain.decode_per_sequence_s)
    assert tuned.decode_per_token_s == pytest.approx(1.2 * plain.decode_per_token_s)
    for name in ("context_constant_s", "context_per_token_s", "context_per_pair_s", "context_per_past_s"):
        assert getattr(tuned, name) == pytest.approx(0.9 * getattr(plain, name)), name
    assert tuned.scope_tokens.tolist() == plain.scope_tokens.tolist()


def test_half_way_between_decoding_and_prompts_both_ratios_count_alike() -> None:
    # 271.5 tokens are 192 x sqrt(2): sqrt(1.2 x 0.9) = 1.0392 there.
    parallelism = Parallelism()
    plain, tuned = (
        step("Qwen/Qwen3-8B", each, parallelism)
        for each in (UNTUNED, StepTuning(decode_ratio=1.2, prompt_ratio=0.9))
    )
    ratio = np.interp(np.log2(192 * 2**0.5), np.log2(GRID_TOKENS), tuned.body_s / plain.body_s)
    assert ratio == pytest.approx((1.2 * 0.9) ** 0.5, rel=0.01)


def test_hops_between_stages_are_not_kernels_of_the_model() -> None:
    parallelism = Parallelism(tp=2, pp=2)
    model = load_model(LLAMA)
    between_s = hops_s(model, parallelism, operators(), NVSWITCH)
    plain, tuned = (step(LLAMA, each, parallelism) for each in (UNTUNED, StepTuning(decode_ratio=1.2)))
    few = GRID_TOKENS <= 192
    assert (between_s > 0).all()
    assert ((tuned.body_s - between_s) / (plain.body_s - between_s))[few] == pytest.approx(1.2)


def test_sustained_compute_lengthens_prompts_and_hardly_decoding() -> None:
    """Llama-3.1-70B at TP 2: 8192 tokens are bound by compute in nearly everything, one token in nothing."""
    parallelism = Parallelism(tp=2)
    plain, sustained = (step(LLAMA, each, parallelism) for each in (UNTUNED, StepTuning(0.1)))
    ratio = sustained.body_s / plain.body_s
    assert (ratio >= 1.0).all()
    assert (ratio < 1.1).all()
    assert ratio[0] < 1.002
    assert ratio[np.searchsorted(GRID_TOKENS, 8192)] > 1.06
    assert sustained.context_per_pair_s == pytest.approx(1.1 * plain.context_per_pair_s)
    assert sustained.decode_per_token_s.tolist() == plain.decode_per_token_s.tolist()
