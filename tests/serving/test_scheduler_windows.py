"""What windowed layers leave of the prefix cache; recorded_schedules.json holds what vLLM itself decides.

One block of each group is 16 tokens; a window of 49 tokens sees 48 before the next one, three blocks.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.serving.arrivals import plain_stream, with_prefixes
from planner.serving.scheduler_loop import run
from planner.serving.scheduler_types import BlockPool, Outcome, SchedulerLimits, empty_outcome
from tests.serving.reference_scheduler import Setting, times_of
from tests.serving.replay import NEVER

BLOCK_TOKENS = 16
WINDOW_TOKENS = 49
PLENTY = 10_000
SHARED = tuple(range(6))
Asked = tuple[float, int, int, tuple[int, ...]]
"""When it is sent, prompt, output, the blocks that its prompt begins with."""


def pool_of(blocks: int, windows: tuple[int, ...], chunked: bool = False) -> BlockPool:
    count = len(windows)
    return BlockPool(
        blocks,
        np.full(count, BLOCK_TOKENS),
        np.array(windows),
        np.array([chunked and window > 0 for window in windows]),
        np.full(count, PLENTY),
        np.zeros(count, dtype=np.int64),
    )


def served(asked: list[Asked], pool: BlockPool, sparse: bool = True, prefix_blocks: int = 1) -> Outcome:
    """Every step takes a second; `prefix_blocks`: blocks of one that prompts share."""
    columns = [np.array(column) for column in zip(*(one[:3] for one in asked), strict=True)]
    stream = with_prefixes(plain_stream(*columns), [one[3] for one in asked], prefix_blocks * BLOCK_TOKENS)
    out = empty_outcome(len(asked))
    limits = SchedulerLimits(
        max_num_seqs=8,
        max_num_batched_tokens=256,
        long_prefill_token_threshold=0,
        lone_prompt_whole=True,
        users=0,
        priority_policy=False,
        reserve_full_prompt=True,
        prefix_caching=True,
        sparse_windows=sparse,
        async_scheduling=False,
    )
    run(stream, limits, pool, times_of(Setting(fixed_s=1.0, per_token_s=0.0)), out, NEVER)
    return out


FOUR_ALIKE: list[Asked] = [(20.0 * at, 120, 3, SHARED) for at in range(4)]


@pytest.mark.parametrize(
    ("windows", "sparse", "found"),
    [
        ((0,), True, [0, 96, 96, 96]),
        ((WINDOW_TOKENS, 0), False, [0, 96, 96, 96]),
        # The second sees where they part and keeps what is in sight there.
        ((WINDOW_TOKENS, 0), True, [0, 0, 96, 96]),
        # Nothing but windows: nothing says where they part.
        ((WINDOW_TOKENS,), True, [0, 0, 0, 0]),
        ((WINDOW_TOKENS,), False, [0, 96, 96, 96]),
    ],
)
def test_how_soon_a_shared_prefix_is_found(windows: tuple[int, ...], sparse: bool, found: list[int]) -> None:
    assert served(FOUR_ALIKE, pool_of(PLENTY, windows), sparse).cached_tokens.tolist() == found


@pytest.mark.parametrize("windows", [(WINDOW_TOKENS, 0), (WINDOW_TOKENS,)])
def test_a_prompt_that_goes_on_is_found_up_to_where_it_ended(windows: tuple[int, ...]) -> None:
    turns: list[Asked] = [(20.0 * at, 32 * at + 40, 3, tuple(range(2 * at + 2))) for at in range(4)]
    assert served(turns, pool_of(PLENTY, windows)).cached_tokens.tolist() == [0, 32, 64, 96]


def test_a_prefix_that_is_still_there_is_not_found_without_its_windowed_blocks() -> None:
    """40 blocks. The shared prompt of 120 tokens ends with its six blocks of the prefix idle in either group's order:
    the three that go out of sight of the third request, which decodes on, go first."""
    asked: list[Asked] = [
        *FOUR_ALIKE[:2],
        (40.0, 120, 80, SHARED),
        # Comes when the third has left the prefix behind; takes all blocks but those that are read.
        (110.0, 200, 2, ()),
        (117.0, 120, 2, SHARED),
    ]
    found = served(asked, pool_of(40, (WINDOW_TOKENS, 0))).cached_tokens.tolist()
    assert found[2] == 96
    assert served(asked, pool_of(PLENTY, (WINDOW_TOKENS, 0))).cached_tokens[4] == 96
    assert found[4] == 0


def test_chunked_layers_need_what_is_left_since_the_chunk_began() -> None:
    """Chunks of four blocks: of six that the others find, two must be there. Their blocks are kept whole."""
    assert served(FOUR_ALIKE, pool_of(PLENTY, (64, 0), chunked=True)).cached_tokens.tolist() == [
        0,
        96,
        96,
        96,
    ]


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Blocks that both begin with."""
    pairs = zip(one, other, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


requests = st.lists(
    st.tuples(
        st.integers(0, 60).map(float),
        st.integers(1, 90),
        st.integers(1, 70),
        st.tuples(st.integers(0, 1), st.integers(0, 5)),
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=120, deadline=None)
@given(
    requests,
    st.sampled_from([(WINDOW_TOKENS, 0), (WINDOW_TOKENS, WINDOW_TOKENS, 0), (WINDOW_TOKENS,), (0, 30)]),
    st.integers(0, 30),
    st.sampled_from([1, 2, 5]),
    st.booleans(),
    st.booleans(),
)
def test_every_block_comes_back_and_nothing_is_found_that_nobody_brought(
    drawn: list[tuple[float, int, int, tuple[int, int]]],
    windows: tuple[int, ...],
    spare: int,
    prefix_blocks: int,
    sparse: bool,
    chunked: bool,
) -> None:
    unit_tokens = prefix_blocks * BLOCK_TOKENS
    asked: list[Asked] = [
        (sent_s, unit_tokens * blocks + own, output, tuple(10 * family + k for k in range(blocks)))
        for sent_s, own, output, (family, blocks) in sorted(drawn)
    ]
    largest = max(-(-(prompt + output) // BLOCK_TOKENS) for _, prompt, output, _ in asked)
    # Chunks alone take for found what they cannot see, as vLLM does; no model has them alone.
    pool = pool_of(len(windows) * largest + spare, windows, chunked and 0 in windows)
    out = served(asked, pool, sparse, prefix_blocks)
    assert (out.finished_s > 0.0).all()
    assert out.totals[3] <= pool.blocks
    for number, (found, one) in enumerate(zip(out.cached_tokens.tolist(), asked, strict=True)):
        alike = [_alike(one[3], other[3]) for other in asked[:number] + asked[number + 1 :]]
        assert found <= min(max(alike, default=0) * unit_tokens, one[1] - 1)
    # One more, alone, holds a block of each group for its one step: nothing else is in use.
    last = served([*asked, (1e5, 1, 1, ())], pool, sparse, prefix_blocks)
    held = last.series[:, 3].sum() - out.series[:, 3].sum()
    assert held == pytest.approx(len(windows), abs=1e-6)
