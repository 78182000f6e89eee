"""Requests that vLLM and the simulated scheduler serve alike: made-up loads, and what vLLM decided on them.

Arrivals are counted in steps: a request of arrival 5 is there when the sixth step that computes something is decided.
"""

import json
import random
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

from tests.engine.live import HERE, run_in_engine

RECORDED_JSON = Path(HERE).parent / "serving" / "recorded_schedules.json"
BLOCK_TOKENS = 32
"""The smallest that attention on the CPU takes."""
SLIDING = "sliding"
HYBRID = "hybrid"
RANDOM_LOADS = 24
WINDOWED_LOADS = 16
RESUMED_FOR_ONE_TOKEN = 265
"""Of random load: a preempted request finds all but one token again."""


class Load(NamedTuple):
    """One request."""

    arrival: int
    prompt: int
    output: int
    priority: int = 0
    prefix: tuple[int, ...] = ()
    """Whole blocks of tokens that it begins with; equal numbers are equal tokens."""


class Scenario(NamedTuple):
    """An engine and what it is asked."""

    name: str
    requests: tuple[Load, ...]
    blocks: int = 401
    """The null block among them."""
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 256
    long_prefill_token_threshold: int = 0
    policy: str = "fcfs"
    prefix_caching: bool = True
    model: str = ""
    """A model of real_schedules.py."""


class Recorded(NamedTuple):
    """What vLLM decided, step by step: each request with its tokens, `+` where it was admitted, `-` where preempted."""

    scenario: Scenario
    steps: list[str]
    groups: list[dict[str, int]]
    """The KV groups of the engine: tokens of a block, and of the window (0 for all)."""


def scenarios() -> list[Scenario]:
    """Every scenario, each with a name of its own, those of one model together."""
    found = [*_by_hand(), *(_random(seed) for seed in (*range(RANDOM_LOADS), RESUMED_FOR_ONE_TOKEN))]
    found += [*_cached_under_windows(), *(_random_under_windows(seed) for seed in range(WINDOWED_LOADS))]
    return sorted(found, key=lambda scenario: scenario.model)


def live(asked: Iterable[Scenario]) -> Iterator[Recorded]:
    """What vLLM decides on each; scenarios of one model in a row share a process."""
    for _, same in groupby(asked, key=lambda scenario: scenario.model):
        together = list(same)
        answers = json.loads(
            run_in_engine("real_schedules.py", json.dumps([_plain(one) for one in together]))
        )
        for scenario, answer in zip(together, answers, strict=True):
            yield Recorded(scenario, answer["steps"], answer["groups"])


def recorded() -> dict[str, Recorded]:
    """What was recorded, by name."""
    found = {}
    for row in json.loads(RECORDED_JSON.read_text(encoding="utf-8")):
        requests = tuple(Load(*load[:4], prefix=tuple(load[4])) for load in row["requests"])
        scenario = Scenario(row["name"], requests, **row["engine"])
        steps = list(chain.from_iterable([step] * times for times, step in row["steps"]))
        found[scenario.name] = Recorded(scenario, steps, row["groups"])
    return found


def write(found: Iterable[Recorded]) -> None:
    """Writes the record: a line a scenario, equal steps in a row as one with their number."""
    lines = []
    for scenario, steps, groups in found:
        engine = {
            name: value
            for name, value in scenario._asdict().items()
            if name not in {"name", "requests"} and value != Scenario._field_defaults[name]
        }
        row = {
            "name": scenario.name,
            "engine": engine,
            "requests": scenario.requests,
            "groups": groups,
            "steps": [(len(list(equal)), step) for step, equal in groupby(steps)],
        }
        lines.append(json.dumps(row, separators=(",", ":")))
    RECORDED_JSON.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def _plain(scenario: Scenario) -> dict[str, Any]:
    return scenario._asdict() | {"requests": [load._asdict() for load in scenario.requests]}


