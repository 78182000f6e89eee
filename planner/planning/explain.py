"""One step of one deployment: where its time goes, what binds it, and how far the KV cache lets the batch grow."""

from typing import NamedTuple

import numpy as np

from planner.domain.base import InputError
from planner.domain.units import seconds_to_ms
from planner.formulas.breakdown import Breakdown, breakdown, ridge_batch
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.launches import launches_s
from planner.formulas.memory import captured_sizes
from planner.formulas.step_parts import Layout, Operator, StepLoad
from planner.planning.facts import Facts
from planner.planning.loads import largest_captured
from planner.planning.predict import Case, Sized, size
from planner.planning.sizing import Placed, Sizer

KV = "kv"
"""Binds where no further sequence fits the cache."""
MOST_SEQUENCES = 10**6
MOST_TOKENS = 10**8


class StepAsked(NamedTuple):
    """What one step computes on each data-parallel rank."""

    batch: int
    """Sequences that decode one token each."""
    context_tokens: int
    """Tokens of each, in the KV cache."""
    prompt_tokens: int = 0
    """Of one whole prompt in the same step."""

    @property
    def requests(self) -> int:
        """Sequences in the step, the prompt's among them."""
        return self.batch + (self.prompt_tokens > 0)

    @property
    def tokens(self) -> int:
        """Scheduled in the step."""
        return self.batch + self.prompt_tokens


class StepExplained(NamedTuple):
    """One step taken apart; without a breakdown where the engine does not start."""

    asked: StepAsked
    sized: Sized
    breakdown: Breakdown | None = None
    padded_tokens: int = 0
    """The captured size that the layers run at."""
    held: int | None = None
    """Decoding sequences of this context that the KV cache holds beside the prompt, for one batch of the pipeline;
    None where nothing decodes."""
    ridge: int | None = None
    """The batch from which a decode step would gain more from compute than from bandwidth."""
    notes: tuple[str, ...] = ()

    @property
    def kv_binds(self) -> bool:
        """True where the batch is all that the KV cache holds, or more."""
        return self.held is not None and self.asked.batch >= self.held

    @property
    def binds(self) -> str:
        """What keeps the replica from doing more: the KV cache where it is full, else what the step waits for."""
        if self.breakdown is None:
            return ""
        return KV if self.kv_binds else self.breakdown.binds.value

    @property
    def next_limit(self) -> str:
        """What would bind if that did not."""
        if self.breakdown is None:
            return ""
        return (self.breakdown.binds if self.kv_binds else self.breakdown.next_limit).value


def check_step(asked: StepAsked, case: Case) -> None:
    """Raises `InputError` where no step of this engine is like that; more sequences than it takes are none of it."""
    engine = case.engine
    for name, value, most in (
        ("batch", asked.batch, MOST_SEQUENCES),
        ("prompt_tokens", asked.prompt_tokens, MOST_TOKENS),
    ):
        if not 0 <= value <= most:
            raise InputError(f"{name} must be from 0 to {most:,}, got {value}")
    if not asked.tokens:
        raise InputError("batch and prompt_tokens are both 0: a step computes at least one token")
    if asked.batch and not 1 <= asked.context_tokens <= engine.max_model_len:
        raise InputError(
            f"context_tokens must be from 1 to max_model_len, {engine.max_model_len}, got {asked.context_tokens}"
        )
    if asked.prompt_tokens > engine.max_model_len:
        raise InputError(
            f"prompt_tokens must be at most max_model_len, {engine.max_model_len}, got {asked.prompt_tokens}"
        )
    if asked.tokens > engine.max_num_batched_tokens:
        raise InputError(
            f"a step has at most max_num_batched_tokens, {engine.max_num_batched_tokens} tokens; "
            f"batch and prompt_tokens make {asked.tokens}"
        )


