"""Adapter settings that vLLM refuses, by architecture and release."""

import json
from pathlib import Path

import pytest

from planner.catalog.model_config import parse_model
from planner.catalog.models import load_model
from planner.domain.deployment import LoraSlots, Parallelism
from planner.domain.model import Model
from planner.formulas.lora_support import LEGAL_RANKS, lora_problem

LLAMA = "meta-llama/Llama-3.1-8B"
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"


def model_of(name: str) -> Model:
    if "/" in name:
        return load_model(name)
    text = (Path(__file__).parent / "small_configs.json").read_text(encoding="utf-8")
    return parse_model(json.loads(text)[name], name=name)


@pytest.mark.parametrize("rank", [2, 12, 24, 1024])
def test_ranks_that_vllm_does_not_know(rank: int) -> None:
    problem = lora_problem(load_model(LLAMA), Parallelism(), LoraSlots(max_lora_rank=rank))
    assert problem == f"max_lora_rank must be one of 1, 8, 16, 32, 64, 128, 256, 320, 512, got {rank}"


def test_rank_one_since_0_12() -> None:
    model, slots = load_model(LLAMA), LoraSlots(max_lora_rank=1)
    assert lora_problem(model, Parallelism(), slots, engine_version="0.12.0") is None
    problem = lora_problem(model, Parallelism(), slots, engine_version="0.11.0")
    assert problem is not None
    assert "one of 8, 16" in problem


def test_legal_ranks_are_accepted() -> None:
    for rank in LEGAL_RANKS:
        assert lora_problem(load_model(LLAMA), Parallelism(tp=8), LoraSlots(max_lora_rank=rank)) is None


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("openai/gpt-oss-20b", "0.11.0", "takes no adapters"),
        ("XiaomiMiMo/MiMo-V2-Flash", "0.32.0", "takes no adapters"),
        ("deepseek-ai/DeepSeek-V3", "0.18.0", "takes no adapters"),
        ("openai/gpt-oss-20b", "0.19.0", "takes no adapters"),
        ("gpt2", "0.32.0", "takes no adapters"),
    ],
)
def test_architectures_without_adapters(name: str, version: str, words: str) -> None:
    problem = lora_problem(model_of(name), Parallelism(), LoraSlots(), engine_version=version)
    assert problem is not None
    assert words in problem


def test_vocabularies_too_large_for_the_head() -> None:
    model = load_model(LLAMA).model_copy(update={"vocab": 258_100})
    problem = lora_problem(model, Parallelism(), LoraSlots())
    assert problem is not None
    assert "at most 258048" in problem
    # Where the head takes no adapters the vocabulary does not matter.
    assert lora_problem(load_model("google/gemma-3-27b-it"), Parallelism(), LoraSlots()) is None


def test_fully_sharded_needs_a_rank_that_divides() -> None:
    slots = LoraSlots(max_lora_rank=8, fully_sharded=True)
    problem = lora_problem(load_model(LLAMA), Parallelism(tp=16), slots)
    assert problem is not None
    assert "16 GPUs divide" in problem
    problem = lora_problem(load_model(MIXTRAL), Parallelism(tp=2, ep=True), slots)
    assert problem is not None
    assert "expert parallelism" in problem


def test_architectures_whose_adapters_came_back() -> None:
    for name, version in (("deepseek-ai/DeepSeek-V3", "0.16.0"), ("deepseek-ai/DeepSeek-V3", "0.20.0")):
        assert lora_problem(model_of(name), Parallelism(tp=8), LoraSlots(), engine_version=version) is None
