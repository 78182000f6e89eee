"""What loading changes: kernels' layouts by hand, and vLLM's own start-up logs to the last digit they print."""

import csv
from pathlib import Path

import pytest

from planner.catalog.load import find_gpu, gpus
from planner.catalog.models import bundled_models, load_model
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import Model
from planner.domain.units import MIB_BYTES, bytes_to_gib
from planner.formulas.buffers import BUFFER
from planner.formulas.gemms import check_parallelism
from planner.formulas.load_order import ALLOCATOR
from planner.formulas.load_target import has_deep_gemm_experts, load_target
from planner.formulas.mxfp4_layout import Mxfp4Kernel, mxfp4_kernel
from planner.formulas.post_load import POST_LOAD
from planner.formulas.quantized import with_weight_dtype
from planner.formulas.weights import parameter_bytes, weight_tensors, weights_bytes

SHARED = Path(__file__).parents[3] / "shared"
A100, L40S, H100, B200, RTX = "A100-SXM-80GB", "L40S", "H100-SXM-80GB", "B200", "RTX PRO 6000"
TP8 = Parallelism(tp=8)


def added(model: Model, parallelism: Parallelism, gpu: str, version: str = "0.18.0") -> dict[str, int]:
    """Bytes that appear with loading, by name."""
    found: dict[str, int] = {}
    target = load_target(find_gpu(gpu), version)
    for tensor in weight_tensors(model, parallelism, target=target):
        if tensor.group in {POST_LOAD, BUFFER, ALLOCATOR}:
            found[tensor.name] = found.get(tensor.name, 0) + tensor.size_bytes
    return found


def loaded_gib(name: str, tp: int, gpu: str, version: str) -> float:
    return bytes_to_gib(
        weights_bytes(load_model(name), Parallelism(tp=tp), load_target(find_gpu(gpu), version))
    )


@pytest.mark.parametrize(
    ("name", "tp", "gpu", "version", "logged_gib"),
    [
        # "Model loading took X GiB", as the measured logs of the training table have it.
        ("meta-llama/Llama-3.3-70B-Instruct", 4, "H200-SXM-141GB", "0.11.2", 32.8894),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 4, "H200-SXM-141GB", "0.11.0", 16.9619),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", 1, "H200-SXM-141GB", "0.13.0", 58.2299),
        ("deepseek-ai/DeepSeek-R1", 8, "H200-SXM-141GB", "0.11.0", 79.5828),
        ("deepseek-ai/DeepSeek-R1", 8, "H200-SXM-141GB", "0.13.0", 79.7390),
    ],
)
def test_logged_weights(name: str, tp: int, gpu: str, version: str, logged_gib: float) -> None:
    assert loaded_gib(name, tp, gpu, version) == pytest.approx(logged_gib, abs=0.001)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="SKIPPED LOUDLY: no measured tables beside the checkout")
