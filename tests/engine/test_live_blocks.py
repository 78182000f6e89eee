"""Engines started on the CPU: blocks, tokens and concurrency that vLLM reports, held against the planner exactly."""

import pytest

from tests.engine.engines import engines, planned, start
from tests.engine.live import ENGINE_PYTHON

QUICK = ("sliding_5_to_1", "sinks_and_sliding")
FULL = tuple(name for name in engines() if name not in QUICK)

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not ENGINE_PYTHON, reason="SKIPPED LOUDLY: live vLLM is started by make engine-test"),
]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.engine_full) for name in FULL)]
)
def test_blocks_of_a_started_engine(name: str) -> None:
    assert planned(name) == start(name)
