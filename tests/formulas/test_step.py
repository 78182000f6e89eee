"""Step time on real models and GPUs: never faster than the hardware, monotone, and linear where it says so."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.assemble.question import facts_for
from planner.catalog.models import load_model
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.hardware import Interconnect
from planner.formulas.arrays import FloatArray, IntArray
from planner.formulas.step import (
    GRID_TOKENS,
    Cluster,
    StepTable,
    compile_step,
    decode_step_s,
    mixed_step_s,
    stack,
)
from planner.formulas.weights import weights_bytes

FIRST = np.array([0])
NVSWITCH = Cluster(Interconnect.NVSWITCH, network_bytes_per_s=0.0, stages_per_instance=2)


class Prompt:
    """A prompt of a fixed length."""

    def __init__(self, input_tokens: float, cached_tokens: float = 0.0) -> None:
        self.layout: IntArray = FIRST
        self.input_tokens: FloatArray = np.array([input_tokens])
        self.cached_tokens: FloatArray = np.array([cached_tokens])


@cache
def table(model: str, gpu: str = "H100-SXM-80GB", tp: int = 1, pp: int = 1) -> StepTable:
    facts = facts_for()
    parallelism = Parallelism(tp=tp, pp=pp)
    operators = facts.operators_for(facts.gpus[gpu])
    return stack([compile_step(load_model(model), parallelism, KvDtype.AUTO, operators, NVSWITCH)])


def decode_s(steps: StepTable, sequences: float, context: float) -> float:
    return float(decode_step_s(steps, FIRST, np.array([sequences]), np.array([context]))[0])


def mixed_s(steps: StepTable, sequences: float, prompt: float, context: float = 1000.0) -> float:
    return float(
        mixed_step_s(steps, Prompt(prompt), np.array([sequences]), np.array([context]), np.array([prompt]))[0]
    )


@pytest.mark.parametrize("gpu", ["H100-SXM-80GB", "A100-SXM-80GB", "L40S", "H200-SXM-141GB", "B200", "L4"])
def test_one_token_takes_at_least_the_time_to_read_the_weights(gpu: str) -> None:
    """Llama-3.1-8B: 16.06 GB less the 1.05 GB embedding table that a lookup does not read."""
    model = load_model("meta-llama/Llama-3.1-8B")
    read_bytes = weights_bytes(model, Parallelism()) - 128256 * 4096 * 2
    bandwidth = facts_for().gpus[gpu].memory_bandwidth_bytes_per_s
    floor_s = read_bytes / bandwidth
    assert floor_s < decode_s(table("meta-llama/Llama-3.1-8B", gpu), 1, 100) < 2.0 * floor_s


def test_a_long_prompt_takes_at_least_its_flops() -> None:
    """8,192 tokens through the 6.98e9 weights of Llama-3.1-8B's layers: 2 x tokens x weights / peak."""
    floor_s = 2 * 8192 * 6.98e9 / facts_for().gpus["H100-SXM-80GB"].peak_flop_per_s["bf16"]
    assert floor_s < mixed_s(table("meta-llama/Llama-3.1-8B"), 0, 8192) < 2.5 * floor_s


def test_context_costs_its_cache_bytes() -> None:
    """64 sequences x 4,000 more tokens x 131,072 bytes at H100 bandwidth, with at most 40 % lost."""
    steps = table("meta-llama/Llama-3.1-8B")
    extra_s = decode_s(steps, 64, 6000) - decode_s(steps, 64, 2000)
    floor_s = 64 * 4000 * 131_072 / 3.35e12
    assert floor_s < extra_s < floor_s / 0.6


def test_a_window_bounds_the_cost_of_context() -> None:
    """gpt-oss: half of the layers see 128 tokens and cost nothing more beyond them."""
    steps = table("openai/gpt-oss-120b", tp=2)
    bounded, unbounded = steps.scope_tokens[0] < 1e9, steps.scope_tokens[0] > 1e9
    assert set(steps.scope_tokens[0][bounded]) == {128.0}
    assert steps.decode_per_token_s[0][bounded].sum() > 0
    short, longer = decode_s(steps, 32, 4000), decode_s(steps, 32, 5000)
    assert longer - short == pytest.approx(32 * 1000 * steps.decode_per_token_s[0][unbounded].sum())


def test_more_ranks_are_faster_but_not_ideally() -> None:
    one, four = (decode_s(table("Qwen/Qwen3-32B", tp=tp), 8, 1000) for tp in (1, 4))
    assert one / 4 < four < one


def test_two_stages_add_a_hop_and_change_nothing_else() -> None:
    one, two = (decode_s(table("meta-llama/Llama-3.1-8B", pp=pp), 8, 1000) for pp in (1, 2))
    assert one < two < one + 1e-3


def test_few_tokens_leave_most_experts_unread() -> None:
    """Qwen3-30B-A3B: 8 of 128 experts serve one token, nearly all serve 256."""
    steps = table("Qwen/Qwen3-30B-A3B")
    bandwidth = 3.35e12
    whole_s = weights_bytes(load_model("Qwen/Qwen3-30B-A3B"), Parallelism()) / bandwidth
    assert decode_s(steps, 1, 100) < 0.6 * whole_s
    assert decode_s(steps, 256, 100) > 0.8 * whole_s


@given(
    model=st.sampled_from(["meta-llama/Llama-3.1-8B", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-V3"]),
    sequences=st.floats(1, 1000),
    context=st.floats(1, 100_000),
    more=st.floats(1.01, 3),
)
def test_more_work_never_takes_less_time(model: str, sequences: float, context: float, more: float) -> None:
    steps = table(model, tp=8)
    here = decode_s(steps, sequences, context)
    assert np.isfinite(here)
    assert here > 0
    assert decode_s(steps, sequences, context * more) >= here
    assert decode_s(steps, sequences * more, context) >= here * 0.97  # kernels change with batch size
    assert mixed_s(steps, sequences, 512.0, context) >= here * 0.97


def test_curves_are_exact_on_the_grid_and_between() -> None:
    steps = table("meta-llama/Llama-3.1-8B")
    at = 10
    exact = steps.body_s[0, at] + steps.head_s[0, at] + steps.decode_constant_s[0]
    tokens = GRID_TOKENS[at]
    assert decode_s(steps, tokens, 0.0) == pytest.approx(exact + tokens * steps.decode_per_sequence_s[0])


def test_hopper_ran_marlin_experts_until_0_19() -> None:
    """Marlin multiplies in 16 bit from 4-bit weights: prompts take longer than through the later Triton kernel."""
    facts, parallelism = facts_for(), Parallelism(tp=2)
    operators = facts.operators_for(facts.gpus["H100-SXM-80GB"])
    older, newer = (
        stack(
            [
                compile_step(
                    load_model("openai/gpt-oss-120b"),
                    parallelism,
                    KvDtype.AUTO,
                    operators,
                    NVSWITCH,
                    engine_version=version,
                )
            ]
        )
        for version in ("0.18.0", "0.19.0")
    )
    assert mixed_s(older, 1, 4096.0) > 1.2 * mixed_s(newer, 1, 4096.0)
