"""Workspaces of routed experts by hand: each kernel's buffers for a batch, and what shares them."""

import pytest

from planner.catalog.models import load_model
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.formulas.engine_defaults import parse_version
from planner.formulas.gemms import Experts, layer_gemms
from planner.formulas.load_target import LoadTarget
from planner.formulas.moe_workspace import ExpertMemory, KernelSite, expert_kernel, expert_memory

HOPPER, B200 = (9, 0), (10, 0)


def memory(
    name: str,
    version: str,
    *,
    layer: int = 0,
    layout: Parallelism | None = None,
    capability: tuple[int, int] = HOPPER,
    lora: bool = False,
) -> ExpertMemory:
    """1,024 tokens through the experts of one layer."""
    layout = layout or Parallelism()
    experts = layer_gemms(load_model(name), layer, layout).experts
    assert isinstance(experts, Experts)
    target = LoadTarget(capability, parse_version(version), 0, lora)
    return expert_memory(experts, 1024, KernelSite(target, layout))


class TestQwen3Moe:
    """Qwen3-30B-A3B: 8 of 128 experts a token, 768 wide, 2048 hidden; bf16."""

    NAME = "Qwen/Qwen3-30B-A3B"
    ROWS, OUTPUT = 1024 * 8, 1024 * 2048 * 2

    def test_triton_called_as_a_function_keeps_nothing(self) -> None:
        # the first product's 2 x 768 or the last's 2048, and the activation's 768
        assert memory(self.NAME, "0.13.0") == ExpertMemory(0, self.ROWS * (2048 + 768) * 2 + self.OUTPUT)

    def test_modular_triton_keeps_two_buffers(self) -> None:
        assert memory(self.NAME, "0.18.0") == ExpertMemory(self.ROWS * (2048 + 2048) * 2, self.OUTPUT)

    def test_flashinfer_keeps_its_output(self) -> None:
        # on Blackwell hidden states and 2 x 768; on Hopper, in 0.20 to 0.22, two buffers of 2048
        assert memory(self.NAME, "0.20.0", capability=B200) == ExpertMemory(
            self.OUTPUT, self.ROWS * (2048 + 1536) * 2
        )
        assert memory(self.NAME, "0.20.0") == ExpertMemory(self.OUTPUT, self.ROWS * (2048 + 2048) * 2)

    def test_adapters_bring_triton_back(self) -> None:
        assert memory(self.NAME, "0.20.0", capability=B200, lora=True) == memory(self.NAME, "0.18.0")


class TestDeepSeek:
    """DeepSeek-R1 in fp8 blocks: 8 of 256 experts a token, 2048 wide, 7168 hidden; layer kind 1 has the experts."""

    NAME = "deepseek-ai/DeepSeek-R1"
    ROWS, OUTPUT = 1024 * 8, 1024 * 7168 * 2

    @pytest.mark.parametrize(
        ("layout", "local_experts", "batch"),
        [
            (Parallelism(tp=4), 256, 1),
            (Parallelism(tp=8, ep=True), 32, 1),
            # data-parallel ranks gather each other's tokens
            (Parallelism(tp=4, dp=2, ep=True), 32, 2),
        ],
    )
    def test_deep_gemm_pads_each_expert(self, layout: Parallelism, local_experts: int, batch: int) -> None:
        # both buffers 7168 or the 2 x 512 (2 x 2048 under expert parallelism), fp8 inputs beside them
        padded = batch * self.ROWS + local_experts * 127
        assert memory(self.NAME, "0.13.0", layer=1, layout=layout) == ExpertMemory(
            padded * 2 * 7168 * 2, padded * 7168 + batch * self.OUTPUT
        )

    @pytest.mark.parametrize("layout", [Parallelism(tp=8), Parallelism(tp=4, dp=2)])
    def test_eight_ranks_that_share_an_expert_take_triton(self, layout: Parallelism) -> None:
        # 7168 and the activation's 256
        found = memory(self.NAME, "0.13.0", layer=1, layout=layout)
        assert found == ExpertMemory(0, layout.dp * (self.ROWS * (7168 + 256) * 2 + self.OUTPUT))

    def test_before_0_12_eight_ranks_took_deep_gemm_too(self) -> None:
        # but at 2 x 256 the first product is narrow: Triton's two kept buffers
        found = memory(self.NAME, "0.11.2", layer=1, layout=Parallelism(tp=8))
        assert found == ExpertMemory(self.ROWS * 2 * 7168 * 2, self.OUTPUT)


class TestGptOss:
    """gpt-oss-20b in mxfp4: 4 of 32 experts a token, 2880 wide, 2880 hidden."""

    NAME = "openai/gpt-oss-20b"
    ROWS, OUTPUT = 1024 * 4, 1024 * 2880 * 2

    def test_routed_triton(self) -> None:
        # the activation's rows are kept since 0.20, the gathered hidden states pass
        assert memory(self.NAME, "0.24.0") == ExpertMemory(
            self.ROWS * 2880 * 2, self.ROWS * 2880 * 2 + self.OUTPUT
        )

    @pytest.mark.parametrize("capability", [HOPPER, B200])
    def test_adapters_run_through_marlin(self, capability: tuple[int, int]) -> None:
        # the first product's 2 x 2880 and the last's 2880
        found = memory(self.NAME, "0.24.0", capability=capability, lora=True)
        assert found == ExpertMemory(self.ROWS * (5760 + 2880) * 2, self.OUTPUT)


@pytest.mark.parametrize("dtype", [WeightDtype.FP8, WeightDtype.FP8_BLOCK, WeightDtype.BF16])
def test_adapters_change_no_kernel_where_experts_take_none(dtype: WeightDtype) -> None:
    plain = KernelSite(LoadTarget((9, 0), parse_version("0.11.0"), 8192), Parallelism())
    adapted = plain._replace(target=plain.target._replace(lora=True))
    assert expert_kernel(dtype, plain) is expert_kernel(dtype, adapted)
