"""Models by reference: path, bundled name or alias, Hugging Face id."""

import json
import time
from pathlib import Path

import pytest

from planner.catalog import huggingface
from planner.catalog.models import BundledModel, bundled_models, load_model
from planner.domain.base import InputError
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.formulas.gemms import check_parallelism
from planner.formulas.weights import weights_bytes

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 512,
    "vocab_size": 1000,
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and a hub cache with nothing in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_catalog_is_as_broad_as_promised() -> None:
    assert len(bundled_models()) >= 45
    assert len({entry.architecture for entry in bundled_models()}) >= 18


@pytest.mark.parametrize("entry", bundled_models(), ids=lambda entry: entry.name)
def test_every_bundled_model_is_understood_quickly(entry: object) -> None:
    bundled = next(model for model in bundled_models() if model is entry)
    assert bundled.source
    assert bundled.as_of
    started_s = time.perf_counter()
    model = load_model(bundled.name)
    assert time.perf_counter() - started_s < 1.0
    assert model.name == bundled.name
    assert model.architecture == bundled.architecture
    assert weights_bytes(model, Parallelism()) > 0
    assert check_parallelism(model, Parallelism()) is None


@pytest.mark.parametrize("entry", bundled_models(), ids=lambda entry: entry.name)
def test_an_alias_shares_the_architecture_and_a_hub_id_keeps_its_name(entry: BundledModel) -> None:
    bundled = load_model(entry.name)
    for alias in entry.aliases:
        model = load_model(alias)
        assert model.name == (alias if "/" in alias else entry.name)
        assert model.model_copy(update={"name": bundled.name}) == bundled
        assert load_model(alias.upper()) is model
        assert load_model(f" {alias.lower()} ") is model


def test_no_spelling_means_two_models() -> None:
    spellings = [name.casefold() for entry in bundled_models() for name in (entry.name, *entry.aliases)]
    assert len(spellings) == len(set(spellings))


def test_the_model_asked_for_is_the_one_served() -> None:
    asked = load_model("meta-llama/llama-3.1-70b-instruct")
    assert asked.name == "meta-llama/Llama-3.1-70B-Instruct"
    assert load_model("meta-llama/Llama-3.1-70B").name == "meta-llama/Llama-3.1-70B"
    quantised = load_model("meta-llama/Llama-3.1-70B-Instruct", weight_dtype=WeightDtype.FP8)
    assert quantised.name == asked.name


def test_short_names() -> None:
    assert load_model("llama-3.1-8b").name == "meta-llama/Llama-3.1-8B"
    assert load_model(" gpt-oss-120b ").name == "openai/gpt-oss-120b"


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-3.1-8b").write_text(json.dumps(CONFIG), encoding="utf-8")
    assert load_model("llama-3.1-8b").layers == 2


def test_file_of_any_name_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (tmp_path / "other_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    assert load_model(str(folder)).name == "my-model"
    assert load_model(str(folder / "config.json")).name == "my-model"
    assert load_model(str(tmp_path / "other_config.json")).name == "other"


def test_weight_dtype_is_applied() -> None:
    model = load_model("llama-3.1-8b", weight_dtype=WeightDtype.FP8)
    assert model.quantization is not None
    assert model.quantization.dtype is WeightDtype.FP8


@pytest.mark.parametrize("reference", ["", "   ", "a\0b", "org/na\nme"])
def test_what_is_no_reference_at_all(reference: str) -> None:
    with pytest.raises(InputError, match="give a path") as refusal:
        load_model(reference)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "reference", ["llama-3.1-8bb", "./absent/config.json", "absent.json", "a/b/c", "x" * 5000]
)
def test_neither_path_nor_name(reference: str) -> None:
    with pytest.raises(InputError, match="neither a path nor a bundled name") as refusal:
        load_model(reference)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600


@pytest.mark.usefixtures("offline")
def test_unknown_id_offline_names_the_nearest() -> None:
    with pytest.raises(InputError, match="offline") as refusal:
        load_model("some-org/Llama-3.1-8B-Instruct-finetuned")
    assert "meta-llama/Llama-3.1-8B" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.usefixtures("offline")
def test_id_that_is_none() -> None:
    with pytest.raises(InputError, match="no Hugging Face model id"):
        load_model("org/..name--x")


def test_hub_answers_become_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model_id: str, filename: str) -> Path:
        raise ConnectionResetError("first line\nsecond line")

    monkeypatch.setattr(huggingface, "_download", broken)
    with pytest.raises(InputError, match="ConnectionResetError") as refusal:
        load_model("some-org/some-model")
    assert "\n" not in str(refusal.value)


def test_config_and_quantisation_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(model_id: str, filename: str) -> Path:
        asked.append((model_id, filename))
        content = CONFIG if filename == "config.json" else {"quantization": {"quant_algo": "FP8"}}
        file = tmp_path / filename
        file.write_text(json.dumps(content), encoding="utf-8")
        return file

    monkeypatch.setattr(huggingface, "_download", download)
    model = load_model("some-org/some-model")
    assert model.source == "https://huggingface.co/some-org/some-model"
    assert model.quantization is not None
    assert asked == [
        ("some-org/some-model", "config.json"),
        ("some-org/some-model", "hf_quant_config.json"),
    ]
