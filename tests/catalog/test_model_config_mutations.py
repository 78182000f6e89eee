"""Damaged configs: whatever is dropped, swapped or distorted, the answer is a usable model or one line."""

import copy
import json
import math
from functools import lru_cache

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog.model_config import parse_json_object, parse_model
from planner.catalog.models import bundled_models
from planner.domain.base import InputError
from planner.domain.deployment import Parallelism
from planner.formulas.gemms import check_parallelism
from planner.formulas.weights import parameter_count, weights_bytes

NAMES = (
    "meta-llama/Llama-3.1-8B",
    "deepseek-ai/DeepSeek-V3.2",
    "openai/gpt-oss-20b",
    "Qwen/Qwen3-235B-A22B-FP8",
    "Qwen/Qwen3.5-35B-A3B",
    "google/gemma-4-26B-A4B",
    "moonshotai/Kimi-K2.5",
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8",
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "XiaomiMiMo/MiMo-V2-Flash",
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
)
ODD_VALUES = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 7, 1.5, True, False, None, "", "x", [], {}, [None], [-1], "8", "a\nb"]),
    st.sampled_from(
        [math.nan, math.inf, 10**6, 10**9, 10**30, -(10**30), [[[]]], {"a": {"b": 1}}, ["x"] * 3]
    ),
    st.integers(-10, 200_000),
    st.text(max_size=20),
)


@lru_cache(maxsize=1)
def configs() -> dict[str, dict[str, object]]:
    paths = {entry.name: entry.path for entry in bundled_models()}
    return {name: json.loads(paths[name].read_text(encoding="utf-8")) for name in NAMES}


def answer(config: dict[str, object]) -> None:
    """Either a model every formula can use, or an InputError of one line."""
    refusal = ""
    try:
        model = parse_model(config, name="mutated")
    except InputError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert len(refusal) < 1000
        return
    for parallelism in (Parallelism(), Parallelism(tp=2), Parallelism(tp=8, ep=True)):
        if check_parallelism(model, parallelism) is None:
            assert weights_bytes(model, parallelism) > 0
    count = parameter_count(model)
    assert 0 < count.active <= count.total


def places(node: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every field, nested ones too; of long lists only the first entries."""
    found: list[tuple[str | int, ...]] = []
    if isinstance(node, dict):
        for key, value in list(node.items())[:60]:
            found += [(*path, key), *places(value, (*path, key))]
    elif isinstance(node, list):
        for index, value in enumerate(node[:2]):
            found += [(*path, index), *places(value, (*path, index))]
    return found


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_one_or_two_damaged_fields(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    config = copy.deepcopy(configs()[name])
    for _ in range(data.draw(st.integers(1, 2))):
        where = places(config)
        if not where:
            break
        *parents, last = data.draw(st.sampled_from(where))
        node: object = config
        for step in parents:
            node = node[step]  # type: ignore[index]
        if data.draw(st.booleans()):
            node[last] = copy.deepcopy(data.draw(ODD_VALUES))  # type: ignore[index]
        else:
            del node[last]  # type: ignore[attr-defined]
    answer(config)


@given(st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_fields_of_one_model_under_the_class_of_another(fields_of: str, class_of: str) -> None:
    config = dict(configs()[fields_of])
    config["architectures"] = configs()[class_of]["architectures"]
    answer(config)


@given(st.recursive(ODD_VALUES, lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=4)))
def test_any_json_at_all(value: object) -> None:
    config = value if isinstance(value, dict) else {"architectures": value}
    answer({"architectures": ["LlamaForCausalLM"], **config})


@given(st.binary(max_size=200))
def test_any_bytes_at_all(raw: bytes) -> None:
    try:
        answered = str(type(parse_json_object(raw, "bytes")))
    except InputError as error:
        answered = str(error)
    assert answered == str(dict) or answered.startswith("model config bytes: ")
    assert "\n" not in answered
