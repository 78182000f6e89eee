"""What passes through one replica: a request's stay among others, and the rate that follows from Little's law."""

from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import FloatArray
from planner.serving.mean_step import Load, MeanStep, padded, padded_on_average

MOST_STRETCHED = 0.9
ROUNDS = 3
"""Of the search for a flow that agrees with itself."""


class Crowd(NamedTuple):
    """How many requests are in service in one pipeline batch, and whom each of them meets."""

    running: FloatArray
    others: FloatArray
    """Beside a request while it is served: n in an open loop, n - 1 in a closed one."""
    mates: FloatArray | float = 0.0
    """Those whose prompts share the steps of its own."""
    away_s: FloatArray | float = 0.0
    """Between an answer and the next request of the same user, in a closed loop."""
    closed: bool = False
    """Users send the next request when the last is answered; else requests come by themselves."""
    fixed: bool = False
    """The number in service stays what it is, as it does in a closed loop; else it comes and goes around its mean."""


class Flow(NamedTuple):
    """What passes through one pipeline batch while `n` requests are in service."""

    requests_per_s: FloatArray
    prompt_s: FloatArray
    """What one prompt adds to the steps of those who decode."""
    full_step_s: FloatArray
    """A step that prompts fill."""
    packed_prompt_s: FloatArray
    """The engine's time for one prompt where prompts fill every step."""
    prompts_a_step: FloatArray
    """That fill a step; below 1 where one prompt takes several."""
    own_s: FloatArray
    """The steps a request's own prompt takes."""
    decode_s: FloatArray
    """A step without prompts."""
    decoding: FloatArray
    """Sequences that decode in a step, as one of them sees it."""
    tpot_s: FloatArray
    met: FloatArray
    """Prompts of others that run while a request decodes: as many as come during its stay before its last step, and
    those that did not fit beside its own."""
    stay_s: FloatArray
    decode_time_ratio: FloatArray
    """Share of time in which the engine decodes and nothing else."""


def flow_of(load: Load, steps: MeanStep, crowd: Crowd) -> Flow:
    """What passes through one pipeline batch, [any shape] like the load.

    A request stays for its own prompt w, for O - 1 steps d, and for the prompts e of the others who come meanwhile:

        stay = w + (O - 1) d + met e,    rate = n / stay,

    where the others who decode are with it in each of its steps. Prompts that come during one step share the next,
    and with it what a step takes however many tokens it has; a prompt too long for a step takes whole ones and one
    for the rest. Those who share one's own step make it longer, so that more come during it; who comes during one's
    last step is not met. Decoding never waits longer than a full step, and prompts never come faster than full steps
    take them.
    """
    n = np.maximum(crowd.running, 1e-9)
    size = padded if crowd.closed or crowd.fixed else padded_on_average
    gaps = np.maximum(load.output_tokens - 1.0, 0.0)
    most_decoding = load.batched_tokens * gaps / (load.input_tokens + gaps)
    others = crowd.others
    beside = np.minimum(others, most_decoding)
    room = np.maximum(load.batched_tokens - beside, 1.0)
    fitting = room / load.input_tokens
    own_chunk = np.minimum(room, (1.0 + crowd.mates) * load.input_tokens)
    whole_steps = _full_steps(load, room)
    rest = np.where(whole_steps > 0.0, load.input_tokens - whole_steps * room, own_chunk)

    def mixed_s(sequences: FloatArray, prompt_tokens: FloatArray) -> FloatArray:
        return steps.mixed_s(sequences, prompt_tokens, size(sequences + prompt_tokens, load.captured_tokens))

    full_step_s = mixed_s(beside, room)
    packed_prompt_s = full_step_s / fitting
    fewer: FloatArray | float = 1.0
    more: FloatArray | float = 1.0
    sharing: FloatArray | float = 0.0
    missed = crowd.mates
    for _ in range(ROUNDS):
        decoding = np.minimum(1.0 + beside, np.maximum(most_decoding, 1.0))
        decode_s = steps.decode_s(decoding, size(decoding, load.captured_tokens))
        chunk = np.minimum(more * load.input_tokens, room)
        prompt_s = np.maximum(mixed_s(decoding, chunk) - decode_s, 0.0) * load.input_tokens / chunk
        own_s = whole_steps * full_step_s + mixed_s(beside, rest)
        if not crowd.closed:
            chunk = np.minimum(fewer * load.input_tokens, room)
            alone_s = np.maximum(mixed_s(decoding, chunk) - decode_s, 0.0) * load.input_tokens / chunk
            alone_s = np.where(whole_steps > 0.0, own_s - (whole_steps + 1.0) * decode_s, alone_s)
            prompt_s = (fewer * alone_s + more * prompt_s) / (fewer + more)
        met = np.maximum(others - missed, 0.0)
        answer_s = np.minimum(gaps * decode_s + met * prompt_s, gaps * full_step_s)
        stay_s = own_s + sharing * prompt_s + answer_s
        cycle_s = stay_s + crowd.away_s
        others = crowd.others * stay_s / cycle_s
        rate = np.minimum(n / cycle_s, 1.0 / np.maximum(packed_prompt_s, load.front_s))
        beside = np.minimum(others * answer_s / stay_s, most_decoding)
        if not crowd.closed:
            # Where prompts cannot come any faster, those who wait for them do not decode.
            beside = np.minimum(beside, rate * answer_s * np.maximum(others / n, 1.0))
            arriving = rate * answer_s / np.maximum(gaps, 1.0)
            fewer, more = _prompts_together(arriving, load)
            if not crowd.fixed:
                sharing, behind = _company(load, rate, prompt_s, arriving, fitting)
                missed = arriving - behind
    return Flow(
        requests_per_s=rate,
        prompt_s=prompt_s,
        full_step_s=full_step_s,
        packed_prompt_s=packed_prompt_s,
        prompts_a_step=fitting,
        own_s=own_s,
        decode_s=decode_s,
        decoding=decoding,
        tpot_s=answer_s / np.where(gaps > 0.0, gaps, 1.0),
        met=met,
        stay_s=stay_s,
        decode_time_ratio=np.clip(np.minimum(rate * gaps * decode_s, 1.0 - rate * prompt_s), 0.0, 1.0),
    )


