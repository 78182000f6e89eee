"""Random loads for the compiled scheduler, and one run of it on made-up step times."""

import numpy as np
from hypothesis import strategies as st

from planner.serving.arrivals import plain_stream, with_prefixes
from planner.serving.scheduler_loop import run
from planner.serving.scheduler_types import (
    BlockPool,
    Outcome,
    RequestStream,
    SchedulerLimits,
    empty_outcome,
)
from tests.serving.reference_scheduler import Request, Setting, times_of
from tests.serving.replay import NEVER

GAPS_S = (0.0, 0.0051713, 0.0313171, 0.4071337)
"""Off the grid of step times, so that no arrival falls on the border of a step."""
REPLIES_S = (0.0, 0.0057713, 0.0613171)
"""Off it as well, shorter than a step and longer than some."""


def pool_of(blocks: int, block_tokens: int = 16) -> BlockPool:
    """A cache of one kind of layer."""
    none = np.zeros(1, dtype=np.int64)
    return BlockPool(blocks, np.array([block_tokens]), none, np.array([False]), none, none)


def compiled(setting: Setting, stream: RequestStream, log_rows: int = 0) -> Outcome:
    """What the compiled scheduler makes of a load; its first `log_rows` steps are logged."""
    out = empty_outcome(stream.prompt_tokens.size, log_rows)
    limits = SchedulerLimits(
        setting.max_num_seqs,
        setting.max_num_batched_tokens,
        setting.long_prefill_token_threshold,
        setting.lone_prompt_whole,
        setting.users,
        setting.priority_policy,
        setting.reserve_full_prompt,
        setting.prefix_caching,
        True,
        setting.async_scheduling,
    )
    run(stream, limits, pool_of(setting.blocks, setting.block_tokens), times_of(setting), out, NEVER)
    return out


def stream_of(requests: list[Request], block_tokens: int = 16) -> RequestStream:
    """The requests as the scheduler takes them."""
    stream = plain_stream(
        np.array([request.sent_s for request in requests]),
        np.array([request.prompt for request in requests]),
        np.array([request.output for request in requests]),
    )
    stream = stream._replace(priority=np.array([request.priority for request in requests], dtype=np.int64))
    if any(request.prefix for request in requests):
        stream = with_prefixes(stream, [request.prefix for request in requests], block_tokens)
    return stream


@st.composite
def questions(draw: st.DrawFn) -> tuple[Setting, list[Request]]:
    """A server and up to ten requests, of which some do not fit beside each other."""
    length = st.one_of(st.integers(1, 60), st.sampled_from([4, 8, 16, 32]))
    lengths = draw(
        st.lists(st.tuples(length, st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=10)
    )
    largest = max(-(-(prompt + output) // 4) for prompt, output, _ in lengths)
    seqs = draw(st.integers(1, 8))
    users = draw(st.sampled_from([0, 0, 1, 3]))
    setting = Setting(
        blocks=largest + draw(st.integers(0, 20)),
        block_tokens=4,
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(seqs, 70)),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 7])),
        lone_prompt_whole=draw(st.booleans()),
        users=users,
        priority_policy=draw(st.booleans()),
        reserve_full_prompt=draw(st.booleans()),
        prefix_caching=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
        chain_s=draw(st.sampled_from([0.0, 0.0, 0.0213])),
        chain_per_sequence_s=draw(st.sampled_from([0.0, 0.0031])),
        reply_s=draw(st.sampled_from(REPLIES_S)) if users else 0.0,
    )
    sent_s = np.cumsum([0.0 if users else draw(st.sampled_from(GAPS_S)) for _ in lengths])
    requests = []
    for number, (prompt, output, priority) in enumerate(lengths):
        family, blocks = draw(st.integers(0, 1)), draw(st.integers(0, prompt // 4))
        prefix = tuple(100 * family + k for k in range(blocks))
        requests.append(Request(number, float(sent_s[number]), prompt, output, priority, prefix))
    return setting, requests
