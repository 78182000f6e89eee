"""Ranges of a GPU whose steps were measured: no narrower than the errors of its own fit.

Error bands come from served runs of other machines. How well steps of this one are predicted is known from its fit, and
nothing that is made of steps can be known better.
"""

from collections.abc import Iterable, Sequence

from planner.domain.evidence import Accuracy, Basis, ErrorBand, StepKind
from planner.formulas.gpu_fit import GpuFit, RegionError

TPOT_KINDS = (StepKind.DECODE, StepKind.MIXED)
TTFT_KINDS = (StepKind.PREFILL, StepKind.MIXED)
OWN_BASES = (Basis.MEASURED, Basis.CALIBRATED)


def with_step_errors(accuracy: Accuracy, fits: Iterable[GpuFit]) -> Accuracy:
    """Known errors with the bands that hold on GPUs of which there is a fit; those of others stay."""
    of_gpus = {fit.gpu.name: tuple(_own_bands(accuracy, fit)) for fit in fits}
    return Accuracy(
        source=accuracy.source,
        fitted_on=accuracy.fitted_on,
        bands=accuracy.bands,
        closed_form=accuracy.closed_form,
        of_gpus=of_gpus,
    )


def _own_bands(accuracy: Accuracy, fit: GpuFit) -> list[ErrorBand]:
    tpot, ttft = (_regions(fit, kinds) for kinds in (TPOT_KINDS, TTFT_KINDS))
    steps = sum(row.steps for row in fit.regions)
    found = []
    for basis in OWN_BASES:
        band = accuracy.band(basis)
        if band is None:
            continue
        widened = {
            "tpot": band.tpot.no_narrower(_factor(tpot), _left_out(tpot)),
            "ttft": band.ttft.no_narrower(_factor(ttft), _left_out(ttft)),
        }
        note = f"{band.note}; no narrower than {steps:,} steps of {fit.gpu.name} left out of its fit"
        found.append(band.model_copy(update={**widened, "basis": basis, "steps": steps, "note": note}))
    return found


def _regions(fit: GpuFit, kinds: Sequence[StepKind]) -> list[RegionError]:
    return [row for row in fit.regions if row.region.partition(",")[0] in kinds]


def _factor(regions: Sequence[RegionError]) -> float:
    """Of 90 % of the steps in the worst region: which of them a load is in is not known here."""
    ratios = (max(row.p90_ratio, row.left_out_p90_ratio) for row in regions)
    return 1.0 + max(ratios, default=0.0)


def _left_out(regions: Sequence[RegionError]) -> float:
    """Median error of steps left out: mean of the regions' medians, weighted by their steps."""
    steps = sum(row.steps for row in regions)
    return sum(row.steps * row.left_out_median_ratio for row in regions) / steps if steps else 0.0
