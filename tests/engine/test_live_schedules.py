"""Live vLLM serves requests and decides as our scheduler does."""

import pytest

from tests.engine.live import ENGINE_PYTHON
from tests.engine.schedules import HYBRID, SLIDING, live, scenarios
from tests.serving.replay import simulated_steps

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not ENGINE_PYTHON, reason="SKIPPED LOUDLY: live vLLM is asked by make engine-test"),
]


@pytest.mark.parametrize(
    "model", ["", *(pytest.param(name, marks=pytest.mark.engine_full) for name in (SLIDING, HYBRID))]
)
def test_vllm_decides_as_the_simulated_scheduler(model: str) -> None:
    asked = [scenario for scenario in scenarios() if scenario.model == model]
    for one in live(asked):
        assert simulated_steps(one) == one.steps, one.scenario.name
