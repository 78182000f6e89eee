"""What decides paging: block sizes of attention backends by GPU and release, flags, and what does not start."""

import csv
from pathlib import Path

import pytest

from planner.calibrate.fit_memory import read_startup_logs
from planner.catalog.load import find_gpu
from planner.catalog.models import bundled_models, load_model
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, Parallelism, Speculation
from planner.domain.dtypes import KvDtype
from planner.domain.model import Model
from planner.formulas.kv_cache import kv_layout, kv_parts, kv_report
from planner.formulas.kv_layers import CacheKind, linear_state_bytes
from planner.formulas.kv_paging import KvPaging, default_paging, kv_paging, paging_problem

LOGS = Path(__file__).parents[2] / "../shared/truth/memory_train.csv"
GIB = 2**30


def settings_of(**changes: object) -> EngineSettings:
    values: dict[str, object] = {
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "max_model_len": 8192,
        "gpu_memory_utilization": 0.9,
        "engine_version": "0.33.0",
    }
    return EngineSettings.model_validate(values | changes)


def speculation(draft: str = "meta-llama/Llama-3.2-1B", tokens: int = 5) -> Speculation:
    return Speculation(draft=load_model(draft), num_speculative_tokens=tokens)


class TestBlockSize:
    @pytest.mark.parametrize(
        ("gpu", "kv_dtype", "by_release"),
        [
            # FlashMLA until 0.17, then FlashAttention where keys are 16 bits, FlashMLA where they are fp8
            ("H200", "bf16", {"0.11.0": 64, "0.17.0": 64, "0.18.0": 16, "0.33.0": 16}),
            ("H200", "fp8", {"0.11.0": 64, "0.17.0": 64, "0.18.0": 64, "0.33.0": 64}),
            # CUTLASS MLA, then FlashInfer: 64 as the platform guessed, 32 as the backend says
            ("B200", "bf16", {"0.11.0": 128, "0.14.1": 128, "0.16.0": 64, "0.18.0": 32, "0.33.0": 32}),
            ("B200", "fp8", {"0.14.1": 128, "0.17.0": 64, "0.18.0": 32}),
            # B300 is 10.3: before 0.13 only 10.0 counted as Blackwell
            ("B300", "bf16", {"0.12.0": 16, "0.13.0": 128, "0.33.0": 32}),
            # Triton elsewhere
            ("A100-SXM-80GB", "bf16", {"0.11.0": 16, "0.33.0": 16}),
            ("RTX PRO 6000", "bf16", {"0.11.0": 16, "0.33.0": 16}),
            ("MI300X", "bf16", {"0.11.0": 16, "0.33.0": 16}),
        ],
    )
    def test_latent_attention(self, gpu: str, kv_dtype: str, by_release: dict[str, int]) -> None:
        model = load_model("deepseek-ai/DeepSeek-V3")
        for release, tokens in by_release.items():
            paging = default_paging(find_gpu(gpu), model, KvDtype(kv_dtype), release)
            assert paging.block_size == tokens, release

    @pytest.mark.parametrize("release", ["0.11.0", "0.17.0", "0.18.0", "0.33.0"])
    @pytest.mark.parametrize("gpu", ["H200", "B200"])
    def test_sparse_latent_attention_always_pages_by_64(self, gpu: str, release: str) -> None:
        model = load_model("deepseek-ai/DeepSeek-V3.2")
        assert default_paging(find_gpu(gpu), model, engine_version=release).block_size == 64

    def test_heads_page_by_16(self) -> None:
        for gpu in ("H100-SXM-80GB", "B200", "L4", "MI300X"):
            for name in ("meta-llama/Llama-3.1-8B", "openai/gpt-oss-20b", "google/gemma-3-27b-it"):
                assert default_paging(find_gpu(gpu), load_model(name)).block_size == 16

    def test_a_given_size_is_kept_since_0_18_and_replaced_before_where_the_kernel_cannot(self) -> None:
        h200, model = find_gpu("H200"), load_model("deepseek-ai/DeepSeek-V3")
        sizes = {
            (release, given): kv_paging(
                settings_of(block_size=given, engine_version=release), h200, model
            ).block_size
            for release in ("0.17.0", "0.18.0")
            for given in (32, 128)
        }
        assert sizes == {("0.17.0", 32): 64, ("0.17.0", 128): 128, ("0.18.0", 32): 32, ("0.18.0", 128): 128}

    @pytest.mark.shared
    def test_logged_tokens_are_whole_blocks_of_that_size(self) -> None:
        """Releases before 0.21 log blocks x block size: every DeepSeek log divides, and the sizes tell apart."""
        if not LOGS.is_file():
            pytest.skip("the measured table ../shared/truth/memory_train.csv is not here")
        logged: dict[int, list[int]] = {}
        with LOGS.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if "DeepSeek" in row["model"]:
                    model = load_model(row["model"])
                    paging = default_paging(find_gpu(row["gpu"]), model, engine_version=row["engine_version"])
                    logged.setdefault(paging.block_size, []).append(int(float(row["kv_cache_tokens"])))
        assert sorted(logged) == [16, 32, 64]
        for block_size, tokens in logged.items():
            assert all(count % block_size == 0 for count in tokens)
            assert any(count % (2 * block_size) for count in tokens)


