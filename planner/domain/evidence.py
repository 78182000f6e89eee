"""How much is known: estimates with their spread, and the basis of a prediction."""

from collections.abc import Callable
from enum import StrEnum
from functools import cached_property
from math import exp, hypot, log, sinh
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from planner.domain.base import Frozen

COVERAGE_RATIO = 0.9
"""Share of measured runs that a range holds."""

LARGEST_FACTOR = 1e3
"""Of errors, either way; beyond it a file is damaged."""
ErrorRatio = Annotated[float, Field(ge=0, le=LARGEST_FACTOR, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=1, le=10, allow_inf_nan=False)]


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


class StepKind(StrEnum):
    """What an engine step does."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


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
    """In 90 % of runs, measured lies between predicted / factor and predicted x factor: of models without rough
    kernels, where the token budget is known."""
    rough_kernels_scale: Scale = 1.0
    """How much wider the range is, in logarithms, for models with experts or 4-bit weights."""
    unknown_budget_scale: Scale = 1.0
    """The same where `max_num_batched_tokens` had to be assumed."""
    half_width_ratio: ErrorRatio
    """Half the range over the prediction: median over the runs."""
    coverage_ratio: dict[str, Share] = Field(default_factory=dict)
    """Share of runs inside ranges made without their group, by kind of group."""

    def range_s(self, predicted_s: float, scale: float = 1.0) -> Range:
        """Where 90 % of measured means lie; `scale` multiplies the logarithm of the factor."""
        factor = self.factor**scale
        return Range(predicted_s / factor, predicted_s * factor)

    @property
    def of_rough_kernels(self) -> "LatencyError":
        """The same for a model with rough kernels."""
        factor = min(self.factor**self.rough_kernels_scale, LARGEST_FACTOR)
        return self.model_copy(update={"factor": factor, "rough_kernels_scale": 1.0})

    def no_narrower(self, factor: float, median_error_ratio: float) -> "LatencyError":
        """The wider of this range and another, with the larger of their median errors."""
        found = self.model_copy(
            update={"median_error_ratio": max(self.median_error_ratio, median_error_ratio)}
        )
        factor = min(factor, LARGEST_FACTOR)
        if factor <= self.factor:
            return found
        return found.model_copy(update={"factor": factor, "half_width_ratio": sinh(log(factor))})


class ErrorBand(Frozen):
    """How far predictions of one basis were from measured runs that were not fitted."""

    basis: Basis
    tpot: LatencyError
    ttft: LatencyError
    runs: int = Field(ge=1)
    steps: int = Field(default=0, ge=0)
    """Of the GPU itself, measured one by one: the range is no narrower than the errors of those left out."""
    note: str
    """Which runs, predicted how."""

    def ranges(self, *, ttft_s: float, tpot_s: float, budget_known: bool = True) -> LatencyRanges:
        """Ranges of predicted TTFT and TPOT; `budget_known`: `max_num_batched_tokens` is not assumed."""
        scale = 1.0 if budget_known else self.ttft.unknown_budget_scale
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
    of_gpus: dict[str, tuple[ErrorBand, ...]] = Field(default_factory=dict, exclude=True)
    """Of GPUs whose steps were measured, in place of the bands of the same basis; they follow from those fits."""

    def band(
        self, basis: Basis, *, gpu: str = "", simulated: bool = True, rough_kernels: bool = False
    ) -> ErrorBand | None:
        """The band of a basis, or of the nearest worse one that was tested; None where neither was.

        `gpu`: what the prediction is for, which may have bands of its own. `simulated`: the prediction comes from the
        simulated scheduler, not from the closed form. `rough_kernels`: the model has experts or 4-bit weights.
        """
        if not simulated:
            return self.of_closed_form.band(basis, gpu=gpu, rough_kernels=rough_kernels)
        if rough_kernels:
            return self.of_rough_kernels.band(basis, gpu=gpu)
        order = list(Basis)
        known = {band.basis: band for band in (*self.bands, *self.of_gpus.get(gpu, ()))}
        return next((known[worse] for worse in order[order.index(basis) :] if worse in known), None)

    @cached_property
    def of_closed_form(self) -> "Accuracy":
        """The same for predictions in closed form: its own disagreement with the simulation is added in quadrature."""
        other = self.closed_form
        if other is None:
            return Accuracy(source=self.source, fitted_on=self.fitted_on, bands=())
        return self._of_each(lambda error, name: _wider(error, getattr(other, name)))

    @cached_property
    def of_rough_kernels(self) -> "Accuracy":
        """The same for models with experts or 4-bit weights."""
        return self._of_each(lambda error, _: error.of_rough_kernels, self.closed_form)

    def _of_each(
        self,
        change: Callable[[LatencyError, str], LatencyError],
        closed_form: Disagreement | None = None,
    ) -> "Accuracy":
        """Every band with its errors changed; `change` is told whose they are, `tpot` or `ttft`."""

        def changed(bands: tuple[ErrorBand, ...]) -> tuple[ErrorBand, ...]:
            return tuple(
                band.model_copy(update={"tpot": change(band.tpot, "tpot"), "ttft": change(band.ttft, "ttft")})
                for band in bands
            )

        return Accuracy(
            source=self.source,
            fitted_on=self.fitted_on,
            bands=changed(self.bands),
            closed_form=closed_form,
            of_gpus={gpu: changed(bands) for gpu, bands in self.of_gpus.items()},
        )


def _wider(one: LatencyError, other: LatencyError) -> LatencyError:
    """Two independent errors, one after the other; what the sum covers was not tested."""
    own, added = log(one.factor), log(other.factor)
    both = hypot(own, added)

    def scale(of_own: float) -> float:
        return hypot(of_own * own, added) / both if both else 1.0

    return LatencyError(
        median_error_ratio=min(hypot(one.median_error_ratio, other.median_error_ratio), LARGEST_FACTOR),
        factor=min(exp(both), LARGEST_FACTOR),
        rough_kernels_scale=max(scale(one.rough_kernels_scale), 1.0),
        unknown_budget_scale=max(scale(one.unknown_budget_scale), 1.0),
        half_width_ratio=min(hypot(one.half_width_ratio, other.half_width_ratio), LARGEST_FACTOR),
    )
