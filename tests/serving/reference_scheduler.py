"""vLLM's scheduler once more, one step at a time, in plain Python: slow, without arrays and without jumps.

An oracle for the compiled loop, itself held against schedules recorded from vLLM. Blocks are objects in lists, each
with its content, as vLLM has them. Where scheduling is asynchronous the output of a step is read once the next one is
scheduled (vllm/v1/engine/core.py, step_with_batch_queue). A step of `m` tokens takes `fixed_s + m x per_token_s`, and
no less than the host's chain needs for its requests.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

import numpy as np

from planner.serving.scheduler_types import StepTimes


class Setting(NamedTuple):
    """The engine."""

    fixed_s: float = 0.01
    per_token_s: float = 0.001
    blocks: int = 10**9
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    long_prefill_token_threshold: int = 0
    lone_prompt_whole: bool = True
    users: int = 0
    priority_policy: bool = False
    reserve_full_prompt: bool = True
    prefix_caching: bool = True
    async_scheduling: bool = False
    chain_s: float = 0.0
    chain_per_sequence_s: float = 0.0
    reply_s: float = 0.0


@dataclass(eq=False)
class Block:
    """One block with something in it, or to be filled."""

    content: tuple[object, ...] | None = None
    readers: int = 1


@dataclass(eq=False)
class Request:
    """One request and what becomes of it."""

    number: int
    sent_s: float
    prompt: int
    output: int
    priority: int = 0
    prefix: tuple[int, ...] = ()
    """Its prompt begins with these blocks; equal numbers are equal tokens."""
    computed: int = 0
    answered: int = 0
    coming: int = 0
    """Tokens of steps whose output was not read yet."""
    blocks: list[Block] = field(default_factory=list)
    first_token_s: float = -1.0
    finished_s: float = -1.0
    preemptions: int = 0
    token_times_s: list[float] = field(default_factory=list)

    @property
    def known(self) -> int:
        """Tokens whose keys and values must be there before the next one comes."""
        return self.prompt + self.answered + self.coming

    @property
    def has_all(self) -> bool:
        """No step makes another token of it."""
        return self.answered + self.coming == self.output

    def content(self, block: int) -> tuple[object, ...]:
        """What its block of this number holds once it is full: equal for equal tokens."""
        return self.prefix[: block + 1] if block < len(self.prefix) else ("own", self.number, block)


class Cache:
    """Blocks that nobody uses: without content, or with some, least recently used first."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.empty = setting.blocks
        self.idle: list[Block] = []
        self.stored: dict[tuple[object, ...], list[Block]] = {}

    def hits(self, request: Request) -> list[Block]:
        """Stored blocks that its tokens begin with; one token is left to compute."""
        found: list[Block] = []
        while (len(found) + 1) * self.setting.block_tokens < request.known:
            copies = self.stored.get(request.content(len(found)))
            if not copies:
                break
            found.append(copies[0])
        return found

    def missing(self, request: Request, hits: list[Block], tokens: int) -> int:
        """Blocks that must be had for it to hold so many tokens, hits that nobody else reads among them."""
        new = ceil(tokens / self.setting.block_tokens) - len(request.blocks) - len(hits)
        return max(new, 0) + sum(block.readers == 0 for block in hits)

    def free(self) -> int:
        """Blocks that can be had."""
        return self.empty + len(self.idle)

    def allocate(self, request: Request, hits: list[Block], tokens: int) -> None:
        """Gives a request the blocks for so many tokens; those it fills can be found from now on."""
        for block in hits:
            if block.readers == 0:
                self.idle.remove(block)
            block.readers += 1
        request.blocks += hits
        for _ in range(ceil(tokens / self.setting.block_tokens) - len(request.blocks)):
            if self.empty:
                self.empty -= 1
            else:
                oldest = self.idle.pop(0)
                assert oldest.content is not None
                self.stored[oldest.content].remove(oldest)
            request.blocks.append(Block())
        self.store(request, min(tokens, request.prompt + request.answered))

    def store(self, request: Request, tokens: int) -> None:
        """The blocks that so many tokens fill can be found from now on."""
        for number in range(tokens // self.setting.block_tokens if self.setting.prefix_caching else 0):
            block = request.blocks[number]
            if block.content is None:
                block.content = request.content(number)
                self.stored.setdefault(block.content, []).append(block)

    def release(self, request: Request) -> None:
        """Takes all blocks of a request, the last first."""
        for block in reversed(request.blocks):
            block.readers -= 1
            if block.content is None:
                self.empty += 1
            elif block.readers == 0:
                self.idle.append(block)
        request.blocks = []


class Decision(NamedTuple):
    """One step: who got how many tokens, in order, who of them was admitted, who was preempted."""

    tokens: dict[int, int]
    admitted: frozenset[int]
    preempted: frozenset[int]
    used_blocks: int
    """By requests, while it runs."""
    length_s: float

    def __str__(self) -> str:
        """As schedules are recorded."""
        words = [
            f"{'+' * (number in self.admitted)}{number}:{tokens}" for number, tokens in self.tokens.items()
        ]
        return " ".join([*words, *sorted(f"-{number}" for number in self.preempted)])


def schedule(setting: Setting, requests: list[Request]) -> list[Decision]:
    """Serves the requests; returns what was decided step by step."""
    cache = Cache(setting)
    coming = list(requests) if not setting.users else []
    unsent = [] if not setting.users else list(requests)
    for _ in range(min(setting.users, len(unsent))):
        coming.append(unsent.pop(0))
    waiting: list[Request] = []
    running: list[Request] = []
    history: list[Decision] = []
    unread: list[Request] = []
    now = decided = 0.0
    finished = 0

    while finished < len(requests):
        if not running and not waiting and coming[0].sent_s > now:
            now = decided = coming[0].sent_s
        while coming and coming[0].sent_s <= decided:
            waiting.append(coming.pop(0))
        _sort(setting, waiting)
        if not running and not waiting:
            decided = now
            continue
        budget = setting.max_num_batched_tokens
        limit = setting.long_prefill_token_threshold or budget
        if setting.lone_prompt_whole and len(running) + len(waiting) == 1:
            limit = budget
        scheduled: dict[int, int] = {}
        preempted: list[int] = []
        admitted: list[int] = []
        position = 0
        while position < len(running) and budget > 0:
            request = running[position]
            if request.has_all:
                position += 1
                continue
            tokens = min(request.known - request.computed, budget, limit)
            while cache.missing(request, [], request.computed + tokens) > cache.free():
                victim = running[-1]
                if setting.priority_policy:
                    victim = max(running, key=lambda one: (one.priority, one.number))
                running.remove(victim)
                budget += scheduled.pop(victim.number, 0)
                cache.release(victim)
                victim.computed = 0
                victim.preemptions += 1
                waiting.insert(0, victim)
                _sort(setting, waiting)
                preempted.append(victim.number)
                if victim is request:
                    break
                position = running.index(request)
            if request not in running:
                break
            cache.allocate(request, [], request.computed + tokens)
            scheduled[request.number] = tokens
            budget -= tokens
            position += 1
        while not preempted and waiting and budget > 0 and len(running) < setting.max_num_seqs:
            request = waiting[0]
            hits = cache.hits(request)
            found = len(hits) * setting.block_tokens
            tokens = min(request.known - found, budget, limit)
            whole = request.known if setting.reserve_full_prompt else found + tokens
            if cache.missing(request, hits, whole) > cache.free():
                break
            waiting.pop(0)
            running.append(request)
            cache.allocate(request, hits, found + tokens)
            request.computed = found
            scheduled[request.number] = tokens
            admitted.append(request.number)
            budget -= tokens
        sampled = []
        for request in [one for one in running if one.number in scheduled]:
            request.computed += scheduled[request.number]
            if request.computed == request.known:
                request.coming += 1
                sampled.append(request)
        length_s = _length_s(setting, scheduled)
        if setting.async_scheduling:
            # Came when the step before ended, which is now.
            ended = _read(cache, unread, running, now)
            unread = sampled
        used = setting.blocks - cache.free()
        history.append(Decision(scheduled, frozenset(admitted), frozenset(preempted), used, length_s))
        decided = now - 1e-9
        now += length_s
        if not setting.async_scheduling:
            ended = _read(cache, sampled, running, now)
        if not setting.async_scheduling or not scheduled:
            decided = now
        finished += len(ended)
        for request in ended:
            (running if request in running else waiting).remove(request)
            if unsent:
                unsent[0].sent_s = request.finished_s + setting.reply_s
                coming.append(unsent.pop(0))
    return history


def _read(cache: Cache, sampled: list[Request], running: list[Request], now: float) -> list[Request]:
    """The tokens that a step made, as they come; returns who has all of them, and takes their blocks."""
    for request in sampled:
        request.coming -= 1
        request.answered += 1
        request.token_times_s.append(now)
        if request.answered == 1:
            request.first_token_s = now
        if cache.setting.async_scheduling and request in running:
            cache.store(request, request.computed - request.coming)
    ended = [request for request in sampled if request.answered == request.output]
    for request in ended:
        request.finished_s = now
        cache.release(request)
    return ended


def _length_s(setting: Setting, scheduled: dict[int, int]) -> float:
    """How long a step takes; none where nothing was scheduled."""
    if not scheduled:
        return 0.0
    on_gpu_s = setting.fixed_s + sum(scheduled.values()) * setting.per_token_s
    return max(on_gpu_s, setting.chain_s + len(scheduled) * setting.chain_per_sequence_s)


def _sort(setting: Setting, waiting: list[Request]) -> None:
    """The order of priorities, where it is asked for."""
    if setting.priority_policy:
        waiting.sort(key=lambda request: (request.priority, request.number))


def written(history: Iterable[Decision]) -> list[str]:
    """Decisions as schedules are recorded; without those that decide nothing."""
    return [text for decision in history if (text := str(decision))]


def times_of(setting: Setting) -> StepTimes:
    """The same step times as the compiled loop takes them."""
    grid, nothing = np.array([1.0, 1e6]), np.zeros(1)
    return StepTimes(
        grid_tokens=grid,
        body_s=setting.fixed_s + grid * setting.per_token_s,
        head_s=np.zeros(2),
        decode_constant_s=0.0,
        decode_per_sequence_s=0.0,
        scope_tokens=np.array([1e18]),
        decode_per_token_s=nothing,
        context_constant_s=0.0,
        context_per_token_s=0.0,
        context_per_pair_s=nothing,
        context_per_past_s=nothing,
        captured_tokens=np.zeros(0),
        host_s=0.0,
        host_per_sequence_s=0.0,
        chain_s=setting.chain_s,
        chain_per_sequence_s=setting.chain_per_sequence_s,
        front_s=0.0,
        front_per_token_s=0.0,
        reply_s=setting.reply_s,
    )
