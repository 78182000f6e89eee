"""One step taken apart: parts against the whole, rooflines against hand counts, and what binds where it must."""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.assemble.question import facts_for
from planner.catalog.models import load_model
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import ComputeDtype, KvDtype, WeightDtype
from planner.domain.hardware import Interconnect
from planner.formulas.arrays import FloatArray, IntArray
from planner.formulas.breakdown import Breakdown, PartTime, breakdown, ridge_batch
from planner.formulas.relief import Resource, relieved
from planner.formulas.step import GRID_TOKENS, Cluster, decode_step_s, mixed_step_s, stack
from planner.formulas.step_parts import Layout, Operator, StepLoad, layer_type

NVSWITCH = Cluster(Interconnect.NVSWITCH, network_bytes_per_s=1e10, stages_per_instance=1)
FIRST = np.array([0])
HOST_S = 4e-4


class Deployed(NamedTuple):
    """A layout by name."""

    model: str
    parallelism: Parallelism = Parallelism()
    gpu: str = "H100-SXM-80GB"
    weights: WeightDtype | None = None
    interconnect: Interconnect = Interconnect.NVSWITCH


CASES = {
    "dense": Deployed("meta-llama/Llama-3.1-8B"),
    "dense fp8, two stages": Deployed(
        "meta-llama/Llama-3.1-70B", Parallelism(tp=2, pp=2), weights=WeightDtype.FP8
    ),
    "dense int4": Deployed("Qwen/Qwen3-32B-AWQ", Parallelism(tp=2)),
    "experts, TP": Deployed("Qwen/Qwen3-30B-A3B", Parallelism(tp=2)),
    "experts, EP": Deployed("Qwen/Qwen3-30B-A3B", Parallelism(tp=2, ep=True)),
    "experts, DP": Deployed("Qwen/Qwen3-30B-A3B-FP8", Parallelism(tp=1, dp=2, ep=True)),
    "window, mxfp4": Deployed("openai/gpt-oss-120b", Parallelism(tp=2)),
    "latent, fp8 blocks": Deployed("deepseek-ai/DeepSeek-V3", Parallelism(tp=8)),
    "sparse latent": Deployed("deepseek-ai/DeepSeek-V3.2", Parallelism(tp=8, ep=True), gpu="H200-SXM-141GB"),
    "linear": Deployed("Qwen/Qwen3-Next-80B-A3B-Instruct", Parallelism(tp=4)),
    "Mamba": Deployed("nvidia/Nemotron-H-56B-Base-8K", Parallelism(tp=4)),
    "Mamba and latent experts": Deployed("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8", Parallelism(tp=4)),
    "chunks": Deployed("meta-llama/Llama-4-Maverick-17B-128E-Instruct", Parallelism(tp=8)),
    "dense beside experts": Deployed("google/gemma-4-26B-A4B", Parallelism(tp=2)),
    "many widths": Deployed("nvidia/Llama-3_3-Nemotron-Super-49B-v1", Parallelism(tp=2)),
    "A100": Deployed("meta-llama/Llama-3.1-8B", Parallelism(tp=2), gpu="A100-SXM-80GB"),
    "PCIe": Deployed("Qwen/Qwen3-32B", Parallelism(tp=4), gpu="L40S", interconnect=Interconnect.PCIE),
}
LOADS = {
    "one": StepLoad(1, 100.0, host_s=HOST_S),
    "decode": StepLoad(64, 4000.0, host_s=HOST_S),
    "mixed": StepLoad(32, 2000.0, 480, host_s=HOST_S),
    "long prompt": StepLoad(8, 20_000.0, 8184, host_s=HOST_S),
}


class Prompt:
    """A whole prompt, nothing of it cached."""

    def __init__(self, tokens: float) -> None:
        self.layout: IntArray = FIRST
        self.input_tokens: FloatArray = np.array([tokens])
        self.cached_tokens: FloatArray = np.zeros(1)


@cache
def layout_of(deployed: Deployed) -> Layout:
    facts = facts_for()
    return Layout(
        model=load_model(deployed.model, weight_dtype=deployed.weights),
        parallelism=deployed.parallelism,
        kv_dtype=KvDtype.AUTO,
        ops=facts.operators_for(facts.gpus[deployed.gpu]),
        cluster=NVSWITCH._replace(interconnect=deployed.interconnect),
    )