@pytest.mark.shared
def test_logged_tokens_follow_from_the_logged_cache() -> None:
    """Start-up logs give the cache in hundredths of a GiB: the tokens must lie between its ends."""
    if not LOGS.is_file():
        pytest.skip("the measured table ../shared/truth/memory_train.csv is not here")
    logs = read_startup_logs(LOGS)
    assert len(logs) > 60
    for log in logs:
        limits = (log.engine.max_model_len, log.engine.max_num_batched_tokens)
        low, high = (log.kv.tokens(log.kv_cache_bytes + GIB * end, *limits) for end in (-0.0051, 0.0051))
        assert low <= log.kv_cache_tokens <= high, log.run_id


class TestHybrids:
    def test_the_step_of_a_states_page(self) -> None:
        model = load_model("Qwen/Qwen3-Next-80B-A3B-Instruct")
        steps = {
            (gpu, release): default_paging(find_gpu(gpu), model, engine_version=release).state_step_tokens
            for gpu in ("H200", "B200", "A100-SXM-80GB")
            for release in ("0.11.0", "0.12.0", "0.17.0", "0.18.0", "0.32.0", "0.33.0")
        }
        # heads of 256 on Blackwell step by 32 from 0.12 to 0.17; FlashInfer's checkpoints by 64 since 0.33
        wide = {key for key, step in steps.items() if step == 32}
        assert wide == {("B200", "0.12.0"), ("B200", "0.17.0")}
        assert {key for key, step in steps.items() if step == 64} == {("H200", "0.33.0"), ("B200", "0.33.0")}

    def test_checkpoints_need_prefix_caching(self) -> None:
        gpu, model = find_gpu("H200"), load_model("Qwen/Qwen3-Next-80B-A3B-Instruct")
        on, off = (kv_paging(settings_of(enable_prefix_caching=flag), gpu, model) for flag in (True, False))
        assert (on.checkpoint_states, on.state_step_tokens) == (1, 64)
        assert (off.checkpoint_states, off.state_step_tokens) == (0, 16)

    def test_states_of_a_request(self) -> None:
        model = load_model("nvidia/Nemotron-H-56B-Base-8K")

        def states(release: str, **flags: object) -> tuple[int, int]:
            engine = settings_of(engine_version=release, **flags)
            paging = kv_paging(engine, find_gpu("H200"), model)
            layout = kv_layout(model, Parallelism(tp=8), paging=paging)
            group = next(group for group in layout.groups if group.kind is CacheKind.STATE)
            return group.state_blocks, group.reserved_blocks(8192, 8192)

        # one before prefix caching was on for hybrids; then two, and one more for the prefill since 0.32
        assert [states(release) for release in ("0.27.1", "0.28.0", "0.32.0")] == [(1, 1), (2, 2), (2, 3)]
        assert states("0.33.0", enable_prefix_caching=False) == (1, 1)
        # and one for every token speculated
        assert states("0.33.0", speculation=speculation(tokens=3)) == (5, 6)

    def test_speculation_widens_the_convolution(self) -> None:
        model = load_model("Qwen/Qwen3-Next-80B-A3B-Instruct")
        linear = model.layer_kinds[0].attention
        # 3 more positions of (2 x 2048 + 4096) values of 2 bytes
        wider = linear_state_bytes(linear, 1, 3) - linear_state_bytes(linear, 1)  # type: ignore[arg-type]
        assert wider == 3 * 8192 * 2


