"""The steady state against theory: exact limits, Little's law, queueing formulas, monotonicity."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.formulas.step import GRID_TOKENS, SCOPES, UNLIMITED_TOKENS, StepTable
from planner.serving.mean_step import Load, mean_step, padded, padded_on_average
from planner.serving.steady_state import closed_loop, open_loop, running_at_rate
from planner.serving.waiting import few_quantile, normal_quantile, queue_wait

FIXED_S = 0.010
PER_TOKEN_S = 1e-5


def table(fixed_s: float = FIXED_S, per_token_s: float = PER_TOKEN_S, pp: int = 1) -> StepTable:
    """One layout whose step takes fixed_s + tokens x per_token_s: no attention, no head."""
    none = np.zeros((1, SCOPES))
    return StepTable(
        body_s=(fixed_s + GRID_TOKENS * per_token_s)[None, :],
        head_s=np.zeros((1, GRID_TOKENS.size)),
        decode_constant_s=np.zeros(1),
        decode_per_sequence_s=np.zeros(1),
        scope_tokens=np.full((1, SCOPES), UNLIMITED_TOKENS),
        decode_per_token_s=none,
        context_constant_s=np.zeros(1),
        context_per_token_s=np.zeros(1),
        context_per_pair_s=none,
        context_per_past_s=none,
        launch_s=np.zeros((1, 4)),
        pp=np.full(1, float(pp)),
    )


def load(**changes: float) -> Load:
    values = {
        "layout": 0,
        "input_tokens": 500.0,
        "cached_tokens": 0.0,
        "output_tokens": 100.0,
        "length_low_ratio": 1.0,
        "batched_tokens": 8192.0,
        "slots": 256.0,
        "kv_requests": 1000.0,
        "arrival_cv": 1.0,
        "async_scheduling": 0.0,
        "captured_tokens": 0.0,
        "host_s": 0.0,
        "host_per_sequence_s": 0.0,
        "chain_s": 0.0,
        "chain_per_sequence_s": 0.0,
        "front_s": 0.0,
        "reply_s": 0.0,
        "reply_per_user_s": 0.0,
    } | changes
    return Load(
        layout=np.array([0]),
        **{name: np.array([value]) for name, value in values.items() if name != "layout"},
    )


def test_one_user_sees_undisturbed_steps() -> None:
    state = closed_loop(table(), load(), np.array([1.0]), np.array([1e9]))
    step_s = FIXED_S + PER_TOKEN_S  # one sequence, nobody else's prompt
    prompt_s = FIXED_S + 500 * PER_TOKEN_S
    assert state.tpot.mean_s[0] == pytest.approx(step_s, rel=0.01)
    assert state.ttft.mean_s[0] == pytest.approx(prompt_s, rel=0.01)


@pytest.mark.parametrize("running", [0.2, 3.0, 40.0])
def test_a_stay_is_its_prompt_its_answer_and_the_prompts_of_others(running: float) -> None:
    """Little's law: running / rate = w + 99 d + running e, prompts of 500 tokens in steps of 10 ms and 10 us each."""
    state = open_loop(table(), load(), np.array([running]))
    stay_s = running / state.requests_per_s[0]
    step_s = FIXED_S + max(running, 1.0) * PER_TOKEN_S
    prompt_s = FIXED_S + (500 + running) * PER_TOKEN_S
    assert stay_s == pytest.approx(prompt_s + 99 * step_s + running * 500 * PER_TOKEN_S, rel=0.02)


@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.8])
def test_one_token_answers_are_an_m_d_1_queue(utilization: float) -> None:
    """Prompts that fill a step each: mean wait rho / (2 (1 - rho)) services (Pollaczek-Khinchine)."""
    mill = load(input_tokens=8192.0, output_tokens=1.0)
    service_s = FIXED_S + 8192 * PER_TOKEN_S
    rate = np.array([utilization / service_s])
    state = open_loop(table(), mill, running_at_rate(table(), mill, rate))
    wait_s = utilization / (2 * (1 - utilization)) * service_s
    assert state.ttft.mean_s[0] == pytest.approx(service_s + wait_s, rel=0.05)
    assert state.prompt_time_ratio[0] == pytest.approx(1.0)


def test_tokens_are_conserved_when_prompts_bind() -> None:
    """With 8,000-token prompts and one-token answers the engine is a prompt mill: rate = budget / prompt / step."""
    heavy = load(input_tokens=8000.0, output_tokens=2.0, batched_tokens=2048.0)
    state = closed_loop(table(), heavy, np.array([200.0]), np.array([1e9]))
    full_step_s = FIXED_S + 2048.0 * PER_TOKEN_S
    assert state.requests_per_s[0] == pytest.approx(2048.0 / 8001.0 / full_step_s, rel=1e-3)


