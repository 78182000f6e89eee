"""Weight bytes of one rank: by hand, and as properties; test_recorded.py holds them against vLLM's own classes."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.model_config import parse_model, read_config
from planner.catalog.models import bundled_models, load_model
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import Model, Quantization
from planner.formulas.gemms import check_parallelism
from planner.formulas.quantized import with_weight_dtype
from planner.formulas.tensors import stored_bytes
from planner.formulas.weights import (
    parameter_bytes,
    parameter_count,
    pipeline_layers,
    weight_tensors,
    weights_bytes,
)

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared"
BUNDLED = tuple(entry.name for entry in bundled_models())


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="SKIPPED LOUDLY: no measured tables beside the checkout")
def test_every_row_of_the_measured_oracle() -> None:
    with (SHARED / "truth" / "weights_oracle.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) >= 125
    wrong = []
    for row in rows:
        config = dict(read_config(SHARED / row["config"]).config)
        if set(json.loads(row["bytes_by_dtype"])) <= {"bfloat16", "float32"}:
            # These rows were made from the config alone, where its quantisation was not recognised.
            config.pop("quantization_config", None)
        model = parse_model(config, name=row["model"])
        got = parameter_bytes(model, Parallelism(tp=int(row["tp"])))
        if got != int(row["weight_bytes"]):
            wrong.append((row["model"], row["tp"], got - int(row["weight_bytes"])))
    assert wrong == []


def test_dense_by_hand() -> None:
    # Llama 3.1 8B, bf16, one GPU. Embedding and head: 2 x 128256 x 4096.
    # A layer: q 4096 x 4096, k and v 1024 x 4096 each, o 4096 x 4096, gate, up, down 3 x 14336 x 4096, norms 2 x 4096.
    layer = 4096 * (4096 + 2 * 1024 + 4096) + 3 * 14336 * 4096 + 2 * 4096
    expected = 2 * (2 * 128256 * 4096 + 32 * layer + 4096)
    assert expected == 16_060_522_496
    assert weights_bytes(load_model("meta-llama/Llama-3.1-8B"), Parallelism()) == expected


def test_replicated_key_value_heads_by_hand() -> None:
    # 16 ranks, 8 key-value heads: each rank holds 2 query heads and a whole key-value head.
    layer = 4096 * 128 * (2 + 2) + 2 * 128 * 4096 + 3 * (14336 // 16) * 4096 + 2 * 4096
    expected = 2 * (2 * 128256 // 16 * 4096 + 32 * layer + 4096)
    assert expected == 1_037_836_288
    assert weights_bytes(load_model("meta-llama/Llama-3.1-8B"), Parallelism(tp=16)) == expected


def test_experts_by_hand() -> None:
    # Mixtral 8x7B at TP 2: experts are sliced, the router is whole.
    attention = 4096 * (2048 + 2 * 512) + 2048 * 4096
    experts = 8 * 3 * 7168 * 4096 + 8 * 4096
    expected = 2 * (32000 * 4096 + 32 * (attention + experts + 2 * 4096) + 4096)
    assert expected == 46_704_107_520
    assert weights_bytes(load_model("mistralai/Mixtral-8x7B-v0.1"), Parallelism(tp=2)) == expected


def test_whole_experts_by_hand() -> None:
    # With expert parallelism over 2 x 2 ranks each holds 2 of the 8 experts whole.
    model = load_model("mistralai/Mixtral-8x7B-v0.1")
    tensors = weight_tensors(model, Parallelism(tp=2, dp=2, ep=True))
    experts = sum(tensor.size_bytes for tensor in tensors if tensor.group == "experts")
    assert experts == 2 * 32 * 2 * 3 * 14336 * 4096
    # Without it vLLM slices every expert over all four.
    tensors = weight_tensors(model, Parallelism(tp=2, dp=2))
    assert sum(tensor.size_bytes for tensor in tensors if tensor.group == "experts") == experts


def test_latent_attention_by_hand() -> None:
    # DeepSeek V3 attention at TP 8, fp8 blocks: the down projections are whole on every rank, 16 of 128 heads.
    down = (1536 + 576) * 7168 + 4 * 17 * 56
    q_up = 16 * 192 * 1536 + 4 * 24 * 12
    kv_up = 16 * 256 * 512 + 4 * 32 * 4
    out = 7168 * 16 * 128 + 4 * 56 * 16
    tensors = weight_tensors(load_model("deepseek-ai/DeepSeek-V3"), Parallelism(tp=8))
    attention = sum(tensor.size_bytes for tensor in tensors if tensor.group == "attention")
    assert attention == 61 * (down + q_up + kv_up + out)


def test_hybrid_by_hand() -> None:
    # One Mamba layer of Nemotron-H 56B at TP 2: 256 heads of 64, 8 groups, state 256, kernel 4, hidden 8192.
    heads, groups = 128, 4
    width = heads * 64
    channels = width + 2 * groups * 256
    in_proj = (2 * width + 2 * groups * 256 + heads) * 8192
    small = channels * 5 + 2 * heads + width + 8192
    expected = 2 * (in_proj + 8192 * width + small) + 4 * heads
    model = load_model("nvidia/Nemotron-H-56B-Base-8K")
    mamba = model.layer_pattern[0]
    single = model.model_copy(update={"layer_kinds": (model.layer_kinds[mamba],), "layer_pattern": (0,)})
    outer = 2 * (2 * (131072 // 2) * 8192 + 8192)
    assert parameter_bytes(single, Parallelism(tp=2)) == expected + outer


def test_mxfp4_experts_by_hand() -> None:
    # gpt-oss-120b: 36 layers x 128 experts x 3 x 2880 x 2880 values of half a byte and a scale every 32.
    tensors = weight_tensors(load_model("openai/gpt-oss-120b"), Parallelism())
    experts = sum(t.size_bytes for t in tensors if t.dtype == WeightDtype.MXFP4 and t.group == "experts")
    assert experts == 36 * 128 * 3 * 2880 * (2880 // 2 + 2880 // 32)


@pytest.mark.parametrize(
    ("dtype", "bytes_per_weight"),
    [
        # vLLM 0.32.0, group 128: half a byte, a 16-bit scale, and for awq and gptq a 4-bit zero point.
        (WeightDtype.AWQ, 0.5 + 2 / 128 + 0.5 / 128),
        (WeightDtype.GPTQ, 0.5 + 2 / 128 + 0.5 / 128),
        (WeightDtype.INT4, 0.5 + 2 / 128),
        (WeightDtype.MXFP4, 0.5 + 1 / 32),
        (WeightDtype.FP8_BLOCK, 1 + 4 / 128**2),
    ],
)
def test_wished_dtype_costs_its_bytes(dtype: WeightDtype, bytes_per_weight: float) -> None:
    model = with_weight_dtype(load_model("meta-llama/Llama-3.1-8B"), dtype)
    linear = 32 * (4096 * (4096 + 2 * 1024 + 4096) + 3 * 14336 * 4096)
    rest = 2 * (2 * 128256 * 4096 + (32 * 2 + 1) * 4096)
    # A layer: room for four scales of 16 bits, or compressed-tensors' three with zero points and four shapes.
    beside = {WeightDtype.FP8_BLOCK: 8, WeightDtype.INT4: 3 * 4 + 3 * 2 + 4 * 16}.get(dtype, 0)
    assert weights_bytes(model, Parallelism()) == round(linear * bytes_per_weight) + rest + 32 * beside


def test_scale_kinds() -> None:
    tensor = Quantization(dtype=WeightDtype.FP8, per_tensor_scale=True, dynamic_activations=False)
    assert stored_bytes(256, 128, WeightDtype.FP8, tensor, parts=3) == 256 * 128 + 3 * 4 + 3 * 4
    channel = Quantization(dtype=WeightDtype.FP8)
    assert stored_bytes(256, 128, WeightDtype.FP8, channel) == 256 * 128 + 256 * 4
    nvfp4 = Quantization(dtype=WeightDtype.NVFP4, group_size=16)
    assert stored_bytes(256, 128, WeightDtype.NVFP4, nvfp4) == 256 * 64 + 256 * 8 + 4


@pytest.mark.parametrize(
    ("layers", "pp", "sizes"), [(32, 4, [8, 8, 8, 8]), (61, 4, [15, 15, 16, 15]), (62, 4, [15, 16, 16, 15])]
)
def test_pipeline_split(layers: int, pp: int, sizes: list[int]) -> None:
    bounds = [pipeline_layers(layers, pp, rank) for rank in range(pp)]
    assert [last - first for first, last in bounds] == sizes
    assert bounds[0][0] == 0
    assert bounds[-1][1] == layers


@pytest.mark.parametrize("name", BUNDLED)
def test_pipeline_ranks_together_hold_the_model(name: str) -> None:
    model = load_model(name)
    split = Parallelism(pp=2)
    # What stands outside the layers may be built on both stages.
    outer = [_outside_layers(model, split, rank) for rank in range(2)]
    twice = sum(size_bytes for name, size_bytes in outer[1].items() if name in outer[0])
    assert sum(parameter_bytes(model, split, rank) for rank in range(2)) == (
        parameter_bytes(model, Parallelism()) + twice
    )


def _outside_layers(model: Model, parallelism: Parallelism, pp_rank: int) -> dict[tuple[str, str], int]:
    names = {"embed_tokens", "positions", "final_norm", "head", "head_bias"}
    return {
        (tensor.group, tensor.name): tensor.size_bytes
        for tensor in weight_tensors(model, parallelism, pp_rank)
        if tensor.name in names or tensor.group == "vision"
    }


@given(st.sampled_from(BUNDLED), st.sampled_from([1, 2, 4, 8]))
def test_more_ranks_never_hold_more_each(name: str, tp: int) -> None:
    model = load_model(name)
    if check_parallelism(model, Parallelism(tp=2 * tp)) is None:
        assert weights_bytes(model, Parallelism(tp=2 * tp)) < weights_bytes(model, Parallelism(tp=tp))


@given(st.sampled_from(BUNDLED), st.sampled_from([2, 4, 8]))
def test_a_rank_holds_at_least_its_share(name: str, tp: int) -> None:
    model = load_model(name)
    if check_parallelism(model, Parallelism(tp=tp)) is None:
        share = parameter_bytes(model, Parallelism()) / tp
        # Finer scale blocks of sliced experts can only add.
        assert parameter_bytes(model, Parallelism(tp=tp)) >= share * (1 - 1e-6)


@given(st.sampled_from(BUNDLED), st.sampled_from(list(WeightDtype)))
def test_fewer_bits_never_weigh_more(name: str, dtype: WeightDtype) -> None:
    model = load_model(name)
    if model.quantization is None:
        assert weights_bytes(with_weight_dtype(model, dtype), Parallelism()) <= weights_bytes(
            model, Parallelism()
        )


@pytest.mark.parametrize(
    ("name", "total_billions", "active_billions"),
    [
        # Model cards; active counts there leave out embeddings or round.
        ("meta-llama/Llama-3.1-8B", 8.03, 8.03),
        ("mistralai/Mixtral-8x7B-v0.1", 46.7, 12.9),
        ("Qwen/Qwen3-235B-A22B", 235, 22),
        ("deepseek-ai/DeepSeek-V3", 671, 37),
        ("openai/gpt-oss-120b", 117, 5.1),
        ("moonshotai/Kimi-K2-Instruct", 1026, 32),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6, 3.5),
    ],
)
def test_parameter_counts_of_the_model_cards(
    name: str, total_billions: float, active_billions: float
) -> None:
    count = parameter_count(load_model(name))
    assert count.total / 1e9 == pytest.approx(total_billions, rel=0.01)
    assert count.active / 1e9 == pytest.approx(active_billions, rel=0.13)
