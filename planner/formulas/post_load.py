"""What vLLM adds to a rank's weights after the checkpoint is loaded: absorbed copies, kernels' padding."""

from collections.abc import Iterator

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import LatentAttention, Layer, Model
from planner.formulas.gemms import Experts
from planner.formulas.tensors import PlainTensor, WeightTensor, plain, stored_bytes

POST_LOAD = "post_load"
"""Group of the tensors that appear after the checkpoint is loaded."""
MXFP4_KERNEL_PADDING = 64
"""vLLM's Triton kernel for mxfp4 experts (Hopper) takes whole multiples of this width."""


def post_load_tensors(
    model: Model, layer: Layer, experts: Experts | None, parallelism: Parallelism
) -> Iterator[WeightTensor]:
    """The tensors that appear in one layer of one rank."""
    if isinstance(layer.attention, LatentAttention):
        attention = layer.attention
        heads = attention.heads // parallelism.tp
        shape = (heads, attention.kv_lora_rank, attention.qk_nope_head_dim + attention.v_head_dim)
        yield plain(PlainTensor(POST_LOAD, "mla_absorbed", shape, model.activation_dtype))
    if experts is not None and experts.dtype is WeightDtype.MXFP4:
        padding = -experts.intermediate % MXFP4_KERNEL_PADDING
        if padding:
            shape = (experts.local_experts, (3 if experts.gated else 2) * padding, experts.inputs)
            size_bytes = experts.local_experts * stored_bytes(
                shape[1], shape[2], WeightDtype.MXFP4, experts.stored
            )
            yield WeightTensor(POST_LOAD, "expert_padding", shape, 1, WeightDtype.MXFP4, size_bytes)