def test_rate_and_running_are_inverse() -> None:
    state = open_loop(table(), load(), np.array([17.0]))
    found = running_at_rate(table(), load(), state.requests_per_s)
    assert found[0] == pytest.approx(17.0, rel=1e-3)


@pytest.mark.parametrize(("servers", "rho"), [(1, 0.5), (1, 0.9), (4, 0.8), (20, 0.9)])
def test_waiting_agrees_with_erlang_c(servers: int, rho: float) -> None:
    """M/M/c mean waiting time within 8 % of Erlang C (exact for c = 1)."""
    offered = servers * rho
    head = sum(offered**k / math.factorial(k) for k in range(servers))
    tail = offered**servers / math.factorial(servers) / (1 - rho)
    exact = tail / (head + tail) / (servers * (1 - rho))
    wait = queue_wait(np.array([rho]), np.array([float(servers)]), np.array([1.0]), np.array([1.0]))
    assert wait.mean_s[0] == pytest.approx(exact, rel=1e-9 if servers == 1 else 0.08)


def test_constant_arrivals_of_equal_jobs_never_wait() -> None:
    wait = queue_wait(np.array([0.9]), np.array([1.0]), np.array([1.0]), np.array([0.0]))
    assert wait.mean_s[0] == 0.0
    assert wait.quantile_s(0.99)[0] == 0.0


def test_waiting_tail_is_exponential_above_an_atom() -> None:
    wait = queue_wait(np.array([0.8]), np.array([1.0]), np.array([1.0]), np.array([1.0]))
    # M/M/1: P(W > t) = rho exp(-(1 - rho) t), so the 95 % quantile is ln(0.8 / 0.05) / 0.2.
    assert wait.quantile_s(0.95)[0] == pytest.approx(math.log(0.8 / 0.05) / 0.2, rel=1e-6)
    assert wait.quantile_s(0.1)[0] == 0.0


def test_users_beyond_the_cache_queue() -> None:
    crowded = closed_loop(table(), load(kv_requests=10.0), np.array([40.0]), np.array([1e9]))
    alone = closed_loop(table(), load(kv_requests=10.0), np.array([10.0]), np.array([1e9]))
    assert crowded.running_requests[0] == 10.0
    assert crowded.tpot.mean_s[0] == pytest.approx(alone.tpot.mean_s[0])
    waiting_s = 30.0 / alone.requests_per_s[0]
    assert crowded.ttft.mean_s[0] - alone.ttft.mean_s[0] == pytest.approx(waiting_s, rel=0.01)


def test_a_prefix_in_the_cache_saves_its_prompt_work() -> None:
    cold = open_loop(table(), load(input_tokens=4000.0), np.array([20.0]))
    warm = open_loop(table(), load(input_tokens=1000.0, cached_tokens=3000.0), np.array([20.0]))
    assert warm.requests_per_s[0] > cold.requests_per_s[0]
    assert warm.ttft.mean_s[0] < cold.ttft.mean_s[0]


def test_bursts_make_prompts_queue() -> None:
    """Gaps of variation 3 come five at a time; each waits for four others' 500 of 8,192 tokens."""
    running = np.array([5.0])
    poisson, bursty = (open_loop(table(), load(arrival_cv=cv), running) for cv in (1.0, 3.0))
    waited_s = bursty.ttft.mean_s[0] - poisson.ttft.mean_s[0]
    full_step_s = FIXED_S + 8192 * PER_TOKEN_S
    assert waited_s == pytest.approx(4 * 500 / 8192 * full_step_s, rel=0.1)


def test_two_stages_carry_twice_as_many_sequences_in_the_same_time() -> None:
    one = open_loop(table(), load(), np.array([16.0]))
    two = open_loop(table(pp=2), load(), np.array([32.0]))
    # Arrivals dealt in turn come more evenly, so each meets a little fewer others.
    assert two.requests_per_s[0] == pytest.approx(2.0 * one.requests_per_s[0], rel=0.01)
    assert two.tpot.mean_s[0] == pytest.approx(one.tpot.mean_s[0], rel=0.01)


