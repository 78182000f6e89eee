"""Rules in words: the release each names is where `engine_rules` has its border, and only what matters is said."""

import re
from itertools import product

import pytest

from planner.calibrate.fit_memory import NOTHING_FITTED
from planner.catalog.load import find_gpu, gpus
from planner.catalog.models import bundled_models, load_model
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, Parallelism, Speculation
from planner.formulas.activations import activation_shape
from planner.formulas.engine_defaults import EngineVersion, engine_rules, parse_version
from planner.formulas.engine_rules_text import RELEASE_RULES, ReleaseRule, named_rules
from planner.formulas.kv_cache import kv_layout
from planner.formulas.kv_paging import kv_paging
from planner.formulas.memory import Card, Resident, memory_budget
from planner.formulas.profile_rules import profile_rules
from planner.formulas.sampler import sampling_bytes


def settings_of(version: str, **changes: object) -> EngineSettings:
    values: dict[str, object] = {
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "max_model_len": 8192,
        "gpu_memory_utilization": 0.9,
        "engine_version": version,
    }
    return EngineSettings.model_validate(values | changes)


def said(model: str, gpu: str, version: str, **changes: object) -> str:
    return "\n".join(named_rules(load_model(model), find_gpu(gpu), settings_of(version, **changes)))


@pytest.mark.parametrize("rule", RELEASE_RULES, ids=lambda rule: f"{rule.field}-{rule.since}")
def test_every_border_is_that_of_the_rules(rule: ReleaseRule) -> None:
    minor = int(rule.since.split(".")[1])
    older, newer = (engine_rules(str(EngineVersion(0, each, 0))) for each in (minor - 1, minor))
    assert rule.sentence(older) == f"Before {rule.since} {rule.before}."
    assert rule.sentence(newer) == f"Since {rule.since} {rule.after}."


@pytest.mark.parametrize(
    ("version", "named"),
    [("0.10.2", "older than 0.11.0"), ("0.34.0", "newer than 0.33.0"), ("0.11.0", ""), ("0.33.0", "")],
)
def test_a_release_that_was_not_read_is_said_first(version: str, named: str) -> None:
    first = said("meta-llama/Llama-3.1-8B", "H200", version).splitlines()[0]
    assert named in first
    assert ("release read" in first) is bool(named)


@pytest.mark.parametrize("version", ["0.11.0", "0.17.0", "0.27.1", "0.33.0"])
def test_only_models_with_chunks_or_states_hear_of_them(version: str) -> None:
    plain = said("meta-llama/Llama-3.1-8B", "H200", version)
    assert not any(word in plain for word in ("chunk", "state", "windowed", "KV groups", "MLA"))
    assert "chunked-local" in said("meta-llama/Llama-4-Scout-17B-16E-Instruct", "H200", version)
    assert "layers with a state" in said("Qwen/Qwen3.5-27B", "H200", version)
    assert "windowed" in said("openai/gpt-oss-20b", "H200", version)
    assert "MLA" in said("deepseek-ai/DeepSeek-V3", "H200", version)


VERSIONS = [f"0.{minor}.0" for minor in range(11, 34)] + ["0.11.2"]


@pytest.mark.parametrize("name", [model.name for model in bundled_models()])
def test_what_is_said_of_graphs_and_sampling_is_what_is_counted(name: str) -> None:
    """The budget charges graphs where the sentence says so, and the peak moves as the sampler's sentence tells."""
    model, gpu, parallelism = load_model(name), find_gpu("H200"), Parallelism()
    card = Card(gpu, parallelism, activation_shape(model, parallelism))
    draft = Speculation(draft=load_model("meta-llama/Llama-3.2-1B"), num_speculative_tokens=3)
    for version, speculation in product(VERSIONS, (None, draft)):
        engine = settings_of(version, speculation=speculation)
        kv = kv_layout(model, parallelism, paging=kv_paging(engine, gpu, model))
        budget = memory_budget(card, Resident(0), kv, engine, NOTHING_FITTED)
        words = "\n".join(named_rules(model, gpu, engine))
        assert ("comes off the KV cache" in words) is (budget.cuda_graph_bytes > 0), (version, words)
        assert ("gpu_memory_utilization leaves free" in words) is (budget.cuda_graph_bytes == 0), (
            version,
            words,
        )
        for border, release in re.findall(r"^(Since|Before|From) (0\.[0-9.]*[0-9])", words, re.MULTILINE):
            assert (parse_version(version) >= parse_version(release)) is (border != "Before"), (
                version,
                words,
            )
        rules = profile_rules(model, version, drafts=speculation is not None)
        per_logit = sampling_bytes(1, 1000, rules) / 1000
        assert ("sort all logits" in words) is (per_logit == 38), (version, words)
        assert ("Triton kernel" in words) is rules.filters_logits
        assert ("16-bit logits as they are" in words) is (per_logit == 2)
        assert ("Model Runner V2 samples from an fp32 copy" in words) is (per_logit == 6)
        assert ("Model Runner V2" in words) is rules.v2_runner
        assert ("draft model keeps" in words) is (rules != profile_rules(model, version))