def _by_hand() -> Iterator[Scenario]:
    shared = tuple(range(4))
    yield Scenario("one request", (Load(0, 100, 20),))
    yield Scenario(
        "a prompt of several budgets beside answers", (Load(0, 30, 40), Load(2, 1000, 5), Load(3, 9, 9))
    )
    yield Scenario("many prompts in one budget", tuple(Load(0, 70, 6) for _ in range(8)))
    yield Scenario("one token in, one token out", tuple(Load(at, 1, 1) for at in range(3)))
    yield Scenario("outputs of one token", tuple(Load(at // 2, 200, 1) for at in range(7)), max_num_seqs=3)
    yield Scenario(
        "more requests than slots", tuple(Load(at, 40, 10 + at) for at in range(9)), max_num_seqs=3
    )
    yield Scenario(
        "prompts that fill their blocks", (Load(0, 64, 33), Load(0, 96, 32), Load(1, 32, 1)), blocks=12
    )
    yield Scenario("idle between arrivals", (Load(0, 50, 5), Load(40, 50, 5), Load(90, 50, 5)))
    yield Scenario("one preemption", (Load(0, 90, 60), Load(0, 90, 60)), blocks=9)
    yield Scenario(
        "one preemption without prefix caching",
        (Load(0, 90, 60), Load(0, 90, 60)),
        blocks=9,
        prefix_caching=False,
    )
    yield Scenario(
        "several preemptions",
        tuple(Load(at // 2, 60 + 7 * at, 120 - 9 * at) for at in range(8)),
        blocks=17,
        max_num_batched_tokens=128,
    )
    yield Scenario(
        "several preemptions without prefix caching",
        tuple(Load(at // 2, 60 + 7 * at, 120 - 9 * at) for at in range(8)),
        blocks=17,
        max_num_batched_tokens=128,
        prefix_caching=False,
    )
    yield Scenario(
        "who waits for blocks holds up who would fit",
        (Load(0, 200, 50), Load(1, 200, 50), Load(2, 20, 5)),
        blocks=13,
    )
    yield Scenario(
        "a shared prefix, in the same step and later",
        (*(Load(0, 140, 8, 0, shared) for _ in range(3)), Load(20, 150, 8, 0, shared)),
    )
    yield Scenario(
        "the whole prompt is cached",
        (Load(0, 128, 4, 0, shared), Load(8, 128, 4, 0, shared), Load(8, 129, 4, 0, shared)),
    )
    yield Scenario(
        "a prefix is evicted",
        (
            Load(0, 140, 4, 0, shared),
            Load(10, 300, 4),
            Load(20, 140, 4, 0, shared),
            Load(30, 200, 4),
            Load(40, 140, 4, 0, shared),
        ),
        blocks=15,
    )
    yield Scenario(
        "copies of a prefix",
        (*(Load(0, 160, 6, 0, shared) for _ in range(3)), Load(30, 200, 3), Load(40, 160, 6, 0, shared)),
        long_prefill_token_threshold=20,
        blocks=24,
    )
    yield Scenario(
        "priorities",
        tuple(Load(at // 3, 80, 20, at % 3) for at in range(9)),
        policy="priority",
        max_num_seqs=3,
    )
    yield Scenario(
        "the least urgent is preempted",
        tuple(Load(at, 60, 80, (5 - at) % 4) for at in range(6)),
        policy="priority",
        blocks=14,
    )
    yield Scenario(
        "long prompts in small pieces",
        (Load(0, 700, 5), Load(0, 30, 5), Load(1, 700, 5), Load(3, 60, 30)),
        long_prefill_token_threshold=50,
    )
    yield Scenario(
        "a long prompt is alone at first", (Load(0, 900, 5), Load(2, 300, 5)), long_prefill_token_threshold=64
    )
    yield Scenario(
        "a sliding window",
        (Load(0, 500, 60), Load(0, 300, 100), Load(5, 700, 20)),
        model=SLIDING,
        blocks=40,
        prefix_caching=False,
    )
    yield Scenario(
        "preemption under a sliding window",
        tuple(Load(at, 90, 110) for at in range(4)),
        model=SLIDING,
        blocks=17,
        max_num_batched_tokens=64,
        prefix_caching=False,
    )
    yield Scenario(
        "windowed and other layers",
        tuple(Load(2 * at, 150 + 40 * at, 70) for at in range(5)),
        model=HYBRID,
        blocks=45,
        prefix_caching=False,
    )
    yield Scenario(
        "blocks out of sight let in who waits",
        (Load(0, 90, 150), Load(1, 100, 150), Load(2, 120, 5)),
        model=HYBRID,
        blocks=20,
        prefix_caching=False,
    )


def _cached_under_windows() -> Iterator[Scenario]:
    """Prefix caching where some layers, or all, see a window of three blocks."""
    shared = tuple(range(6))
    system = (
        *(Load(10 * at, 250 + 20 * at, 6, 0, shared) for at in range(4)),
        Load(40, 200, 4, 0, shared[:5]),
    )
    same = (Load(0, 230, 4, 0, (*shared, 6)), *(Load(8, 230, 4, 0, (*shared, 6)) for _ in range(2)))
    turns = tuple(Load(9 * at, 64 * (at + 1) + 40, 5, 0, tuple(range(2 * at + 3))) for at in range(5))
    yield Scenario("a shared prefix beside a window", system, model=HYBRID)
    yield Scenario("a shared prefix under a window alone", system, model=SLIDING)
    yield Scenario("a prompt again beside a window", same, model=HYBRID)
    yield Scenario("a prompt again under a window alone", same, model=SLIDING)
    yield Scenario("a conversation beside a window", turns, model=HYBRID)
    yield Scenario("a conversation under a window alone", turns, model=SLIDING)
    yield Scenario(
        "a shared prefix in the same step beside a window",
        (*(Load(0, 220, 8, 0, shared) for _ in range(3)), *(Load(20, 240, 8, 0, shared) for _ in range(2))),
        model=HYBRID,
        max_num_batched_tokens=512,
    )
    yield Scenario(
        "long answers leave a shared prefix behind",
        (*(Load(6 * at, 210, 130, 0, shared) for at in range(3)), Load(60, 230, 9, 0, shared)),
        model=HYBRID,
    )
    yield Scenario(
        "a shared prefix beside a window is evicted",
        (
            *(Load(12 * at, 220 + 10 * at, 4, 0, shared) for at in range(3)),
            Load(40, 500, 4),
            Load(55, 220, 4, 0, shared),
            Load(70, 300, 4),
            *(Load(80 + 12 * at, 220, 4, 0, shared) for at in range(3)),
        ),
        model=HYBRID,
        blocks=34,
    )


def _random_under_windows(seed: int) -> Scenario:
    """Prompts of three families that part and go on, in a cache that holds a few of them; none is preempted."""
    draw = random.Random(f"window {seed}")
    requests, arrival = [], 0
    for _ in range(draw.randint(10, 24)):
        arrival += draw.choice((0, 0, 1, 4, 15))
        family, blocks = draw.randrange(3), draw.choice((0, 2, 4, 6, 9))
        prompt = BLOCK_TOKENS * blocks + draw.choice((0, 1, 20, draw.randint(1, 200)))
        prefix = tuple(20 * family + k for k in range(blocks))
        requests.append(Load(arrival, max(prompt, 1), draw.choice((1, 3, draw.randint(1, 30))), 0, prefix))
    largest = max(-(-(load.prompt + load.output) // BLOCK_TOKENS) for load in requests)
    return Scenario(
        f"random {seed} under windows",
        tuple(requests),
        blocks=2 * largest + draw.choice((8, 16, 30, 60)),
        max_num_seqs=draw.choice((2, 4, 16)),
        max_num_batched_tokens=draw.choice((50, 128, 256, 600)),
        model=SLIDING if seed % 4 == 3 else HYBRID,
    )


def _random(seed: int) -> Scenario:
    """A mixed load on a small engine; every third has priorities, every fourth no prefix caching."""
    draw = random.Random(seed)
    longest = draw.choice((60, 200, 500))
    requests, arrival = [], 0
    for _ in range(draw.randint(5, 14)):
        arrival += draw.choice((0, 0, 1, 4, 15))
        prompt = draw.choice((draw.randint(1, longest), BLOCK_TOKENS * draw.randint(1, 1 + longest // 64)))
        family, blocks = draw.randrange(2), draw.choice((0, 0, 1, 2, 3))
        prefix = tuple(10 * family + k for k in range(min(blocks, prompt // BLOCK_TOKENS)))
        output = draw.choice((1, draw.randint(1, 20), draw.randint(20, 90)))
        requests.append(Load(arrival, prompt, output, draw.randrange(3) if seed % 3 == 2 else 0, prefix))
    largest = max(-(-(load.prompt + load.output) // BLOCK_TOKENS) for load in requests)
    seqs = draw.choice((2, 4, 16))
    return Scenario(
        f"random {seed}",
        tuple(requests),
        blocks=largest + 1 + draw.choice((1, 3, 6, 12)),
        max_num_seqs=seqs,
        max_num_batched_tokens=draw.choice((16, 50, 128, 256)),
        long_prefill_token_threshold=draw.choice((0, 0, 24)),
        policy="priority" if seed % 3 == 2 else "fcfs",
        prefix_caching=seed % 4 != 3,
    )
