"""What lies on the card beside weights, by hand: rotary tables, scales of attention, workspaces."""

from collections import Counter

import pytest

from planner.catalog.load import find_gpu
from planner.catalog.models import load_model
from planner.formulas.buffers import buffer_tensors, has_attention_scales
from planner.formulas.load_target import load_target

MIB = 2**20


def buffers(name: str, layers: int, gpu: str = "H100-SXM-80GB", version: str = "0.18.0") -> dict[str, int]:
    target = load_target(find_gpu(gpu), version, 4096)
    found: Counter[str] = Counter()
    for row in buffer_tensors(load_model(name), layers, target):
        found[row.name] += row.size_bytes
    return dict(found)


def test_a_dense_model_has_a_rotary_table_and_scales() -> None:
    # Llama-3.1-8B: cosines and sines of 131,072 positions, 64 each, in bf16; 7 fp32 scales in 32 layers
    assert buffers("meta-llama/Llama-3.1-8B", 32) == {
        "rotary_table": 131_072 * 128 * 2,
        "attention_scales": 32 * 7 * 4,
    }


def test_a_rank_without_attention_has_none() -> None:
    assert buffers("meta-llama/Llama-3.1-8B", 0) == {}


def test_embeddings_of_deep_stacked_images_follow_the_batch() -> None:
    # Qwen3-VL-30B-A3B: 3 levels of 4,096 tokens, 2048 wide, in bf16
    found = buffers("Qwen/Qwen3-VL-30B-A3B-Instruct", 48)
    assert found["deepstack_embeddings"] == 3 * 4096 * 2048 * 2


def test_a_sparse_indexer_keeps_its_choice_for_the_batch() -> None:
    # DeepSeek-V3.2: 2,048 int32 for each of 4,096 tokens
    assert buffers("deepseek-ai/DeepSeek-V3.2", 61)["topk_indices"] == 4096 * 2048 * 4


@pytest.mark.parametrize(
    ("gpu", "version", "wanted"),
    [
        # FlashInfer is tried everywhere from 0.11.1 until 0.24, CUTLASS on data-centre Blackwell
        ("H100-SXM-80GB", "0.11.0", set()),
        ("H100-SXM-80GB", "0.18.0", {"flashinfer_mla_workspace", "deep_gemm_workspace"}),
        ("H100-SXM-80GB", "0.25.1", {"deep_gemm_workspace"}),
        ("B200", "0.18.0", {"flashinfer_mla_workspace", "cutlass_mla_workspace", "deep_gemm_workspace"}),
        ("B200", "0.25.1", {"cutlass_mla_workspace", "deep_gemm_workspace"}),
        # DeepGEMM took B300 for Blackwell in 0.13
        ("B300", "0.12.0", {"flashinfer_mla_workspace", "cutlass_mla_workspace"}),
        ("B300", "0.13.0", {"flashinfer_mla_workspace", "cutlass_mla_workspace", "deep_gemm_workspace"}),
        ("A100-SXM-80GB", "0.18.0", {"flashinfer_mla_workspace"}),
        ("RTX PRO 6000", "0.24.0", set()),
    ],
)
def test_workspaces_of_latent_attention_and_fp8_blocks(gpu: str, version: str, wanted: set[str]) -> None:
    found = buffers("deepseek-ai/DeepSeek-V3", 61, gpu, version)
    workspaces = {name: size for name, size in found.items() if name.endswith("workspace")}
    assert set(workspaces) == wanted
    for name, size in workspaces.items():
        assert size == (32 if name.startswith("deep_gemm") else 128) * MIB


def test_layers_that_keep_a_state_have_no_scales_of_attention() -> None:
    model = load_model("Qwen/Qwen3-Next-80B-A3B-Instruct")
    scaled = [has_attention_scales(model, kind) for kind in range(len(model.layer_kinds))]
    assert sorted(scaled) == [False, True]
