"""An engine that schedules as vLLM does and computes nothing: its steps take as long as a formula says."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from planner.calibrate.measure.engine_protocol import Limits
from planner.calibrate.measure.engine_steps import Label, Progress, Prompt, Step

LIMITS = Limits(
    max_model_len=4096, max_num_seqs=16, max_num_batched_tokens=512, block_size=16, kv_blocks=1000
)


@dataclass
class _Request:
    name: str
    prompt: Prompt
    computed: int
    given: int = 0


@dataclass
class MadeEngine:
    """Running requests first, then waiting ones in order, chunked by the budget."""

    limits: Limits = LIMITS
    made_up_context: bool = True
    async_scheduling: bool = False
    step_s: Callable[[Label], float] = lambda label: 0.001
    now_s: float = 0.0
    steps: list[Label] = field(default_factory=list)
    sent: list[Prompt] = field(default_factory=list)
    running: list[_Request] = field(default_factory=list)
    waiting: list[_Request] = field(default_factory=list)

    def clock(self) -> float:
        """Of its own time."""
        return self.now_s

    def submit(self, prompt: Prompt) -> str:
        """Queues it."""
        assert prompt.tokens + prompt.output_tokens <= self.limits.max_model_len + 1
        name = str(len(self.sent))
        self.sent.append(prompt)
        self.waiting.append(_Request(name, prompt, prompt.context_tokens if self.made_up_context else 0))
        return name

    def step(self) -> Step:
        """One step."""
        budget = self.limits.max_num_batched_tokens
        ran: list[tuple[_Request, int]] = []
        while self.waiting and len(self.running) < self.limits.max_num_seqs:
            self.running.append(self.waiting.pop(0))
        for request in self.running:
            tokens = min(request.prompt.tokens + request.given - request.computed, budget)
            if tokens:
                ran.append((request, tokens))
                budget -= tokens
        label = Counter((tokens, request.computed) for request, tokens in ran)
        progress = []
        for request, tokens in ran:
            request.computed += tokens
            if request.computed == request.prompt.tokens + request.given:
                request.given += 1
                ended = request.given == request.prompt.output_tokens
                progress.append(Progress(request.name, 1, ended))
                if ended:
                    self.running.remove(request)
        self.steps.append(label)
        seconds = self.step_s(label) if label else 0.0
        self.now_s += seconds
        return Step(seconds, label, progress)

    def clear(self) -> None:
        """Drops everything."""
        self.running.clear()
        self.waiting.clear()
