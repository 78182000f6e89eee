"""Money: what a fleet costs a month and a million tokens."""

from typing import NamedTuple

from planner.domain.units import HOURS_PER_MONTH, MILLION, SECONDS_PER_HOUR


class TokenPrices(NamedTuple):
    """USD per million tokens."""

    both_usd: float
    input_usd: float
    output_usd: float


def usd_per_month(usd_per_hour: float) -> float:
    """An hourly rate over a month of 730 hours.

    >>> usd_per_month(10.0)
    7300.0
    """
    return usd_per_hour * HOURS_PER_MONTH


def token_prices(
    usd_per_hour: float,
    requests_per_s: float,
    tokens: tuple[float, float],
    prompt_time_ratio: float,
) -> TokenPrices:
    """USD per million tokens at a mean request rate, for (input, output) tokens a request.

    The bill is split between input and output tokens by the share of GPU time that prompts take.

    >>> prices = token_prices(36.0, 10.0, (1000.0, 250.0), 0.25)
    >>> round(prices.both_usd, 3), round(prices.input_usd, 3), round(prices.output_usd, 3)
    (0.8, 0.25, 3.0)
    """
    input_tokens, output_tokens = tokens
    usd_per_request = usd_per_hour / SECONDS_PER_HOUR / requests_per_s
    return TokenPrices(
        both_usd=usd_per_request / (input_tokens + output_tokens) * MILLION,
        input_usd=usd_per_request * prompt_time_ratio / input_tokens * MILLION,
        output_usd=usd_per_request * (1.0 - prompt_time_ratio) / output_tokens * MILLION,
    )
