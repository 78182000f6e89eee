"""Runs of machines that differ in their speed make no fit together."""

import pytest

from planner.assemble.fit_runs import fit_gpus
from planner.assemble.known import known_now
from planner.assemble.run_conditions import check_alike
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun
from tests.assemble.device_runs import device_run, gpu_run
from tests.calibrate.made_steps import ENGINE, MACHINE

CARD = gpu_run().machine


def on_card(run_id: str, **changed: object) -> CalibrationRun:
    """A run on the GPU, its machine changed."""
    return gpu_run(run_id).model_copy(update={"machine": CARD.model_copy(update=changed)})


def with_threads(run_id: str, threads: int) -> CalibrationRun:
    """A run on the processor with so many."""
    return device_run(run_id, engine=ENGINE.model_copy(update={"threads": threads}))


def test_threads_of_a_cpu_are_not_mixed() -> None:
    with pytest.raises(InputError) as refused:
        fit_gpus([with_threads("a", 1), with_threads("b", 1), with_threads("c", 2)], known_now(None))
    assert str(refused.value) == (
        "runs of made-cpu were made on different machines: threads 1 in a, 2 in c; fit each from a folder of its own"
    )
    check_alike([with_threads("a", 2), with_threads("b", 2)])


def test_cores_of_a_cpu_are_not_mixed() -> None:
    larger = MACHINE.model_copy(update={"cpu_count": MACHINE.cpu_count + 1})
    with pytest.raises(InputError, match=rf"cores {MACHINE.cpu_count} in a, {larger.cpu_count} in b"):
        check_alike([device_run("a"), device_run("b", machine=larger)])


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"power_limit_w": 700.0}, {"power_limit_w": 500.0}, "power limit 700 W in a, 500 W in b"),
        ({"ecc_enabled": True}, {"ecc_enabled": False}, "ECC on in a, off in b"),
        (
            {"mig_enabled": True, "device_memory_bytes": 10 * 2**30},
            {"mig_enabled": True, "device_memory_bytes": 20 * 2**30},
            "MIG slice of 10 GiB in a, slice of 20 GiB in b",
        ),
        ({}, {"mig_enabled": True, "device_memory_bytes": 20 * 2**30}, "MIG off in a, slice of 20 GiB in b"),
    ],
)
def test_what_slows_a_gpu_is_not_mixed(one: dict[str, object], other: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_alike([on_card("a", **one), on_card("b", **other)])


def test_what_a_run_does_not_say_is_no_difference() -> None:
    check_alike(
        [
            on_card("a", power_limit_w=700.0, device_memory_bytes=80 * 2**30, device_uuid_hash=("1",)),
            on_card("b"),
            on_card("c", power_limit_w=699.996, device_memory_bytes=79 * 2**30, device_uuid_hash=("2",)),
        ]
    )
