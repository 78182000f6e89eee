"""KV cache: hand computations, vLLM's own grouping replayed, properties."""

import csv
import json
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog.load import find_gpu
from planner.catalog.models import bundled_models, load_model
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, Parallelism, Speculation
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.model import (
    DenseFfn,
    LatentAttention,
    Layer,
    LinearAttention,
    MambaMixer,
    Model,
    SoftmaxAttention,
)
from planner.formulas.kv_cache import kv_bytes_per_token, kv_layout, kv_parts, resolve_kv_dtype
from planner.formulas.kv_layers import CacheKind, linear_state_bytes, mamba_state_bytes
from planner.formulas.kv_paging import KvPaging, kv_paging

HERE = Path(__file__).parent
GIB = 2**30
ONE_GPU = Parallelism()
SPEC_KINDS = {
    "FullAttentionSpec": CacheKind.FULL,
    "MLAAttentionSpec": CacheKind.FULL,
    "SlidingWindowSpec": CacheKind.SLIDING,
    "ChunkedLocalAttentionSpec": CacheKind.CHUNKED,
    "MambaSpec": CacheKind.STATE,
}


def toy(*attentions: SoftmaxAttention, pattern: tuple[int, ...]) -> Model:
    return Model(
        name="toy",
        architecture="ToyForCausalLM",
        hidden=256,
        vocab=1000,
        tied_embeddings=False,
        max_position=100_000,
        activation_dtype=WeightDtype.BF16,
        layer_kinds=tuple(Layer(attention=a, ffn=DenseFfn(intermediate=512)) for a in attentions),
        layer_pattern=pattern,
    )


def release(engine_version: str) -> KvPaging:
    return KvPaging(engine_version=engine_version)


def settings_of(**changes: object) -> EngineSettings:
    values: dict[str, object] = {
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "max_model_len": 8192,
        "gpu_memory_utilization": 0.9,
        "engine_version": "0.33.0",
    }
    return EngineSettings.model_validate(values | changes)


def heads(window: int | None = None, kv_heads: int = 2) -> SoftmaxAttention:
    return SoftmaxAttention(heads=4, kv_heads=kv_heads, head_dim=64, v_head_dim=64, window_tokens=window)