def test_llama_in_0_26_hears_of_the_second_runner() -> None:
    words = said("meta-llama/Llama-3.1-8B", "H100-SXM-80GB", "0.26.0")
    assert "Before 0.29 Model Runner V2 charges nothing for CUDA graphs" in words
    assert "From 0.26 until 0.33 Model Runner V2 profiles sampling from the 16-bit logits" in words
    old = said("meta-llama/Llama-3.1-8B", "H100-SXM-80GB", "0.11.0")
    assert "Before 0.11.1 FlashInfer filters" in old


def test_block_size_is_that_of_the_gpu() -> None:
    assert "MLA, here 128 tokens" in said("deepseek-ai/DeepSeek-V3", "B200", "0.14.1")
    assert "names the block size for MLA, here 32 tokens" in said("deepseek-ai/DeepSeek-V3", "B200", "0.33.0")


def test_flags_silence_what_they_switch_off() -> None:
    eager = said("meta-llama/Llama-3.1-8B", "H200", "0.33.0", enforce_eager=True)
    assert "CUDA" not in eager
    uncached = said("Qwen/Qwen3.5-27B", "H200", "0.33.0", enable_prefix_caching=False)
    assert "prefix caching" not in uncached
    whole = said("openai/gpt-oss-20b", "H200", "0.33.0", hybrid_kv_cache_manager=False)
    assert "windowed" not in whole
    assert "KV groups" not in whole


def test_offloading_by_an_old_release_says_what_is_assumed() -> None:
    old = said("openai/gpt-oss-20b", "H200", "0.20.0", kv_offload_bytes=2**30)
    assert "--disable-hybrid-kv-cache-manager" in old
    assert "--disable" not in said("openai/gpt-oss-20b", "H200", "0.21.0", kv_offload_bytes=2**30)


def test_blackwell_hears_of_wide_captures_and_plain_fp8() -> None:
    new, old = (said("deepseek-ai/DeepSeek-V3.2", "B200", version) for version in ("0.33.0", "0.17.0"))
    assert "captured up to 1,024 tokens" in new
    assert "captured up to 512 tokens" in old
    assert "packed with its scales" in old
    assert "captured up to" not in said("deepseek-ai/DeepSeek-V3.2", "H200", "0.33.0")


def test_every_deployment_gets_plain_sentences_without_repeats() -> None:
    cards = [gpu for gpu in gpus() if gpu.vllm_backend]
    for model in bundled_models():
        loaded = load_model(model.name)
        for version in ("0.11.0", "0.19.0", "0.33.0"):
            for gpu in cards:
                sentences = named_rules(loaded, gpu, settings_of(version))
                assert len(set(sentences)) == len(sentences)
                assert all(each[0].isupper() and each.endswith(".") and len(each) < 230 for each in sentences)


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(InputError, match="engine_version"):
        said("meta-llama/Llama-3.1-8B", "H200", "newest")


@pytest.mark.parametrize(
    ("gpu", "tp", "version", "wanted"),
    [
        (
            "H100-SXM-80GB",
            2,
            "0.16.0",
            "Before 0.17 all-reduce takes no buffers of FlashInfer outside torch.",
        ),
        ("H100-SXM-80GB", 2, "0.17.0", "Since 0.17 FlashInfer joins all-reduce and norm"),
        ("B300", 8, "0.18.0", "Before 0.19 all-reduce takes no buffers"),
        ("H100-SXM-80GB", 1, "0.33.0", ""),
        ("A100-SXM-80GB", 8, "0.33.0", ""),
    ],
)
def test_the_fused_all_reduce_is_named_where_it_takes_memory(
    gpu: str, tp: int, version: str, wanted: str
) -> None:
    engine = EngineSettings(
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        max_model_len=8192,
        gpu_memory_utilization=0.9,
        engine_version=version,
    )
    rules = named_rules(
        load_model("meta-llama/Llama-3.1-8B"), find_gpu(gpu), engine, parallelism=Parallelism(tp=tp)
    )
    found = [rule for rule in rules if "all-reduce" in rule]
    assert found[0].startswith(wanted) if wanted else not found
