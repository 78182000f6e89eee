"""Presets and bundled questions: complete, sourced, and usable as they are."""

import tomllib
from pathlib import Path

import pytest

from planner.catalog.load import find_preset, gpus, instances, presets
from planner.catalog.paths import data_dir
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.hardware import Purchase
from planner.domain.workload import Preset, Workload

QUESTIONS = sorted((data_dir() / "questions").glob("*.toml"))


def test_the_eight_presets_are_there() -> None:
    assert {preset.name for preset in presets()} == {
        *("chat", "rag", "code_completion", "summarisation"),
        *("agent", "translation", "long_context", "offline_batch"),
    }


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_a_preset_is_a_workload_with_a_source_for_its_lengths_and_its_latency(preset: Preset) -> None:
    workload = Workload(
        input_tokens=preset.input_tokens,
        output_tokens=preset.output_tokens,
        length_low_ratio=preset.length_low_ratio,
        prefix_hit_ratio=preset.prefix_hit_ratio,
        arrival_cv=preset.arrival_cv,
        requests_per_s=preset.requests_per_s,
    )
    assert workload.input_tokens + workload.output_tokens <= 131_072
    assert preset.title
    assert preset.description
    assert "Lengths" in preset.source
    assert "atency" in preset.source
    assert preset.as_of


def test_only_the_offline_preset_promises_no_latency() -> None:
    free = {preset.name for preset in presets() if preset.ttft_p95_ms is None and preset.tpot_p95_ms is None}
    assert free == {"offline_batch"}


@pytest.mark.shared
def test_traced_presets_are_the_means_of_their_traces() -> None:
    traces = Path(__file__).resolve().parents[3] / "shared" / "traces"
    if not traces.is_dir():
        pytest.skip("the traces (../shared/traces) are not beside this checkout")
    for name, file in (("chat", "azure2023_conv.csv"), ("code_completion", "azure2023_code.csv")):
        lines = (traces / file).read_text(encoding="utf-8").split()[1:]
        cells = [line.split(",") for line in lines if line.count(",") == 2]
        preset = find_preset(name)
        assert preset.input_tokens == pytest.approx(sum(int(c[1]) for c in cells) / len(cells), rel=1e-3)
        assert preset.output_tokens == pytest.approx(sum(int(c[2]) for c in cells) / len(cells), rel=5e-3)


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_a_bundled_question_names_only_what_exists(path: Path) -> None:
    question = tomllib.loads(path.read_text(encoding="utf-8"))
    index = (data_dir() / "models" / "index.csv").read_text(encoding="utf-8")
    assert f"\n{question['model']}," in index
    assert question.get("weight_dtype", "bf16") in set(WeightDtype)
    assert question.get("kv_dtype", "auto") in set(KvDtype)
    assert "preset" not in question or find_preset(question["preset"])
    assert set(question.get("provider", [])) <= {shape.provider for shape in instances()}
    assert set(question.get("purchase", [])) <= set(Purchase)
    assert set(question.get("gpu", [])) <= {gpu.name for gpu in gpus()}


def test_the_readme_question_is_bundled() -> None:
    question = tomllib.loads((data_dir() / "questions" / "llama-70b-fp8.toml").read_text(encoding="utf-8"))
    assert question == {
        "model": "meta-llama/Llama-3.1-70B",
        "weight_dtype": "fp8",
        "input_tokens": 1024,
        "output_tokens": 256,
        "requests_per_s": 10,
        "ttft_p95_ms": 2000,
        "tpot_p95_ms": 60,
    }
