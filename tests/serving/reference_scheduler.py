"""vLLM's scheduler once more, one step at a time, in plain Python: slow, without arrays and without jumps.

An oracle for the compiled loop. A step of `m` tokens takes `fixed_s + m x per_token_s`.
"""

from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple


class Setting(NamedTuple):
    """The engine."""

    fixed_s: float = 0.01
    per_token_s: float = 0.001
    blocks: int = 10**9
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    long_prefill_token_threshold: int = 0
    users: int = 0
    priority_policy: bool = False
    reserve_full_prompt: bool = True
    async_scheduling: bool = False


@dataclass
class Request:
    """One request and what becomes of it."""

    number: int
    sent_s: float
    prompt: int
    output: int
    priority: int = 0
    computed: int = 0
    answered: int = 0
    blocks: int = 0
    first_token_s: float = -1.0
    finished_s: float = -1.0
    preemptions: int = 0
    token_times_s: list[float] = field(default_factory=list)

    @property
    def known(self) -> int:
        """Tokens whose keys and values must be there before the next one comes."""
        return self.prompt + self.answered


def schedule(setting: Setting, requests: list[Request]) -> list[list[tuple[int, int]]]:
    """Serves the requests; returns who got how many tokens in each step."""
    free = setting.blocks
    coming = list(requests) if not setting.users else []
    unsent = [] if not setting.users else list(requests)
    for _ in range(min(setting.users, len(unsent))):
        coming.append(unsent.pop(0))
    waiting: list[Request] = []
    running: list[Request] = []
    history: list[list[tuple[int, int]]] = []
    now = decided = 0.0
    finished = 0

    def needed(request: Request, total: int) -> int:
        return ceil(total / setting.block_tokens) - request.blocks

    def wanted(request: Request, budget: int) -> int:
        tokens = min(request.known - request.computed, budget)
        limit = setting.long_prefill_token_threshold
        return min(tokens, limit) if limit else tokens

    while finished < len(requests):
        if not running and not waiting and coming[0].sent_s > now:
            now = decided = coming[0].sent_s
        while coming and coming[0].sent_s <= decided:
            waiting.append(coming.pop(0))
            if setting.priority_policy:
                waiting.sort(key=lambda request: (request.priority, request.number))
        if not running and not waiting:
            decided = now
            continue
        budget = setting.max_num_batched_tokens
        scheduled: dict[int, int] = {}
        preempted = False
        position = 0
        while position < len(running) and budget > 0:
            request = running[position]
            tokens = wanted(request, budget)
            while needed(request, request.computed + tokens) > free:
                victim = running[-1]
                if setting.priority_policy:
                    victim = max(running, key=lambda one: (one.priority, one.number))
                running.remove(victim)
                budget += scheduled.pop(victim.number, 0)
                free += victim.blocks
                victim.blocks = victim.computed = 0
                victim.preemptions += 1
                waiting.insert(0, victim)
                if setting.priority_policy:
                    waiting.sort(key=lambda one: (one.priority, one.number))
                preempted = True
                if victim is request:
                    break
                position = running.index(request)
            if request not in running:
                break
            more = needed(request, request.computed + tokens)
            free -= more
            request.blocks += more
            scheduled[request.number] = tokens
            budget -= tokens
            position += 1
        everyone = len(scheduled) == len(running)
        while not preempted and everyone and waiting and budget > 0 and len(running) < setting.max_num_seqs:
            request = waiting[0]
            tokens = wanted(request, budget)
            whole = needed(request, request.known if setting.reserve_full_prompt else tokens)
            if max(whole, needed(request, tokens)) > free:
                break
            waiting.pop(0)
            running.append(request)
            request.blocks = needed(request, tokens)
            free -= request.blocks
            scheduled[request.number] = tokens
            budget -= tokens
        if not scheduled:
            continue
        history.append(list(scheduled.items()))
        decided = now - 1e-9
        now += setting.fixed_s + sum(scheduled.values()) * setting.per_token_s
        if not setting.async_scheduling:
            decided = now
        for request in [one for one in running if one.number in scheduled]:
            request.computed += scheduled[request.number]
            if request.computed < request.known:
                continue
            request.answered += 1
            request.token_times_s.append(now)
            if request.answered == 1:
                request.first_token_s = now
            if request.answered == request.output:
                request.finished_s = now
                running.remove(request)
                free += request.blocks
                request.blocks = 0
                finished += 1
                if unsent:
                    unsent[0].sent_s = now
                    coming.append(unsent.pop(0))
    return history
