"""Numbers as people read them: three significant digits, no false precision."""

import math

DIGITS = 3
LONG_MS = 1e4
"""From here on a time is shown in seconds."""


def rounded(value: float, digits: int = DIGITS) -> float:
    """`value` to so many significant digits; infinities and NaN as they are.

    >>> rounded(12345.678), rounded(0.00123456)
    (12300.0, 0.00123)
    """
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def number(value: float, digits: int = DIGITS) -> str:
    """Significant digits with thousands separated.

    >>> number(12345.678), number(3.14159), number(9.999), number(0.0456)
    ('12,300', '3.14', '10.0', '0.0456')
    """
    if not math.isfinite(value):
        return "unknown" if math.isnan(value) else "∞"
    if value == 0:
        return "0"
    near = rounded(value, digits)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(near))))
    return f"{near:,.{decimals}f}"


def usd(value: float) -> str:
    """US dollars; the sign stands before the currency.

    >>> usd(-12345.0), usd(0.4321)
    ('-$12,300', '$0.432')
    """
    return f"{'-' if value < 0 else ''}${number(abs(value))}"


def percent(ratio: float) -> str:
    """A ratio in percent, finer below ten and below a tenth.

    >>> percent(0.4567), percent(-0.0456), percent(0.000123), percent(float("nan"))
    ('46 %', '-4.6 %', '0.012 %', 'unknown')
    """
    if not math.isfinite(ratio):
        return "unknown"
    return f"{100 * ratio:.0f} %" if abs(ratio) >= 0.0995 else f"{per_cent(ratio)} %"


def per_cent(ratio: float, sign: str = "") -> str:
    """The figure alone, to a tenth, or to a thousandth where that would show nothing.

    >>> per_cent(0.0456), per_cent(0.000123, "+"), per_cent(0.0)
    ('4.6', '+0.012', '0.0')
    """
    decimals = 3 if 0 < abs(ratio) < 0.0005 else 1
    return f"{100 * ratio:{sign}.{decimals}f}"


def exact(value: float) -> str:
    """A number as it was typed, thousands separated.

    >>> exact(1e6), exact(2345.5)
    ('1,000,000', '2,345.5')
    """
    return f"{value:,.10g}"


def count(value: float, noun: str) -> str:
    """How many of something, in the plural where it is due.

    >>> count(1, "replica"), count(3, "replica"), count(2.5, "request")
    ('1 replica', '3 replicas', '2.5 requests')
    """
    return f"{exact(value)} {noun}{'' if value == 1 else 's'}"


def promised(limit_ms: float) -> str:
    """A latency limit as it was typed; in s where it is long.

    >>> promised(2345.0), promised(1e6)
    ('2,345 ms', '1,000 s')
    """
    return f"{exact(limit_ms / 1e3)} s" if limit_ms >= LONG_MS else f"{exact(limit_ms)} ms"


def milliseconds(time_ms: float) -> str:
    """A latency given in ms; shown in s where it is long.

    >>> milliseconds(45.67), milliseconds(65400.0)
    ('45.7 ms', '65.4 s')
    """
    return f"{number(time_ms / 1e3)} s" if time_ms >= LONG_MS else f"{number(time_ms)} ms"


def logged_figure(value: float | None, unit: str) -> str:
    """A figure in the form that vLLM logs it; empty where there is none.

    >>> logged_figure(66.7649, "GiB"), logged_figure(1387664.0, "tokens"), logged_figure(169.391, "x")
    ('66.76 GiB', '1,387,664', '169.39x')
    """
    if value is None:
        return ""
    match unit:
        case "x":
            return f"{value:.2f}x"
        case "GiB":
            return f"{value:.2f} GiB"
        case _:
            return f"{value:,.0f}"


def relative_error(ratio: float | None) -> str:
    """A relative error, its direction always shown; empty where there is none.

    >>> relative_error(0.0123), relative_error(-0.0001), relative_error(None)
    ('+1.2 %', '+0.0 %', '')
    """
    return "" if ratio is None else f"{round(ratio, 3) + 0.0:+.1%}".replace("%", " %")
