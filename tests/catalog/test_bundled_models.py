"""The bundled models: all parse, their sources are named, and their sizes are those published."""

import csv
import json
from pathlib import Path

import pytest

from planner.catalog.models import bundled_models, load_model
from planner.catalog.paths import data_dir
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.formulas.kv_cache import kv_layout
from planner.formulas.weights import parameter_count

FOLDER = data_dir() / "models"
LARGEST_CONFIG_BYTES = 20_000
NOT_NEEDED = {"auto_map", "transformers_version", "bos_token_id", "eos_token_id", "id2label", "_name_or_path"}

# Parameters in billions as the publishers' repositories state them (safetensors totals, 1 % where the card rounds).
PUBLISHED_BILLIONS = {
    "meta-llama/Llama-2-7b-hf": 6.738,
    "meta-llama/Llama-2-13b-hf": 13.016,
    "meta-llama/Llama-2-70b-hf": 68.977,
    "meta-llama/Meta-Llama-3-8B": 8.030,
    "meta-llama/Llama-3.1-8B": 8.030,
    "meta-llama/Llama-3.1-70B": 70.554,
    "meta-llama/Llama-3.1-405B": 405.85,
    "meta-llama/Llama-3.2-1B": 1.236,
    "meta-llama/Llama-3.2-3B": 3.213,
    "codellama/CodeLlama-34b-hf": 33.744,
    "01-ai/Yi-1.5-34B": 34.389,
    "mistralai/Mistral-7B-v0.1": 7.242,
    "mistralai/Mistral-7B-v0.3": 7.248,
    "mistralai/Mistral-Nemo-Base-2407": 12.248,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23.572,
    "mistralai/Mistral-Large-Instruct-2407": 122.610,
    "mistralai/Mixtral-8x7B-v0.1": 46.703,
    "mistralai/Mixtral-8x22B-v0.1": 140.62,
    "Qwen/Qwen2.5-7B-Instruct": 7.616,
    "Qwen/Qwen2.5-14B-Instruct": 14.770,
    "Qwen/Qwen2.5-32B-Instruct": 32.764,
    "Qwen/Qwen2.5-72B-Instruct": 72.706,
    "Qwen/Qwen3-4B": 4.022,
    "Qwen/Qwen3-14B": 14.768,
    "Qwen/Qwen3-32B": 32.762,
    "Qwen/Qwen3-30B-A3B": 30.532,
    "Qwen/Qwen3-235B-A22B": 235.09,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": 79.67,
    "google/gemma-2-9b": 9.242,
    "google/gemma-2-27b": 27.227,
    "google/gemma-3-1b-it": 1.000,
    "google/gemma-3-4b-it": 4.300,
    "google/gemma-3-12b-it": 12.187,
    "google/gemma-3-27b-it": 27.432,
    "microsoft/phi-4": 14.660,
    "allenai/OLMo-2-1124-7B-Instruct": 7.299,
    "bigcode/starcoder2-3b": 3.030,
    "CohereForAI/c4ai-command-r-v01": 34.981,
    "ibm-granite/granite-3.1-2b-base": 2.534,
    "deepseek-ai/DeepSeek-V2-Lite": 15.706,
    "deepseek-ai/DeepSeek-V3": 671.03,
    "moonshotai/Kimi-K2-Instruct": 1026.4,
    "MiniMaxAI/MiniMax-M2.5": 228.69,
    "openai/gpt-oss-20b": 20.915,
    "openai/gpt-oss-120b": 116.83,
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": 49.867,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31.578,
}
REQUIRED = (
    "meta-llama/Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-32B",
    "openai/gpt-oss-120b",
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
    "deepseek-ai/DeepSeek-R1-0528",
    "meta-llama/Llama-3.3-70B-Instruct",
    "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "meta-llama/Meta-Llama-3.1-70B-Instruct",
    "llama-3.1-70b",
)
QUANTISED = {
    "Qwen/Qwen3-30B-A3B-FP8": WeightDtype.FP8_BLOCK,
    "deepseek-ai/DeepSeek-R1": WeightDtype.FP8_BLOCK,
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic": WeightDtype.FP8,
    "nvidia/Llama-3.1-70B-Instruct-FP8": WeightDtype.FP8,
    "Qwen/Qwen3-32B-FP8-Static-PerTensor": WeightDtype.FP8,
    "Qwen/Qwen3-32B-AWQ": WeightDtype.AWQ,
    "moonshotai/Kimi-K2.5": WeightDtype.INT4,
    "openai/gpt-oss-120b": WeightDtype.MXFP4,
    "nvidia/Qwen3-235B-A22B-NVFP4": WeightDtype.NVFP4,
    "nvidia/DeepSeek-V3.1-NVFP4": WeightDtype.NVFP4,
    "nvidia/MiniMax-M2.5-NVFP4": WeightDtype.NVFP4,
}
FP8_CACHE = ("nvidia/Llama-3.1-70B-Instruct-FP8", "nvidia/Qwen3-235B-A22B-NVFP4", "nvidia/MiniMax-M2.5-NVFP4")


