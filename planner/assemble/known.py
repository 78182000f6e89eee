"""What predictions rest on: host time, and what serving runs and measured steps say of kernels."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from planner.calibrate.store import calibration_directories, fitted_operators, gpu_fits, table_operators_for
from planner.catalog.serving import read_serving
from planner.domain.hardware import Gpu
from planner.formulas.gpu_fit import GpuFit
from planner.formulas.host_time import HostTime
from planner.formulas.operators import GpuOperators
from planner.formulas.tuning import ServingTuning


class Known(NamedTuple):
    """The stored evidence, or a fit in its place."""

    directories: tuple[Path, ...]
    host: HostTime
    tuning: ServingTuning
    fits: tuple[GpuFit, ...] = ()
    """Of GPUs whose steps were measured."""

    def fit_of(self, gpu: str) -> GpuFit | None:
        """What measured steps say of a GPU; None where none were."""
        return next((fit for fit in self.fits if fit.gpu.name == gpu), None)


def kernels_known(gpu: Gpu, known: Known) -> GpuOperators:
    """A GPU's kernels as its measured steps have them, else its tables' or a sibling's.

    Raises:
        InputError: there is no table, or a file is broken.
    """
    fit = known.fit_of(gpu.name)
    if fit is None:
        return table_operators_for(gpu, known.directories)
    return fitted_operators(fit, known.directories)


def known_now(calibration_dir: Path | None = None, *, without: Collection[str] = ()) -> Known:
    """All that is stored: deployments of serving runs, and those whose steps were measured one by one.

    The fits of GPUs named `without` are left aside, unread.

    Raises:
        InputError: a file is not what `fit serving` or `fit runs` writes.
    """
    directories = calibration_directories(calibration_dir)
    serving = read_serving(calibration_dir)
    fits = gpu_fits(directories, without=without)
    stepwise = tuple(one for fit in fits for one in fit.deployments)
    tuning = serving.tuning.model_copy(update={"deployments": (*serving.tuning.deployments, *stepwise)})
    return Known(directories, serving.host, tuning, fits)
