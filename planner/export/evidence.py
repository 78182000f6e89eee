"""What is known of a prediction's error, in words."""

from planner.domain.evidence import ErrorBand
from planner.export.format import count

UNTESTED = "no measured run tells how far it is off"


def tested(band: ErrorBand | None) -> str:
    """How far TPOT was from predictions of one basis on measured runs; their names are in the band's note."""
    if band is None:
        return UNTESTED
    return (
        f"on {count(band.runs, 'run')} TPOT was {band.tpot_factor_low:.2f} to {band.tpot_factor_high:.2f} times "
        "the prediction, 90 %"
    )
