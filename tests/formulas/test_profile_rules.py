"""Which runner a release gives a model, and what of its profiling run is charged (vllm/config/vllm.py)."""

import pytest

from planner.catalog.load import find_gpu
from planner.catalog.models import bundled_models, load_model
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, Speculation
from planner.formulas.encoder import EncoderProfile, encoder_profile
from planner.formulas.engine_defaults import parse_version
from planner.formulas.profile_rules import ProfileRules, fuses_all_reduce, profile_rules, uses_v2_runner

RELEASES = [
    "0.21.0",
    "0.22.1",
    "0.23.0",
    "0.24.0",
    "0.25.1",
    "0.26.0",
    "0.28.0",
    "0.29.0",
    "0.30.0",
    "0.31.0",
    "0.33.0",
]
LLAMA = "meta-llama/Llama-3.1-8B"


def rules(version: str, model: str = LLAMA, *, drafts: bool = False) -> ProfileRules:
    return profile_rules(load_model(model), version, drafts=drafts)


@pytest.mark.parametrize(
    ("model", "since"),
    [
        ("Qwen/Qwen3-32B", "0.22.1"),
        ("meta-llama/Llama-3.1-8B", "0.23.0"),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "0.24.0"),
        ("deepseek-ai/DeepSeek-V2-Lite", "0.24.0"),
        ("google/gemma-3-27b-it", "0.25.1"),
        ("Qwen/Qwen3-30B-A3B", "0.29.0"),
        ("deepseek-ai/DeepSeek-R1", "0.29.0"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "0.29.0"),
    ],
)
def test_the_release_that_moved_a_model_to_the_second_runner(model: str, since: str) -> None:
    moved = [version for version in RELEASES if rules(version, model).v2_runner]
    assert moved == RELEASES[RELEASES.index(since) :]


@pytest.mark.parametrize("name", [model.name for model in bundled_models()])
def test_a_draft_model_kept_every_model_on_the_first_runner_until_0_31(name: str) -> None:
    """_get_v2_model_runner_unsupported_features: 0.22 to 0.29 list the methods they know, 0.30 names draft_model."""
    moved = [each for each in RELEASES if uses_v2_runner(load_model(name), parse_version(each), drafts=True)]
    assert moved == ["0.31.0", "0.33.0"]


def test_a_draft_model_brings_the_first_runners_graphs_and_sampler_back() -> None:
    alone, beside = rules("0.26.0"), rules("0.26.0", drafts=True)
    assert (alone.v2_runner, alone.charges_cuda_graphs, alone.copies_logits) == (True, False, False)
    assert (beside.v2_runner, beside.charges_cuda_graphs, beside.copies_logits) == (False, True, True)
    assert beside == rules("0.26.0", "Qwen/Qwen3-30B-A3B")


def test_a_draft_model_has_the_encoder_profiled_where_the_second_runner_skipped_it() -> None:
    def profile(version: str, **changes: object) -> EncoderProfile:
        values = {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 8192,
            "max_model_len": 8192,
            "gpu_memory_utilization": 0.9,
            "engine_version": version,
        }
        return encoder_profile(
            load_model("google/gemma-3-27b-it"), EngineSettings.model_validate(values | changes)
        )

    speculation = Speculation(draft=load_model("google/gemma-3-4b-it"), num_speculative_tokens=3)
    assert profile("0.26.0") == EncoderProfile()
    assert profile("0.26.0", speculation=speculation) == profile("0.24.0")
    assert profile("0.24.0").peak_bytes > 0
    assert profile("0.31.0", speculation=speculation) == profile("0.31.0")


def test_the_second_runner_charged_no_graphs_at_first() -> None:
    versions = ("0.19.0", "0.20.0", "0.22.1", "0.23.0", "0.26.0", "0.28.0", "0.29.0")
    charged = [version for version in versions if rules(version).charges_cuda_graphs]
    assert charged == ["0.20.0", "0.22.1", "0.29.0"]


def test_top_k_and_top_p_are_drawn_one_way_at_a_time() -> None:
    """FlashInfer in 0.11.0, PyTorch's sort, the Triton kernel, FlashInfer again (TopKTopPSampler.__init__)."""
    ways = {
        version: (rules(version).sorts_logits, rules(version).filters_logits)
        for version in ("0.11.0", "0.12.0", "0.16.0", "0.17.0", "0.20.0", "0.21.0")
    }
    assert ways == {
        "0.11.0": (False, False),
        "0.12.0": (True, False),
        "0.16.0": (True, False),
        "0.17.0": (False, True),
        "0.20.0": (False, True),
        "0.21.0": (False, False),
    }


def test_the_second_runner_profiles_sampling_as_it_will_run_since_0_33() -> None:
    """gpu/model_runner.py, _dummy_sampler_run: since 0.33 a second pass with SamplingParams.for_sampler_warmup."""
    found = [
        (rules(each).copies_logits, rules(each).draws_filtered)
        for each in ("0.25.1", "0.26.0", "0.32.0", "0.33.0")
    ]
    assert found == [(True, False), (False, False), (False, False), (True, True)]


@pytest.mark.parametrize(
    ("gpu", "tp", "alone", "version", "fused"),
    [
        ("H200", 4, True, "0.18.0", True),
        ("H200", 4, True, "0.16.0", False),
        ("H200", 1, True, "0.18.0", False),
        ("H200", 6, True, "0.18.0", False),
        ("H200", 4, False, "0.18.0", False),
        ("H200", 4, False, "0.26.0", True),
        ("B200", 8, True, "0.18.0", True),
        # 10.3 is known since 0.19
        ("B300", 8, True, "0.18.0", False),
        ("GB300", 4, True, "0.19.0", True),
        # bridges, and no switch between them
        ("H100-NVL", 2, True, "0.18.0", False),
        ("H100-PCIe-80GB", 2, True, "0.18.0", False),
        ("H200-NVL", 4, True, "0.32.0", False),
        ("A100-SXM-80GB", 4, True, "0.18.0", False),
        ("L40S", 4, True, "0.32.0", False),
    ],
)
def test_where_all_reduces_are_fused(gpu: str, tp: int, alone: bool, version: str, fused: bool) -> None:
    assert fuses_all_reduce(find_gpu(gpu), tp, alone=alone, version=parse_version(version)) is fused


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(InputError, match="engine_version"):
        rules("newest")
