"""What predictions rest on: host time, and what serving runs and measured steps say of kernels."""

from pathlib import Path
from typing import NamedTuple

from planner.calibrate.store import calibration_directories, gpu_fits
from planner.catalog.serving import read_serving
from planner.formulas.gpu_fit import GpuFit
from planner.formulas.host_time import HostTime
from planner.formulas.tuning import ServingTuning


class Known(NamedTuple):
    """The stored evidence, or a fit in its place."""

    directories: tuple[Path, ...]
    host: HostTime
    tuning: ServingTuning
    fits: tuple[GpuFit, ...] = ()
    """Of GPUs whose steps were measured."""


def known_now(calibration_dir: Path | None = None) -> Known:
    """All that is stored: deployments of serving runs, and those whose steps were measured one by one.

    Raises:
        InputError: a file is not what `fit serving` or `fit runs` writes.
    """
    directories = calibration_directories(calibration_dir)
    serving = read_serving(calibration_dir)
    fits = gpu_fits(directories)
    stepwise = tuple(one for fit in fits for one in fit.deployments)
    tuning = serving.tuning.model_copy(update={"deployments": (*serving.tuning.deployments, *stepwise)})
    return Known(directories, serving.host, tuning, fits)