class TestFlags:
    def test_without_the_hybrid_manager_windows_keep_every_token(self) -> None:
        model = load_model("openai/gpt-oss-20b")
        whole = kv_layout(model, Parallelism(), paging=KvPaging(hybrid_kv_cache_manager=False))
        assert [(group.kind, group.layers) for group in whole.groups] == [(CacheKind.FULL, 24)]
        hybrid = kv_layout(model, Parallelism())
        assert whole.request_bytes(100_000.0) == pytest.approx(
            2 * float(hybrid.request_bytes(100_000.0)), rel=0.01
        )

    def test_offloading_turns_the_hybrid_manager_off_before_0_21(self) -> None:
        gpu, model = find_gpu("H200"), load_model("openai/gpt-oss-20b")
        engines = [settings_of(kv_offload_bytes=GIB, engine_version=each) for each in ("0.20.2", "0.21.0")]
        assert [kv_paging(engine, gpu, model).hybrid_kv_cache_manager for engine in engines] == [False, True]

    @pytest.mark.parametrize("name", ["Qwen/Qwen3.5-27B", "nvidia/Nemotron-H-56B-Base-8K"])
    def test_states_beside_heads_need_the_hybrid_manager(self, name: str) -> None:
        """vLLM: "Failed to promote local KV cache specs to one unified type"."""
        paging = KvPaging(hybrid_kv_cache_manager=False)
        with pytest.raises(InputError, match="hybrid KV cache manager"):
            kv_layout(load_model(name), Parallelism(tp=2), paging=paging)

    def test_windows_of_two_sizes_need_it_too(self) -> None:
        """vLLM 0.32.0 raises "must have the same window size" for gemma-3-27b drafted by gemma-3-1b."""
        model = load_model("google/gemma-3-27b-it")
        paging = KvPaging(hybrid_kv_cache_manager=False, draft=load_model("google/gemma-3-1b-it"))
        assert "windows of 2 sizes" in (paging_problem(model, paging) or "")
        assert paging_problem(model, paging._replace(draft=None)) is None

    def test_fp8_rows_of_sparse_latents_are_plain_on_blackwell_since_0_19(self) -> None:
        # 512 latents and 64 rotary values of one byte, against 512 + 4 x 4 + 64 x 2; and an indexer key of 132
        model = load_model("deepseek-ai/DeepSeek-V3.2")

        def row(gpu: str, release: str) -> int:
            paging = default_paging(find_gpu(gpu), model, KvDtype.FP8, release)
            layout = kv_layout(model, Parallelism(tp=8), KvDtype.FP8, paging)
            parts = kv_parts(model, Parallelism(tp=8), KvDtype.FP8, paging=paging)
            assert sum(part.bytes_per_token for part in parts) == layout.bytes_per_token
            return layout.bytes_per_token // 61 - 132

        rows = [row("B200", "0.18.0"), row("B200", "0.19.0"), row("H200", "0.33.0")]
        assert rows == [656, 576, 656]


class TestDraft:
    def test_its_layers_join_those_of_the_target(self) -> None:
        target, draft = load_model("meta-llama/Llama-3.1-8B"), load_model("meta-llama/Llama-3.2-1B")
        paging = KvPaging(draft=draft, num_speculative_tokens=5)
        layout = kv_layout(target, Parallelism(), paging=paging)
        # 32 layers x 2 x 8 x 128 x 2 bytes, and 16 x 2 x 8 x 64 x 2: one group, pages of two sizes
        assert layout.bytes_per_token == 131_072 + 32_768
        (row,) = kv_report(layout)
        assert (row.layers, row.page_bytes, row.padding_bytes) == (48, (16 * 2048, 16 * 4096), 0)
        # a sequence of 12 tokens has 5 slots more: two blocks
        assert layout.request_bytes(12.0) == 2 * layout.block_bytes

    def test_it_is_on_the_last_stage(self) -> None:
        target, draft = load_model("meta-llama/Llama-3.1-8B"), load_model("meta-llama/Llama-3.2-1B")
        paging = KvPaging(draft=draft, num_speculative_tokens=5)
        layout = kv_layout(target, Parallelism(pp=2), paging=paging)
        half = 16 * 16 * 4096
        assert layout.stage_block_bytes == (half, half + 16 * 16 * 2048)
        assert layout.bytes_per_token == 65_536 + 32_768

    def test_stages_share_the_number_of_blocks_of_the_poorest(self) -> None:
        layout = kv_layout(load_model("meta-llama/Llama-3.1-8B"), Parallelism(pp=2))
        (block_bytes,) = set(layout.stage_block_bytes)
        assert layout.common_blocks([10.5 * block_bytes, 9.0 * block_bytes]) == 9
        assert layout.common_blocks([-1.0, 9.0 * block_bytes]) == 0


