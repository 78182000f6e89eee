"""Closed form of the time to the first token under arrivals that do not wait for the replica.

Who comes finds the engine idle, busy with answers alone, or with prompts of others; the three are mixed by their
shares and the percentile is looked for in the mixture. What it takes for granted:

* prompts run only while the engine is busy, so that a busy one is met in a prompt's step the oftener, the less it
  is busy;
* a busy time begins with a prompt alone; each later step lasts d + e K for the K prompts that came during the one
  before, so that a long step makes the next ones long;
* who comes sees the rest of a step that is long because it is seen, with asynchronous scheduling all of the next,
  and is joined by those who come during the first;
* prompts that do not fit into a step wait as for one of as many servers as fit, requests for a slot as in GI/G/c
  (Allen-Cunneen with Sakasegawa's waiting probability, `W = P_w (ca^2 + cs^2) / 2 * S / (c (1 - rho))`,
  `P_w = rho^(sqrt(2 (c+1)) - 1)`, Sakasegawa 1977, Ann. Inst. Stat. Math. 29), with an exponential tail;
* gaps more variable than Poisson's are gamma distributed: those shorter than a prompt takes make a burst, whose
  prompts go one after another; the front end, which takes one prompt at a time, evens them out;
* delays by the prompts of others are gamma distributed, by their first three cumulants;
* one's own prompt is of uniform length and takes the steps that it needs alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import FloatArray
from planner.formulas.step import StepTable
from planner.serving.flow import MOST_STRETCHED, ROUNDS, Flow, own_prompt_s
from planner.serving.mean_step import Load, MeanStep, mean_step
from planner.serving.waiting import (
    MAX_UTILIZATION,
    Latencies,
    Spread,
    Wait,
    gamma_share_below,
    latencies,
    queue_wait,
    spread_of,
)

SPLITS, FARTHEST = 8, 8.0
"""Halvings of the span in which a percentile is looked for, which ends so many deviations above the mean."""


class Pass(NamedTuple):
    """One pass of the closed form: what is served, on what, and what then passes through."""

    table: StepTable
    load: Load
    steps: MeanStep
    now: Flow
    running: FloatArray
    """Mean requests in service in one pipeline batch."""
    pipeline: FloatArray
    """Batches in flight."""


class OwnPrompt(NamedTuple):
    """How long one's own prompt takes, of uniform length: the shortest, the middle, the longest."""

    least_s: FloatArray
    middle_s: FloatArray
    most_s: FloatArray

    @property
    def mean_s(self) -> FloatArray:
        """By Simpson's rule."""
        return np.asarray((self.least_s + 4.0 * self.middle_s + self.most_s) / 6.0, dtype=np.float64)

    def share_below(self, time_s: FloatArray, more_s: FloatArray, wide_s: FloatArray) -> FloatArray:
        """Share of prompts that take less, where each takes between `more_s` and `more_s + wide_s` longer."""
        if self.least_s is self.most_s:
            share = (time_s - (self.least_s + more_s)) / np.maximum(wide_s, 1e-9)
            return np.asarray(np.clip(share, 0.0, 1.0), dtype=np.float64)
        middle_s = self.middle_s + more_s + wide_s / 2.0
        least_s, most_s = self.least_s + more_s, self.most_s + more_s + wide_s
        low = (time_s - least_s) / np.maximum(middle_s - least_s, 1e-9)
        high = (time_s - middle_s) / np.maximum(most_s - middle_s, 1e-9)
        return np.asarray((np.clip(low, 0.0, 1.0) + np.clip(high, 0.0, 1.0)) / 2.0, dtype=np.float64)


