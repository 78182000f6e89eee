"""The steady state against theory: exact limits, Little's law, queueing formulas, monotonicity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.formulas.layer_time import UNLIMITED_TOKENS
from planner.formulas.step import GRID_TOKENS, SCOPES, StepTable
from planner.serving.flow import Crowd, flow_of
from planner.serving.mean_step import Load, mean_step, padded, padded_on_average
from planner.serving.steady_state import closed_loop, open_loop, running_at_rate
from tests.serving.continuous_batching import Engine, simulate

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


@pytest.mark.parametrize("utilization", [0.5, 0.8])
def test_prompts_of_unequal_length_queue_longer(utilization: float) -> None:
    """Pollaczek-Khinchine for lengths uniform in [0.05 L, L]: (1 + 0.27) / 2 rho / (1 - rho) services."""
    steps = table(fixed_s=1e-4)
    mill = load(input_tokens=8192.0, output_tokens=1.0, batched_tokens=2048.0, length_low_ratio=0.05)
    service_s = 4 * 1e-4 + 8192 * PER_TOKEN_S
    state = open_loop(steps, mill, running_at_rate(steps, mill, np.array([utilization / service_s])))
    wait_s = (1 + (0.95 / 1.05) ** 2 / 3) / 2 * utilization / (1 - utilization) * service_s
    assert state.ttft.mean_s[0] == pytest.approx(service_s + wait_s, rel=0.06)


def test_a_prompt_beyond_the_step_takes_another_one() -> None:
    """4,500 tokens in steps of 4,096: the 404 that are left pay a step's fixed time once more."""
    state = open_loop(table(), load(input_tokens=4500.0, batched_tokens=4096.0), np.array([1e-3]))
    assert state.ttft.p50_s[0] == pytest.approx(2 * FIXED_S + 4500 * PER_TOKEN_S, rel=0.005)


def test_an_idle_replica_takes_as_long_as_prompts_are_long() -> None:
    """Lengths uniform in [48, 952]: half are below 500, 95 of 100 below 907."""
    state = open_loop(table(fixed_s=1e-3), load(length_low_ratio=0.05), np.array([1e-3]))
    assert state.ttft.p50_s[0] == pytest.approx(1e-3 + 500 * PER_TOKEN_S, rel=0.005)
    assert state.ttft.p95_s[0] == pytest.approx(1e-3 + 907 * PER_TOKEN_S, rel=0.01)


def test_delays_of_fewer_than_one_in_twenty_show_in_the_p99_alone() -> None:
    """Prompts of 80 ms take 3 % of the time: p95 is a prompt alone and the rest of a decoding step of 10 ms."""
    alone_s = FIXED_S + 8000 * PER_TOKEN_S
    settings = load(input_tokens=8000.0, output_tokens=400.0, batched_tokens=16384.0)
    state = open_loop(table(), settings, running_at_rate(table(), settings, np.array([0.03 / alone_s])))
    assert alone_s < state.ttft.p95_s[0] < alone_s + 1.1 * FIXED_S
    assert state.ttft.p99_s[0] > alone_s + 3 * FIXED_S


def test_who_shares_ones_step_brings_more_who_interrupt_the_answer() -> None:
    """Prompts of 0.2 s beside steps of 9 ms: one's own step is long, and those who come during it are met next."""
    engine = Engine(8.6e-3, 2e-4, 2048, 990, 45)
    steps, settings = table(8.6e-3, 2e-4), load(input_tokens=990.0, output_tokens=45.0, batched_tokens=2048.0)
    seen = [simulate(engine, 1500, rate_per_s=2.8, seed=seed).tpot_mean_s for seed in range(4)]
    state = open_loop(steps, settings, running_at_rate(steps, settings, np.array([2.8])))
    assert state.tpot.mean_s[0] == pytest.approx(np.mean(seen), rel=0.1)


def test_short_answers_bear_their_first_prompts_alone() -> None:
    """Those who came during one's own prompt are met at once: the shorter the answer, the more they are per token."""
    settings = load(input_tokens=4000.0, output_tokens=20.0, length_low_ratio=0.05)
    state = open_loop(table(), settings, np.array([2.0]))
    stay_s = 2.0 / state.requests_per_s[0]
    by_tokens_s = (stay_s - FIXED_S - 4000 * PER_TOKEN_S) / 19
    assert state.tpot.mean_s[0] > 1.02 * by_tokens_s


