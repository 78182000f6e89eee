"""All-reduce: by size, wiring, group and release."""

import numpy as np
import pytest

from planner.domain.hardware import Interconnect
from planner.formulas.operators import Evidence, GpuOperators, Origin, all_reduce_s
from planner.formulas.operators.coefficients import AllReduceFit, CollectiveCurve
from planner.formulas.operators.collectives import collective_curve_s
from tests.formulas.known_operators import MEASURED, group, ops_of

RELEASES = ("0.11.0", "0.14.0", "0.18.0", "0.24.0", "0.33.0")


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("interconnect", [Interconnect.NVSWITCH, Interconnect.PCIE])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_all_reduce_grows_with_the_message(name: str, interconnect: Interconnect, ranks: int) -> None:
    """It follows what was measured, so it falls by the scatter of measurements: 8 % on undisturbed machines."""
    ops = ops_of(name)
    message_bytes = 2.0 ** np.arange(8, 31, 0.25)
    for release in RELEASES:
        times = all_reduce_s(message_bytes, group(ranks, interconnect, release), ops)
        falls_to = float((times / np.maximum.accumulate(times)).min())
        # Between two sizes the form bends more than what it leaves.
        assert falls_to >= 0.96, release
        assert times[0] > 1e-6
        assert times[-1] > times[0] * 100


def test_all_reduce_by_wiring() -> None:
    ops, message_bytes = ops_of("H100-SXM-80GB"), np.array([1e5, 1e7])
    assert (all_reduce_s(message_bytes, group(1), ops) == 0).all()
    bridged = all_reduce_s(message_bytes, group(2, Interconnect.NVLINK_PAIR), ops)
    assert (bridged == all_reduce_s(message_bytes, group(2, Interconnect.NVLINK), ops)).all()
    beyond_the_pair = all_reduce_s(message_bytes, group(4, Interconnect.NVLINK_PAIR), ops)
    assert (beyond_the_pair == all_reduce_s(message_bytes, group(4, Interconnect.PCIE), ops)).all()
    assert (beyond_the_pair > 3 * all_reduce_s(message_bytes, group(4), ops)).all()
    no_fabric = all_reduce_s(message_bytes, group(4), ops_of("L40S"))
    assert (no_fabric == all_reduce_s(message_bytes, group(4, Interconnect.PCIE), ops_of("L40S"))).all()


def flat_curve(ranks: int, time_s: float, release: str = "") -> CollectiveCurve:
    """So long whatever the message, where that is short."""
    return CollectiveCurve(
        ranks=ranks,
        engine_version=release,
        constant_s=time_s,
        link_efficiency=1.0,
        exponent=64.0,
        evidence=Evidence(origin=Origin.ASSUMED),
    )


def reducing(engine: tuple[CollectiveCurve, ...], nccl: tuple[CollectiveCurve, ...]) -> GpuOperators:
    ops = ops_of("H100-SXM-80GB")
    fit = AllReduceFit(engine=engine, nccl=nccl)
    return ops._replace(coefficients=ops.coefficients.model_copy(update={"nvlink_all_reduce": fit}))


SHORT_BYTES = np.array([64.0])


@pytest.mark.parametrize(
    ("release", "measured_with_us"),
    [
        ("0.8.0", 14),
        ("0.14.0", 14),
        ("0.18.1", 14),
        ("0.19.0", 19),
        ("0.23.9", 19),
        ("0.24.0", 24),
        ("0.33.0", 24),
    ],
)
def test_a_release_reduces_as_the_newest_measured_that_is_not_newer(
    release: str, measured_with_us: int
) -> None:
    """Else as the oldest; whatever the order in the file, and 0.9 is older than 0.14."""
    for order in ((14, 19, 24), (24, 14, 19)):
        curves = tuple(flat_curve(4, 1e-6 * minor, f"0.{minor}.0") for minor in order)
        ops = reducing(curves, (flat_curve(4, 99e-6),))
        found = all_reduce_s(SHORT_BYTES, group(4, release=release), ops)
        assert found == pytest.approx([1e-6 * measured_with_us])
    early = (flat_curve(4, 9e-6, "0.9.0"), flat_curve(4, 14e-6, "0.14.0"))
    ops = reducing(early, (flat_curve(4, 99e-6),))
    assert all_reduce_s(SHORT_BYTES, group(4, release="0.10.0"), ops) == pytest.approx([9e-6])


@pytest.mark.parametrize(("ranks", "time_us"), [(2, 2), (3, 8), (4, 8), (8, 8), (16, 80), (64, 80)])
def test_a_group_reduces_as_the_smallest_measured_that_holds_it_and_by_nccl_beyond(
    ranks: int, time_us: float
) -> None:
    engine = (flat_curve(2, 2e-6, "0.24.0"), flat_curve(8, 8e-6, "0.24.0"))
    ops = reducing(engine, (flat_curve(2, 20e-6), flat_curve(8, 80e-6)))
    assert all_reduce_s(SHORT_BYTES, group(ranks), ops) == pytest.approx([1e-6 * time_us])


def test_without_a_kernel_of_its_own_the_engine_reduces_by_nccl() -> None:
    ops = reducing((), (flat_curve(2, 20e-6), flat_curve(8, 80e-6)))
    assert all_reduce_s(SHORT_BYTES, group(4), ops) == pytest.approx([80e-6])


def test_a_correction_holds_at_its_size_and_goes_over_to_the_next() -> None:
    """10 us as the curve says; at 1 KiB as measured, at 4 KiB twice as long: 1.41 times at 2 KiB, held beyond both."""
    curve = flat_curve(4, 10e-6).model_copy(
        update={"log2_bytes": (10.0, 12.0), "log_ratio": (0.0, float(np.log(2.0)))}
    )
    times = collective_curve_s(2.0 ** np.array([4.0, 10.0, 11.0, 12.0, 13.0]), 1e15, curve)
    assert times == pytest.approx([10e-6, 10e-6, 10e-6 * np.sqrt(2.0), 20e-6, 20e-6])


def test_a_correction_without_its_size_is_refused() -> None:
    with pytest.raises(ValueError, match="2 sizes with 1 ratios"):
        CollectiveCurve.model_validate(
            {**flat_curve(4, 1e-5).model_dump(), "log2_bytes": (8.0, 9.0), "log_ratio": (0.0,)}
        )
