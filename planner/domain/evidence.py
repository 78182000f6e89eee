"""How much is known: estimates with their spread, and the basis of a prediction."""

from enum import StrEnum
from functools import cached_property
from math import exp, hypot, log
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from planner.domain.base import Frozen

COVERAGE_RATIO = 0.9
"""Share of measured runs that a range holds."""
UNKNOWN_BUDGET_SCALE = 1.25
"""How much wider the range of TTFT is, in logarithms, where `max_num_batched_tokens` had to be assumed."""

LARGEST_FACTOR = 1e3
"""Of errors, either way; beyond it a file is damaged."""
ErrorRatio = Annotated[float, Field(ge=0, le=LARGEST_FACTOR, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Basis(StrEnum):
    """What a prediction rests on, best first."""

    MEASURED = "measured"
    """This GPU was run with this model, weight format and TP."""
    CALIBRATED = "calibrated"
    """This GPU was run, with other models or degrees."""
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


class Range(NamedTuple):
    """Where 90 % of measured means lie [s]."""

    low_s: float
    high_s: float


class LatencyRanges(NamedTuple):
    """Ranges of a prediction's mean TTFT and TPOT."""

    ttft: Range
    tpot: Range


class LatencyError(Frozen):
    """How far measured means of one latency were from predictions that did not know them."""

    median_error_ratio: ErrorRatio
    """Of |predicted / measured - 1|."""
    factor: float = Field(ge=1, le=LARGEST_FACTOR, allow_inf_nan=False)
    """In 90 % of runs, measured lies between predicted / factor and predicted x factor."""
    half_width_ratio: ErrorRatio
    """Half the range over the prediction: median over the runs."""
    coverage_ratio: dict[str, Share] = Field(default_factory=dict)
    """Share of runs inside ranges made without their group, by kind of group."""

    def range_s(self, predicted_s: float, scale: float = 1.0) -> Range:
        """Where 90 % of measured means lie; `scale` multiplies the logarithm of the factor."""
        factor = self.factor**scale
        return Range(predicted_s / factor, predicted_s * factor)


class ErrorBand(Frozen):
    """How far predictions of one basis were from measured runs that were not fitted."""

    basis: Basis
    tpot: LatencyError
    ttft: LatencyError
    runs: int = Field(ge=1)
    note: str
    """Which runs, predicted how."""

    def ranges(self, *, ttft_s: float, tpot_s: float, budget_known: bool = True) -> LatencyRanges:
        """Ranges of predicted TTFT and TPOT; `budget_known`: `max_num_batched_tokens` is not assumed."""
        scale = ttft_scale(budget_known=budget_known)
        return LatencyRanges(self.ttft.range_s(ttft_s, scale), self.tpot.range_s(tpot_s))


class Disagreement(Frozen):
    """How far the closed form is from the simulated scheduler, on the loads of the measured runs."""

    tpot: LatencyError
    ttft: LatencyError


class Accuracy(Frozen):
    """What is known of the errors of simulated predictions, by basis; made by `fit errors` from measured runs."""

    source: str
    fitted_on: str
    bands: tuple[ErrorBand, ...]
    closed_form: Disagreement | None = None

    def band(self, basis: Basis, *, simulated: bool = True) -> ErrorBand | None:
        """The band of a basis, or of the nearest worse one that was tested; None where neither was.

        `simulated`: the prediction comes from the simulated scheduler, not from the closed form.
        """
        if not simulated:
            return self.of_closed_form.band(basis)
        order = list(Basis)
        known = {band.basis: band for band in self.bands}
        return next((known[worse] for worse in order[order.index(basis) :] if worse in known), None)

    @cached_property
    def of_closed_form(self) -> "Accuracy":
        """The same for predictions in closed form: its own disagreement with the simulation is added in quadrature."""
        if self.closed_form is None:
            return self.model_copy(update={"bands": ()})
        other = self.closed_form
        bands = tuple(
            band.model_copy(
                update={"tpot": _wider(band.tpot, other.tpot), "ttft": _wider(band.ttft, other.ttft)}
            )
            for band in self.bands
        )
        return self.model_copy(update={"bands": bands, "closed_form": None})


def ttft_scale(*, budget_known: bool) -> float:
    """How uncertain a TTFT is where the token budget of a step is not recorded, beside one where it is."""
    return 1.0 if budget_known else UNKNOWN_BUDGET_SCALE


def _wider(one: LatencyError, other: LatencyError) -> LatencyError:
    """Two independent errors, one after the other; what the sum covers was not tested."""
    return LatencyError(
        median_error_ratio=min(hypot(one.median_error_ratio, other.median_error_ratio), LARGEST_FACTOR),
        factor=min(exp(hypot(log(one.factor), log(other.factor))), LARGEST_FACTOR),
        half_width_ratio=min(hypot(one.half_width_ratio, other.half_width_ratio), LARGEST_FACTOR),
    )
