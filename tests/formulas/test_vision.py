"""Vision towers: weights against vLLM's own multimodal classes, and by hand."""

import csv
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.model_config import parse_model, read_json_object
from planner.catalog.models import bundled_models, load_model
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.model import Model, VisionTower
from planner.formulas.vision import loaded_model, vision_tensors
from planner.formulas.weights import parameter_bytes, parameter_count

HERE = Path(__file__).parent
BUNDLED = {entry.name: entry.path for entry in bundled_models()}
TOWERS = sorted(name for name in BUNDLED if load_model(name).vision is not None)


def recorded_rows() -> Iterator[tuple[str, int, int]]:
    with (HERE / "vllm_vision_weights.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield row["model"], int(row["tp"]), int(row["parameter_bytes"])


@lru_cache(maxsize=64)
def unquantized(name: str) -> Model:
    """The model as it was recorded: without what its config says of quantisation."""
    if name.startswith("small:"):
        configs = json.loads((HERE / "small_vision_configs.json").read_text(encoding="utf-8"))
        return parse_model(configs[name.removeprefix("small:")], name=name)
    config = dict(read_json_object(BUNDLED[name]))
    config.pop("quantization_config", None)
    text = config["text_config"]
    assert isinstance(text, dict)
    config["text_config"] = {key: value for key, value in text.items() if key != "quantization_config"}
    return parse_model(config, name=name)


def tower_of(name: str) -> VisionTower:
    tower = load_model(name).vision
    assert tower is not None
    return tower


def tower_bytes(tower: VisionTower, tp: int) -> int:
    return sum(tensor.size_bytes for tensor in vision_tensors(tower, tp, WeightDtype.BF16))


@pytest.mark.parametrize(("name", "tp", "expected"), list(recorded_rows()))
def test_whole_multimodal_models_as_vllm_allocates_them(name: str, tp: int, expected: int) -> None:
    assert parameter_bytes(unquantized(name), Parallelism(tp=tp)) == expected


def test_every_bundled_tower_was_recorded() -> None:
    assert set(TOWERS) == {name for name, _, _ in recorded_rows() if not name.startswith("small:")}


@pytest.mark.parametrize("name", TOWERS)
def test_quantised_checkpoints_leave_the_tower_as_it_is(name: str) -> None:
    assert load_model(name).vision == unquantized(name).vision


def test_siglip_by_hand() -> None:
    # Gemma 3 4B at TP 2: 27 blocks of width 1152, half of 16 heads of 72 and of 4304 values each, biases of outputs
    # whole; 14 x 14 x 3 pixels a patch, 64 x 64 positions, a last norm; the projector to 2560 and its norm are whole.
    attention = 1152 * 3 * 576 + 3 * 576 + 576 * 1152 + 1152
    mlp = 1152 * 2152 + 2152 + 2152 * 1152 + 1152
    blocks = 27 * (attention + mlp + 4 * 1152)
    outer = 588 * 1152 + 1152 + 4096 * 1152 + 2 * 1152 + 1152 * 2560 + 1152
    assert tower_bytes(tower_of("google/gemma-3-4b-it"), 2) == 2 * (blocks + outer)


def test_deepstack_by_hand() -> None:
    # Qwen3-VL 30B has four mergers of 4 x 1152 values to 2048; three of them normalise after joining.
    merger = 4608 * 4608 + 4608 + 4608 * 2048 + 2048
    tensors = vision_tensors(tower_of("Qwen/Qwen3-VL-30B-A3B-Instruct"), 1, WeightDtype.BF16)
    got = sum(tensor.size_bytes for tensor in tensors if "merger" in tensor.name)
    assert got == 2 * (4 * merger + 2 * 1152 + 3 * 2 * 4608)


def test_towers_from_transformers_are_whole_on_every_rank() -> None:
    tower = tower_of("google/gemma-4-26B-A4B")
    assert tower_bytes(tower, 1) == tower_bytes(tower, 8)


def test_heads_that_do_not_divide_keep_the_tower_whole() -> None:
    tower = tower_of("Qwen/Qwen3-VL-8B-Instruct")
    assert tower.heads == 16
    assert tower_bytes(tower, 5) == tower_bytes(tower, 1)
    assert tower_bytes(tower, 16) < tower_bytes(tower, 8)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        # Recorded as the table, with pipeline ranks 0 and 1 of 2: the tower is built on both.
        ("Qwen/Qwen3-VL-8B-Instruct", [9_343_507_936, 9_343_516_128]),
        ("google/gemma-3-4b-it", [5_391_150_816, 5_391_150_816]),
        ("google/gemma-4-26B-A4B", [27_114_042_208, 27_148_646_240]),
    ],
)
def test_every_pipeline_stage_holds_the_tower(name: str, stages: list[int]) -> None:
    split = Parallelism(pp=2)
    assert [parameter_bytes(load_model(name), split, rank) for rank in range(2)] == stages


@pytest.mark.parametrize(
    ("name", "version", "multimodal", "has_tower"),
    [
        ("google/gemma-3-4b-it", "0.14.1", False, True),
        ("google/gemma-3-4b-it", "0.16.0", False, False),
        ("google/gemma-3-4b-it", "0.16.0", True, True),
        ("Qwen/Qwen3-VL-8B-Instruct", "0.11.0", False, False),
        ("Qwen/Qwen3-8B", "0.16.0", False, False),
    ],
)
def test_towers_that_get_no_images_are_not_loaded(
    name: str, version: str, multimodal: bool, has_tower: bool
) -> None:
    engine = EngineSettings(
        max_num_seqs=8,
        max_num_batched_tokens=512,
        max_model_len=512,
        gpu_memory_utilization=0.9,
        engine_version=version,
        multimodal=multimodal,
    )
    loaded = loaded_model(load_model(name), engine)
    assert (loaded.vision is not None) == has_tower
    assert loaded.model_copy(update={"vision": load_model(name).vision}) == load_model(name)


def test_text_tokens_do_not_pass_the_tower() -> None:
    model = load_model("Qwen/Qwen3-VL-8B-Instruct")
    whole, text = parameter_count(model), parameter_count(model.model_copy(update={"vision": None}))
    assert whole.active == text.active
    assert 2 * (whole.total - text.total) == tower_bytes(tower_of("Qwen/Qwen3-VL-8B-Instruct"), 1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", None, "hidden_size is missing"),
        ("num_heads", 0, "num_heads must be a whole number"),
        ("num_heads", 7, "hidden size 1152 is not a multiple of num_heads 7"),
        ("deepstack_visual_indexes", "8", "deepstack_visual_indexes must be a list"),
    ],
)
def test_bad_towers_are_refused(field: str, value: object, message: str) -> None:
    config = dict(read_json_object(BUNDLED["Qwen/Qwen3-VL-8B-Instruct"]))
    vision = config["vision_config"]
    assert isinstance(vision, dict)
    config["vision_config"] = {**vision, field: value}
    with pytest.raises(InputError, match=message):
        parse_model(config, name="x")


@given(st.sampled_from(TOWERS), st.sampled_from([1, 2, 4, 8]))
def test_more_ranks_never_hold_more_of_a_tower(name: str, tp: int) -> None:
    tower = tower_of(name)
    assert tower_bytes(tower, 2 * tp) <= tower_bytes(tower, tp)
    assert tower_bytes(tower, tp) * tp >= tower_bytes(tower, 1)