@given(
    prompt=st.floats(1, 30_000),
    answer=st.floats(1, 5_000),
    budget=st.sampled_from([2048.0, 8192.0, 16384.0]),
    cv=st.floats(0, 4),
    running=st.floats(0.05, 200),
)
def test_more_load_never_helps(
    prompt: float, answer: float, budget: float, cv: float, running: float
) -> None:
    settings = load(input_tokens=prompt, output_tokens=answer, batched_tokens=budget, arrival_cv=cv)
    less = open_loop(table(), settings, np.array([running]))
    more = open_loop(table(), settings, np.array([running * 1.1]))
    slack = 0.99  # what three rounds of a fixed point leave
    assert more.requests_per_s[0] >= less.requests_per_s[0] * slack
    assert more.tpot.mean_s[0] >= less.tpot.mean_s[0] * slack
    for state in (less, more):
        assert np.isfinite(state.ttft.p99_s).all()
        assert state.ttft.p50_s[0] <= state.ttft.p95_s[0] <= state.ttft.p99_s[0]
        assert state.tpot.p50_s[0] <= state.tpot.p95_s[0] <= state.tpot.p99_s[0]
        assert state.tpot.mean_s[0] <= state.tpot.p99_s[0] * 1.1
        assert 0.0 <= state.prompt_time_ratio[0] <= 1.0
        assert state.tpot.mean_s[0] >= FIXED_S * (1.0 - 1e-6) or answer == 1


def test_answers_of_equal_length_keep_users_in_step() -> None:
    """Eight users in step bring their prompts one behind the other: each shares a step with half of the seven."""
    users, requests = np.array([8.0]), np.array([1e9])
    together = closed_loop(table(), load(), users, requests)
    strewn = closed_loop(table(), load(length_low_ratio=0.5), users, requests)
    shared_s = FIXED_S + (1 + 7 / 2) * 500 * PER_TOKEN_S
    step_s = FIXED_S + 8 * PER_TOKEN_S
    assert together.ttft.mean_s[0] == pytest.approx(shared_s + step_s, rel=0.02)
    assert strewn.ttft.mean_s[0] < shared_s
    assert together.requests_per_s[0] == pytest.approx(strewn.requests_per_s[0], rel=0.05)


def test_host_and_front_end_are_counted_where_they_fall() -> None:
    """A lone user: 1 ms a step and 0.5 ms a sequence in each; 20 ms before the engine, 3 ms and 2 ms a user after."""
    host = {
        "host_s": 1e-3,
        "host_per_sequence_s": 5e-4,
        "front_s": 0.02,
        "reply_s": 3e-3,
        "reply_per_user_s": 2e-3,
    }
    bare, hosted = (
        closed_loop(table(), load(**given), np.array([1.0]), np.array([1e9])) for given in ({}, host)
    )
    assert hosted.tpot.mean_s[0] - bare.tpot.mean_s[0] == pytest.approx(1.5e-3)
    assert hosted.ttft.mean_s[0] - bare.ttft.mean_s[0] == pytest.approx(1.5e-3 + 0.02 + 5e-3)


def test_the_front_end_bounds_the_rate() -> None:
    """50 ms of it for each request: 20 a second at most, however many the engine could serve."""
    fullest = open_loop(table(), load(front_s=0.05, output_tokens=2.0), np.array([200.0]))
    assert fullest.requests_per_s[0] == pytest.approx(20.0)


def test_small_steps_run_at_captured_sizes() -> None:
    """Five sequences run as eight; where what comes and goes is five on average, the mean over Poisson many."""
    captured = np.array([512.0])
    assert padded(np.array([5.0]), captured)[0] == 8.0
    assert padded(np.array([5.0]), np.array([0.0]))[0] == 5.0
    sizes = padded(1.0 + np.random.default_rng(1).poisson(4.0, 200_000).astype(float), captured)
    assert padded_on_average(np.array([5.0]), captured)[0] == pytest.approx(sizes.mean(), rel=0.01)
    steps = mean_step(table(), load(captured_tokens=512.0))
    nine = steps.decode_s(np.array([9.0]), padded(np.array([9.0]), captured))
    assert nine[0] == pytest.approx(FIXED_S + 16 * PER_TOKEN_S)


@pytest.mark.parametrize("mean", [0.02, 0.3, 1.5])
def test_few_prompts_are_counted(mean: float) -> None:
    """Without feedback Poisson; with it, as many as the branching process has that it comes from."""
    random = np.random.default_rng(2)
    plain = np.quantile(random.poisson(mean, 400_000), 0.95)
    assert few_quantile(np.array([mean]), np.array([0.0]), 0.95)[0] == plain
    generation = random.poisson(mean * 0.6, 400_000)
    total = generation.copy()
    while generation.any():
        generation = random.poisson(0.4 * generation)
        total += generation
    assert few_quantile(np.array([mean]), np.array([0.4]), 0.95)[0] == np.quantile(total, 0.95)


def test_the_normal_quantile_is_near() -> None:
    known = {0.5: 0.0, 0.8413447: 1.0, 0.95: 1.6448536, 0.99: 2.3263479, 0.05: -1.6448536}
    found = normal_quantile(np.array(list(known)))
    assert found == pytest.approx(list(known.values()), abs=5e-4)
