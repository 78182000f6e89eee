"""Ranks that wait for each other on average, against ranks that really step together, in plain Python."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from planner.domain.deployment import EngineSettings
from planner.formulas.arrays import FloatArray
from planner.formulas.host_time import NO_HOST_TIME
from planner.serving.arrivals import plain_stream
from planner.serving.lockstep import Load, Waits, simulate_in_step, slowed, waits_of
from planner.serving.scheduler_types import (
    GAP_BINS,
    GAP_LOW_S,
    GAP_RATIO,
    Outcome,
    RequestStream,
    empty_outcome,
)
from planner.serving.simulation import Replica, simulate, tpot_s, ttft_s
from tests.serving.made_loads import pool_of
from tests.serving.reference_scheduler import Setting, times_of

BUDGET = 4096
SETTING = Setting(fixed_s=0.010, per_token_s=0.00005)


def rank() -> Replica:
    """A step takes 10 ms and 50 us a token; blocks and slots for all."""
    engine = EngineSettings(
        max_num_seqs=BUDGET,
        max_num_batched_tokens=BUDGET,
        max_model_len=8192,
        gpu_memory_utilization=0.9,
        async_scheduling=False,
    )
    return Replica(times_of(SETTING), pool_of(10**9), engine, NO_HOST_TIME)


@dataclass
class Rank:
    """One rank of the reference: requests by number."""

    load: Load
    coming: list[tuple[float, int]] = field(default_factory=list)
    """When and who, in order."""
    running: list[int] = field(default_factory=list)
    unsent: int = 0

    def __post_init__(self) -> None:
        count = self.load.stream.prompt_tokens.size
        self.sent_s = np.zeros(count)
        self.first_s = np.zeros(count)
        self.end_s = np.zeros(count)
        self.computed = [0] * count
        self.answered = [0] * count
        for _ in range(min(self.load.users, count) if self.load.users else count):
            self.send(0.0 if self.load.users else float(self.load.stream.sent_s[self.unsent]))

    def send(self, at_s: float) -> None:
        """The next request, if there is one."""
        if self.unsent < self.sent_s.size:
            self.sent_s[self.unsent] = at_s
            self.coming.append((at_s, self.unsent))
            self.unsent += 1

    def plan(self, now: float) -> dict[int, int]:
        """Tokens of each request in the next step."""
        while self.coming and self.coming[0][0] <= now:
            self.running.append(self.coming.pop(0)[1])
        left, tokens = BUDGET, {}
        for r in self.running:
            tokens[r] = min(
                int(self.load.stream.prompt_tokens[r]) + self.answered[r] - self.computed[r], left
            )
            left -= tokens[r]
        return {r: some for r, some in tokens.items() if some}

    def take(self, tokens: dict[int, int], now: float) -> None:
        """What the step computed, which has ended."""
        for r, some in tokens.items():
            self.computed[r] += some
            if self.computed[r] < self.load.stream.prompt_tokens[r] + self.answered[r]:
                continue
            self.answered[r] += 1
            if self.answered[r] == 1:
                self.first_s[r] = now
            if self.answered[r] == self.load.stream.output_tokens[r]:
                self.end_s[r] = now
                self.running.remove(r)
                if self.load.users:
                    self.send(now)


def together(loads: list[Load]) -> list[Rank]:
    """Ranks whose every step takes as long as the longest of them."""
    ranks, now = [Rank(load) for load in loads], 0.0
    while any(one.running or one.coming for one in ranks):
        plans = [one.plan(now) for one in ranks]
        lengths_s = [SETTING.fixed_s + sum(plan.values()) * SETTING.per_token_s for plan in plans if plan]
        if not lengths_s:
            now = min(one.coming[0][0] for one in ranks if one.coming)
            continue
        now += max(lengths_s)
        for one, plan in zip(ranks, plans, strict=True):
            one.take(plan, now)
    return ranks


def loads_of(ranks: int, tokens: tuple[int, int], *, rate: float = 0.0, users: int = 0) -> list[Load]:
    """Prompts and answers of half to one and a half so many tokens, by the rate or the users of each rank."""
    random = np.random.default_rng(1)
    count = 10 * users + 20 if users else 150
    loads = []
    for _ in range(ranks):
        prompts, outputs = (random.integers(mean // 2, mean * 3 // 2, count) for mean in tokens)
        sent_s = np.zeros(count) if users else np.cumsum(random.exponential(1.0 / rate, count))
        loads.append(Load(plain_stream(sent_s, prompts, outputs), users))
    return loads


def means(pairs: list[tuple[FloatArray, FloatArray]]) -> tuple[float, float]:
    return tuple(float(np.concatenate(kind).mean()) for kind in zip(*pairs, strict=True))  # type: ignore[return-value]


def simulated(one: Replica, loads: list[Load], outs: list[Outcome]) -> tuple[float, float]:
    """Mean TTFT and TPOT."""
    return means(
        [(ttft_s(one, out, 0.0), tpot_s(out, load.stream)) for load, out in zip(loads, outs, strict=True)]
    )


def real(loads: list[Load]) -> tuple[float, float]:
    """The same of ranks that step together."""

    def of(one: Rank, stream: RequestStream) -> tuple[FloatArray, FloatArray]:
        return one.first_s - one.sent_s, (one.end_s - one.first_s) / (stream.output_tokens - 1)

    return means([of(one, one.load.stream) for one in together(loads)])


@pytest.mark.parametrize(
    "loads",
    [
        pytest.param(loads_of(2, (600, 100), rate=2.0), id="two, quiet"),
        pytest.param(loads_of(4, (600, 100), rate=3.0), id="four"),
        pytest.param(loads_of(4, (600, 100), rate=8.0), id="four, busy"),
        pytest.param(loads_of(8, (600, 100), rate=3.0), id="eight"),
        pytest.param(loads_of(4, (600, 100), users=8), id="four, closed"),
        pytest.param(loads_of(8, (1200, 200), users=32), id="eight, closed, many"),
        pytest.param(loads_of(8, (600, 200), users=4), id="eight, closed, few"),
        pytest.param(loads_of(16, (600, 200), users=16), id="sixteen, closed"),
    ],
)
def test_latency_of_ranks_that_step_together(loads: list[Load]) -> None:
    one = rank()
    ttft, tpot = simulated(one, loads, simulate_in_step(one, loads, len(loads)))
    real_ttft, real_tpot = real(loads)
    assert tpot == pytest.approx(real_tpot, rel=0.12)
    assert ttft == pytest.approx(real_ttft, rel=0.20)
    # Alone they are much too fast.
    _, alone = simulated(one, loads, [simulate(one, load.stream, users=load.users) for load in loads])
    assert abs(tpot / real_tpot - 1.0) < 0.5 * abs(alone / real_tpot - 1.0)


def test_one_rank_stands_for_all() -> None:
    loads = loads_of(8, (600, 200), users=16)
    one = rank()
    by_all = simulated(one, loads, simulate_in_step(one, loads, 8))
    by_one = simulated(one, loads[:1], simulate_in_step(one, loads[:1], 8))
    assert by_one == pytest.approx(by_all, rel=0.05)


def test_a_rank_by_itself_waits_for_nobody() -> None:
    (load,) = loads_of(1, (600, 100), rate=3.0)
    one = rank()
    (out,) = simulate_in_step(one, [load], 1)
    np.testing.assert_array_equal(out.finished_s, simulate(one, load.stream).finished_s)


def test_waits_by_hand() -> None:
    # Two ranks that are always busy: 3 of 4 steps of about 10 ms, 1 of 100 ms with a prompt. A short step meets a long
    # one with a chance of 1 in 4 and then waits 90 ms, 22.5 on average; a long one waits for nobody.
    out = empty_outcome(1, lengths=True)
    for kind, length_s, count in ((0, 0.010, 3.0), (1, 0.100, 1.0)):
        out.lengths[kind, int(np.log(length_s / GAP_LOW_S) / np.log(GAP_RATIO))] = count
    out.totals[[1, 5]] = 1.0
    waits = waits_of([out], 2, Waits(0.0, 0.0))
    assert waits.plain_s == pytest.approx(0.0225, rel=0.02)
    assert waits.prompt_s == pytest.approx(0.0, abs=0.0005)
    # Of three ranks one of the others is long with a chance of 7 in 16; idle half of the time, 1 in 8 of two ranks.
    assert waits_of([out], 3, Waits(0.0, 0.0)).plain_s == pytest.approx(0.0394, rel=0.02)
    out.totals[1] = 0.5
    assert waits_of([out], 2, Waits(0.0, 0.0)).plain_s == pytest.approx(0.01125, rel=0.03)
    # The same counts with 2 ms of waiting in the short steps: they wait for 92 ms.
    out.totals[1] = 1.0
    assert waits_of([out], 2, Waits(0.002, 0.0)).plain_s == pytest.approx(0.0230, rel=0.02)


def test_waits_are_in_steps_of_their_kind() -> None:
    times = slowed(times_of(SETTING), Waits(0.004, 0.001))
    one = rank()._replace(times=times)
    # A prompt of 200 tokens: 10 + 10 + 1 ms; a second token: 10.05 + 4 ms.
    out = simulate(one, plain_stream(np.zeros(1), np.array([200]), np.array([2])), lengths=True)
    assert out.first_token_s[0] == pytest.approx(0.021)
    assert out.finished_s[0] == pytest.approx(0.021 + 0.01405)
    assert out.lengths.sum(axis=1).tolist() == [1.0, 1.0]
    assert out.lengths.shape == (2, GAP_BINS)
