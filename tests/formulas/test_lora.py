"""Adapter slots of one rank: against vLLM's own adapter manager, by hand, and as properties."""

import csv
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.model_config import parse_model
from planner.catalog.models import load_model
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, LoraSlots, Parallelism
from planner.domain.model import Model
from planner.formulas.lora import lora_bytes, lora_index_bytes, lora_tensors

HERE = Path(__file__).parent
LLAMA = "meta-llama/Llama-3.1-8B"
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"


@lru_cache(maxsize=256)
def model_of(name: str) -> Model:
    if "/" in name:
        return load_model(name)
    configs = json.loads((HERE / "small_configs.json").read_text(encoding="utf-8"))
    return parse_model(configs[name], name=name)


def recorded() -> Iterator[tuple[str, Parallelism, LoraSlots, int]]:
    with (HERE / "vllm_lora.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            slots = LoraSlots(
                max_loras=int(row["max_loras"]),
                max_lora_rank=int(row["max_lora_rank"]),
                fully_sharded=row["fully_sharded"] == "1",
            )
            parallelism = Parallelism(tp=int(row["tp"]), ep=row["ep"] == "1")
            yield row["model"], parallelism, slots, int(row["lora_bytes"])


def test_slots_as_vllm_allocates_them() -> None:
    rows = list(recorded())
    assert len(rows) >= 450
    assert {(spread.tp, spread.ep, slots.fully_sharded) for _, spread, slots, _ in rows} == {
        *((1, False, False), (2, False, False), (2, False, True), (4, False, False), (4, False, True)),
        *((2, True, False), (4, True, False)),
    }
    wrong = []
    for name, parallelism, slots, expected in rows:
        got = lora_bytes(model_of(name), parallelism, slots, engine_version="0.32.0")
        if got != expected:
            wrong.append((name, parallelism, slots, got - expected))
    assert wrong == []


def test_dense_by_hand() -> None:
    # Llama 3.1 8B, rank 16, one slot, one GPU, bf16. A layer: A and B of q, k, v, o, gate, up and down.
    q = 4096 + 4096
    k_or_v = 4096 + 1024
    o = 4096 + 4096
    gate_or_up = 4096 + 14336
    down = 14336 + 4096
    layers = 32 * 16 * (q + 2 * k_or_v + o + 2 * gate_or_up + down)
    # Embedding: 128256 rows of A, 4096 of B; head the other way round.
    outer = 2 * 16 * (128256 + 4096)
    expected = 2 * (layers + outer)
    assert expected == 92_356_608
    assert lora_bytes(load_model(LLAMA), Parallelism(), LoraSlots(max_lora_rank=16)) == expected


