"""What is known of a prediction's error, in words."""

from planner.domain.evidence import COVERAGE_RATIO, Accuracy, ErrorBand, Range
from planner.domain.plan import CapacityMethod, Plan
from planner.domain.units import seconds_to_ms
from planner.export.format import count, milliseconds, percent

UNTESTED = "no measured run tells how far it is off"


def band_of(plan: Plan, accuracy: Accuracy) -> ErrorBand | None:
    """What is known of the error of a plan's latency, simulated or in closed form."""
    simulated = plan.capacity_method is CapacityMethod.SIMULATE
    gpu = plan.candidate.instance.gpu
    return accuracy.band(plan.basis, gpu=gpu, simulated=simulated, rough_kernels=plan.rough_kernels)


def how_tested(band: ErrorBand | None) -> str:
    """How far measured means were from predictions of one basis; the runs' names are in the band's note."""
    if band is None:
        return UNTESTED
    factors = " and ".join(
        f"{name} {1.0 / error.factor:.2f} to {error.factor:.2f}"
        for name, error in (("TPOT", band.tpot), ("TTFT", band.ttft))
    )
    steps = f", no narrower than {count(band.steps, 'step')} of this GPU" if band.steps else ""
    return f"on {count(band.runs, 'run')} {factors} times the prediction, {percent(COVERAGE_RATIO)}{steps}"


def spanned(found: Range) -> str:
    """A range for people.

    >>> spanned(Range(0.0123, 0.0234))
    '12.3 ms to 23.4 ms'
    """
    return " to ".join(milliseconds(seconds_to_ms(bound_s)) for bound_s in found)
