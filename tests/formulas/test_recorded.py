"""What vLLM 0.32.0 said of full-size models and started engines, replayed: the planner must say the same exactly.

`make engine-record` records it again, `make engine-full` asks live vLLM instead.
"""

import csv
import json
from collections import defaultdict
from functools import lru_cache
from typing import Any

import pytest

from tests.engine.compare import differences
from tests.engine.engines import BLOCKS_CSV, planned
from tests.engine.live import SMALL, Case
from tests.engine.record import recorded


@lru_cache(maxsize=1)
def by_model() -> dict[str, list[tuple[Case, dict[str, Any]]]]:
    rows = defaultdict(list)
    for case, answer in recorded():
        rows[case.model].append((case, answer))
    return dict(rows)


@lru_cache(maxsize=1)
def started_engines() -> dict[str, dict[str, Any]]:
    with BLOCKS_CSV.open(encoding="utf-8", newline="") as stream:
        return {row["engine"]: json.loads(row["answer"]) for row in csv.DictReader(stream)}


@pytest.mark.parametrize("model", list(by_model()))
def test_parameters_and_caches_of_every_rank(model: str) -> None:
    assert [line for case, answer in by_model()[model] for line in differences(case, answer)] == []


@pytest.mark.parametrize("name", list(started_engines()))
def test_blocks_of_a_started_engine(name: str) -> None:
    assert planned(name) == started_engines()[name]


def test_the_tables_cover_what_they_should() -> None:
    full_size = [model for model in by_model() if not model.startswith(SMALL)]
    cases = [case for rows in by_model().values() for case, _ in rows]
    assert len(full_size) >= 50
    assert len(cases) >= 600
    assert {case.tp for case in cases} == {1, 2, 4, 8}
    assert sum(case.pp > 1 for case in cases) >= 100
    assert sum(case.ep for case in cases) >= 40
    assert len(started_engines()) >= 8


def test_a_wrong_figure_is_found() -> None:
    case, answer = by_model()["meta-llama/Llama-3.1-8B"][0]
    assert differences(case, answer) == []
    assert len(differences(case, answer | {"parameter_bytes": answer["parameter_bytes"] + 1})) == 1
    (spec,) = answer["kv_specs"]
    halved = spec | {"page_bytes": spec["page_bytes"] // 2}
    assert len(differences(case, answer | {"kv_specs": [halved]})) == 1
