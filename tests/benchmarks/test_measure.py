"""Ratios are what they say, on figures worked by hand; no time is asserted."""

import pytest

from benchmarks.measure import (
    HEADERS,
    Row,
    Timing,
    at_most,
    best_of,
    child,
    figure,
    has_peak,
    not_measured,
    peak_mb,
    rate_at_least,
    rates,
    time_at_most,
)
from planner.domain.base import InputError


def test_a_quantity_is_kept_up_to_its_budget() -> None:
    assert at_most("x", 1.5, 2.0, "s") == Row("x", "1.5 s", "2 s", 0.75, True)
    assert at_most("x", 2.0, 2.0, "s").ok
    assert at_most("x", 2.01, 2.0, "s").ok is False


def test_the_best_time_counts_and_the_worst_and_the_processor_are_shown() -> None:
    row = time_at_most("x", Timing(0.5, 3.0, 0.4), 2.0)
    assert row == Row("x", "0.5 s (worst 3, CPU 0.4)", "2 s", 0.25, True)


def test_a_rate_is_kept_from_its_budget() -> None:
    # 300 in 0.5 s is 600/s, in 1 s 300/s; a budget of 500/s is met 1.2 times.
    row = rate_at_least("x", 300, Timing(0.5, 1.0), 500.0, "rows/s")
    assert row == Row("x", "600 rows/s (worst 300)", "500 rows/s", 1.2, True)
    assert rates(300, Timing(0.5, 1.0, 0.25), "rows/s") == "600 rows/s (worst 300, by CPU time 1,200)"
    assert rate_at_least("x", 300, Timing(0.61, 1.0), 500.0, "rows/s").ok is False


def test_best_and_worst_of_a_clock_that_is_given() -> None:
    # Three runs of 2, 5 and 1 s, after one of 50 s that warms.
    ticks = iter([0.0, 2.0, 10.0, 15.0, 20.0, 21.0])
    ran = []
    timing = best_of(3, lambda: ran.append(1), clock=lambda: next(ticks))
    assert timing == (1.0, 5.0, 0.0)
    assert len(ran) == 4


def test_cells_follow_the_headers() -> None:
    row = not_measured("x", "why")
    assert dict(zip(HEADERS, row.cells(), strict=True)) == {
        "what": "x",
        "measured": "not measured",
        "budget or peer": "why",
        "ratio": "",
        "ok": "",
    }
    assert at_most("x", 3.0, 2.0, "s").cells()[-2:] == ("1.5", "NO")


@pytest.mark.parametrize(
    ("value", "text"), [(0.001234, "0.00123"), (12.0, "12"), (999.4, "999"), (430_673.2, "430,673")]
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(InputError, match="no such thing"):
        child("-c", "raise SystemExit('no such thing')")
    with pytest.raises(InputError, match="No such file"):
        child("-c", "pass", python="/no/such/python")


@pytest.mark.skipif(not has_peak(), reason="this system does not tell a process its peak")
def test_the_peak_of_a_child_is_its_own() -> None:
    here = bytearray(200_000_000)
    small = peak_mb(("x = 1",))
    large = peak_mb(("x = bytearray(100_000_000)",))
    assert small < len(here) / 1e6
    assert 90 < large - small < 110


def test_processor_time_is_of_children_too() -> None:
    timing = best_of(1, lambda: child("-c", "sum(range(3_000_000))"), warm=False)
    assert timing.cpu_s > 0.0