def test_sharding_by_hand() -> None:
    # The same at TP 4: column-parallel layers split B, row-parallel ones A; fully sharded, the other one as well.
    model = load_model(LLAMA)
    column_a, column_b = 5 * 16 * 4096, 16 * (4096 + 2 * 1024 + 2 * 14336) // 4
    row_a, row_b = 16 * (4096 + 14336) // 4, 2 * 16 * 4096
    outer = 2 * 2 * 16 * (128256 + 4096) + 8 * 128256
    half = LoraSlots(max_lora_rank=16)
    assert lora_bytes(model, Parallelism(tp=4), half) == (
        2 * 32 * (column_a + column_b + row_a + row_b) + outer
    )
    full = LoraSlots(max_lora_rank=16, fully_sharded=True)
    assert lora_bytes(model, Parallelism(tp=4), full) == (
        2 * 32 * (column_a // 4 + column_b + row_a + row_b // 4) + outer
    )


def test_experts_by_hand() -> None:
    # Mixtral 8x7B, rank 8, two slots: every expert has its own factors; whole experts under EP.
    slots = LoraSlots(max_loras=2, max_lora_rank=8)
    tensors = lora_tensors(load_model(MIXTRAL), Parallelism(tp=4, ep=True), slots)
    one_expert = 8 * (2 * 4096 + 2 * 14336 + 14336 + 4096)
    experts = sum(tensor.size_bytes for tensor in tensors if tensor.name.startswith("experts"))
    assert experts == 32 * (2 * 2 * 2 * one_expert + 4 * 3)


def test_experts_take_adapters_since_0_12() -> None:
    def names(version: str) -> set[str]:
        tensors = lora_tensors(load_model(MIXTRAL), Parallelism(), LoraSlots(), engine_version=version)
        return {tensor.name for tensor in tensors}

    assert not any(name.startswith("experts") for name in names("0.11.0"))
    assert "experts_up_lora_a" in names("0.12.0")


def test_routers_that_were_plain_layers_took_no_adapters() -> None:
    # GLM 4.5 Air: 45 routers from 4096 to 128 experts.
    model = load_model("zai-org/GLM-4.5-Air")
    new = lora_bytes(model, Parallelism(), LoraSlots(), engine_version="0.31.0")
    assert new - lora_bytes(model, Parallelism(), LoraSlots(), engine_version="0.30.0") == (
        2 * 45 * 16 * (4096 + 128)
    )


def test_extra_vocabulary_of_old_releases_by_hand() -> None:
    # 0.11: 256 rows more in A of the embedding and B of the head, two tables of an adapter's own tokens,
    # and 256 rows more of the embedding and the head themselves (128256 and 64 divide, so no padding changes).
    more = lora_bytes(load_model(LLAMA), Parallelism(), LoraSlots(), engine_version="0.11.0") - lora_bytes(
        load_model(LLAMA), Parallelism(), LoraSlots(), engine_version="0.12.0"
    )
    assert more == 2 * (2 * 16 * 256 + 2 * 256 * 4096 + 2 * 256 * 4096)


def test_mistral_leaves_the_vocabulary_alone_since_0_16() -> None:
    model = load_model("mistralai/Mistral-7B-v0.3")
    old = lora_bytes(model, Parallelism(), LoraSlots(), engine_version="0.14.1")
    assert old - lora_bytes(model, Parallelism(), LoraSlots(), engine_version="0.16.0") == 2 * 2 * 16 * (
        32768 + 4096
    )


def test_pipeline_stages_share_the_layers() -> None:
    model, slots = load_model(LLAMA), LoraSlots()
    stages = [
        {
            tensor.name: tensor.size_bytes
            for tensor in lora_tensors(model, Parallelism(pp=2), slots, pp_rank=rank)
        }
        for rank in range(2)
    ]
    assert "embedding_lora_a" in stages[0]
    assert "head_lora_a" not in stages[0]
    assert "head_lora_a" in stages[1]
    assert "embedding_lora_a" not in stages[1]
    whole = lora_bytes(model, Parallelism(), slots)
    assert sum(sum(stage.values()) for stage in stages) == whole
    assert lora_bytes(model, Parallelism(pp=2), slots) == max(sum(stage.values()) for stage in stages)


def test_index_vectors_by_hand() -> None:
    # 8192 tokens x (4 x 8 + 2 maps x 2 x 4) + 256 sequences x 3 x 8.
    engine = EngineSettings(
        max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=4096, gpu_memory_utilization=0.9
    )
    assert lora_index_bytes(engine) == 0
    assert lora_index_bytes(engine.model_copy(update={"lora": LoraSlots()})) == 8192 * 48 + 256 * 24


@given(
    st.sampled_from([LLAMA, MIXTRAL, "deepseek-ai/DeepSeek-V2-Lite", "Qwen/Qwen3-Next-80B-A3B-Instruct"]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([8, 16, 64, 256]),
    st.integers(1, 16),
    st.booleans(),
)
def test_slots_grow_evenly(name: str, tp: int, rank: int, max_loras: int, fully_sharded: bool) -> None:
    model, parallelism = model_of(name), Parallelism(tp=tp)

    def factors(count: int, rank: int) -> int:
        slots = LoraSlots(max_loras=count, max_lora_rank=rank, fully_sharded=fully_sharded)
        tensors = lora_tensors(model, parallelism, slots)
        assert all(tensor.group == "lora" for tensor in tensors)
        return sum(tensor.size_bytes for tensor in tensors if "_lora_" in tensor.name)

    assert factors(max_loras, rank) == max_loras * factors(1, rank)
    assert factors(1, 2 * rank) == 2 * factors(1, rank)


def test_a_version_that_is_none() -> None:
    with pytest.raises(InputError):
        lora_bytes(load_model(LLAMA), Parallelism(), LoraSlots(), engine_version="newest")