@cache
def found(deployed: Deployed, load: StepLoad) -> Breakdown:
    return breakdown(layout_of(deployed), load)


def whole_s(layout: Layout, load: StepLoad) -> float:
    """What the compiled step model says of the same step, the host on top."""
    table = stack([layout.step()])
    sequences, contexts = np.array([float(load.sequences)]), np.array([load.context_tokens])
    if not load.prompt_tokens:
        return float(decode_step_s(table, FIRST, sequences, contexts)[0]) + load.host_s
    prompts = np.array([float(load.prompt_tokens)])
    return float(mixed_step_s(table, Prompt(prompts[0]), sequences, contexts, prompts)[0]) + load.host_s


def part(of: Breakdown, operator: Operator) -> PartTime:
    (only,) = (one for one in of.parts if one.operator is operator)
    return only


def seconds_by_operator(of: Breakdown) -> Mapping[Operator, float]:
    sums = dict.fromkeys(Operator, 0.0)
    for one in of.parts:
        sums[one.operator] += one.time_s
    return sums


@pytest.mark.parametrize("case", CASES)
def test_parts_add_up_to_the_compiled_step(case: str) -> None:
    layout = layout_of(CASES[case])
    for load in LOADS.values():
        here = found(CASES[case], load)
        assert sum(one.time_s for one in here.parts) == pytest.approx(whole_s(layout, load), rel=1e-9)
        assert here.step_s == pytest.approx(whole_s(layout, load), rel=1e-9)


@pytest.mark.parametrize("case", ["dense", "experts, DP", "sparse latent", "linear"])
def test_parts_add_up_at_every_grid_point(case: str) -> None:
    for tokens in GRID_TOKENS[GRID_TOKENS <= 1024]:
        load = StepLoad(int(tokens), 1500.0)
        here = found(CASES[case], load)
        assert here.step_s == pytest.approx(whole_s(layout_of(CASES[case]), load), rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    case=st.sampled_from(["dense", "window, mxfp4", "latent, fp8 blocks"]),
    sequences=st.integers(1, 2000),
    context=st.integers(1, 130_000),
    prompt=st.integers(0, 16_000),
)
def test_parts_add_up_for_any_step(case: str, sequences: int, context: int, prompt: int) -> None:
    load = StepLoad(sequences, float(context), prompt, host_s=HOST_S)
    here = breakdown(layout_of(CASES[case]), load)
    assert here.step_s == pytest.approx(whole_s(layout_of(CASES[case]), load), rel=1e-9)
    assert all(one.time_s > 0 for one in here.parts)


def test_a_prompt_alone_decodes_nothing() -> None:
    """The step model charges the decode kernels' constant even then; nothing is launched."""
    layout, load = layout_of(CASES["dense"]), StepLoad(0, 0.0, 2048)
    here = found(CASES["dense"], load)
    assert Operator.ATTENTION_DECODE not in {one.operator for one in here.parts}
    assert here.step_s == pytest.approx(whole_s(layout, load) - layout.step().decode_constant_s, rel=1e-9)


def test_padding_runs_the_layers_at_the_captured_size() -> None:
    few, padded, full = (
        seconds_by_operator(found(CASES["dense"], load))
        for load in (StepLoad(33, 500.0), StepLoad(33, 500.0, padding_tokens=7), StepLoad(40, 500.0))
    )
    for operator in (Operator.QKV, Operator.DENSE_MLP, Operator.ELEMENTWISE):
        assert padded[operator] == pytest.approx(full[operator])
    for operator in (Operator.ATTENTION_DECODE, Operator.HEAD):
        assert padded[operator] == few[operator] != full[operator]


@pytest.mark.parametrize("case", CASES)
def test_every_layer_is_counted_once(case: str) -> None:
    model = layout_of(CASES[case]).model
    parts = found(CASES[case], LOADS["mixed"]).parts
    layers = {one.layer_type: one.layers for one in parts if one.layers}
    assert sum(layers.values()) == model.layers
    assert set(layers) == {layer_type(kind) for kind in model.layer_kinds}
    assert len({(one.layer_type, one.operator) for one in parts}) == len(parts)


