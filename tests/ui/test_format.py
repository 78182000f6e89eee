import pytest

from planner.ui.format import gib, latency, signed_usd


@pytest.mark.parametrize(
    ("time_s", "shown"),
    [
        (0.0456789, "45.7 ms"),
        (0.0000123, "0.0123 ms"),
        (9.99, "9,990 ms"),
        (65.44, "65.4 s"),
        (float("inf"), "∞ s"),
    ],
)
def test_latency_has_three_digits_and_a_unit(time_s: float, shown: str) -> None:
    assert latency(time_s) == shown


@pytest.mark.parametrize(("change", "shown"), [(1234.0, "+$1,230"), (-1234.0, "-$1,230"), (0.0, "$0")])
def test_a_change_in_cost_shows_its_direction(change: float, shown: str) -> None:
    assert signed_usd(change) == shown


def test_sizes_have_three_digits() -> None:
    assert gib(16_060_522_496) == "15.0 GiB"