def explained(case: Case, asked: StepAsked, facts: Facts) -> StepExplained:
    """Takes one step of a deployment apart; `case.workload` is not read.

    Raises:
        InputError: no step of this engine is like that.
    """
    check_step(asked, case)
    sized = size(case, Sizer(facts))
    placed = sized.placed
    if sized.refusal is not None or placed is None:
        return StepExplained(asked, sized)
    engine = case.engine
    host = placed.operators.host_on(facts.host)
    host_s, per_sequence_s = host.of_step(async_scheduling=engine.async_scheduling)
    chain_s, chain_per_sequence_s = host.beside_step(async_scheduling=engine.async_scheduling)
    padded = _padded(placed, case, asked.tokens)
    layout = Layout(
        model=placed.model,
        parallelism=placed.parallelism,
        kv_dtype=placed.kv_dtype,
        ops=placed.operators,
        cluster=placed.cluster,
        engine_version=engine.engine_version,
    )
    launch_s = launches_s(
        layout.step().launches,
        float(asked.tokens),
        largest_captured(placed, engine),
        mixed=asked.prompt_tokens > 0,
    )
    load = StepLoad(
        sequences=asked.batch,
        context_tokens=float(asked.context_tokens),
        prompt_tokens=asked.prompt_tokens,
        padding_tokens=padded - asked.tokens,
        host_s=host_s + per_sequence_s * asked.requests,
        chain_s=chain_s + chain_per_sequence_s * asked.requests,
        launch_s=float(launch_s),
    )
    found = breakdown(layout, load)
    held = _held(sized, asked, case.parallelism.pp)
    return StepExplained(
        asked=asked,
        sized=sized,
        breakdown=found,
        padded_tokens=padded,
        held=held,
        ridge=ridge_batch(layout, load.context_tokens, engine.max_num_seqs) if asked.batch else None,
        notes=(*_notes(case, asked, held, facts), *_launch_notes(case, load, found)),
    )


def _launch_notes(case: Case, load: StepLoad, found: Breakdown) -> list[str]:
    """Why the GPU waits for launches, where it does."""
    if not any(part.operator is Operator.LAUNCHES for part in found.parts):
        return []
    why = "--enforce-eager" if case.engine.enforce_eager else "no CUDA graph holds the whole step"
    return [
        f"{why}: launching the step's kernels takes the host {seconds_to_ms(load.launch_s):.2f} ms, longer than the "
        "GPU computes (timed on a CPU, where launches of CUDA kernels are not seen)"
    ]


def _padded(placed: Placed, case: Case, tokens: int) -> int:
    """The captured size that a step of so many tokens runs at."""
    if case.engine.enforce_eager:
        return tokens
    return min((one for one in captured_sizes(placed.card, case.engine) if one >= tokens), default=tokens)


def _held(sized: Sized, asked: StepAsked, stages: int) -> int | None:
    placed, budget = sized.placed, sized.budget
    if not asked.batch or placed is None or budget is None:
        return None
    prompt_bytes = float(placed.kv.request_bytes(float(asked.prompt_tokens))) if asked.prompt_tokens else 0.0
    free_bytes = placed.kv.usable_bytes(budget.kv_cache_bytes) / stages - prompt_bytes
    return max(0, int(np.floor(free_bytes / float(placed.kv.request_bytes(float(asked.context_tokens))))))


def _notes(case: Case, asked: StepAsked, held: int | None, facts: Facts) -> list[str]:
    notes = []
    stages, ranks, slots = case.parallelism.pp, case.parallelism.dp, case.engine.max_num_seqs
    if held is not None and asked.batch > held:
        notes.append(
            f"the KV cache holds {held:,} sequences of {asked.context_tokens:,} tokens at once, not "
            f"{asked.batch:,}: the others wait or are preempted"
        )
    if asked.requests > slots:
        notes.append(f"a step takes at most max_num_seqs, {slots:,} sequences, not {asked.requests:,}")
    if stages > 1:
        notes.append(f"the step is one batch's way through {stages} stages, which work on as many batches")
    if ranks > 1:
        notes.append(f"batch and prompt are those of each of the {ranks} data-parallel ranks")
    if case.engine.speculation is not None:
        notes.append("the time of the draft model, and of checking what it proposes, is not counted")
    if case.engine.lora is not None:
        notes.append("the time of adapters is not counted")
    if facts.host == NO_HOST_TIME:
        notes.append("the time that the engine spends outside the GPU is not counted")
    return notes
