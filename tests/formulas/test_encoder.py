"""Memory of profiling the encoder: against vLLM's own forward passes, by hand, and as properties."""

import csv
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.model_config import parse_model
from planner.catalog.models import bundled_models, load_model
from planner.domain.deployment import EngineSettings
from planner.domain.model import Model
from planner.formulas.encoder import (
    BatchLimits,
    EncoderProfile,
    encoder_batch,
    encoder_peak_bytes,
    encoder_profile,
    encoder_rules,
)

HERE = Path(__file__).parent
MULTIMODAL = sorted(e.name for e in bundled_models() if load_model(e.name).vision is not None)
QWEN3_VL = "Qwen/Qwen3-VL-30B-A3B-Instruct"
RECORDED_VERSION = "0.32.0"
RECORDED_LIMITS = BatchLimits(8192, 1024, 8192)
NOT_COUNTED_RATIO = 0.006
"""Indices, masks and sequence bounds; a sliver of the weights where a class keeps its own view of them."""


def recorded_rows() -> Iterator[tuple[str, int, int]]:
    with (HERE / "vllm_encoder_peaks.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield row["model"], int(row["tp"]), int(row["peak_bytes"])


@lru_cache(maxsize=64)
def model_of(name: str) -> Model:
    if not name.startswith("small:"):
        return load_model(name)
    configs = json.loads((HERE / "small_vision_configs.json").read_text(encoding="utf-8"))
    return parse_model(configs[name.removeprefix("small:")], name=name)


def settings(
    version: str,
    *,
    max_num_batched_tokens: int = 8192,
    max_num_seqs: int = 1024,
    max_model_len: int = 8192,
    multimodal: bool = True,
) -> EngineSettings:
    return EngineSettings(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        gpu_memory_utilization=0.9,
        engine_version=version,
        multimodal=multimodal,
    )


def items_of(name: str, **limits: int) -> int:
    tower = load_model(name).vision
    assert tower is not None
    return encoder_batch(tower, encoder_rules(RECORDED_VERSION), RECORDED_LIMITS._replace(**limits)).items


@pytest.mark.parametrize(("name", "tp", "expected"), list(recorded_rows()))
def test_peak_of_the_forward_pass_as_vllm_runs_it(name: str, tp: int, expected: int) -> None:
    tower = model_of(name).vision
    assert tower is not None
    rules = encoder_rules(RECORDED_VERSION)
    got = encoder_peak_bytes(tower, encoder_batch(tower, rules, RECORDED_LIMITS), rules, tp=tp)
    assert expected * (1 - NOT_COUNTED_RATIO) <= got <= expected * (1 + 1e-3)


def test_largest_image_by_hand() -> None:
    # Qwen3-VL: 16,777,216 pixels are 65,536 patches of 16 x 16, four of which make a token. At its peak a block of
    # width 1152 has, besides 1,536 values of a patch and three features of 2,048 a token: its input, the learned
    # positions, sines and cosines, and in attention the normalised input, queries, keys and values, queries and
    # keys made contiguous and turned, the result and its projection.
    per_patch = 1536 + 1152 + 1152 + 72 + (1 + 3 + 2 + 2 + 1 + 1) * 1152
    expected = 2 * (65_536 * per_patch + 16_384 * 3 * 2048)
    # Kept: main features and three deepstack ones for each token, and the pixels.
    cached = 2 * (16_384 * 4 * 2048 + 65_536 * 1536)
    assert encoder_profile(load_model(QWEN3_VL), settings("0.18.0")) == EncoderProfile(expected, cached)
    assert expected == pytest.approx(2.07 * 2**30, rel=1e-3)
    assert cached == 448 * 2**20


def test_before_queries_and_keys_were_copied_by_hand() -> None:
    # Without that copy attention needs less than the feed-forward block does: its input, the learned positions, sines
    # and cosines, the sum with the attention, that normalised, and twice 4,304 values.
    per_patch = 1536 + 1152 + 1152 + 72 + 2 * 1152 + 2 * 4304
    expected = 2 * (65_536 * per_patch + 16_384 * 3 * 2048)
    old = encoder_profile(load_model(QWEN3_VL), settings("0.14.1"))
    assert old.peak_bytes == expected
    assert old.cached_bytes == encoder_profile(load_model(QWEN3_VL), settings("0.16.0")).cached_bytes


def test_timestamps_blow_up_the_cache() -> None:
    # 0.12: a video of two frames of 110 x 110 tokens was budgeted at 12.5 times its tokens, and padded to that.
    profile = encoder_profile(load_model(QWEN3_VL), settings("0.12.0"))
    assert profile.cached_bytes == 2 * (int(12.5 * 12_100) * 4 * 2048 + 4 * 12_100 * 1536)


def test_items_of_a_budget() -> None:
    # Gemma 3: 256 tokens an image. One sequence of 600 tokens holds two of them.
    assert items_of("google/gemma-3-4b-it") == 32
    assert items_of("google/gemma-3-4b-it", max_num_batched_tokens=2048) == 8
    assert items_of("google/gemma-3-4b-it", max_num_seqs=3, max_model_len=600) == 6
    # An item larger than the budget is taken alone.
    assert items_of(QWEN3_VL, max_num_batched_tokens=512) == 1


def test_no_images_no_profile() -> None:
    assert encoder_profile(load_model(QWEN3_VL), settings("0.20.0", multimodal=False)) == EncoderProfile()
    assert encoder_profile(load_model("Qwen/Qwen3-8B"), settings("0.20.0")) == EncoderProfile()


@pytest.mark.parametrize(
    ("name", "version", "profiles", "keeps_pixels"),
    [
        # The second runner took dense models from 0.25 on, profiled encoders from 0.27 on and took all from 0.29 on.
        ("Qwen/Qwen3-VL-8B-Instruct", "0.24.0", True, True),
        ("Qwen/Qwen3-VL-8B-Instruct", "0.26.0", False, False),
        ("Qwen/Qwen3-VL-8B-Instruct", "0.27.0", True, False),
        (QWEN3_VL, "0.26.0", True, True),
        (QWEN3_VL, "0.28.0", True, True),
        (QWEN3_VL, "0.29.0", True, False),
        ("Qwen/Qwen3.5-27B", "0.26.0", True, True),
    ],
)
def test_runners(name: str, version: str, profiles: bool, keeps_pixels: bool) -> None:
    profile = encoder_profile(load_model(name), settings(version))
    assert (profile.peak_bytes > 0) == profiles
    tower = load_model(name).vision
    assert tower is not None
    pixels = 2 * 65_536 * 1536
    outputs = 2 * 16_384 * tower.output_width if profiles else 0
    assert profile.cached_bytes == outputs + (pixels if keeps_pixels else 0)


@given(
    st.sampled_from(MULTIMODAL),
    st.sampled_from(["0.11.0", "0.14.1", "0.18.0", "0.26.0", "0.32.0"]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(min_value=1, max_value=65_536),
)
def test_more_ranks_need_less_and_more_tokens_more(name: str, version: str, tp: int, tokens: int) -> None:
    model = load_model(name)
    here = encoder_profile(model, settings(version, max_num_batched_tokens=tokens), tp)
    split = encoder_profile(model, settings(version, max_num_batched_tokens=tokens), 2 * tp)
    wider = encoder_profile(model, settings(version, max_num_batched_tokens=2 * tokens), tp)
    # Two ranks add a copy of the hidden width for the sum over them, and halve what is much wider than that.
    assert split.peak_bytes <= here.peak_bytes
    assert here.peak_bytes <= wider.peak_bytes
    assert here.cached_bytes <= wider.cached_bytes
    assert here.peak_bytes >= here.cached_bytes or version == "0.11.0"
