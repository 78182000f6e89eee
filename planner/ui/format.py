"""Quantities as people read them: those of the exports, and times, sizes and counts beside them."""

from planner.domain.units import KIB_BYTES, bytes_to_gib, seconds_to_ms
from planner.export.format import count, milliseconds, number, percent, rounded, usd

__all__ = ["count", "gib", "kib", "latency", "number", "percent", "rounded", "short", "signed_usd", "usd"]


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


def kib(size_bytes: float) -> str:
    """A size in KiB.

    >>> kib(131_072)
    '128 KiB'
    """
    return f"{number(size_bytes / KIB_BYTES)} KiB"


def short(value: float) -> str:
    """A large number where little space is.

    >>> short(1_188_336), short(36_512), short(640)
    ('1.19 M', '36.5 k', '640')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{number(value / size)} {unit}"
    return f"{value:g}"
