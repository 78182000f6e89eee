"""Closed form of the time to the first token under arrivals that do not wait for the replica.

Who comes finds the engine idle, busy with answers alone, or with prompts of others; the three are mixed by their
shares and the percentile is looked for in the mixture. What it takes for granted:

* prompts run only while the engine is busy, so that a busy one is met in a prompt's step the oftener, the less it
  is busy;
* a step lasts d + e K for the K prompts that came during the one before; a long step makes the next ones long;
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
from planner.serving.flow import MOST_STRETCHED, Flow, own_prompt_s
from planner.serving.mean_step import Load, MeanStep, mean_step
from planner.serving.waiting import (
    MAX_UTILIZATION,
    Latencies,
    Spread,
    Wait,
    gamma_share_below,
    latencies,
    queue_wait,
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
    busy = np.maximum(-np.expm1(-one.running), np.minimum(rate * now.packed_prompt_s, MAX_UTILIZATION))
    delay, quiet = _passing(load, now, burst, busy)
    by_passing = busy * (1.0 - quiet)
    delayed = np.maximum(by_passing, 1.0 - 1.0 / burst)
    delayed = np.clip(np.maximum(np.maximum(delayed, queued.probability), front.probability), 1e-9, 1.0)
    delay = delay.among(delayed / by_passing)
    for wait in (queued, front):
        delay = delay.plus(Wait(wait.probability / delayed, wait.mean_s / delayed))
    arrival = Arrival(
        own=_own_prompt(one),
        decode_s=now.decode_s,
        ahead=load.async_scheduling,
        idle=np.minimum(1.0 - busy, 1.0 - delayed),
        delayed=delayed,
        delay=delay + behind_burst.among(delayed),
    )
    outside_s = load.front_s + load.reply_s + load.reply_per_user_s * users
    return latencies(
        outside_s + arrival.mean_s + for_slot.mean_s,
        {each: outside_s + arrival.quantile_s(each) + for_slot.quantile_s(each) for each in quantiles},
    )


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


def _passing(load: Load, now: Flow, burst: FloatArray, busy: FloatArray) -> tuple[Spread, FloatArray]:
    """From reaching a busy engine to the step of one's own prompt, of those whom prompts delay, and the share of
    others, who see steps without any.

    A step lasts S = d + e K for K Poisson in the step before but for the bursts: its cumulants follow from
    k(t) = d t + k(g(t)), g(t) = rate (E[exp(t X)] - 1) for the time X of a prompt; K varies the less, the closer it
    comes to all that fit. Who comes sees a step that is
    long because it is seen, E[Z^j] = E[S^(j+1)] / E[S], waits for the rest of it, uniform, and is joined by those who
    come during all of it.
    """
    decode_s, prompt_s = now.decode_s, now.prompt_s
    lengths, bursts = (
        load.length_cv_squared,
        np.where(load.arrival_cv > 1.0, 2.0 * burst - 1.0, load.arrival_cv**2),
    )
    most = np.maximum(now.prompts_a_step, 1.0)
    passing = np.minimum(now.requests_per_s * prompt_s / busy, MOST_STRETCHED)
    coming = np.minimum(passing / (1.0 - passing) * decode_s / np.maximum(prompt_s, 1e-12), most)
    one = np.maximum(decode_s + coming * prompt_s, 1e-12)
    rate = coming / one
    kept = np.minimum(now.requests_per_s * prompt_s, MOST_STRETCHED) * (1.0 - 1.0 / most)
    squared_s = prompt_s * prompt_s
    two_each = (bursts + lengths) * squared_s
    three_each = (bursts * bursts + 3.0 * lengths) * squared_s * prompt_s
    full = coming / most
    varying = (bursts * (1.0 - full) + lengths) * squared_s
    skewing = (bursts * bursts * (1.0 - full) * (1.0 - 2.0 * full) + 3.0 * lengths) * squared_s * prompt_s
    variance = coming * varying / (1.0 - kept * kept)
    third = (coming * skewing + 3.0 * variance * kept * rate * two_each) / (1.0 - kept * kept * kept)
    squared = one * one
    seen = one + variance / one
    seen_two = squared + 3.0 * variance + third / one
    seen_three = squared * one + 6.0 * one * variance + 4.0 * third + 3.0 * variance * variance / one
    joining = np.minimum(now.requests_per_s * seen, most - 1.0)
    share = joining * prompt_s / seen
    first = (0.5 + share) * seen
    second = (1.0 / 3.0 + share + share * share) * seen_two
    cubed = (0.25 + share + share * share * (1.5 + share)) * seen_three
    skewed = cubed - 3.0 * second * first + 2.0 * first * first * first + joining * three_each
    skewed = skewed + 3.0 * joining / seen * two_each * (0.5 + share) * (seen_two - seen * seen)
    ahead = load.async_scheduling
    busy_delay = Spread(
        first + ahead * one,
        second - first * first + joining * two_each + ahead * variance,
        skewed + ahead * third,
    )
    silent, still = np.exp(-rate * decode_s / burst), np.exp(-rate * prompt_s / burst)
    without = silent * still / (1.0 - silent * (1.0 - still))
    quiet = without * decode_s / one * np.where(ahead > 0.0, without, 1.0)
    quiet = np.minimum(quiet * np.exp(-now.requests_per_s * decode_s / burst), 1.0 - 1e-6)
    return busy_delay.without(quiet, _rest(decode_s, ahead)), quiet


def _rest(step_s: FloatArray, ahead: FloatArray) -> Spread:
    """The rest of a step that is met anywhere, and `ahead` more of them."""
    return Spread((0.5 + ahead) * step_s, step_s * step_s / 12.0, np.zeros_like(step_s))
