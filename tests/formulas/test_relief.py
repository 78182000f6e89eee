"""Which numbers of a fit are efficiencies, constants or waste: every one of them is told by its name."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from planner.calibrate.store import operators_for
from planner.catalog.load import find_gpu
from planner.catalog.paths import shipped_calibration_dir
from planner.formulas.operators import Evidence, GpuOperators
from planner.formulas.relief import (
    COLLECTIVES,
    CORRECTIONS,
    TIMES_FASTER,
    WASTE,
    Resource,
    at_datasheet_rates,
    relieved,
)

SHAPES = ("exponent", "imbalance_exponent", "skew", "weight_bytes")
"""What a perfect kernel has too: how two times meet, how tokens are routed, how weights are stored."""
GPUS = ("A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB", "L40S", "B200", "L4")


def ops_of(gpu: str) -> GpuOperators:
    return operators_for(find_gpu(gpu), (shipped_calibration_dir(),))


def numbers(fit: object, name: str = "", path: str = "") -> Iterator[tuple[str, str, float]]:
    """Where, under which name and how large every real number of a fit is; not what only reports on it."""
    if isinstance(fit, Evidence) or name in CORRECTIONS:
        return
    if isinstance(fit, BaseModel):
        for field in type(fit).model_fields:
            yield from numbers(getattr(fit, field), field, f"{path}.{field}")
    elif isinstance(fit, dict):
        for key, item in fit.items():
            yield from numbers(item, name, f"{path}[{key}]")
    elif isinstance(fit, tuple):
        for number, item in enumerate(fit):
            yield from numbers(item, name, f"{path}[{number}]")
    elif isinstance(fit, float):
        yield path, name, fit


@pytest.mark.parametrize("gpu", GPUS)
def test_every_number_is_of_a_known_kind(gpu: str) -> None:
    for path, name, _ in numbers(ops_of(gpu).coefficients):
        assert name.endswith(("_efficiency", "_s")) or name in (*WASTE, *SHAPES), path


@pytest.mark.parametrize("gpu", GPUS)
def test_without_latency_constants_are_gone_and_nothing_else_is(gpu: str) -> None:
    ops = ops_of(gpu)
    freed = relieved(ops, Resource.LATENCY)
    before = list(numbers(ops.coefficients))
    after = list(numbers(freed.coefficients))
    assert [path for path, _, _ in after] == [path for path, _, _ in before]
    for (path, name, value), (_, _, was) in zip(after, before, strict=True):
        kept = not name.endswith("_s") or path.startswith(tuple(f".{one}" for one in COLLECTIVES))
        assert value == (was if kept else 0.0), path
    assert freed.gpu == ops.gpu


@pytest.mark.parametrize("gpu", GPUS)
def test_datasheet_rates_lose_nothing(gpu: str) -> None:
    ideal = at_datasheet_rates(ops_of(gpu))
    for path, name, value in numbers(ideal.coefficients):
        if name.endswith("_efficiency"):
            assert value == 1.0, path
        elif name not in SHAPES:
            assert value == 0.0, path
    assert all(fit.surface is None for fit in ideal.coefficients.gemm.values())
    assert ideal.gpu == ops_of(gpu).gpu


def test_rates_are_relieved_on_the_data_sheet() -> None:
    ops = ops_of("H100-SXM-80GB")
    memory, compute = (relieved(ops, what) for what in (Resource.BANDWIDTH, Resource.COMPUTE))
    assert memory.gpu.memory_bandwidth_bytes_per_s == ops.gpu.memory_bandwidth_bytes_per_s * TIMES_FASTER
    assert memory.gpu.peak_flop_per_s == ops.gpu.peak_flop_per_s
    assert set(compute.gpu.peak_flop_per_s) == set(ops.gpu.peak_flop_per_s)
    for dtype, rate in ops.gpu.peak_flop_per_s.items():
        assert compute.gpu.peak_flop_per_s[dtype] == rate * TIMES_FASTER
    assert memory.coefficients == compute.coefficients == ops.coefficients