def test_every_logged_start() -> None:
    with (SHARED / "truth" / "memory_train.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) >= 60
    for row in rows:
        name = row["model"].replace("DeepSeek-R1-0528", "DeepSeek-R1")
        got = loaded_gib(name, int(row["tp"]), row["gpu"], row["engine_version"])
        # The logs print two decimals.
        assert got == pytest.approx(float(row["weights_gib_per_gpu"]), abs=0.0051), row["run_id"]


def test_absorbed_latent_projections_by_hand() -> None:
    # W_UK^T and W_UV in bf16 beside kv_b_proj: 512 x 16 heads x (128 + 128) x 2 bytes a layer.
    found = added(load_model("deepseek-ai/DeepSeek-V3"), TP8, A100)
    assert found["mla_absorbed"] == 61 * 512 * 16 * 256 * 2
    # An unquantised kv_b_proj is used as it is.
    assert "mla_absorbed" not in added(load_model("deepseek-ai/DeepSeek-V2-Lite"), Parallelism(), A100)


def test_rotary_table_by_hand() -> None:
    found = added(load_model("meta-llama/Llama-3.1-8B"), Parallelism(), A100)
    assert found == {
        "rotary_table": 131072 * 128 * 2,
        "attention_scales": 32 * 7 * 4,
        # Each of the seven numbers takes a block of 512 bytes.
        "rounding": 32 * 7 * (512 - 4),
    }


def test_packed_scales_of_deep_gemm_by_hand() -> None:
    # o_proj on B200: 7168 rows x 16 blocks of inputs, four to an int32, instead of 56 x 16 floats.
    found = added(load_model("deepseek-ai/DeepSeek-V3"), TP8, B200)
    assert found["attention_out_scales"] == 61 * (7168 * 4 * 4 - 56 * 16 * 4)
    assert found["deep_gemm_workspace"] == 32 * MIB_BYTES
    assert "attention_out_scales" not in added(load_model("deepseek-ai/DeepSeek-V3"), TP8, H100)


def test_mla_workspaces_by_release() -> None:
    model = load_model("deepseek-ai/DeepSeek-V3")
    names = {"flashinfer_mla_workspace", "cutlass_mla_workspace"}
    assert not names & set(added(model, TP8, H100, "0.11.0"))
    assert names & set(added(model, TP8, H100, "0.18.0")) == {"flashinfer_mla_workspace"}
    assert names & set(added(model, TP8, B200, "0.18.0")) == names
    assert names & set(added(model, TP8, B200, "0.30.0")) == {"cutlass_mla_workspace"}
    assert not names & set(added(model, TP8, RTX, "0.24.0"))


def test_fp8_blocks_through_marlin_by_hand() -> None:
    # A100 multiplies no fp8: Marlin wants a 16-bit scale for each output and block of 128 inputs.
    model = load_model("Qwen/Qwen3-32B-FP8")
    found = added(model, Parallelism(), A100)
    down = 5120 * (25600 // 128) * 2 - (5120 // 128) * (25600 // 128) * 4
    assert found["down_scales"] == 64 * down
    assert "down_scales" not in added(model, Parallelism(), L40S)


def test_symmetric_gptq_loses_its_zero_points_in_marlin() -> None:
    model = with_weight_dtype(load_model("meta-llama/Llama-3.1-8B"), WeightDtype.GPTQ)
    linear = 32 * (4096 * (4096 + 2 * 1024 + 4096) + 3 * 14336 * 4096)
    found = added(model, Parallelism(), A100)
    lost = sum(size for name, size in found.items() if name.endswith("_scales") and size < 0)
    assert lost == -linear // 128 // 2
    assert all(size >= 0 for size in added(model, Parallelism(), H100).values())


@pytest.mark.parametrize(
    ("gpu", "version", "kernel"),
    [
        (A100, "0.18.0", Mxfp4Kernel.MARLIN),
        (L40S, "0.33.0", Mxfp4Kernel.MARLIN),
        (H100, "0.11.0", Mxfp4Kernel.MARLIN),
        (H100, "0.12.0", Mxfp4Kernel.TRITON),
        (B200, "0.10.2", Mxfp4Kernel.MARLIN),
        (B200, "0.12.0", Mxfp4Kernel.TRTLLM),
        ("B300", "0.12.0", Mxfp4Kernel.TRITON),
        ("B300", "0.13.0", Mxfp4Kernel.TRTLLM),
        (RTX, "0.33.0", Mxfp4Kernel.MARLIN),
        ("MI300X", "0.33.0", Mxfp4Kernel.ROCM),
    ],
)
def test_kernel_of_mxfp4_experts(gpu: str, version: str, kernel: Mxfp4Kernel) -> None:
    assert mxfp4_kernel(load_target(find_gpu(gpu), version)) is kernel


@pytest.mark.parametrize(
    ("gpu", "version", "kernel"),
    [
        (B200, "0.13.0", Mxfp4Kernel.TRITON),
        (H100, "0.12.0", Mxfp4Kernel.TRITON),
        (A100, "0.12.0", Mxfp4Kernel.MARLIN),
        (B200, "0.16.0", Mxfp4Kernel.MARLIN),
        (H100, "0.20.0", Mxfp4Kernel.MARLIN),
        (B200, "0.33.0", Mxfp4Kernel.MARLIN),
        ("MI300X", "0.33.0", Mxfp4Kernel.ROCM),
    ],
)
def test_adapters_choose_the_kernel_of_mxfp4_experts(gpu: str, version: str, kernel: Mxfp4Kernel) -> None:
    target = load_target(find_gpu(gpu), version)._replace(lora=True)
    assert mxfp4_kernel(target) is kernel


def test_adapters_change_the_layout_of_mxfp4_experts() -> None:
    # gpt-oss-20b, 24 layers of 32 experts, 2880 wide: 3072 x 3072 for TRT-LLM, with fp32 biases and 3 constants an
    # expert; 2944 x 3072 and 16-bit biases for Marlin
    model, target = load_model("openai/gpt-oss-20b"), load_target(find_gpu(B200), "0.18.0")
    plain, adapted = (
        weights_bytes(model, Parallelism(), target._replace(lora=lora)) for lora in (False, True)
    )
    experts, width = 24 * 32, 3072 - 2944
    values = 3 * width * 3072
    biases = (2 * 3072 + 3072) * 4 - (2 * 2944 + 3072) * 2
    saved = experts * (values // 2 + values // 32 + biases + 3 * 4)
    # but for what the allocator rounds up
    assert plain - adapted == pytest.approx(saved, rel=0.02)


def test_triton_pads_the_scales_of_mxfp4_experts_by_the_gpu() -> None:
    # gpt-oss-20b on B300 in 0.12: 2880 x 90 scales of the down product are 2944 x 96, kept beside those loaded
    found = added(load_model("openai/gpt-oss-20b"), Parallelism(), "B300", "0.12.0")
    assert found["experts_down_scales_padding"] == 24 * 32 * 2944 * 96


@pytest.mark.parametrize(
    ("gpu", "version", "layout", "wanted"),
    [
        (H100, "0.12.0", Parallelism(tp=4), True),
        (H100, "0.12.0", Parallelism(tp=8), False),
        (H100, "0.12.0", Parallelism(tp=4, dp=2), False),
        (H100, "0.12.0", Parallelism(tp=2, dp=2), True),
        (H100, "0.14.1", Parallelism(tp=8, ep=True), True),
        (H100, "0.14.1", Parallelism(tp=4, dp=4, ep=True), True),
        (H100, "0.11.2", Parallelism(tp=8), True),
        (H100, "0.16.0", Parallelism(tp=4), False),
        ("B300", "0.12.0", Parallelism(), False),
        ("B300", "0.13.0", Parallelism(), True),
        (A100, "0.13.0", Parallelism(), False),
    ],
)
def test_where_deep_gemm_runs_experts(gpu: str, version: str, layout: Parallelism, wanted: bool) -> None:
    assert has_deep_gemm_experts(load_target(find_gpu(gpu), version), layout) is wanted


@pytest.mark.parametrize(
    ("gpu", "version", "width", "hidden", "bias_bytes"),
    [
        # gpt-oss at TP 1, 2880 wide: 128 and 256 for Marlin; 64 and none for Triton; 256 each for TRT-LLM, 128 later.
        (A100, "0.18.0", 2944, 3072, 2),
        (B200, "0.18.0", 3072, 3072, 4),
        (B200, "0.30.0", 2944, 3072, 4),
    ],
)
def test_padded_mxfp4_experts_by_hand(
    gpu: str, version: str, *, width: int, hidden: int, bias_bytes: int
) -> None:
    found = added(load_model("openai/gpt-oss-20b"), Parallelism(), gpu, version)
    experts = 24 * 32
    assert found["experts_up_padding"] == experts * (2 * width * hidden - 2 * 2880 * 2880) // 2
    assert found["experts_down_padding"] == experts * (width * hidden - 2880 * 2880) // 2
    assert found["experts_up_scales_padding"] == experts * (2 * width * hidden - 2 * 2880 * 2880) // 32
    assert found["experts_down_bias_padding"] == experts * (hidden * bias_bytes - 2880 * 2)


def test_triton_keeps_the_loaded_scales_until_0_25() -> None:
    # 2 x 2880 rows are padded to 5888, 2880 to 3072, 90 groups to 92 since 0.26; 2880 is a multiple of 64.
    model, experts = load_model("openai/gpt-oss-20b"), 24 * 32
    old, new, newest = (
        added(model, Parallelism(), H100, version) for version in ("0.18.0", "0.25.1", "0.26.0")
    )
    assert new["experts_up_padding"] == 0
    assert new["experts_up_scales_padding"] == experts * (5888 - 5760) * 90
    assert old["experts_up_scales_padding"] == experts * 5888 * 90
    assert newest["experts_down_scales_padding"] == experts * (3072 * 92 - 2880 * 90)
    assert new["experts_up_bias_padding"] == experts * 5760 * 2


def test_buffers_grow_with_the_batch() -> None:
    # Qwen3-VL keeps three layers' worth of image features for the largest step.
    model, gpu = load_model("Qwen/Qwen3-VL-30B-A3B-Instruct"), find_gpu(H100)
    small, large = (
        weights_bytes(model, Parallelism(), load_target(gpu, "0.18.0", tokens)) for tokens in (2048, 8192)
    )
    assert large - small == pytest.approx(3 * 6144 * 2048 * 2, abs=2 * MIB_BYTES)


@pytest.mark.parametrize("name", [entry.name for entry in bundled_models()])
def test_loading_never_gives_up_more_than_zero_points(name: str) -> None:
    model = load_model(name)
    for parallelism in (Parallelism(), TP8, Parallelism(tp=4, pp=2)):
        if check_parallelism(model, parallelism) is not None:
            continue
        before = weights_bytes(model, parallelism)
        assert before == max(parameter_bytes(model, parallelism, rank) for rank in range(parallelism.pp))
        for gpu in gpus():
            if gpu.vllm_backend:
                assert weights_bytes(model, parallelism, load_target(gpu)) >= before * 0.99
