"""What decides how vLLM lays out the weights it loads: the GPU's kernels and the engine's release."""

import re
from functools import lru_cache
from typing import NamedTuple

from planner.domain.deployment import Parallelism
from planner.domain.hardware import Gpu
from planner.formulas.engine_defaults import EngineVersion, parse_version, server_defaults

FLASHINFER_SINCE = EngineVersion(0, 11, 1)
"""From here a plain `pip install vllm` brings FlashInfer and a copy of OpenAI's Triton kernels."""

DEEP_GEMM_EXPERTS_BELOW_RANKS = 8


class LoadTarget(NamedTuple):
    """A kind of GPU under a release of vLLM, as far as the layout of weights depends on them."""

    capability: tuple[int, int]
    """CUDA compute capability; (0, 0) where the GPU is not NVIDIA's."""
    version: EngineVersion
    batched_tokens: int
    """Tokens of the largest step, for which some models make buffers (--max-num-batched-tokens)."""
    lora: bool = False
    """Adapters are served (--enable-lora), which not every kernel of experts can."""

    @property
    def is_cuda(self) -> bool:
        """True on NVIDIA GPUs."""
        return self.capability > (0, 0)

    @property
    def is_hopper(self) -> bool:
        """Compute capability 9.0."""
        return self.capability == (9, 0)

    @property
    def is_datacenter_blackwell(self) -> bool:
        """B200, GB200, B300 and GB300 (`Gpu.is_datacenter_blackwell`)."""
        return self.capability[0] == 10

    @property
    def is_b200(self) -> bool:
        """Compute capability 10.0 exactly; older releases did not know B300 (10.3)."""
        return self.capability == (10, 0)

    @property
    def is_blackwell(self) -> bool:
        """Any GPU with fp4 tensor cores."""
        return self.capability[0] in {10, 12}

    @property
    def has_fp8(self) -> bool:
        """The tensor cores multiply fp8; elsewhere Marlin expands it."""
        return self.capability >= (8, 9)

    @property
    def has_marlin(self) -> bool:
        """Marlin's kernels for 4-bit weights."""
        return self.capability >= (8, 0)

    @property
    def has_flashinfer(self) -> bool:
        """FlashInfer and the Triton kernels for mxfp4 are installed with vLLM."""
        return self.is_cuda and self.version >= FLASHINFER_SINCE

    @property
    def has_deep_gemm(self) -> bool:
        """DeepGEMM runs the products of fp8 blocks: it is in vLLM's container image, since 0.20 in its wheel.

        B300 since 0.13 (vllm/utils/deep_gemm.py, is_deep_gemm_supported).
        """
        blackwell = self.is_datacenter_blackwell if self.since(13) else self.is_b200
        return self.has_flashinfer and (self.is_hopper or blackwell)

    def since(self, minor: int) -> bool:
        """True from release 0.`minor`.0 on."""
        return self.version.since(minor)


def has_deep_gemm_experts(target: LoadTarget, parallelism: Parallelism) -> bool:
    """True where DeepGEMM runs experts stored in fp8 blocks; since 0.16 other kernels come first.

    Since 0.12 only where fewer than 8 ranks share an expert: the tensor-parallel and data-parallel ones, or
    one alone under expert parallelism (get_fp8_moe_backend in quantization/fp8.py, since 0.14 in
    fused_moe/oracle/fp8.py; FusedMoEParallelConfig.make in fused_moe/config.py).
    """
    if not target.has_deep_gemm or target.since(16):
        return False
    sharing = 1 if parallelism.ep else parallelism.tp * parallelism.dp
    return sharing < DEEP_GEMM_EXPERTS_BELOW_RANKS or not target.since(12)


def load_target(gpu: Gpu, engine_version: str = "", max_num_batched_tokens: int = 0) -> LoadTarget:
    """The target of a GPU; an empty version means the newest tested, no batch the server's default.

    Raises `InputError` where `engine_version` is not a vLLM version.
    """
    return _target(gpu, engine_version, max_num_batched_tokens)


@lru_cache(maxsize=4096)
def _target(gpu: Gpu, engine_version: str, max_num_batched_tokens: int) -> LoadTarget:
    cuda = re.fullmatch(r"(\d+)\.(\d+)", gpu.compute_capability)
    capability = (int(cuda[1]), int(cuda[2])) if cuda else (0, 0)
    tokens = max_num_batched_tokens or server_defaults(gpu, engine_version).max_num_batched_tokens
    return LoadTarget(capability, parse_version(engine_version), tokens)