def test_slots_bound_how_many_prompts_a_request_meets() -> None:
    """Eight slots: seven others at most, whose prompts of 2,000 tokens share out over 50 gaps."""
    settings = load(input_tokens=2000.0, output_tokens=51.0, slots=8.0)
    state = open_loop(table(), settings, np.array([6.0]))
    most_s = FIXED_S + 8 * PER_TOKEN_S + 7 * 2000 * PER_TOKEN_S / 50
    assert state.tpot.mean_s[0] < state.tpot.p99_s[0] <= most_s * 1.001


def test_evenly_spaced_requests_hardly_meet_while_they_are_few() -> None:
    """With 0.3 in service and gaps of variation 0.5 a request meets few prompts of others."""
    running = np.array([0.3])
    even, poisson = (open_loop(table(), load(arrival_cv=cv), running).tpot.mean_s[0] for cv in (0.5, 1.0))
    alone_s = FIXED_S + PER_TOKEN_S
    assert even - alone_s < 0.3 * (poisson - alone_s)


def test_long_prompts_cost_more_than_short_ones_save() -> None:
    """Steps are as long for 500 tokens as for one, 20 us a token beyond; prompts are uniform in [46, 914] tokens.

    On average (914 - 500)^2 / 2 * 20 us / 868 beyond; two prompt lengths stand for all, for which 25 % are granted.
    """
    knee = table()._replace(body_s=np.maximum(FIXED_S, GRID_TOKENS * 2e-5)[None, :])
    crowd = Crowd(np.array([0.01]), np.array([0.01]))
    costs_s = []
    for low in (1.0, 0.05):
        settings = load(input_tokens=480.0, length_low_ratio=low)
        costs_s.append(flow_of(settings, mean_step(knee, settings), crowd).prompt_s[0])
    assert costs_s[0] == pytest.approx(0.0, abs=3e-4)
    assert costs_s[1] == pytest.approx(414**2 / 2 * 2e-5 / 868, rel=0.25)


@pytest.mark.parametrize("rate_per_s", [0.5, 2.0])
def test_bursts_make_prompts_queue(rate_per_s: float) -> None:
    """Gaps of variation 2: mean TTFT within 12 % of simulated gamma arrivals, however few they are."""
    engine = Engine(FIXED_S, PER_TOKEN_S, 8192, 8000, 20)
    settings = load(input_tokens=8000.0, output_tokens=20.0, arrival_cv=2.0)
    state = open_loop(table(), settings, running_at_rate(table(), settings, np.array([rate_per_s])))
    seen = [simulate(engine, 1500, rate_per_s=rate_per_s, gap_cv=2.0, seed=seed) for seed in range(3)]
    mean_s = float(np.mean([each.ttft_mean_s for each in seen]))
    assert state.ttft.mean_s[0] == pytest.approx(mean_s, rel=0.12)


def test_only_the_percentiles_asked_for_are_worked_out() -> None:
    whole = open_loop(table(), load(), np.array([3.0]))
    part = open_loop(table(), load(), np.array([3.0]), quantiles=(0.95,))
    assert part.ttft.p95_s[0] == pytest.approx(whole.ttft.p95_s[0])
    assert part.tpot.p95_s[0] == pytest.approx(whole.tpot.p95_s[0])
    assert np.isnan([part.ttft.p50_s[0], part.ttft.p99_s[0], part.tpot.p99_s[0]]).all()


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


@given(
    prompt=st.floats(1, 30_000),
    answer=st.floats(0.75, 2_000),
    cv=st.floats(0, 4),
    slots=st.floats(1, 300),
    kv_requests=st.floats(1, 300),
    share=st.floats(0.01, 0.95),
    low_ratio=st.sampled_from([1.0, 0.5, 0.05]),
    ahead=st.sampled_from([0.0, 1.0]),
)
def test_full_replicas_have_finite_figures_in_order(
    *,
    prompt: float,
    answer: float,
    cv: float,
    slots: float,
    kv_requests: float,
    share: float,
    low_ratio: float,
    ahead: float,
) -> None:
    """Whatever bounds the batch, and however short the answers are."""
    settings = load(
        input_tokens=prompt,
        output_tokens=answer,
        arrival_cv=cv,
        slots=slots,
        kv_requests=kv_requests,
        length_low_ratio=low_ratio,
        async_scheduling=ahead,
    )
    state = open_loop(table(), settings, np.array([share * min(slots, kv_requests)]))
    for figure in (state.ttft, state.tpot):
        assert all(np.isfinite(each).all() and each[0] >= 0.0 for each in figure)
        assert figure.p50_s[0] <= figure.p95_s[0] <= figure.p99_s[0]
    assert state.tpot.mean_s[0] <= state.tpot.p99_s[0] * 1.1 or answer <= 1.0


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
