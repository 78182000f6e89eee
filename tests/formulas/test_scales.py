"""Factors on kernels: together they scale every kernel, alone each its own, and none twice."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from planner.calibrate.step_unknowns import StepDeployment, tuned_step
from planner.catalog.models import load_model
from planner.domain.calibration import StepShape
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.hardware import Interconnect
from planner.formulas.arrays import FloatArray
from planner.formulas.operators import OperatorCoefficients
from planner.formulas.operators.scales import LARGEST_SCALE, LEAST_SCALE, PLAIN, KernelScales, scaled
from planner.formulas.shape_time import shape_columns, shapes_s
from planner.formulas.step import Cluster
from tests.calibrate import made_steps
from tests.formulas.known_operators import ops_of

GPU = "H100-SXM-80GB"
COEFFICIENTS = ops_of(GPU).coefficients
FACTORS = tuple(name for name in KernelScales.model_fields if name != "logit_s")
SHAPES = (
    *(StepShape(decodes=batch, context_tokens=context) for batch in (1, 32, 256) for context in (64, 8192)),
    *(
        StepShape(prompts=1, prompt_tokens=tokens, past_tokens=past)
        for tokens in (64, 4096)
        for past in (0, 2048)
    ),
    StepShape(prompts=2, prompt_tokens=512, decodes=32, context_tokens=1024),
)
MODELS = {
    "dense": ("meta-llama/Llama-3.1-8B", 1),
    "eager": ("meta-llama/Llama-3.1-8B", 1),
    "collectives": ("meta-llama/Llama-3.1-70B", 8),
    "experts": ("Qwen/Qwen3-30B-A3B", 2),
    "latent": ("deepseek-ai/DeepSeek-V3", 8),
    "linear": ("Qwen/Qwen3-Next-80B-A3B-Instruct", 4),
    "4-bit, windowed": ("openai/gpt-oss-120b", 2),
}


def deployment_of(name: str) -> StepDeployment:
    """One of MODELS, with graphs of up to 512 tokens unless eager; `assumed`: a CPU without kernel tables."""
    if name == "assumed":
        return made_steps.deployment()
    model, tp = MODELS[name]
    return StepDeployment(
        name=name,
        model=load_model(model),
        parallelism=Parallelism(tp=tp),
        kv_dtype=KvDtype.AUTO,
        operators=ops_of(GPU),
        cluster=Cluster(Interconnect.NVSWITCH if tp > 1 else Interconnect.NONE, 0.0),
        engine_version="0.32.0",
        captured_tokens=() if name == "eager" else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        largest_tokens=8192,
    )


def times_s(name: str, scales: KernelScales) -> FloatArray:
    """Of SHAPES, without host time [N]."""
    one = deployment_of(name)
    step = tuned_step(one, scales, np.zeros(len(one.knots)))
    return shapes_s(step, shape_columns(SHAPES), one.captured_tokens)


@pytest.mark.parametrize("name", [*MODELS, "assumed"])
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_together_they_scale_the_whole_step(name: str, factor: float) -> None:
    """A step is kernels and launches alone, so a coefficient that no factor reached, or two did, would show."""
    plain = times_s(name, PLAIN)
    together = KernelScales(**dict.fromkeys(FACTORS, factor))
    np.testing.assert_allclose(times_s(name, together), factor * plain, rtol=1e-9)


@pytest.mark.parametrize("name", [*MODELS, "assumed"])
@pytest.mark.parametrize("field", FACTORS)
def test_slower_kernels_make_no_step_faster(name: str, field: str) -> None:
    plain, slower = times_s(name, PLAIN), times_s(name, KernelScales(**{field: 2.0}))
    assert (slower >= plain * (1 - 1e-12)).all()
    assert (slower <= 2.0 * plain * (1 + 1e-12)).all()


SHOWS = {
    "compute": ("dense", 9),
    "weights": ("dense", 0),
    "expert_compute": ("experts", 9),
    "expert_weights": ("experts", 0),
    "launch": ("dense", 0),
    "elementwise": ("dense", 9),
    "decode_cache": ("dense", 5),
    "decode_sequence": ("linear", 4),
    "prompt_pairs": ("dense", 9),
    "prompt_tokens": ("linear", 8),
    "collective": ("collectives", 9),
    "dispatch": ("eager", 0),
}


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of a nest of mappings and lists, with the names that lead to it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, (*path, str(name)))
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            yield from leaves(inner, (*path, str(at)))
    else:
        yield path, value


def changed(after: OperatorCoefficients) -> dict[str, float]:
    """What became of coefficients: by operator and field, the ratio that all of them share."""
    before = dict(leaves(COEFFICIENTS.model_dump()))
    found: dict[str, set[float]] = {}
    for path, value in leaves(after.model_dump()):
        old = before.pop(path)
        if not isinstance(value, float) or old == 0.0:
            assert value == old
            continue
        found.setdefault(f"{path[0]}.{path[-1]}", set()).add(round(value / old, 9))
    assert not before
    assert all(len(ratios) == 1 for ratios in found.values())
    return {name: ratios.pop() for name, ratios in found.items() if ratios != {1.0}}


SLOWER = {
    "compute": {"gemm.flop_efficiency": 0.5, "mla.bmm_flop_efficiency": 0.5},
    "weights": {"gemm.byte_efficiency": 0.5, "mla.bmm_byte_efficiency": 0.5},
    "expert_compute": {"moe.flop_efficiency": 0.5},
    "expert_weights": {"moe.byte_efficiency": 0.5},
    "launch": {
        "gemm.constant_s": 2.0,
        "gemm.per_k_s": 2.0,
        "moe.constant_s": 2.0,
        "moe.per_width_s": 2.0,
        "decode_attention.constant_s": 2.0,
        "context_attention.constant_s": 2.0,
        "mla.bmm_constant_s": 2.0,
        "mla.decode_constant_s": 2.0,
        "mla.context_constant_s": 2.0,
        "linear_attention.decode_constant_s": 2.0,
        "linear_attention.context_constant_s": 2.0,
        "elementwise.launch_s": 2.0,
    },
    "elementwise": {
        "gemm.quantize_passes": 2.0,
        "moe.activation_efficiency": 0.5,
        "moe.token_passes": 2.0,
        "elementwise.byte_efficiency": 0.5,
    },
    "decode_cache": {
        "decode_attention.byte_efficiency": 0.5,
        "mla.decode_byte_efficiency": 0.5,
        "mla.decode_flop_efficiency": 0.5,
    },
    "decode_sequence": {
        "decode_attention.per_kv_head_s": 2.0,
        "decode_attention.per_query_head_s": 2.0,
        "linear_attention.decode_byte_efficiency": 0.5,
    },
    "prompt_pairs": {"context_attention.flop_efficiency": 0.5, "mla.context_flop_efficiency": 0.5},
    "prompt_tokens": {
        "context_attention.byte_efficiency": 0.5,
        "context_attention.per_key_s": 2.0,
        "mla.context_byte_efficiency": 0.5,
        "linear_attention.context_byte_efficiency": 0.5,
        "linear_attention.context_per_token_s": 2.0,
    },
    "collective": {
        "nvlink_all_reduce.constant_s": 2.0,
        "nvlink_all_reduce.link_efficiency": 0.5,
        "pcie_all_reduce.constant_s": 2.0,
        "pcie_all_reduce.link_efficiency": 0.5,
    },
    "dispatch": {"elementwise.dispatch_ratio": 2.0},
}
"""What twice the time means: constants double, efficiencies halve."""


@pytest.mark.parametrize("field", FACTORS)
def test_each_moves_its_own_coefficients(field: str) -> None:
    found = changed(scaled(COEFFICIENTS, KernelScales(**{field: 2.0})))
    # Coefficients that are 0 on this GPU stay so.
    present = {f"{path[0]}.{path[-1]}" for path, value in leaves(COEFFICIENTS.model_dump()) if value}
    assert found == {name: ratio for name, ratio in SLOWER[field].items() if name in present}


@pytest.mark.parametrize("field", FACTORS)
def test_each_shows_in_a_step_that_rests_on_it(field: str) -> None:
    name, at = SHOWS[field]
    plain, slower = times_s(name, PLAIN)[at], times_s(name, KernelScales(**{field: 2.0}))[at]
    assert slower > 1.001 * plain


def test_a_prompt_of_a_dense_model_is_bound_by_compute_and_a_small_batch_by_weights() -> None:
    """Twice the time there: nearly twice the step. The other factor hardly shows."""
    for shape_at, mine, other in ((8, "compute", "weights"), (0, "weights", "compute")):
        plain, slow, fast = (
            times_s("dense", scales)[shape_at]
            for scales in (PLAIN, KernelScales(**{mine: 2.0}), KernelScales(**{other: 2.0}))
        )
        assert slow / plain > 1.6
        assert fast / plain < 1.2


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FACTORS), st.floats(0.05, 30.0), st.floats(0.05, 30.0))
def test_one_after_the_other_is_their_product(field: str, first: float, second: float) -> None:
    twice = scaled(scaled(COEFFICIENTS, KernelScales(**{field: first})), KernelScales(**{field: second}))
    once = scaled(COEFFICIENTS, KernelScales(**{field: first * second}))
    for (path, value), (_, other) in zip(leaves(twice.model_dump()), leaves(once.model_dump()), strict=True):
        assert value == (pytest.approx(other) if isinstance(other, float) else other), path


def test_seconds_a_logit_replace_what_was_assumed() -> None:
    assert scaled(COEFFICIENTS, PLAIN) is COEFFICIENTS
    told = scaled(COEFFICIENTS, KernelScales(logit_s=2e-9))
    assert told.elementwise.logit_s == 2e-9
    assert scaled(told, KernelScales(launch=2.0)).elementwise.logit_s == 2e-9
    # 32 rows of 32,000 logits in 2 ns each: 2.048 ms more than without.
    more_s = times_s("assumed", KernelScales(logit_s=2e-9)) - times_s("assumed", PLAIN)
    assert more_s[2] == pytest.approx(32 * 32_000 * 2e-9, rel=0.01)


@pytest.mark.parametrize("value", [0.0, -1.0, LEAST_SCALE / 2, 2 * LARGEST_SCALE, float("nan")])
def test_factors_beyond_reason_are_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="compute"):
        KernelScales(compute=value)