class Arrival(NamedTuple):
    """What an arriving request finds: nobody, only such as decode, or prompts too."""

    own: OwnPrompt
    decode_s: FloatArray
    ahead: FloatArray
    """Steps that are already decided on behind the one that runs."""
    idle: FloatArray
    """Share of requests that find the engine idle."""
    delayed: FloatArray
    """Share of those that prompts of others delay."""
    delay: Spread
    """Of these."""

    @property
    def quiet(self) -> FloatArray:
        """Share of those that wait for decoding steps alone."""
        return 1.0 - self.idle - self.delayed

    @property
    def mean_s(self) -> FloatArray:
        """From reaching the engine to the first token."""
        quiet_s = self.quiet * (0.5 + self.ahead) * self.decode_s
        return np.asarray(self.own.mean_s + quiet_s + self.delayed * self.delay.mean_s, dtype=np.float64)

    def quantile_s(self, quantile: float) -> FloatArray:
        """From reaching the engine to the first token: not exceeded with this probability, by bisection."""
        own, none = self.own, np.zeros_like(self.decode_s)
        width_s = own.most_s - own.least_s
        delayed = self.delay + Spread(own.mean_s, width_s * width_s / 12.0, none)
        before_s = self.ahead * self.decode_s
        low_s = own.least_s
        high_s = np.maximum(
            own.most_s + before_s + self.decode_s, delayed.mean_s + FARTHEST * np.sqrt(delayed.variance)
        )
        high_s = np.where(self.idle >= quantile, np.minimum(high_s, own.most_s), high_s)
        low, high = np.zeros_like(high_s), np.ones_like(high_s)
        for _ in range(SPLITS):
            middle_s = (low_s + high_s) / 2.0
            below = (
                self.delayed * delayed.share_below(middle_s)
                + self.idle * own.share_below(middle_s, none, none)
                + self.quiet * own.share_below(middle_s, before_s, self.decode_s)
            )
            enough = below >= quantile
            high_s, high = np.where(enough, middle_s, high_s), np.where(enough, below, high)
            low_s, low = np.where(enough, low_s, middle_s), np.where(enough, low, below)
        share = np.clip((quantile - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
        return np.asarray(low_s + share * (high_s - low_s), dtype=np.float64)


def first_token(one: Pass, quantiles: Sequence[float]) -> Latencies:
    """Time to the first token; percentiles that are not asked for are NaN."""
    load, now = one.load, one.now
    rate = now.requests_per_s
    variability = (behind_front(load, rate) + load.length_cv_squared) / 2.0
    served = rate * now.stay_s
    queued = _queued(now, variability)
    front = queue_wait(
        rate * load.front_s, np.ones_like(rate), load.front_s, np.square(load.arrival_cv) / 2.0
    )
    burst = _burst(load, now)
    behind_burst = _behind_burst(load, now, burst)
    for_slot = queue_wait(
        served * one.pipeline / load.running_limit, load.running_limit, now.stay_s, variability
    )
    waiting_s = queued.mean_s + front.mean_s + behind_burst.mean_s + for_slot.mean_s
    users = (served + rate * waiting_s) * one.pipeline
    busy = _busy(load, now, one.running)
    delay, quiet = _passing(load, now, burst, busy)
    by_passing = busy.share * (1.0 - quiet)
    delayed = np.maximum(by_passing, 1.0 - 1.0 / burst)
    delayed = np.clip(np.maximum(np.maximum(delayed, queued.probability), front.probability), 1e-9, 1.0)
    delay = delay.among(delayed / by_passing)
    for wait in (queued, front):
        delay = delay.plus(Wait(wait.probability / delayed, wait.mean_s / delayed))
    arrival = Arrival(
        own=_own_prompt(one),
        decode_s=now.decode_s,
        ahead=load.async_scheduling,
        idle=np.minimum(1.0 - busy.share, 1.0 - delayed),
        delayed=delayed,
        delay=delay + behind_burst.among(delayed),
    )
    outside_s = load.front_s + load.reply_s + load.reply_per_user_s * users
    return latencies(
        outside_s + arrival.mean_s + for_slot.mean_s,
        {each: outside_s + arrival.quantile_s(each) + for_slot.quantile_s(each) for each in quantiles},
    )


class Busy(NamedTuple):
    """How often an engine is busy, and the steps of one second of it."""

    share: FloatArray
    """Of requests, that find it so."""
    began_per_s: FloatArray
    """Steps that begin a busy time, of one prompt alone."""
    later_per_s: FloatArray
    """All others."""
    followed: FloatArray
    """Share of steps behind which another is at once."""


def _busy(load: Load, now: Flow, running: FloatArray) -> Busy:
    """With answers to decode, the engine is idle as often as M/G/infinity, and decodes in all steps but the first.

    Where the first token is all of the answer, another step follows as prompts came during the last:
    p = 1 - exp(-rate S), S the mean step, whose sum over a second of busy time is one second.
    """
    rate, own_s, decode_s = now.requests_per_s, np.maximum(now.own_s, 1e-12), now.decode_s
    answered = load.output_tokens > 1.0
    share = np.maximum(-np.expm1(-running), np.minimum(rate * now.packed_prompt_s, MAX_UTILIZATION))
    passing = np.minimum(rate * now.prompt_s, MOST_STRETCHED)
    again, began = np.ones_like(share), rate * (1.0 - share) / share
    later = np.maximum(1.0 - passing - began * own_s, 0.0) / np.maximum(decode_s, 1e-12)
    if not np.all(answered):
        step_s, lone = own_s, began
        for _ in range(ROUNDS):
            follows = np.minimum(-np.expm1(-rate * step_s), MAX_UTILIZATION)
            lone = (1.0 - passing) / (own_s + decode_s * follows / (1.0 - follows))
            step_s = (1.0 - follows) / lone
        share = np.where(answered, share, rate / (rate + lone))
        again, began = np.where(answered, again, follows), np.where(answered, began, lone)
        later = np.where(answered, later, lone * follows / (1.0 - follows))
    return Busy(share, began, later, again)


def behind_front(load: Load, rate: FloatArray) -> FloatArray:
    """Squared variability of arrivals once they have passed the front end, which spaces them (Marshall 1968)."""
    utilization = np.minimum(rate * load.front_s, 1.0)
    return np.asarray(load.arrival_cv**2 * (1.0 - utilization**2), dtype=np.float64)


def _queued(now: Flow, variability: FloatArray) -> Wait:
    """Waiting for prompts that did not fit into the step before one's own; those in it are `_passing`'s."""
    servers = np.maximum(now.prompts_a_step, 1.0)
    utilization = now.requests_per_s * now.packed_prompt_s
    wait = queue_wait(utilization, servers, np.maximum(now.packed_prompt_s, now.full_step_s), variability)
    filled = np.clip(utilization, 0.0, MAX_UTILIZATION) ** servers
    return wait.thinned(filled)


def _burst(load: Load, now: Flow) -> FloatArray:
    """Mean requests of a burst: as many as gaps shorter than a prompt takes bring, beyond what Poisson's would be."""
    passed = np.minimum(now.requests_per_s * np.maximum(now.packed_prompt_s, load.front_s), 1.0)
    near = gamma_share_below(passed, np.maximum(load.arrival_cv, 1.0))
    more = near / (1.0 - near) - np.expm1(passed)
    most = np.maximum(np.square(load.arrival_cv) - 1.0, 0.0) / 2.0
    return np.asarray(1.0 + np.clip(more, 0.0, most), dtype=np.float64)


def _behind_burst(load: Load, now: Flow, burst: FloatArray) -> Spread:
    """Waiting for those ahead in one's own burst: a geometric number of prompts, one after another."""
    prompt_s, ahead = np.maximum(now.packed_prompt_s, load.front_s), burst - 1.0
    squared_s = prompt_s * prompt_s
    return Spread(
        ahead * prompt_s,
        ahead * (burst + load.length_cv_squared) * squared_s,
        ahead * burst * (1.0 + 2.0 * ahead) * squared_s * prompt_s,
    )


def _own_prompt(one: Pass) -> OwnPrompt:
    """The steps of a prompt beside those who decode, long or short."""
    load, now = one.load, one.now
    if np.all(load.length_low_ratio == 1.0):
        return OwnPrompt(now.own_s, now.own_s, now.own_s)
    shortest = 2.0 * load.length_low_ratio / (1.0 + load.length_low_ratio)
    beside = np.maximum(now.decoding - 1.0, 0.0)

    def takes_s(ratio: FloatArray) -> FloatArray:
        sized = load._replace(
            input_tokens=load.input_tokens * ratio,
            cached_tokens=load.cached_tokens * ratio,
            length_low_ratio=np.ones_like(load.length_low_ratio),
        )
        steps = mean_step(one.table, sized)._replace(sequence_s=one.steps.sequence_s)
        return own_prompt_s(sized, steps, beside)

    return OwnPrompt(takes_s(shortest), takes_s(np.ones_like(shortest)), takes_s(2.0 - shortest))


def _passing(load: Load, now: Flow, burst: FloatArray, busy: Busy) -> tuple[Spread, FloatArray]:
    """From reaching a busy engine to the step of one's own prompt, of those whom prompts delay, and the share of
    others, who see steps without any.

    Who comes sees a step that is long because it is seen (`_seen_steps`), waits for the rest of it, uniform, and is
    joined by those who come during all of it.
    """
    decode_s, prompt_s = now.decode_s, now.prompt_s
    most = np.maximum(now.prompts_a_step, 1.0)
    prompts = _prompts(load, now, burst)
    step, seen = _seen_steps(prompts, now, busy)
    joining = np.minimum(now.requests_per_s * seen.one, most - 1.0)
    share = joining * prompt_s / seen.one
    first = (0.5 + share) * seen.one
    second = (1.0 / 3.0 + share + share * share) * seen.two
    cubed = (0.25 + share + share * share * (1.5 + share)) * seen.three
    skewed = cubed - 3.0 * second * first + 2.0 * first * first * first + joining * prompts.three
    skewed = skewed + 3.0 * joining / seen.one * prompts.two * (0.5 + share) * (
        seen.two - seen.one * seen.one
    )
    ahead = load.async_scheduling
    busy_delay = Spread(
        first + ahead * step.mean_s,
        second - first * first + joining * prompts.two + ahead * step.variance,
        skewed + ahead * step.third,
    )
    silent, still = np.exp(-prompts.rate * decode_s / burst), np.exp(-prompts.rate * prompt_s / burst)
    without = silent * still / (1.0 - silent * (1.0 - still))
    quiet = without * np.minimum(busy.later_per_s * decode_s, 1.0) * np.where(ahead > 0.0, without, 1.0)
    quiet = np.clip(quiet * np.exp(-now.requests_per_s * decode_s / burst), 0.0, 1.0 - 1e-6)
    quiet = np.where(load.output_tokens > 1.0, quiet, 0.0)
    return busy_delay.without(quiet, _rest(decode_s, ahead)), quiet


class Moments(NamedTuple):
    """About zero, the first three."""

    one: FloatArray
    two: FloatArray
    three: FloatArray


class Prompts(NamedTuple):
    """Those that come while the engine is busy: how often, the cumulants that each adds, and those of one alone."""

    rate: FloatArray
    one: FloatArray
    two: FloatArray
    three: FloatArray
    four: FloatArray
    length_cv_squared: FloatArray


def _prompts(load: Load, now: Flow, burst: FloatArray) -> Prompts:
    """Bursts come together, and count as one prompt of so many."""
    lengths = load.length_cv_squared
    bursts = np.where(load.arrival_cv > 1.0, 2.0 * burst - 1.0, load.arrival_cv**2)
    prompt_s = np.maximum(now.prompt_s, 1e-12)
    squared_s = prompt_s * prompt_s
    return Prompts(
        np.minimum(now.requests_per_s, MOST_STRETCHED / prompt_s),
        prompt_s,
        (bursts + lengths) * squared_s,
        (bursts * bursts + 3.0 * lengths) * squared_s * prompt_s,
        (bursts * bursts * bursts + 6.0 * lengths) * squared_s * squared_s,
        lengths,
    )


def _seen_steps(prompts: Prompts, now: Flow, busy: Busy) -> tuple[Spread, Moments]:
    """The steps of a busy engine: of all of them, and as they are seen by who comes, E[S^(j+1)] / E[S].

    A busy time begins with a prompt alone; each later step lasts S = d + e K for the K prompts that came during the
    one before, binomial of as many as fit. Sums of S^j over a second of busy time follow from those of lower powers.
    """
    rate, one, two, three, four, lengths = prompts
    most = np.maximum(now.prompts_a_step, 1.0)
    pairs = 1.0 - 1.0 / most
    triples = pairs * np.maximum(1.0 - 2.0 / most, 0.0)
    quadruples = triples * np.maximum(1.0 - 3.0 / most, 0.0)
    d, k, a, b = now.decode_s, rate * one, rate * two, rate * three
    began, later = busy.began_per_s, busy.later_per_s
    first, varying = now.own_s, one * one * lengths
    squares = began * (first**2 + varying) + d * d * later + 2.0 * d * k + a
    squares = squares / (1.0 - pairs * k * k)
    cubes = began * (first**3 + 3.0 * first * varying) + d**3 * later + 3.0 * d * d * k
    cubes = cubes + 3.0 * d * (a + pairs * k * k * squares) + b + 3.0 * pairs * k * a * squares
    cubes = cubes / (1.0 - triples * k**3)
    fourths = began * (first**4 + 6.0 * first**2 * varying) + d**4 * later + 4.0 * d**3 * k
    fourths = fourths + 6.0 * d * d * (a + pairs * k * k * squares)
    fourths = fourths + 4.0 * d * (b + 3.0 * pairs * k * a * squares + triples * k**3 * cubes)
    fourths = fourths + rate * four + pairs * (4.0 * k * b + 3.0 * a * a) * squares
    fourths = (fourths + 6.0 * triples * k * k * a * cubes) / (1.0 - quadruples * k**4)
    step_s = np.minimum(1.0 / np.maximum(began + later, 1e-12), squares) * busy.followed
    return spread_of(step_s, step_s * squares, step_s * cubes), Moments(squares, cubes, fourths)


def _rest(step_s: FloatArray, ahead: FloatArray) -> Spread:
    """The rest of a step that is met anywhere, and `ahead` more of them."""
    return Spread((0.5 + ahead) * step_s, step_s * step_s / 12.0, np.zeros_like(step_s))