class TestBytesPerToken:
    def test_dense_by_hand(self) -> None:
        # Llama-3.1-8B: 32 layers x (K + V) x 8 heads x 128 x 2 bytes = 131,072
        model = load_model("meta-llama/Llama-3.1-8B")
        assert kv_bytes_per_token(model, ONE_GPU) == 32 * 2 * 8 * 128 * 2 == 131_072
        assert kv_bytes_per_token(model, ONE_GPU, KvDtype.FP8) == 65_536

    def test_heads_are_replicated_beyond_their_number(self) -> None:
        model = load_model("meta-llama/Llama-3.1-8B")
        by_tp = [kv_bytes_per_token(model, Parallelism(tp=tp)) for tp in (1, 2, 4, 8, 16)]
        assert by_tp == [131_072, 65_536, 32_768, 16_384, 16_384]

    def test_latent_is_whole_on_every_rank(self) -> None:
        # DeepSeek-V3: 61 layers x (512 latent + 64 rotary) x 2 bytes; a page of 16 tokens is 18,432 bytes
        model = load_model("deepseek-ai/DeepSeek-V3")
        assert kv_bytes_per_token(model, ONE_GPU) == 61 * 576 * 2 == 70_272
        assert kv_bytes_per_token(model, Parallelism(tp=8)) == 70_272
        assert kv_layout(model, ONE_GPU).block_bytes == 61 * 18_432

    def test_sparse_latent_keeps_an_indexer_key_too(self) -> None:
        # DeepSeek-V3.2: + 128 fp8 values and one fp32 scale a layer; its fp8 rows are 512 + 4 x 4 + 64 x 2 = 656
        model = load_model("deepseek-ai/DeepSeek-V3.2")
        assert kv_bytes_per_token(model, ONE_GPU, KvDtype.BF16) == 61 * (1152 + 132)
        assert kv_bytes_per_token(model, ONE_GPU, KvDtype.FP8) == 61 * (656 + 132)

    def test_pipeline_splits_layers(self) -> None:
        model = load_model("deepseek-ai/DeepSeek-V3")
        stages = [kv_bytes_per_token(model, Parallelism(pp=4), pp_rank=rank) for rank in range(4)]
        assert stages == [15 * 1152, 15 * 1152, 16 * 1152, 15 * 1152]
        assert kv_bytes_per_token(model, Parallelism(pp=4)) == max(stages)

    def test_a_checkpoint_that_asks_for_fp8_gets_it(self) -> None:
        plain, asks = load_model("meta-llama/Llama-3.1-70B"), load_model("nvidia/Llama-3.1-70B-Instruct-FP8")
        assert resolve_kv_dtype(plain, KvDtype.AUTO) is KvDtype.BF16
        assert resolve_kv_dtype(asks, KvDtype.AUTO) is KvDtype.FP8
        assert resolve_kv_dtype(asks, KvDtype.BF16) is KvDtype.BF16
        assert kv_bytes_per_token(asks, ONE_GPU) * 2 == kv_bytes_per_token(plain, ONE_GPU)

    def test_sparse_latent_was_fp8_by_default_before_0_18(self) -> None:
        model = load_model("deepseek-ai/DeepSeek-V3.2")
        assert resolve_kv_dtype(model, KvDtype.AUTO, "0.17.1") is KvDtype.FP8
        assert resolve_kv_dtype(model, KvDtype.AUTO, "0.18.0") is KvDtype.BF16

    def test_hybrid_by_hand(self) -> None:
        # Qwen3-Next: 12 full layers x 2 x 2 heads x 256 x 2 bytes; 36 gated delta nets with a state of
        # 3 x (2 x 2048 + 4096) x 2 bytes of convolution and 32 x 128 x 128 x 2 bytes of matrices
        parts = {
            part.kind: part for part in kv_parts(load_model("Qwen/Qwen3-Next-80B-A3B-Instruct"), ONE_GPU)
        }
        assert parts[CacheKind.FULL].bytes_per_token == 12 * 2 * 2 * 256 * 2
        assert parts[CacheKind.STATE].layers == 36
        assert parts[CacheKind.STATE].state_bytes == 36 * (3 * 8192 * 2 + 32 * 128 * 128 * 2)
        assert parts[CacheKind.STATE].bytes_per_token == 0


class TestStates:
    @pytest.mark.parametrize(
        ("tp", "page_bytes"), [(1, 16_900_096), (2, 8_450_048), (4, 4_225_024), (8, 2_112_512)]
    )
    def test_mamba_page_is_that_of_vllm(self, tp: int, page_bytes: int) -> None:
        """Nemotron-H-56B in vLLM 0.32.0 (MambaSpec of its own model class, fp32 state)."""
        mixer = MambaMixer(heads=256, head_dim=64, state_size=256, groups=8, conv_kernel=4)
        assert mamba_state_bytes(mixer, tp) == page_bytes

    def test_groups_are_repeated_where_tp_does_not_divide_them(self) -> None:
        mixer = MambaMixer(heads=64, head_dim=64, state_size=128, groups=1, conv_kernel=4)
        # 2 B/C groups of 128 on each of 8 ranks beside 512 channels: 3 x 768 x 2, and 8 x 64 x 128 x 4
        assert mamba_state_bytes(mixer, 8) == 3 * 768 * 2 + 8 * 64 * 128 * 4

    def test_linear_state_splits_over_ranks(self) -> None:
        a = LinearAttention(key_heads=16, value_heads=32, key_head_dim=128, value_head_dim=128, conv_kernel=4)
        assert linear_state_bytes(a, 4) * 4 == linear_state_bytes(a, 1)


