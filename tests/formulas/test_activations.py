"""Forward passes and expert workspaces of the profiling run, by hand and in shape."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog.models import bundled_models, load_model
from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.dtypes import WeightDtype
from planner.formulas.activations import Batch, activation_shape, latent_context_tokens
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


def site(
    version: str, capability: str = "9.0", tp: int = 1, *, lora: bool = False, **changes: object
) -> KernelSite:
    major, minor = map(int, capability.split("."))
    layout = Parallelism.model_validate({"tp": tp} | changes)
    return KernelSite(LoadTarget((major, minor), parse_version(version), 0, lora), layout)


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
        ("seqs", "length", "block", "version", "wanted"),
        [
            # 8 requests of full length, or 4 pages a sequence where those are more
            (16, 2048, 16, "0.26.0", 16384),
            (256, 1024, 16, "0.26.0", 16384),
            (1024, 1024, 16, "0.26.0", 65536),
            # 65,536 at most, but a page a sequence: until 0.27
            (1024, 8192, 128, "0.14.1", 131072),
            (1024, 8192, 64, "0.14.1", 65536),
            (8192, 64, 16, "0.27.0", 131072),
            (8192, 64, 16, "0.28.0", 65536),
            # since then whole pages: 8 x 65 = 520 are 9 of 64
            (1, 65, 64, "0.28.0", 576),
            (1, 65, 64, "0.27.0", 520),
        ],
    )
    def test_that_context_follows_the_longest_requests(
        self, seqs: int, length: int, block: int, version: str, wanted: int
    ) -> None:
        engine = EngineSettings(
            max_num_seqs=seqs,
            max_num_batched_tokens=2048,
            max_model_len=length,
            gpu_memory_utilization=0.9,
            engine_version=version,
        )
        assert latent_context_tokens(engine, block) == wanted

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
            (WeightDtype.FP8_BLOCK, site("0.13.0", tp=4, dp=2), ExpertKernel.TRITON_FUNCTION),
            (WeightDtype.FP8_BLOCK, site("0.13.0", tp=8, ep=True), ExpertKernel.DEEP_GEMM),
            (WeightDtype.FP8_BLOCK, site("0.11.2", tp=8), ExpertKernel.DEEP_GEMM),
            (WeightDtype.FP8_BLOCK, site("0.12.0", "10.3"), ExpertKernel.TRITON_FUNCTION),
            (WeightDtype.FP8_BLOCK, site("0.14.1", tp=8), ExpertKernel.TRITON),
            (WeightDtype.FP8_BLOCK, site("0.16.0", tp=8), ExpertKernel.FLASHINFER),
            (WeightDtype.FP8_BLOCK, site("0.18.0", tp=8), ExpertKernel.TRITON),
            (WeightDtype.FP8_BLOCK, site("0.18.0", tp=8, ep=True), ExpertKernel.FLASHINFER),
            (WeightDtype.FP8_BLOCK, site("0.18.0", "10.0"), ExpertKernel.FLASHINFER),
            (WeightDtype.MXFP4, site("0.18.0", "10.0"), ExpertKernel.FLASHINFER),
            (WeightDtype.MXFP4, site("0.18.0", "10.0", lora=True), ExpertKernel.TRITON),
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