def _company(
    load: Load, rate: FloatArray, prompt_s: FloatArray, coming: FloatArray, fitting: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Prompts of others that share the step of one's own, and those that wait for it because they do not fit.

    Who comes sees a step that is long because it is seen, and others come during it too; where prompts go one by one,
    more while it waits (Pollaczek-Khinchine). Those behind are met only while no queue is left at the end.
    """
    utilization = np.minimum(rate * prompt_s, MOST_STRETCHED)
    varying = 1.0 - np.minimum(coming / np.maximum(fitting, 1.0), 1.0) + load.length_cv_squared
    varying_s = varying * rate * prompt_s * prompt_s
    came = coming + rate * varying_s / (1.0 - utilization * utilization)
    sharing = np.minimum(came, np.maximum(fitting - 1.0, 0.0))
    queued = (coming + rate * varying_s / (1.0 - utilization)) / 2.0 * np.maximum(1.0 - coming, 0.0)
    return sharing, queued * (1.0 - sharing / np.maximum(came, 1e-12))


def own_prompt_s(load: Load, steps: MeanStep, beside: FloatArray) -> FloatArray:
    """The steps of a prompt that no other prompt shares, beside those who decode: full ones, and one for the rest."""
    room = np.maximum(load.batched_tokens - beside, 1.0)
    whole = _full_steps(load, room)
    rest = load.input_tokens - whole * room
    full_s = steps.mixed_s(beside, room, padded_on_average(beside + room, load.captured_tokens))
    rest_s = steps.mixed_s(beside, rest, padded_on_average(beside + rest, load.captured_tokens))
    return np.asarray(whole * full_s + rest_s, dtype=np.float64)


def _full_steps(load: Load, room: FloatArray) -> FloatArray:
    """Steps that a prompt fills before its last."""
    return np.asarray(np.ceil(np.maximum(load.input_tokens / room, 1.0) - 1e-9) - 1.0, dtype=np.float64)


def _prompts_together(mean: FloatArray, load: Load) -> tuple[FloatArray, FloatArray]:
    """Two numbers of prompts of mean length, as many steps with each, that stand for Poisson many where there are any.

    They have the mean and the variance of their tokens, whose lengths differ; steps are not linear in their tokens.
    """
    mean = np.maximum(mean, 1e-9)
    some = -np.expm1(-mean)
    middle = mean / some
    several = np.maximum((mean + mean**2) / some - middle**2, 0.0)
    spread = np.sqrt(several + middle * load.length_cv_squared)
    shortest = 2.0 * load.length_low_ratio / (1.0 + load.length_low_ratio)
    return np.maximum(middle - spread, shortest), middle + spread