def bundled_names() -> set[str]:
    return {spelling for model in bundled_models() for spelling in (model.name, *model.aliases)}


@pytest.mark.shared
def test_page_sizes_are_those_of_vllms_model_classes() -> None:
    """Every row of the measured table whose model is bundled; skipped where the table is not beside the checkout."""
    table = HERE.parents[1] / "../shared/truth/weights_oracle.csv"
    if not table.is_file():
        pytest.skip("the measured table ../shared/truth/weights_oracle.csv is not here")
    checked = 0
    with table.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["model"] not in bundled_names():
                continue
            parts = kv_parts(load_model(row["model"]), Parallelism(tp=int(row["tp"])), KvDtype.BF16)
            for spec in json.loads(row["kv_specs"]):
                (part,) = (p for p in parts if p.kind is SPEC_KINDS[spec["kind"]])
                expected = spec["page_bytes"] * spec["layers"]
                assert expected == (part.state_bytes or part.bytes_per_token * spec["block_size"])
                checked += 1
    assert checked > 60


def recorded() -> list[dict[str, str]]:
    with (HERE / "vllm_kv_capacity.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def row_id(row: dict[str, str]) -> str:
    flags = [name for name in ("hybrid", "prefix_caching") if row[name] == "False"]
    return "-".join([row["model"], f"tp{row['tp']}", row["max_model_len"], *flags, row["draft"]])


def recorded_paging(row: dict[str, str]) -> KvPaging:
    """The flags of a row on vLLM 0.32.0, where a Mamba-2 layer sets a block aside for the prefill's own state."""
    caching = row["prefix_caching"] == "True"
    mixers = {type(kind.attention) for kind in load_model(row["model"]).layer_kinds}
    return KvPaging(
        engine_version="0.32.0",
        enable_prefix_caching=caching,
        hybrid_kv_cache_manager=row["hybrid"] == "True",
        checkpoint_states=int(caching and MambaMixer in mixers),
        draft=load_model(row["draft"]) if row["draft"] else None,
        num_speculative_tokens=int(row["num_speculative_tokens"]),
    )


@pytest.mark.parametrize("row", recorded(), ids=row_id)
def test_groups_blocks_and_tokens_are_those_of_vllm(row: dict[str, str]) -> None:
    """Recorded from vLLM 0.32.0's get_kv_cache_groups by record_vllm_kv_capacity.py."""
    kv_dtype = {"1": KvDtype.FP8, "2": KvDtype.BF16}[row["kv_bytes_per_value"]]
    model, parallelism = load_model(row["model"]), Parallelism(tp=int(row["tp"]))
    layout = kv_layout(model, parallelism, kv_dtype, recorded_paging(row))
    available, length, batched = (
        int(row[name]) for name in ("available_bytes", "max_model_len", "max_num_batched_tokens")
    )
    assert len(layout.groups) == int(row["groups"])
    assert layout.blocks(available) == int(row["num_blocks"])
    assert layout.tokens(available, length, batched) == int(row["tokens"])
    assert layout.max_concurrency(available, length, batched) == pytest.approx(float(row["max_concurrency"]))


def test_recorded_paging_is_what_a_gpu_gets() -> None:
    h100 = find_gpu("H100-SXM-80GB")
    for row in recorded():
        model = load_model(row["model"])
        if any(isinstance(kind.attention, LatentAttention) for kind in model.layer_kinds):
            continue
        speculation = None
        if row["draft"]:
            drafted = int(row["num_speculative_tokens"])
            speculation = Speculation(draft=load_model(row["draft"]), num_speculative_tokens=drafted)
        engine = settings_of(
            engine_version="0.32.0",
            enable_prefix_caching=row["prefix_caching"] == "True",
            hybrid_kv_cache_manager=row["hybrid"] == "True",
            speculation=speculation,
        )
        assert kv_paging(engine, h100, model) == recorded_paging(row)


class TestGrouping:
    def test_gemma_pattern_is_six_groups_of_one_layer(self) -> None:
        layout = kv_layout(toy(heads(window=16), heads(), pattern=(0, 0, 0, 0, 0, 1)), ONE_GPU)
        assert [group.layers for group in layout.groups] == [1] * 6
        assert layout.block_bytes == 16 * 2 * 2 * 64 * 2

    def test_close_counts_are_padded_to_the_larger(self) -> None:
        # 2 and 3 layers are within 1.5 only if 3 < 3: they are not, so groups have 2 layers and one is padded
        layout = kv_layout(toy(heads(window=16), heads(), pattern=(0, 1, 0, 1, 1)), ONE_GPU)
        assert sorted(group.layers for group in layout.groups) == [1, 2, 2]
        # 3 and 4 layers: one group each
        layout = kv_layout(toy(heads(window=16), heads(), pattern=(0, 1, 0, 1, 0, 1, 1)), ONE_GPU)
        assert sorted(group.layers for group in layout.groups) == [3, 4]
        # before 0.18 the ratio was 1.25, so 4 < 3.75 fails
        old = kv_layout(
            toy(heads(window=16), heads(), pattern=(0, 1, 0, 1, 0, 1, 1)), ONE_GPU, paging=release("0.17")
        )
        assert len(old.groups) == 3

    def test_narrow_layers_take_more_tokens_a_block(self) -> None:
        layout = kv_layout(toy(heads(window=64, kv_heads=4), heads(kv_heads=1), pattern=(0, 1)), ONE_GPU)
        assert sorted(group.block_tokens for group in layout.groups) == [16, 64]

    def test_pages_that_do_not_divide_are_padded(self) -> None:
        layout = kv_layout(toy(heads(window=64, kv_heads=4), heads(kv_heads=3), pattern=(0, 1)), ONE_GPU)
        assert [group.block_tokens for group in layout.groups] == [16, 16]
        assert layout.block_bytes == 16 * 4 * 128 * 2

    def test_chunked_layers_were_cached_whole_before_0_14(self) -> None:
        model = load_model("meta-llama/Llama-4-Scout-17B-16E-Instruct")
        new, old = (
            kv_layout(model, Parallelism(tp=8)),
            kv_layout(model, Parallelism(tp=8), paging=release("0.13.0")),
        )
        assert (len(new.groups), len(old.groups)) == (4, 1)
        assert old.request_bytes(100_000.0) > 2 * new.request_bytes(100_000.0)

    def test_state_page_is_aligned_by_a_larger_attention_block(self) -> None:
        model = load_model("Qwen/Qwen3-Next-80B-A3B-Instruct")
        layout = kv_layout(model, Parallelism(tp=4))
        one_token = 1 * 2 * 256 * 2
        state = linear_state_bytes(model.layer_kinds[0].attention, 4)  # type: ignore[arg-type]
        assert layout.block_size == 16 * ceil(state / (16 * one_token))
        assert layout.block_bytes == 12 * layout.block_size * one_token


class TestCapacity:
    def test_before_0_21_tokens_were_blocks_of_one_group(self) -> None:
        model = load_model("openai/gpt-oss-20b")
        old = kv_layout(model, ONE_GPU, paging=release("0.20.2"))
        assert old.tokens(20 * GIB, 32768, 8192) == old.blocks(20 * GIB) // 2 * 16
        assert kv_layout(model, ONE_GPU).tokens(20 * GIB, 32768, 8192) > old.tokens(20 * GIB, 32768, 8192)

    def test_null_block_holds_nothing(self) -> None:
        layout = kv_layout(load_model("meta-llama/Llama-3.1-8B"), ONE_GPU)
        assert layout.usable_bytes(10.5 * layout.block_bytes) == 9 * layout.block_bytes
        assert layout.usable_bytes(-GIB) == layout.usable_bytes(0) == 0

    def test_a_shortfall_holds_no_request(self) -> None:
        layout = kv_layout(load_model("meta-llama/Llama-3.1-8B"), ONE_GPU)
        assert (layout.blocks(-GIB), layout.tokens(-GIB, 8192, 8192)) == (0, 0)

    def test_window_bounds_a_sequence(self) -> None:
        # Mistral-7B-v0.1: all layers see 4096 tokens: 256 blocks for 4095 of them, and one more in the middle
        layout = kv_layout(load_model("mistralai/Mistral-7B-v0.1"), ONE_GPU)
        held = layout.request_bytes(np.array([1.0, 16.0, 17.0, 4096.0, 30_000.0])) / layout.block_bytes
        assert held.tolist() == [1, 1, 2, 256, 257]

    def test_state_is_paid_by_the_shortest_sequence(self) -> None:
        layout = kv_layout(load_model("nvidia/Nemotron-H-56B-Base-8K"), Parallelism(tp=8))
        state_blocks = sum(group.state_blocks for group in layout.groups)
        assert state_blocks == 2 * len([g for g in layout.groups if g.kind is CacheKind.STATE])
        assert layout.request_bytes(1.0) == (state_blocks + 1) * layout.block_bytes

    def test_a_windowed_request_reserves_room_for_tokens_in_flight(self) -> None:
        model = load_model("mistralai/Mistral-7B-v0.1")
        layout = kv_layout(model, ONE_GPU)
        # and, since 0.29, beside the null block
        assert layout.reserved_bytes(30_000, 2048) == (ceil((4095 + 2 * 2048) / 16) + 2) * layout.block_bytes
        one = kv_layout(model, ONE_GPU, paging=release("0.25.1"))
        assert one.reserved_bytes(30_000, 2048) == (ceil((4095 + 2048) / 16) + 1) * one.block_bytes


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(InputError, match="engine_version"):
        kv_layout(load_model("meta-llama/Llama-3.1-8B"), ONE_GPU, paging=release("newest"))


ALL_MODELS = [model.name for model in bundled_models()]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(ALL_MODELS), tp=st.sampled_from([1, 2, 4, 8]), length=st.integers(2, 60_000))
def test_monotone_in_length_tp_dtype_and_memory(name: str, tp: int, length: int) -> None:
    model = load_model(name)
    layout, wider = kv_layout(model, Parallelism(tp=tp)), kv_layout(model, Parallelism(tp=2 * tp))
    assert layout.request_bytes(float(length)) >= layout.request_bytes(float(length - 1))
    assert kv_bytes_per_token(model, Parallelism(tp=2 * tp)) <= kv_bytes_per_token(model, Parallelism(tp=tp))
    assert wider.block_bytes * layout.block_size <= layout.block_bytes * wider.block_size
    fp8 = kv_layout(model, Parallelism(tp=tp), KvDtype.FP8)
    bf16 = kv_layout(model, Parallelism(tp=tp), KvDtype.BF16)
    assert fp8.bytes_per_token <= bf16.bytes_per_token
    assert layout.tokens(20 * GIB, length, 8192) >= layout.tokens(19 * GIB, length, 8192)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(ALL_MODELS), pp=st.integers(1, 4), tp=st.sampled_from([1, 8]))
def test_stages_hold_all_layers_and_no_stage_more_than_its_block(name: str, pp: int, tp: int) -> None:
    model = load_model(name)
    parallelism = Parallelism(tp=tp, pp=pp)
    stages = [kv_parts(model, parallelism, pp_rank=rank) for rank in range(pp)]
    whole = kv_parts(model, Parallelism(tp=tp), pp_rank=0)
    assert sum(part.layers for stage in stages for part in stage) == sum(part.layers for part in whole)
    assert sum(p.bytes_per_token for s in stages for p in s) == sum(p.bytes_per_token for p in whole)
    assert kv_layout(model, parallelism).block_bytes <= kv_layout(model, Parallelism(tp=tp)).block_bytes
