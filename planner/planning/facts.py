"""What planning is handed by the rooms that read files: catalog, coefficients, known errors."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from planner.domain.evidence import Accuracy
from planner.domain.hardware import Gpu, Offer
from planner.formulas.host_time import HostTime
from planner.formulas.memory import MemoryCoefficients
from planner.formulas.operators import GpuOperators
from planner.formulas.tuning import ServingTuning


class Facts(NamedTuple):
    """Everything outside the question that an answer depends on."""

    gpus: Mapping[str, Gpu]
    """By canonical name."""
    offers: tuple[Offer, ...]
    operators_for: Callable[[Gpu], GpuOperators]
    memory: MemoryCoefficients
    host: HostTime
    tuning: ServingTuning
    accuracy: Accuracy
    today: str
    """ISO date, to tell how old a price is."""
