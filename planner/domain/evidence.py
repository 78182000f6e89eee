"""How much is known: estimates with their spread, and the basis of a prediction."""

from enum import StrEnum

from pydantic import Field, model_validator

from planner.domain.base import Frozen


class Basis(StrEnum):
    """What a prediction rests on, best first."""

    MEASURED = "measured"
    """This GPU, model and engine version were run."""
    CALIBRATED = "calibrated"
    """This GPU and engine were run, with another model."""
    OPERATORS = "operators"
    """Kernel tables of this GPU; no end-to-end run."""
    TRANSFERRED = "transferred"
    """A sibling GPU's coefficients, scaled by datasheet."""
    DATASHEET = "datasheet"
    """Peak rates only, with typical efficiencies."""


class Estimate(Frozen):
    """A number with its spread."""

    value: float
    low: float
    high: float
    n: int = Field(ge=0)
    """Observations it rests on."""

    @model_validator(mode="after")
    def _ordered(self) -> "Estimate":
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"an estimate needs low <= value <= high, got {self.low} {self.value} {self.high}"
            )
        return self


class ErrorBand(Frozen):
    """How far predictions of one basis were from measured runs that were not fitted."""

    basis: Basis
    tpot_median_error_ratio: float = Field(ge=0)
    """Median of |predicted / measured - 1|."""
    ttft_median_error_ratio: float = Field(ge=0)
    tpot_factor_low: float = Field(gt=0)
    """measured / predicted lies in [low, high] for 90 % of runs."""
    tpot_factor_high: float = Field(gt=0)
    ttft_factor_low: float = Field(gt=0)
    ttft_factor_high: float = Field(gt=0)
    runs: int = Field(ge=1)
    note: str
    """Which runs, predicted how."""


class Accuracy(Frozen):
    """What is known of the errors, by basis; made by `fit errors` from measured runs."""

    source: str
    fitted_on: str
    bands: tuple[ErrorBand, ...]

    def band(self, basis: Basis) -> ErrorBand | None:
        """The band of a basis, or of the nearest worse one that was tested; None where neither was."""
        order = list(Basis)
        known = {band.basis: band for band in self.bands}
        return next((known[worse] for worse in order[order.index(basis) :] if worse in known), None)
