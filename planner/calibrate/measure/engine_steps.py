"""Times exact steps of an engine: which requests make a shape, and which of the engine's steps were it."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from planner.calibrate.measure.engine_protocol import Failed, FailureKind, Limits, Measure, Measured
from planner.domain.calibration import StepShape
from planner.domain.evidence import StepKind

MOST_STRAY_STEPS = 3
"""Steps in a row that may be another shape before the engine is taken at its word."""
ENOUGH_REPETITIONS = 3
PATIENCE = 3
"""Times `most_seconds` that a single repetition may take."""

Label = Counter[tuple[int, int]]
"""What a step computed: sequences by (tokens computed, tokens cached before)."""
Clock = Callable[[], float]


class Prompt(NamedTuple):
    """A request to send."""

    tokens: int
    output_tokens: int
    context_tokens: int = 0
    """Of its first tokens, how many are declared cached."""


class Progress(NamedTuple):
    """What a step gave one request."""

    request_id: str
    new_tokens: int
    finished: bool


class Step(NamedTuple):
    """One engine step."""

    seconds: float
    label: Label
    """Empty where nothing was scheduled."""
    progress: Sequence[Progress]


class SteppedEngine(Protocol):
    """An engine whose every step is asked for."""

    @property
    def limits(self) -> Limits:
        """What a step may hold."""

    @property
    def made_up_context(self) -> bool:
        """Whether cached tokens can be declared."""

    @property
    def async_scheduling(self) -> bool:
        """Whether a step's results come with the next one."""

    def submit(self, prompt: Prompt) -> str:
        """Hands over a request; its id."""

    def step(self) -> Step:
        """Runs one step and waits for the device."""

    def clear(self) -> None:
        """Drops every request."""


class Unsupported(Exception):
    """The engine cannot run that; one line says what limits it."""


def measure(engine: SteppedEngine, asked: Measure, clock: Clock = time.perf_counter) -> Measured | Failed:
    """Times the shape; the engine is empty afterwards.

    A step counts where the engine's scheduler says that it was exactly the shape. Decoding sequences are not new to
    the engine in steps that count, since what it does for a new request is no part of decoding; prompts are.
    """
    try:
        _check(engine, asked)
        times = _times(engine, asked, clock)
        return Measured(times_s=tuple(times[asked.warmups :]), warmup_s=tuple(times[: asked.warmups]))
    except Unsupported as refused:
        return Failed(kind=FailureKind.UNSUPPORTED, message=str(refused))
    finally:
        engine.clear()


