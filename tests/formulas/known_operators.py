"""The committed coefficients of GPUs with kernel tables, for tests of operators."""

from functools import cache

import numpy as np

from planner.calibrate.store import operators_for
from planner.catalog.load import find_gpu
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.hardware import Interconnect
from planner.formulas.arrays import FloatArray
from planner.formulas.engine_defaults import parse_version
from planner.formulas.operators import GpuOperators, RankGroup

MEASURED = ("A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB", "L40S", "B200")
TOKENS: FloatArray = np.logspace(0, 16, 17, base=2.0)


@cache
def ops_of(name: str) -> GpuOperators:
    return operators_for(find_gpu(name), (shipped_calibration_dir(),))


def group(ranks: int, interconnect: Interconnect = Interconnect.NVSWITCH, release: str = "") -> RankGroup:
    return RankGroup(ranks, interconnect, parse_version(release))
