"""Quantities as people read them: those of the exports, and times, sizes and counts beside them."""

from planner.domain.units import bytes_to_gib, seconds_to_ms
from planner.export.format import count, milliseconds, number, percent, rounded, usd

__all__ = ["count", "gib", "latency", "number", "percent", "rounded", "signed_usd", "usd"]


def signed_usd(value: float) -> str:
    """A difference in US dollars, its direction always shown.

    >>> signed_usd(1234.0), signed_usd(-1234.0)
    ('+$1,230', '-$1,230')
    """
    return f"+{usd(value)}" if value > 0 else usd(value)


def latency(time_s: float) -> str:
    """A time in ms; in s where it is long.

    >>> latency(0.04567), latency(65.4)
    ('45.7 ms', '65.4 s')
    """
    return milliseconds(seconds_to_ms(time_s))


def gib(size_bytes: float) -> str:
    """A size in GiB.

    >>> gib(16_060_522_496)
    '15.0 GiB'
    """
    return f"{number(bytes_to_gib(size_bytes))} GiB"
