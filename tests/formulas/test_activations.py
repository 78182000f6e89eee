"""Forward passes, sampling, expert workspaces and graphs of the profiling run, by hand and in shape."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog.load import find_gpu
from planner.catalog.models import bundled_models, load_model
from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.dtypes import WeightDtype
from planner.formulas.activations import Batch, activation_shape, latent_context_tokens
from planner.formulas.cuda_graphs import graph_bytes, kernels_of_model, layer_kernels
from planner.formulas.engine_defaults import parse_version
from planner.formulas.gemms import Experts, check_parallelism, layer_gemms
from planner.formulas.load_target import LoadTarget
from planner.formulas.moe_workspace import (
    ExpertKernel,
    ExpertMemory,
    KernelSite,
    ScaleKind,
    expert_kernel,
    expert_memory,
)
from planner.formulas.profile_rules import ProfileRules, fuses_all_reduce, profile_rules
from planner.formulas.sampler import sampler_state_bytes, sampling_bytes

MIB = 2**20
ALL_MODELS = [model.name for model in bundled_models()]
VERSIONS = [
    "0.11.0",
    "0.11.2",
    "0.13.0",
    "0.14.1",
    "0.16.0",
    "0.18.0",
    "0.21.0",
    "0.26.0",
    "0.28.0",
    "0.33.0",
]
CAPABILITIES = ["8.0", "8.9", "9.0", "10.0", "12.0"]


def site(version: str, capability: str = "9.0", tp: int = 1, **changes: object) -> KernelSite:
    major, minor = map(int, capability.split("."))
    return KernelSite(LoadTarget((major, minor), parse_version(version), 0), tp)._replace(**changes)  # type: ignore[arg-type]


def rules(version: str, model: str = "meta-llama/Llama-3.1-8B") -> ProfileRules:
    return profile_rules(load_model(model), version)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(ALL_MODELS),
    version=st.sampled_from(VERSIONS),
    capability=st.sampled_from(CAPABILITIES),
    tokens=st.integers(1, 32768),
)
def test_a_forward_pass_needs_more_for_more_tokens_and_less_on_more_ranks(
    name: str, version: str, capability: str, tokens: int
) -> None:
    model = load_model(name)
    shapes = {
        tp: activation_shape(model, Parallelism(tp=tp))
        for tp in (1, 2, 4)
        if check_parallelism(model, Parallelism(tp=tp)) is None
    }
    passes = {
        tp: shape.forward(Batch(tokens, 65536, 8192), site(version, capability, tp)).size_bytes
        for tp, shape in shapes.items()
    }
    assert sorted(passes.values(), reverse=True) == [passes[tp] for tp in sorted(passes)]
    for tp, shape in shapes.items():
        assert (
            shape.forward(Batch(2 * tokens, 65536, 8192), site(version, capability, tp)).size_bytes
            >= passes[tp]
        )
        assert passes[tp] >= 2 * tokens * model.hidden * 2
        # less than 1.5 MiB a token and MLA's context: no tens of GiB at 8192 tokens
        assert passes[tp] < tokens * 1.5 * MIB + 5 * 1024 * MIB


class TestForward:
    def test_latent_attention_makes_room_for_context(self) -> None:
        # DeepSeek-V3 at TP 8: 65536 tokens of 16 heads of 128 + 128 in 16 bit
        shape = activation_shape(load_model("deepseek-ai/DeepSeek-V3"), Parallelism(tp=8))
        with_context, without = (
            shape.forward(Batch(1, context), site("0.18.0", tp=8)) for context in (65536, 0)
        )
        assert with_context.passing_bytes - without.passing_bytes == pytest.approx(
            65536 * 16 * 256 * 2, rel=0.001
        )

    @pytest.mark.parametrize(
        ("seqs", "length", "wanted"),
        [(16, 2048, 16384), (256, 1024, 16384), (1024, 1024, 65536), (8192, 64, 131072)],
    )
    def test_that_context_follows_the_longest_requests(self, seqs: int, length: int, wanted: int) -> None:
        engine = EngineSettings(
            max_num_seqs=seqs, max_num_batched_tokens=2048, max_model_len=length, gpu_memory_utilization=0.9
        )
        assert latent_context_tokens(engine) == wanted

    def test_a_sparse_indexer_keeps_room_for_keys_and_passes_through_logits(self) -> None:
        # DeepSeek-V3.2: 40 sequences of 8192 keys of 128 fp8 and a 4-byte scale, but the experts' workspaces at
        # TP 8 are larger; at full length it is 40 x 163840 x 132
        shape = activation_shape(load_model("deepseek-ai/DeepSeek-V3.2"), Parallelism(tp=8))
        short, full = (shape.forward(Batch(64, 0, length), site("0.18.0", tp=8)) for length in (8192, 163840))
        assert (short.kept_bytes, full.kept_bytes) == (40 * 8192 * 132, 40 * 163840 * 132)
        later = shape.forward(Batch(64, 0, 8192), site("0.19.0", tp=8))
        assert 500 * MIB < later.passing_bytes - short.passing_bytes <= 512 * MIB


class TestExperts:
    @pytest.mark.parametrize(
        ("dtype", "where", "kernel"),
        [
            (WeightDtype.BF16, site("0.13.0"), ExpertKernel.TRITON_FUNCTION),
            (WeightDtype.BF16, site("0.18.0"), ExpertKernel.TRITON),
            (WeightDtype.BF16, site("0.20.0"), ExpertKernel.FLASHINFER),
            (WeightDtype.BF16, site("0.20.0", "8.0"), ExpertKernel.TRITON),
            (WeightDtype.BF16, site("0.20.0", dp=2), ExpertKernel.TRITON),
            (WeightDtype.BF16, site("0.23.0"), ExpertKernel.TRITON),
            (WeightDtype.BF16, site("0.23.0", "10.0"), ExpertKernel.FLASHINFER),
            (WeightDtype.BF16, site("0.23.0", "10.0", lora=True), ExpertKernel.TRITON),
            (WeightDtype.FP8, site("0.13.0"), ExpertKernel.TRITON_FUNCTION),
            (WeightDtype.FP8, site("0.14.1"), ExpertKernel.TRITON),
            (WeightDtype.FP8, site("0.11.2"), ExpertKernel.TRITON),
            (WeightDtype.FP8_BLOCK, site("0.13.0", tp=4), ExpertKernel.DEEP_GEMM),
            (WeightDtype.FP8_BLOCK, site("0.13.0", tp=8), ExpertKernel.TRITON_FUNCTION),
            (WeightDtype.FP8_BLOCK, site("0.14.1", tp=8), ExpertKernel.TRITON),
            (WeightDtype.FP8_BLOCK, site("0.16.0", tp=8), ExpertKernel.FLASHINFER),
            (WeightDtype.FP8_BLOCK, site("0.18.0", tp=8), ExpertKernel.TRITON),
            (WeightDtype.FP8_BLOCK, site("0.18.0", tp=8, ep=True), ExpertKernel.FLASHINFER),
            (WeightDtype.FP8_BLOCK, site("0.18.0", "10.0"), ExpertKernel.FLASHINFER),
            (WeightDtype.MXFP4, site("0.18.0", "10.0"), ExpertKernel.FLASHINFER),
            (WeightDtype.MXFP4, site("0.24.0"), ExpertKernel.ROUTED_TRITON),
            (WeightDtype.MXFP4, site("0.24.0", "8.0"), ExpertKernel.MARLIN),
            (WeightDtype.NVFP4, site("0.24.0"), ExpertKernel.MARLIN),
            (WeightDtype.AWQ, site("0.18.0"), ExpertKernel.TRITON_FUNCTION),
        ],
    )
    def test_default_kernels(self, dtype: WeightDtype, where: KernelSite, kernel: ExpertKernel) -> None:
        assert expert_kernel(dtype, where) is kernel

    def test_fp8_kernels_follow_the_scales(self) -> None:
        def kernel(version: str, scales: ScaleKind, capability: str = "9.0") -> ExpertKernel:
            return expert_kernel(WeightDtype.FP8, site(version, capability), scales)

        assert kernel("0.13.0", ScaleKind.CHANNEL) is ExpertKernel.TRITON
        assert kernel("0.13.0", ScaleKind.CHANNEL, "8.9") is ExpertKernel.TRITON_FUNCTION
        assert kernel("0.18.0", ScaleKind.STATIC_TENSOR) is ExpertKernel.FLASHINFER
        assert kernel("0.18.0", ScaleKind.STATIC_TENSOR, "8.9") is ExpertKernel.TRITON

    def test_workspaces_of_deepseek_by_hand(self) -> None:
        # 8192 tokens to 8 of 256 experts, 7168 wide; 2 x 256 outputs of the first product at TP 8, 2 x 512 at 4
        def memory(version: str, tp: int, capability: str = "9.0") -> ExpertMemory:
            experts = layer_gemms(load_model("deepseek-ai/DeepSeek-R1"), 1, Parallelism(tp=tp)).experts
            assert isinstance(experts, Experts)
            return expert_memory(experts, 8192, site(version, capability, tp))

        rows, output = 8192 * 8, 8192 * 7168 * 2
        padded = rows + 256 * 127
        assert memory("0.18.0", 8) == ExpertMemory(rows * 2 * 7168 * 2, output)
        assert memory("0.13.0", 8) == ExpertMemory(0, rows * (7168 + 256) * 2 + output)
        assert memory("0.13.0", 4) == ExpertMemory(padded * 2 * 7168 * 2, padded * 7168 + output)
        assert memory("0.18.0", 8, "10.0") == ExpertMemory(output, rows * (7168 + 512) * 2)

    @pytest.mark.parametrize(("version", "rows"), [("0.11.0", 32768), ("0.16.0", 16384), ("0.18.0", 65536)])
    def test_large_batches_went_through_in_parts(self, version: str, rows: int) -> None:
        experts = layer_gemms(load_model("Qwen/Qwen3-30B-A3B"), 0, Parallelism()).experts
        assert isinstance(experts, Experts)
        whole = expert_memory(experts, 65536, site(version))
        assert whole == expert_memory(experts, rows, site(version))

    def test_data_parallel_ranks_gather_each_others_tokens(self) -> None:
        experts = layer_gemms(load_model("Qwen/Qwen3-30B-A3B"), 0, Parallelism()).experts
        assert isinstance(experts, Experts)
        assert expert_memory(experts, 1024, site("0.24.0", dp=4)) == expert_memory(
            experts, 4096, site("0.24.0")
        )


class TestSampler:
    def test_bytes_a_logit(self) -> None:
        logits = 100 * 1000
        assert sampling_bytes(100, 1000, rules("0.11.0")) == 14 * logits
        assert sampling_bytes(100, 1000, rules("0.16.0")) == 38 * logits
        assert sampling_bytes(100, 1000, rules("0.18.0"), sm_count=80) == 14 * logits + 80 * 1000 * 4
        assert sampling_bytes(100, 1000, rules("0.21.0"), sm_count=80) == 14 * logits
        assert sampling_bytes(100, 1000, rules("0.25.1")) == 6 * logits
        assert sampling_bytes(100, 1000, rules("0.32.0")) == 2 * logits
        assert sampling_bytes(100, 1000, rules("0.32.0"), tp=4) == 4.5 * logits
        assert sampling_bytes(100, 1000, rules("0.21.0"), drafts=True) == 18 * logits

    def test_only_the_second_runner_keeps_tables(self) -> None:
        assert sampler_state_bytes(8, 1000, rules("0.21.0")) == 0
        assert sampler_state_bytes(8, 1000, rules("0.32.0")) == 8 * 4250


@pytest.mark.parametrize(
    ("model", "since"),
    [
        ("Qwen/Qwen3-32B", "0.22.1"),
        ("meta-llama/Llama-3.1-8B", "0.23.0"),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "0.24.0"),
        ("deepseek-ai/DeepSeek-V2-Lite", "0.24.0"),
        ("google/gemma-3-27b-it", "0.25.1"),
        ("Qwen/Qwen3-30B-A3B", "0.29.0"),
        ("deepseek-ai/DeepSeek-R1", "0.29.0"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "0.29.0"),
    ],
)
def test_the_release_that_moved_a_model_to_the_second_runner(model: str, since: str) -> None:
    releases = ["0.21.0", "0.22.1", "0.23.0", "0.24.0", "0.25.1", "0.26.0", "0.28.0", "0.29.0", "0.33.0"]
    moved = [version for version in releases if rules(version, model).v2_runner]
    assert moved == releases[releases.index(since) :]


def test_the_second_runner_charged_no_graphs_at_first() -> None:
    assert [rules(version).charges_cuda_graphs for version in ("0.19.0", "0.21.0", "0.26.0", "0.29.0")] == [
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("gpu", "tp", "alone", "version", "fused"),
    [
        ("H200", 4, True, "0.18.0", True),
        ("H200", 4, True, "0.16.0", False),
        ("H200", 1, True, "0.18.0", False),
        ("H200", 6, True, "0.18.0", False),
        ("H200", 4, False, "0.18.0", False),
        ("H200", 4, False, "0.26.0", True),
        ("B200", 8, True, "0.18.0", True),
        ("A100-SXM-80GB", 4, True, "0.18.0", False),
        ("L40S", 4, True, "0.32.0", False),
    ],
)
def test_where_all_reduces_are_fused(gpu: str, tp: int, alone: bool, version: str, fused: bool) -> None:
    assert fuses_all_reduce(find_gpu(gpu), tp, alone=alone, version=parse_version(version)) is fused


class TestGraphs:
    def test_kernels_by_hand(self) -> None:
        # attention 2 products and 5 more, feed-forward 2 and 2 more, an all-reduce after each
        assert layer_kernels(load_model("meta-llama/Llama-3.1-8B"), 0, Parallelism(tp=2)) == 13
        # attention with head norms 8; router, norm, 9 of the experts
        assert layer_kernels(load_model("Qwen/Qwen3-30B-A3B"), 0, Parallelism()) == 19
        # MLA: 4 products, 4 quantisations, 10 more; router, norm, 9 of the experts and 2 quantisations; shared
        # expert 2 products, 2 quantisations, 2 more; 2 all-reduces
        assert layer_kernels(load_model("deepseek-ai/DeepSeek-R1"), 1, Parallelism(tp=8)) == 39

    def test_stages_share_the_layers(self) -> None:
        model = load_model("meta-llama/Llama-3.1-8B")
        assert kernels_of_model(model, Parallelism(pp=2)) * 2 == kernels_of_model(model, Parallelism())

    def test_a_graph_counts_a_mebibyte_at_least(self) -> None:
        assert graph_bytes((1, 2, 4), 10, 100.0, full_up_to=2) == 5 * MIB
        assert graph_bytes((1, 2, 4), 1000, 9000.0, full_up_to=0) == 3 * 9_000_000
