"""Coefficients of a device that no kernel table covers, such as a CPU: typical efficiencies to start a fit from."""

from planner.domain.dtypes import ComputeDtype, WeightDtype
from planner.domain.evidence import Basis
from planner.domain.hardware import Gpu
from planner.formulas.operators import Evidence, GpuOperators, OperatorCoefficients, Origin
from planner.formulas.operators.coefficients import (
    AllReduceFit,
    CollectiveCurve,
    ContextAttentionFit,
    DecodeAttentionFit,
    ElementwiseFit,
    GemmCurve,
    GemmFit,
    LinearAttentionFit,
    MlaFit,
    MoeCurve,
    MoeFit,
)

EFFICIENCY = 0.5
EXPONENT = 4.0
LAUNCH_S = 5e-6
SEQUENCE_HEAD_S = 1e-7
LARGEST_GROUP = 64
ASSUMED = Evidence(origin=Origin.ASSUMED, note="typical efficiencies; no table of this device")
WEIGHT_BYTES = {
    WeightDtype.BF16: 2.0,
    WeightDtype.FP16: 2.0,
    WeightDtype.FP8: 1.0,
    WeightDtype.FP8_BLOCK: 1.0,
    WeightDtype.INT8: 1.0,
    WeightDtype.INT4: 0.53,
    WeightDtype.MXFP4: 0.53,
    WeightDtype.NVFP4: 0.56,
}
KV_VALUE_BYTES = (1, 2)
HEAD_DIM = 128


def plain_operators(gpu: Gpu) -> GpuOperators:
    """Every kernel at half of the datasheet's rates with a launch of 5 us: stated assumptions, to be scaled by a fit.

    Products are computed in 16 bit whatever the weights are stored in.
    """
    dense = GemmCurve(
        flop_efficiency=EFFICIENCY,
        byte_efficiency=EFFICIENCY,
        exponent=EXPONENT,
        constant_s=LAUNCH_S,
        per_k_s=0.0,
        quantize_passes=0.0,
    )
    experts = MoeCurve(
        flop_efficiency=EFFICIENCY,
        byte_efficiency=EFFICIENCY,
        exponent=EXPONENT,
        imbalance_exponent=0.0,
        tile_rows=0.0,
        skew=1e6,
        constant_s=4 * LAUNCH_S,
        per_width_s=0.0,
        activation_efficiency=EFFICIENCY,
        token_passes=1.0,
    )
    alone = CollectiveCurve(
        ranks=LARGEST_GROUP,
        constant_s=2 * LAUNCH_S,
        link_efficiency=EFFICIENCY,
        exponent=EXPONENT,
        evidence=ASSUMED,
    )
    together = AllReduceFit(engine=(alone,), nccl=(alone,))
    coefficients = OperatorCoefficients(
        gpu=gpu.name,
        fitted_on=gpu.as_of,
        tables=(),
        gemm={
            dtype: GemmFit(
                compute=ComputeDtype.BF16,
                weight_bytes=size,
                small=dense,
                large=dense,
                small_evidence=ASSUMED,
                large_evidence=ASSUMED,
            )
            for dtype, size in WEIGHT_BYTES.items()
        },
        moe={
            dtype: MoeFit(
                compute=ComputeDtype.BF16,
                weight_bytes=size,
                tensor_parallel=experts,
                expert_parallel=experts,
                tensor_parallel_evidence=ASSUMED,
                expert_parallel_evidence=ASSUMED,
            )
            for dtype, size in WEIGHT_BYTES.items()
        },
        decode_attention={size: (_decode(),) for size in KV_VALUE_BYTES},
        context_attention={size: (_context(),) for size in KV_VALUE_BYTES},
        mla=MlaFit(
            bmm_flop_efficiency=EFFICIENCY,
            bmm_byte_efficiency=EFFICIENCY,
            bmm_constant_s=LAUNCH_S,
            decode_byte_efficiency=EFFICIENCY,
            decode_flop_efficiency=EFFICIENCY,
            decode_constant_s=LAUNCH_S,
            context_flop_efficiency=EFFICIENCY,
            context_byte_efficiency=EFFICIENCY,
            context_constant_s=LAUNCH_S,
            bmm_evidence=ASSUMED,
            decode_evidence=ASSUMED,
            context_evidence=ASSUMED,
        ),
        linear_attention=LinearAttentionFit(
            decode_byte_efficiency=EFFICIENCY,
            decode_constant_s=LAUNCH_S,
            context_byte_efficiency=EFFICIENCY,
            context_constant_s=LAUNCH_S,
            context_per_token_s=0.0,
            decode_evidence=ASSUMED,
            context_evidence=ASSUMED,
        ),
        elementwise=ElementwiseFit(launch_s=LAUNCH_S, byte_efficiency=EFFICIENCY, dispatch_ratio=0.0),
        nvlink_all_reduce=together,
        pcie_all_reduce=together,
    )
    return GpuOperators(gpu, coefficients, Basis.DATASHEET, gpu.name)


def _decode() -> DecodeAttentionFit:
    return DecodeAttentionFit(
        head_dim=HEAD_DIM,
        windowed=False,
        byte_efficiency=EFFICIENCY,
        constant_s=LAUNCH_S,
        per_kv_head_s=SEQUENCE_HEAD_S,
        per_query_head_s=SEQUENCE_HEAD_S,
        evidence=ASSUMED,
    )


def _context() -> ContextAttentionFit:
    return ContextAttentionFit(
        head_dim=HEAD_DIM,
        windowed=False,
        flop_efficiency=EFFICIENCY,
        byte_efficiency=EFFICIENCY,
        constant_s=LAUNCH_S,
        per_key_s=0.0,
        evidence=ASSUMED,
    )
