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
            raise ValueError(f"an estimate needs low <= value <= high, got {self.low} {self.value} {self.high}")
        return self