@pytest.mark.parametrize("case", CASES)
def test_no_part_is_much_faster_than_its_roofline(case: str) -> None:
    """Measured kernels lie a little under datasheet rates at most: boost clocks, cached activations."""
    for load in LOADS.values():
        for one in found(CASES[case], load).parts:
            if one.roofline_s is not None:
                assert 0 <= one.roofline_s <= 1.1 * one.time_s, one


@pytest.mark.parametrize("case", CASES)
def test_relief_never_lengthens_a_step(case: str) -> None:
    for load in LOADS.values():
        here = found(CASES[case], load)
        for what, time_s in here.relieved_step_s.items():
            assert -1e-12 <= time_s <= here.step_s * (1 + 1e-9), what
        assert here.binds is min(here.relieved_step_s, key=here.relieved_step_s.__getitem__)
        assert here.next_limit is not here.binds
        assert here.relieved_step_s[Resource.HOST] == pytest.approx(here.step_s - HOST_S)
        between = sum(one.time_s for one in here.parts if one.binds is Resource.COMMUNICATION)
        assert here.relieved_step_s[Resource.COMMUNICATION] == pytest.approx(here.step_s - between)


def test_a_faster_memory_lies_between_this_one_and_an_infinite_one() -> None:
    deployed, load = CASES["dense"], LOADS["decode"]
    layout, here = layout_of(deployed), found(deployed, load)
    gpu = layout.ops.gpu
    faster = gpu.model_copy(update={"memory_bandwidth_bytes_per_s": 2 * gpu.memory_bandwidth_bytes_per_s})
    half_s = breakdown(layout._replace(ops=layout.ops._replace(gpu=faster)), load).step_s
    assert here.relieved_step_s[Resource.BANDWIDTH] < half_s < here.step_s


def test_rooflines_of_a_small_dense_step_by_hand() -> None:
    """Llama-3.1-8B, 32 layers, H100 at 3.35e12 bytes/s: weights, inputs and outputs in bf16; 131,072 bytes of KV
    cache a token; element-wise traffic of 4 hidden states a norm and 3 widths of the MLP."""
    here = found(CASES["dense"], StepLoad(16, 3000.0))
    bandwidth = 3.35e12

    def product_s(n: int, k: int) -> float:
        return 2 * (n * k + 16 * (n + k)) / bandwidth

    expected = {
        Operator.QKV: 32 * product_s(6144, 4096),
        Operator.OUT_PROJECTION: 32 * product_s(4096, 4096),
        Operator.DENSE_MLP: 32 * (product_s(28672, 4096) + product_s(4096, 14336)),
        Operator.ATTENTION_DECODE: 16 * 3000 * 131_072 / bandwidth,
        Operator.ELEMENTWISE: 32 * 16 * (2 * 4 * 4096 + 3 * 14336) * 2 / bandwidth,
        Operator.HEAD: product_s(128_256, 4096),
    }
    assert {one.operator for one in here.parts} == set(expected)
    for operator, roofline_s in expected.items():
        assert part(here, operator).roofline_s == pytest.approx(roofline_s, rel=1e-6), operator


def test_rooflines_of_a_long_prompt_are_its_flop() -> None:
    """8,192 tokens at 989.4e12 FLOP/s: 2 FLOP a weight; 2 x 8192^2 / 2 pairs x 32 heads x 256."""
    here = found(CASES["dense"], StepLoad(0, 0.0, 8192))
    peak = facts_for().gpus["H100-SXM-80GB"].peak_flop_per_s[ComputeDtype.BF16]
    mlp_s = 32 * 2 * 8192 * 3 * 4096 * 14336 / peak
    pairs_s = 32 * 2 * (8192**2 / 2) * 32 * 256 / peak
    assert part(here, Operator.DENSE_MLP).roofline_s == pytest.approx(mlp_s, rel=1e-6)
    assert part(here, Operator.ATTENTION_PREFILL).roofline_s == pytest.approx(pairs_s, rel=1e-6)


