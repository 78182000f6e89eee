"""What passes through one replica: a request's stay among others, and the rate that follows from Little's law."""

from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import FloatArray
from planner.serving.mean_step import Load, MeanStep, padded, padded_on_average

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
    """The number in service stays what it is; else it comes and goes around its mean."""


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
    """Prompts of others that run while a request decodes: of as many as come during its stay, but for those who came
    soon enough to share a step with its own."""
    stay_s: FloatArray
    decode_time_ratio: FloatArray
    """Share of time in which the engine decodes and nothing else."""


def flow_of(load: Load, steps: MeanStep, crowd: Crowd) -> Flow:
    """What passes through one pipeline batch, [any shape] like the load.

    A request stays for its own prompt w, for O - 1 steps d, and for the prompts e of the others who come meanwhile:

        stay = w + (O - 1) d + met e,    rate = n / stay,

    where the others who decode are with it in each of its steps. Prompts that come during one step share the next,
    and with it what a step takes however many tokens it has. Decoding never waits longer than a full step, and
    prompts never come faster than full steps take them.
    """
    n = np.maximum(crowd.running, 1e-9)
    size = padded if crowd.closed else padded_on_average
    gaps = load.output_tokens - 1.0
    most_decoding = load.batched_tokens * gaps / (load.input_tokens + gaps)
    others = crowd.others
    beside = np.minimum(others, most_decoding)
    room = np.maximum(load.batched_tokens - beside, 1.0)
    fitting = room / load.input_tokens
    own_chunk = np.minimum(room, (1.0 + crowd.mates) * load.input_tokens)
    prefill_steps = np.maximum(1.0, 1.0 / fitting)

    def mixed_s(sequences: FloatArray, prompt_tokens: FloatArray) -> FloatArray:
        return steps.mixed_s(sequences, prompt_tokens, size(sequences + prompt_tokens, load.captured_tokens))

    full_step_s = mixed_s(beside, room)
    packed_prompt_s = full_step_s / fitting
    fewer: FloatArray | float = 1.0
    more: FloatArray | float = 1.0
    coming: FloatArray | float = 0.0
    for _ in range(ROUNDS):
        decoding = np.minimum(1.0 + beside, np.maximum(most_decoding, 1.0))
        decode_s = steps.decode_s(decoding, size(decoding, load.captured_tokens))
        chunk = np.minimum(more * load.input_tokens, room)
        prompt_s = np.maximum(mixed_s(decoding, chunk) - decode_s, 0.0) * load.input_tokens / chunk
        if not crowd.closed:
            chunk = np.minimum(fewer * load.input_tokens, room)
            alone_s = np.maximum(mixed_s(decoding, chunk) - decode_s, 0.0) * load.input_tokens / chunk
            prompt_s = (fewer * alone_s + more * prompt_s) / (fewer + more)
        own_s = prefill_steps * mixed_s(beside, own_chunk)
        beside_prompt = (
            crowd.mates if crowd.closed else np.clip(coming, 0.0, np.maximum(fitting - 1.0, 0.0)) / 2.0
        )
        met = np.maximum(others - beside_prompt, 0.0)
        answer_s = np.minimum(gaps * decode_s + met * prompt_s, gaps * full_step_s)
        stay_s = own_s + answer_s
        cycle_s = stay_s + crowd.away_s
        others = crowd.others * stay_s / cycle_s
        rate = np.minimum(n / cycle_s, 1.0 / np.maximum(packed_prompt_s, load.front_s))
        beside = np.minimum(others * answer_s / stay_s, most_decoding)
        if not crowd.closed:
            # Where prompts cannot come any faster, those who wait for them do not decode.
            beside = np.minimum(beside, rate * answer_s * np.maximum(others / n, 1.0))
            coming = rate * answer_s / np.maximum(gaps, 1.0)
            fewer, more = _prompts_together(coming)
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


def _prompts_together(mean: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two numbers of prompts, as many steps with each, that stand for Poisson many where there are any.

    They have its mean and variance; steps are not linear in their tokens.
    """
    mean = np.maximum(mean, 1e-9)
    some = -np.expm1(-mean)
    middle = mean / some
    spread = np.sqrt(np.maximum((mean + mean**2) / some - middle**2, 0.0))
    return np.maximum(middle - spread, 1.0), middle + spread
