"""Schedules recorded from vLLM 0.32.0 on the CPU, step for step: batches, chunks, admissions, preemptions.

`make engine-record` records them again; tests/engine/test_live_schedules.py asks the engine itself.
"""

import pytest

from tests.engine.schedules import recorded, scenarios
from tests.serving.replay import plain_steps, simulated_steps

RECORDED = recorded()
WITHOUT_WINDOWS = [name for name, one in RECORDED.items() if not one.scenario.model]


def test_every_scenario_is_recorded() -> None:
    """Else `make engine-record`."""
    assert [one.scenario for one in RECORDED.values()] == scenarios()


@pytest.mark.parametrize("name", RECORDED)
def test_the_compiled_scheduler_decides_as_vllm_did(name: str) -> None:
    assert simulated_steps(RECORDED[name]) == RECORDED[name].steps


@pytest.mark.parametrize("name", WITHOUT_WINDOWS)
def test_the_plain_scheduler_decides_as_vllm_did(name: str) -> None:
    assert plain_steps(RECORDED[name]) == RECORDED[name].steps
