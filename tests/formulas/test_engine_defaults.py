"""Server defaults and capture sizes by GPU and version, as read in vLLM's source of each release."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.load import find_gpu
from planner.domain.base import InputError
from planner.formulas.engine_defaults import (
    CaptureLimit,
    EngineVersion,
    capture_limit,
    capture_sizes,
    engine_rules,
    parse_version,
    server_defaults,
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.12.0", (0, 12, 0)),
        ("v0.11", (0, 11, 0)),
        ("0.26.0rc1", (0, 26, 0)),
        ("0.11.1.dev7+gabc", (0, 11, 1)),
        (" 0.9.2 ", (0, 9, 2)),
        ("", (0, 33, 0)),
        ("1.0", (1, 0, 0)),
    ],
)
def test_versions_are_read_tolerantly(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    "text", ["newest", "0", "v", "0.x", "..", "-1.2.3", "0.5.4", "0." + "9" * 400, "0.11.99999"]
)
def test_what_is_no_version_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_version(text)
    assert "\n" not in str(error.value)
    assert "engine_version" in str(error.value)
    assert len(str(error.value)) < 200


@given(st.text(max_size=40))
def test_any_text_is_a_version_or_an_input_error(text: str) -> None:
    try:
        version = parse_version(text)
    except InputError:
        return
    assert isinstance(version, EngineVersion)


@pytest.mark.parametrize(
    ("gpu", "version", "expected"),
    [
        # sequences, tokens and share of memory, as get_batch_defaults and CacheConfig have them
        ("H100-SXM-80GB", "0.12.0", (1024, 8192, 0.9)),
        ("H100-SXM-80GB", "0.20.0", (1024, 8192, 0.92)),
        ("H200", "", (1024, 8192, 0.92)),
        ("A100-SXM-80GB", "", (256, 2048, 0.92)),
        ("A100-SXM-40GB", "", (256, 2048, 0.92)),
        ("L40S", "", (256, 2048, 0.92)),
        ("T4", "0.11", (256, 2048, 0.9)),
        ("B200", "0.27.1", (1024, 8192, 0.92)),
        ("B200", "0.28.0", (1024, 16384, 0.92)),
        ("MI300X", "", (1024, 16384, 0.92)),
    ],
)
def test_server_defaults(gpu: str, version: str, expected: tuple[int, int, float]) -> None:
    defaults = server_defaults(find_gpu(gpu), version)
    assert (
        defaults.max_num_seqs,
        defaults.max_num_batched_tokens,
        defaults.gpu_memory_utilization,
    ) == expected
    assert defaults.block_size == 16


def test_gb10_batches_like_a_small_card_since_0_33() -> None:
    changes = {"name": "GB10", "compute_capability": "12.1", "memory_bytes": 119 * 2**30}
    gb10 = find_gpu("H100-SXM-80GB").model_copy(update=changes)
    assert server_defaults(gb10, "0.32.0").max_num_batched_tokens == 8192
    assert server_defaults(gb10, "0.33.0").max_num_batched_tokens == 2048


def test_asynchronous_scheduling_is_on_since_0_14() -> None:
    h100 = find_gpu("H100-SXM-80GB")
    assert [server_defaults(h100, v).async_scheduling for v in ("0.13.0", "0.14.0", "")] == [
        False,
        True,
        True,
    ]


def test_rules_change_where_the_source_did() -> None:
    changes = {
        "chunked_local_hybrid": ("0.13.0", "0.14.1"),
        "reserves_in_flight_batches": ("0.25.1", "0.26.0"),
        "logs_concurrency_tokens": ("0.20.2", "0.21.0"),
        "very_large_gpu_row": ("0.27.1", "0.28.0"),
        "mamba_prefix_caching": ("0.27.1", "0.28.0"),
        "mamba_checkpoints": ("0.31.0", "0.32.0"),
        "linear_checkpoints": ("0.32.0", "0.33.0"),
        "reserves_null_block": ("0.28.0", "0.29.0"),
        "backend_block_size": ("0.17.1", "0.18.0"),
        "offloads_hybrids": ("0.20.2", "0.21.0"),
        "small_gb10_row": ("0.32.0", "0.33.0"),
    }
    for field, (before, after) in changes.items():
        assert (getattr(engine_rules(before), field), getattr(engine_rules(after), field)) == (False, True), (
            field
        )


def test_a_newer_release_follows_the_newest_tested() -> None:
    newest, later = engine_rules(), engine_rules("0.99.0")
    assert newest._replace(version=later.version) == later


class TestCaptureSizes:
    def test_default_is_51_sizes(self) -> None:
        sizes = capture_sizes(1024, 8192)
        assert len(sizes) == 51
        assert sizes == (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))

    def test_0_11_stepped_by_eight(self) -> None:
        assert capture_sizes(1024, 8192, engine_version="0.11.2") == (1, 2, 4, *range(8, 513, 8))

    def test_few_sequences_need_few_graphs(self) -> None:
        assert capture_sizes(4, 8192, engine_version="0.30.0") == (1, 2, 4, 8)
        assert capture_sizes(1, 8192) == (1, 2)

    def test_max_num_seqs_is_captured_since_0_31(self) -> None:
        assert 100 not in capture_sizes(100, 8192, engine_version="0.30.0")
        assert 100 in capture_sizes(100, 8192, engine_version="0.31.0")

    def test_a_small_step_is_captured_itself(self) -> None:
        assert capture_sizes(256, 100)[-1] == 100
        assert capture_sizes(256, 100, engine_version="0.20.0")[-1] == 96

    def test_gpt_oss_and_b200_capture_further(self) -> None:
        h100, b200 = find_gpu("H100-SXM-80GB"), find_gpu("B200")
        gpt_oss = capture_sizes(16, 8192, limit=capture_limit(h100, "GptOssForCausalLM"))
        assert (len(gpt_oss), gpt_oss[-1]) == (83, 1024)
        # GptOssForCausalLMConfig of 0.11.0 says 81 graphs: 1, 2, 4, 31 multiples of 8, 47 of 16 from 256 to 992
        limit = capture_limit(h100, "GptOssForCausalLM", "0.11.0")
        assert capture_sizes(16, 8192, limit=limit, engine_version="0.11.0") == (
            *(1, 2, 4),
            *range(8, 256, 8),
            *range(256, 993, 16),
        )
        assert capture_limit(b200, "LlamaForCausalLM") == CaptureLimit(1024)
        assert capture_limit(b200, "LlamaForCausalLM", "0.27.1") == CaptureLimit(512)
        assert capture_limit(h100, "LlamaForCausalLM") == CaptureLimit(512)

    @given(st.integers(1, 5000), st.integers(1, 20000), st.sampled_from(["0.11.0", "0.26.0", "0.33.0"]))
    def test_ascending_and_within_every_limit(self, seqs: int, tokens: int, version: str) -> None:
        sizes = capture_sizes(seqs, tokens, engine_version=version)
        assert list(sizes) == sorted(set(sizes))
        assert sizes[0] == 1
        assert sizes[-1] <= min(tokens, 512, 2 * seqs)