def test_rooflines_of_what_is_sent_by_hand() -> None:
    """Llama-3.1-70B, TP 2, PP 2: 160 all-reduces of 64 x 8192 x 2 bytes, 2 (n - 1) / n = 1 of them over 900 GB/s;
    one hop over the network's 1e10 bytes/s of hidden states and residuals."""
    here = found(CASES["dense fp8, two stages"], StepLoad(64, 1000.0))
    message_bytes = 64 * 8192 * 2
    assert part(here, Operator.ALL_REDUCE).roofline_s == pytest.approx(160 * message_bytes / 9e11, rel=1e-6)
    assert part(here, Operator.HOPS).roofline_s == pytest.approx(2 * message_bytes / 1e10, rel=1e-6)


def test_rooflines_of_experts_read_what_the_routing_hits() -> None:
    """With thousands of tokens every expert of Qwen3-30B-A3B is read: 48 layers x 128 x 3 x 2048 x 768 / 2 ranks."""
    weights_s = 48 * 128 * 3 * 2048 * 768 / 2 * 2 / 3.35e12
    one, many = (
        part(found(CASES["experts, TP"], StepLoad(batch, 100.0)), Operator.EXPERTS).roofline_s
        for batch in (1, 1024)
    )
    assert one is not None
    assert many is not None
    assert 8 / 128 * weights_s * 0.5 < one < 8 / 128 * weights_s * 1.5
    assert weights_s * 0.8 < many < weights_s * 2


@pytest.mark.parametrize(
    ("deployed", "load", "wanted"),
    [
        (CASES["dense"], StepLoad(1, 100.0), Resource.BANDWIDTH),
        (CASES["dense"], StepLoad(64, 16_000.0), Resource.BANDWIDTH),
        (CASES["dense"], StepLoad(0, 0.0, 8192), Resource.COMPUTE),
        (Deployed("Qwen/Qwen3-0.6B"), StepLoad(1, 100.0), Resource.LATENCY),
        (CASES["PCIe"], StepLoad(0, 0.0, 8192), Resource.COMMUNICATION),
        (CASES["dense"], StepLoad(1, 100.0, host_s=1.0), Resource.HOST),
    ],
)
def test_what_must_bind_binds(deployed: Deployed, load: StepLoad, wanted: Resource) -> None:
    assert found(deployed, load).binds is wanted


def test_the_next_limit_is_what_is_left() -> None:
    """A prompt's products take compute and, without it, bandwidth; a host as long as the rest comes next where the
    rest is long gone."""
    assert found(CASES["dense"], StepLoad(0, 0.0, 8192)).next_limit is Resource.BANDWIDTH
    decode = found(CASES["dense"], StepLoad(1, 100.0))
    slow_host = found(CASES["dense"], StepLoad(1, 100.0, host_s=decode.step_s / 2))
    assert (slow_host.binds, slow_host.next_limit) == (Resource.BANDWIDTH, Resource.HOST)


def test_the_ridge_lies_where_flop_and_bytes_meet() -> None:
    """bf16 on H100: 989e12 / 3.35e12 = 295 tokens a weight of 2 bytes and 2 FLOP; kernels move it a little.

    Long contexts add bytes and no FLOP, so there is none.
    """
    layout = layout_of(CASES["dense"])
    ridge = ridge_batch(layout, 1.0, 1024)
    assert ridge is not None
    assert 295 / 2 < ridge < 295 * 2
    assert ridge_batch(layout, 1.0, ridge) == ridge
    assert ridge_batch(layout, 1.0, ridge - 1) is None
    assert ridge_batch(layout, 100_000.0, 1024) is None
    before, after = (
        found(CASES["dense"], StepLoad(batch, 1.0)).relieved_step_s for batch in (ridge - 1, ridge)
    )
    assert before[Resource.COMPUTE] >= before[Resource.BANDWIDTH]
    assert after[Resource.COMPUTE] < after[Resource.BANDWIDTH]


def test_operators_are_left_as_they_were() -> None:
    """Relief answers with other operators, whose cached curves are their own."""
    layout = layout_of(CASES["dense"])
    before = layout.ops.coefficients.model_dump()
    for what in Resource:
        freed = relieved(layout.ops, what)
        assert (freed == layout.ops) == (what in (Resource.COMMUNICATION, Resource.HOST))
    breakdown(layout, LOADS["mixed"])
    assert layout.ops.coefficients.model_dump() == before
