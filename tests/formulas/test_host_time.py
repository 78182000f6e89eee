"""Host time by way of scheduling: what is added to a step, and what runs beside it."""

import pytest
from pydantic import ValidationError

from planner.calibrate.store import operators_for
from planner.catalog.load import find_gpu
from planner.catalog.models import load_model
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.hardware import Interconnect
from planner.formulas.host_time import NO_HOST_TIME, HostTime
from planner.formulas.step import Cluster, compile_step
from planner.serving.simulation import step_times

HOST = HostTime(
    step_s=1e-4,
    per_sequence_s=1e-6,
    sync_step_s=2e-3,
    sync_per_sequence_s=3e-5,
    chain_s=1.3e-3,
    chain_per_sequence_s=1.5e-5,
    front_s=2e-3,
    front_per_token_s=2e-6,
    reply_s=3e-3,
    reply_per_user_s=1e-4,
)


def test_each_way_of_scheduling_has_its_own_time() -> None:
    assert HOST.of_step(async_scheduling=True) == (1e-4, 1e-6)
    assert HOST.of_step(async_scheduling=False) == (2e-3, 3e-5)


def test_only_asynchronous_steps_have_a_chain_beside_them() -> None:
    """Where a step waits for the one before, its host work is added to it and cannot also hide behind it."""
    assert HOST.beside_step(async_scheduling=True) == (1.3e-3, 1.5e-5)
    assert HOST.beside_step(async_scheduling=False) == (0.0, 0.0)


@pytest.mark.parametrize("is_async", [True, False])
def test_the_loop_is_given_the_time_of_its_way(is_async: bool) -> None:
    alone = Cluster(Interconnect.NONE, network_bytes_per_s=0.0, stages_per_instance=1)
    operators = operators_for(find_gpu("H100-SXM-80GB"), (shipped_calibration_dir(),))
    model = load_model("meta-llama/Llama-3.1-8B")
    step = compile_step(model, Parallelism(), KvDtype.AUTO, operators, alone)
    engine = EngineSettings(
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_model_len=4096,
        gpu_memory_utilization=0.9,
        async_scheduling=is_async,
    )
    times = step_times(step, engine, HOST)
    assert (times.host_s, times.host_per_sequence_s) == HOST.of_step(async_scheduling=is_async)
    assert (times.chain_s, times.chain_per_sequence_s) == HOST.beside_step(async_scheduling=is_async)
    assert (times.front_s, times.front_per_token_s) == (2e-3, 2e-6)


def test_no_host_time_is_none_at_all() -> None:
    assert not any(NO_HOST_TIME.model_dump().values())


@pytest.mark.parametrize("value", [-1e-9, 11.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_refused(value: float) -> None:
    for name in HostTime.model_fields:
        with pytest.raises(ValidationError):
            HostTime.model_validate({**HOST.model_dump(), name: value})
