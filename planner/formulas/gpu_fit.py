"""What measured steps said of one device: factors on its kernels and host time, with how well each is known."""

from typing import Annotated

from pydantic import Field

from planner.domain.base import Frozen
from planner.domain.evidence import Estimate
from planner.domain.hardware import Gpu
from planner.formulas.host_time import MeasuredHost, Seconds
from planner.formulas.operators.scales import KernelScales
from planner.formulas.tuning import RunDeployment

GPU_FIT_FORMAT = 1
ErrorRatio = Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)]


class FittedParameter(Frozen):
    """One number that runs were asked for."""

    name: str
    estimate: Estimate
    """With the range that holds it with 90 %."""
    prior: Estimate
    """The same before any run."""
    identified: bool
    """False where runs narrow the prior's range too little: it then keeps the prior's value."""


class RegionError(Frozen):
    """How far predictions of some steps are from their times: |predicted / measured - 1|."""

    deployment: str
    region: str
    steps: int = Field(ge=1)
    median_ratio: ErrorRatio
    p90_ratio: ErrorRatio
    bias_ratio: float = Field(ge=-1, le=1e3, allow_inf_nan=False)
    """Median of predicted / measured - 1, sign kept."""
    left_out_median_ratio: ErrorRatio
    """Each step predicted by the fit without it, to first order."""
    left_out_p90_ratio: ErrorRatio
    before_median_ratio: ErrorRatio
    """By what was known before the runs."""


class NewSizes(Frozen):
    """What a step with prompts takes more where its number of tokens is new to the engine."""

    step_s: Seconds = 0.0
    per_token_s: Seconds = 0.0


class RunSource(Frozen):
    """A run that the fit used."""

    run_id: str
    deployment: str
    steps: int = Field(ge=0)
    serving_runs: int = Field(default=0, ge=0)
    measured_at: str


class GpuFit(Frozen):
    """All of it; made by `fit runs`."""

    format: int = GPU_FIT_FORMAT
    gpu: Gpu
    """With the datasheet that the factors belong to: nominal for a device of no catalog."""
    in_catalog: bool
    plain: bool
    """Efficiencies were assumed, for want of any kernel table."""
    engine_version: str
    """The newest of its runs."""
    fitted_on: str
    scales: KernelScales
    host: MeasuredHost
    new_sizes: NewSizes = NewSizes()
    """Of a CPU's kernels; a GPU has none to make."""
    parameters: tuple[FittedParameter, ...]
    deployments: tuple[RunDeployment, ...]
    regions: tuple[RegionError, ...]
    runs: tuple[RunSource, ...]
    left_out_median_ratio: ErrorRatio
    noise_ratio: ErrorRatio
    """Median spread of a step's repetitions."""