def index() -> list[dict[str, str]]:
    with (FOLDER / "index.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def configs() -> list[Path]:
    return sorted(FOLDER.glob("*.json"))


def test_there_are_enough_models_and_architectures() -> None:
    models = [load_model(model.name) for model in bundled_models()]
    assert len(models) >= 90
    assert len({model.architecture for model in models}) >= 30


def test_every_file_is_indexed_once() -> None:
    listed = [row["file"] for row in index()]
    assert len(listed) == len(set(listed))
    main_files = {path.name for path in configs() if not path.name.endswith("_hf_quant_config.json")}
    assert set(listed) == main_files
    for path in configs():
        if path.name.endswith("_hf_quant_config.json"):
            assert path.name.removesuffix("_hf_quant_config.json") + ".json" in main_files


def test_every_row_has_a_source_and_a_date() -> None:
    for row in index():
        assert row["source"].startswith("https://huggingface.co/"), row["name"]
        assert len(row["as_of"].split("-")) >= 2, row["name"]
        assert row["file"] == row["name"].replace("/", "--") + ".json"


def test_no_name_means_two_models() -> None:
    spellings = [s.casefold() for row in index() for s in (row["name"], *row["aliases"].split("|")) if s]
    assert sorted({s for s in spellings if spellings.count(s) > 1}) == []


@pytest.mark.parametrize("path", configs(), ids=lambda path: path.stem)
def test_configs_are_minimal_json(path: Path) -> None:
    raw = path.read_text(encoding="utf-8")
    config = json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(raw) < LARGEST_CONFIG_BYTES
    assert NOT_NEEDED.isdisjoint(config)
    if not path.name.endswith("_hf_quant_config.json"):
        assert len(config["architectures"]) == 1
        assert config["model_type"]


@pytest.mark.parametrize("name", REQUIRED)
def test_names_that_must_be_known(name: str) -> None:
    assert load_model(name).layers > 0


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_BILLIONS.items())
def test_parameters_are_as_many_as_published(name: str, billions: float) -> None:
    assert parameter_count(load_model(name)).total / 1e9 == pytest.approx(billions, rel=0.003)


@pytest.mark.parametrize(("name", "dtype"), QUANTISED.items())
def test_quantised_checkpoints_are_read_as_such(name: str, dtype: WeightDtype) -> None:
    quantization = load_model(name).quantization
    assert quantization is not None
    assert quantization.dtype is dtype


@pytest.mark.parametrize("name", FP8_CACHE)
def test_checkpoints_that_ask_for_an_fp8_cache(name: str) -> None:
    quantization = load_model(name).quantization
    assert quantization is not None
    assert quantization.kv_fp8


@pytest.mark.parametrize("model", bundled_models(), ids=lambda model: model.name)
def test_every_model_can_be_paged(model: object) -> None:
    layout = kv_layout(load_model(model.name), Parallelism())  # type: ignore[attr-defined]
    assert layout.block_bytes > 0
    assert layout.bytes_per_token > 0