def first_context(asked: Measure) -> int:
    """Cached tokens of the decoding sequences in the first step that may count; timed steps centre on the shape.

    >>> first_context(Measure(shape=StepShape(decodes=1, context_tokens=100), warmups=2, repetitions=5))
    96
    """
    return max(asked.shape.context_tokens - asked.warmups - asked.repetitions // 2, 1)


def _check(engine: SteppedEngine, asked: Measure) -> None:
    shape, limits = asked.shape, engine.limits
    if engine.async_scheduling:
        raise Unsupported("steps cannot be timed one by one under asynchronous scheduling")
    sequences = shape.prompts + shape.decodes
    if sequences > limits.max_num_seqs:
        raise Unsupported(f"{sequences:,} sequences are more than max_num_seqs {limits.max_num_seqs:,}")
    if shape.scheduled_tokens > limits.max_num_batched_tokens:
        raise Unsupported(
            f"{shape.scheduled_tokens:,} tokens in a step are more than max_num_batched_tokens "
            f"{limits.max_num_batched_tokens:,}"
        )
    prompt, decode = _lengths(asked)
    longest = max(prompt, decode)
    if longest > limits.max_model_len:
        raise Unsupported(
            f"sequences of {longest:,} tokens are longer than max_model_len {limits.max_model_len:,}"
        )
    blocks = shape.prompts * -(-prompt // limits.block_size) + shape.decodes * -(-decode // limits.block_size)
    if limits.counts_blocks and blocks > limits.kv_blocks:
        raise Unsupported(f"{blocks:,} blocks of KV cache are needed, the engine has {limits.kv_blocks:,}")


def _lengths(asked: Measure) -> tuple[int, int]:
    """Tokens of a prompt and of a decoding sequence once all has run; 0 where there is none."""
    shape = asked.shape
    prompt = shape.past_tokens + shape.prompt_tokens + 1 if shape.prompts else 0
    return prompt, first_context(asked) + _steps(asked) + 1 if shape.decodes else 0


def _steps(asked: Measure) -> int:
    """Steps that decoding sequences may have to live through."""
    return asked.warmups + asked.repetitions + MOST_STRAY_STEPS * 2


def _times(engine: SteppedEngine, asked: Measure, clock: Clock) -> list[float]:
    """Of the warm-ups, then of the repetitions."""
    shape, begin = asked.shape, clock()

    def gone() -> float:
        return clock() - begin

    if shape.decodes:
        start_decoding(engine, asked, lambda: gone() > PATIENCE * asked.most_seconds)
    times: list[float] = []
    strays = 0
    while len(times) < asked.warmups + asked.repetitions:
        step = _next(engine, shape)
        if is_shape(step.label, shape, reach=_steps(asked)):
            times.append(step.seconds)
            strays = 0
        else:
            strays += 1
            if strays >= MOST_STRAY_STEPS:
                raise Unsupported(f"the engine ran {in_words(step.label)} instead of {shape.label}")
        enough = asked.warmups + (ENOUGH_REPETITIONS if gone() <= PATIENCE * asked.most_seconds else 1)
        if len(times) >= enough and gone() > asked.most_seconds:
            break
    return times


def _next(engine: SteppedEngine, shape: StepShape) -> Step:
    """The step with the shape's prompts, and steps after it for what of them it left over."""
    if not shape.prompts:
        return engine.step()
    if shape.past_tokens and not engine.made_up_context:
        raise Unsupported("prompts after cached tokens need made-up context, which this engine refuses")
    prompt = Prompt(shape.past_tokens + shape.prompt_tokens, 1, shape.past_tokens)
    left = {engine.submit(prompt) for _ in range(shape.prompts)}
    first = engine.step()
    left -= {one.request_id for one in first.progress if one.finished}
    for _ in range(MOST_STRAY_STEPS):
        if not left:
            break
        left -= {one.request_id for one in engine.step().progress if one.finished}
    return first


def start_decoding(engine: SteppedEngine, asked: Measure, too_late: Callable[[], bool]) -> None:
    """Brings the shape's decoding sequences to where the next step decodes each at the first context that may count.

    Raises:
        Unsupported: the engine did not take them all, or without made-up context they cannot all stand there in time.
    """
    count, context, steps = asked.shape.decodes, first_context(asked), _steps(asked)
    if engine.made_up_context:
        for _ in range(count):
            engine.submit(Prompt(context, steps + 1, context - 1))
        label = engine.step().label
        if label != Label({(1, context - 1): count}):
            raise Unsupported(f"the engine admitted {in_words(label)} instead of {count:,} decoding")
        return
    for group in prefill_groups(count, context, engine.limits.max_num_batched_tokens):
        if too_late():
            raise Unsupported(
                f"computing {count:,} x {context:,} cached tokens takes too long without made-up context"
            )
        for _ in range(group.sequences):
            engine.submit(Prompt(group.tokens, steps + context - group.tokens + 1))
        for _ in range(group.steps):
            engine.step()


class Group(NamedTuple):
    """Prompts that are computed together."""

    sequences: int
    tokens: int
    steps: int
    """That computing them takes."""


def prefill_groups(count: int, context: int, budget_tokens: int) -> list[Group]:
    """Prompts, in the order to send them, that stand at one context once all are computed.

    Who is done decodes while the others are computed, so whoever comes earlier needs a shorter prompt.

    >>> [group.tokens for group in prefill_groups(3, 100, 102)]
    [98, 99, 100]

    Raises:
        Unsupported: the first would have no prompt left, or decoding takes the whole budget.
    """
    groups: list[Group] = []
    tokens, left = context, count
    while left:
        together = left if tokens == 1 else min(left, max((budget_tokens - left) // (tokens - 1), 1))
        room = budget_tokens - (left - together)
        if tokens < 1 or room < 1:
            raise Unsupported(
                f"without made-up context {count:,} sequences cannot be brought to {context:,} tokens"
            )
        groups.append(Group(together, tokens, -(-together * tokens // room)))
        tokens -= groups[-1].steps
        left -= together
    return groups[::-1]


def is_shape(label: Label, shape: StepShape, *, reach: int) -> bool:
    """Whether a step was the shape, its decoding sequences at one context within `reach` of the shape's.

    >>> shape = StepShape(prompts=1, prompt_tokens=512, decodes=8, context_tokens=100)
    >>> is_shape(Label({(512, 0): 1, (1, 102): 8}), shape, reach=4)
    True
    """
    rest = Label(label)
    if shape.prompts:
        rest[shape.prompt_tokens, shape.past_tokens] -= shape.prompts
    left = [(key, count) for key, count in rest.items() if count]
    if shape.kind == StepKind.PREFILL:
        return not left
    if len(left) != 1:
        return False
    (new, cached), count = left[0]
    return new == 1 and count == shape.decodes and abs(cached - shape.context_tokens) <= reach


def in_words(label: Label) -> str:
    """A step's label for people.

    >>> in_words(Label({(512, 0): 1, (1, 100): 8}))
    '8 x 1 token after 100, 1 x 512 tokens after 0'
    """
    parts = [
        f"{count:,} x {new:,} token{'s' * (new > 1)} after {cached:,}"
        for (new, cached), count in sorted(label.items())
    ]
    return ", ".join(parts[:4]) + (f" and {len(parts) - 4:,} more" if len(parts) > 4 else "") or "nothing"
