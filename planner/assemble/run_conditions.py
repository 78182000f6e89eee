"""Whether runs of one device were made on machines that are alike, so that one fit may stand for all of them."""

from collections.abc import Iterator, Sequence

from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, Device
from planner.domain.units import bytes_to_gib


def check_alike(runs: Sequence[CalibrationRun]) -> None:
    """Refuses runs of one device that differ in what makes it slower or faster, where both say what they had.

    Raises:
        InputError: with what differs, and the first two runs that do.
    """
    seen: dict[str, tuple[str, str]] = {}
    for run in runs:
        for name, value in _conditions(run):
            before, run_id = seen.setdefault(name, (value, run.run_id))
            if value != before:
                raise InputError(
                    f"runs of {run.machine.gpu} were made on different machines: {name} {before} in {run_id}, "
                    f"{value} in {run.run_id}; fit each from a folder of its own"
                )


def _conditions(run: CalibrationRun) -> Iterator[tuple[str, str]]:
    """What the run says of its machine's speed, by name; what it does not say is left out."""
    machine, engine = run.machine, run.engine
    if machine.device is Device.CPU:
        yield "cores", str(machine.cpu_count)
        if engine is not None and engine.threads:
            yield "threads", str(engine.threads)
        return
    yield (
        "MIG",
        f"slice of {bytes_to_gib(machine.device_memory_bytes):.0f} GiB" if machine.mig_enabled else "off",
    )
    if machine.power_limit_w is not None:
        yield "power limit", f"{machine.power_limit_w:.0f} W"
    if machine.ecc_enabled is not None:
        yield "ECC", "on" if machine.ecc_enabled else "off"