class TestBatchesInFlight:
    @pytest.mark.parametrize(
        ("model", "pp", "release", "batches"),
        [
            ("mistralai/Mistral-7B-v0.1", 1, "0.25.1", 1),
            ("mistralai/Mistral-7B-v0.1", 1, "0.26.0", 2),
            # the V2 runner overlaps the steps of a pipeline, and ran dense models first
            ("mistralai/Mistral-7B-v0.1", 2, "0.26.0", 3),
            ("openai/gpt-oss-20b", 2, "0.26.0", 2),
            ("openai/gpt-oss-20b", 2, "0.29.0", 3),
            ("Qwen/Qwen3.5-27B", 2, "0.28.0", 2),
        ],
    )
    def test_by_runner(self, model: str, pp: int, release: str, batches: int) -> None:
        paging = KvPaging(engine_version=release)
        assert kv_layout(load_model(model), Parallelism(pp=pp), paging=paging).batches_in_flight == batches
        alone = kv_layout(
            load_model(model), Parallelism(pp=pp), paging=paging._replace(async_scheduling=False)
        )
        assert alone.batches_in_flight == (1 if release == "0.25.1" else pp)


class TestReport:
    def test_rows_by_hand(self) -> None:
        # Qwen3-Next on tp 4: 12 attention layers and 36 gated delta nets of 274,432 bytes, in groups of 12 layers.
        # One token is 1,024 bytes a layer, so 272 tokens (17 x 16) hold a state: 278,528 bytes a page.
        model = load_model("Qwen/Qwen3-Next-80B-A3B-Instruct")
        layout = kv_layout(model, Parallelism(tp=4))
        rows = kv_report(layout)
        assert [(row.kind, row.layers, row.block_tokens, row.page_bytes) for row in rows] == [
            (CacheKind.STATE, 12, 272, (278_528,)),
            (CacheKind.STATE, 12, 272, (278_528,)),
            (CacheKind.STATE, 12, 272, (278_528,)),
            (CacheKind.FULL, 12, 272, (278_528,)),
        ]
        assert [row.padding_bytes for row in rows] == [12 * (278_528 - 274_432)] * 3 + [0]

    def test_layers_only_a_larger_group_has_are_padding(self) -> None:
        # gemma-3-27b: 52 sliding and 10 full layers: groups of 10, the last sliding ones of 8 or 9
        rows = kv_report(kv_layout(load_model("google/gemma-3-27b-it"), Parallelism()))
        page = 16 * 2 * 16 * 128 * 2
        assert [row.padding_bytes for row in rows] == [(10 - row.layers) * page for row in rows]
        assert sum(row.layers for row in rows) == 62
        assert rows[0].window_tokens == 1024

    @pytest.mark.parametrize("model", bundled_models(), ids=lambda model: model.name)
    def test_nothing_is_padded_by_less_than_nothing(self, model: Model) -> None:
        for parallelism in (Parallelism(), Parallelism(tp=8), Parallelism(tp=2, pp=3)):
            layout = kv_layout(load_model(model.name), parallelism)
            rows = kv_report(layout)
            assert all(0 <= row.padding_bytes < layout.block_bytes for row in rows)
            if len(rows) == 1:
                assert rows[0].padding_bytes == 0


def test_the_null_block_is_not_lent_since_0_29() -> None:
    model = load_model("meta-llama/Llama-3.1-8B")
    new, old = (
        kv_layout(model, Parallelism(), paging=KvPaging(engine_version=each)) for each in ("0.29.0", "0.28.0")
    )
    just = 512 * old.block_bytes
    assert old.starts(just, 8192, 8192)
    assert not new.starts(just, 8192, 8192)
    assert new.starts(just + new.block_bytes, 8192, 8192)
