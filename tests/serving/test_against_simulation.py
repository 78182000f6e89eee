"""The closed form against a request-by-request simulation on the same step times: `pytest -s` prints the errors."""

import numpy as np
import pytest

from planner.serving.steady_state import closed_loop, open_loop, running_at_rate
from tests.serving.continuous_batching import Engine, simulate
from tests.serving.test_steady_state import FIXED_S, PER_TOKEN_S, load, table

OPEN_REQUESTS = 1200
LENGTHS = [(1024, 256), (4000, 64), (8000, 16), (8000, 1), (500, 100)]


def engine(prompt: int, answer: int) -> Engine:
    return Engine(FIXED_S, PER_TOKEN_S, 8192, prompt, answer)


@pytest.mark.parametrize(("prompt", "answer"), LENGTHS)
@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.8])
def test_open_loop(prompt: int, answer: int, utilization: float) -> None:
    """Up to 80 % of saturation: mean TTFT within 17 %, p95 within 30 %, mean TPOT within 6 %."""
    settings = load(input_tokens=float(prompt), output_tokens=float(answer), slots=1e6, kv_requests=1e6)
    saturated = simulate(engine(prompt, answer), 300, users=150).requests_per_s
    rate = utilization * saturated
    seen = simulate(engine(prompt, answer), OPEN_REQUESTS, rate_per_s=rate)
    state = open_loop(table(), settings, running_at_rate(table(), settings, np.array([rate])))
    ratios = (
        state.ttft.mean_s[0] / seen.ttft_mean_s,
        state.ttft.p95_s[0] / seen.ttft_p95_s,
        state.tpot.mean_s[0] / seen.tpot_mean_s if answer > 1 else 1.0,
    )
    print(
        f"{prompt}/{answer} at {utilization}: ttft {ratios[0]:.2f}, p95 {ratios[1]:.2f}, tpot {ratios[2]:.2f}"
    )
    assert ratios == (
        pytest.approx(1.0, rel=0.17),
        pytest.approx(1.0, rel=0.3),
        pytest.approx(1.0, rel=0.06),
    )


@pytest.mark.parametrize("prompt", [1024, 2000, 4096])
@pytest.mark.parametrize("answer", [1, 2, 3])
@pytest.mark.parametrize("utilization", [0.2, 0.4, 0.6])
def test_short_answers(prompt: int, answer: int, utilization: float) -> None:
    """Several prompts fit into a step and hardly anything decodes: mean TTFT within 12 %, p95 within 25 %."""
    settings = load(input_tokens=float(prompt), output_tokens=float(answer), slots=1e6, kv_requests=1e6)
    rate = utilization * simulate(engine(prompt, answer), 300, users=150).requests_per_s
    seen = simulate(engine(prompt, answer), 3 * OPEN_REQUESTS, rate_per_s=rate)
    state = open_loop(table(), settings, running_at_rate(table(), settings, np.array([rate])))
    mean, p95 = state.ttft.mean_s[0] / seen.ttft_mean_s, state.ttft.p95_s[0] / seen.ttft_p95_s
    print(f"{prompt}/{answer} at {utilization}: ttft {mean:.2f}, p95 {p95:.2f}")
    assert (mean, p95) == (pytest.approx(1.0, rel=0.12), pytest.approx(1.0, rel=0.25))


@pytest.mark.parametrize(("prompt", "answer"), LENGTHS)
@pytest.mark.parametrize("users", [1, 8, 32])
def test_closed_loop(prompt: int, answer: int, users: int) -> None:
    """Throughput within 6 %, mean TPOT within 4 %."""
    settings = load(input_tokens=float(prompt), output_tokens=float(answer), slots=1e6, kv_requests=1e6)
    seen = simulate(engine(prompt, answer), 10 * users, users=users)
    state = closed_loop(table(), settings, np.array([float(users)]), np.array([10.0 * users]))
    rate = state.requests_per_s[0] / seen.requests_per_s
    tpot = state.tpot.mean_s[0] / seen.tpot_mean_s if answer > 1 else 1.0
    print(f"{prompt}/{answer} of {users}: rate {rate:.2f}, tpot {tpot:.2f}")
    assert (rate, tpot) == (pytest.approx(1.0, rel=0.06), pytest.approx(1.0, rel=0.04))
