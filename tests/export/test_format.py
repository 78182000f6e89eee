"""Figures have three significant digits."""

from hypothesis import given
from hypothesis import strategies as st

from planner.export.format import count, milliseconds, number, percent, promised


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_three_digits_lose_at_most_half_a_percent(value: float) -> None:
    assert abs(float(number(value).replace(",", "")) / value - 1) <= 0.005


def test_what_is_no_number_is_said_to_be_unknown() -> None:
    assert number(float("nan")) == percent(float("nan")) == "unknown"
    assert number(float("inf")) == "∞"


def test_long_latencies_are_in_seconds() -> None:
    assert [milliseconds(value) for value in (9.994, 9_999.0, 12_345.0)] == ["9.99 ms", "10,000 ms", "12.3 s"]


def test_promises_are_shown_as_they_were_typed() -> None:
    shown = [promised(limit_ms) for limit_ms in (0.05, 2345.0, 1e6, 1e9)]
    assert shown == ["0.05 ms", "2,345 ms", "1,000 s", "1,000,000 s"]


def test_one_of_something_is_singular() -> None:
    assert [count(1.0, "request"), count(1.5, "request"), count(12_345, "price")] == [
        *("1 request", "1.5 requests", "12,345 prices")
    ]
