"""Number formats of weights and KV cache, by the names users and vLLM give them."""

from enum import StrEnum


class WeightDtype(StrEnum):
    """How the linear layers are stored (embeddings, head, norms and routers stay as the checkpoint has them)."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    """One byte a weight, one scale a tensor or output channel; computed in fp8 where the GPU can."""
    FP8_BLOCK = "fp8_block"
    """One byte a weight, one fp32 scale per 128 x 128 block (DeepSeek V3)."""
    INT8 = "int8"
    """W8A8: int8 weights with a scale a channel, dynamic int8 activations."""
    INT4 = "int4"
    """W4A16 symmetric, group 128 (compressed-tensors pack-quantized)."""
    AWQ = "awq"
    """W4A16 with zero points, group 128."""
    GPTQ = "gptq"
    """W4A16 symmetric, group 128, with stored zero points."""
    MXFP4 = "mxfp4"
    """4-bit floats with one e8m0 scale per 32 (gpt-oss experts)."""
    NVFP4 = "nvfp4"
    """4-bit floats with one fp8 scale per 16 and an fp32 scale a tensor."""


class KvDtype(StrEnum):
    """How keys and values are cached; `auto` follows the model's own activation dtype."""

    AUTO = "auto"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"


class ComputeDtype(StrEnum):
    """What the tensor cores multiply; keys of a GPU's peak rates."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    FP4 = "fp4"


KV_BYTES: dict[KvDtype, int] = {KvDtype.BF16: 2, KvDtype.FP16: 2, KvDtype.FP8: 1}
