"""What the simulated scheduler is given and what it returns: plain arrays and numbers that the compiled loop reads."""

from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import BoolArray, FloatArray, IntArray

GAP_BINS = 1400
GAP_LOW_S, GAP_RATIO = 1e-5, 1.0125
"""Gaps between tokens are counted from 10 us to 350 s, within 0.6 %."""
SERIES_BINS = 256
SERIES_FIELDS = 5
FIRST_BIN_S = 2.0**-10
"""Bins double in width until the run fits."""
LOG_FIELDS = 5
UNWRITTEN = -1


class RequestStream(NamedTuple):
    """Requests in the order of their arrival [N]."""

    sent_s: FloatArray
    """When the client sends; not read in a closed loop."""
    prompt_tokens: IntArray
    output_tokens: IntArray
    cached_tokens: IntArray
    """Prompt tokens that the prefix cache holds whenever the request is admitted."""
    priority: IntArray
    """Smaller goes first; 0 for all where first come is first served."""
    prefix_start: IntArray
    """Where each request's prefix blocks begin in `prefix_ids` [N + 1]."""
    prefix_ids: IntArray
    """Prompts with equal ids share that many tokens; numbered from 0."""
    prefix_block_tokens: int


class SchedulerLimits(NamedTuple):
    """What one step may hold, and how requests reach the engine."""

    max_num_seqs: int
    max_num_batched_tokens: int
    long_prefill_token_threshold: int
    """A prompt takes at most this many tokens a step; 0: as many as there are."""
    lone_prompt_whole: bool
    """A request that is alone in the engine is not held to that threshold (since vLLM 0.31)."""
    users: int
    """Closed loop: requests in flight; 0: open loop."""
    priority_policy: bool
    reserve_full_prompt: bool
    """A prompt is admitted only where all its blocks are free (since vLLM 0.19)."""
    prefix_caching: bool
    """Full blocks keep their content until they are needed for something else."""
    sparse_windows: bool
    """Of a sliding window the prefix cache keeps only where prompts end or part (since vLLM 0.29)."""
    async_scheduling: bool
    """A step is scheduled while the one before runs: who comes meanwhile waits for the next, and who ends with the one
    before keeps slot and blocks until the next is scheduled."""


class BlockPool(NamedTuple):
    """The KV cache of one replica: a pool of blocks and G groups that draw from it."""

    blocks: int
    block_tokens: IntArray
    window_tokens: IntArray
    """Tokens that a windowed group still sees; 0 for all."""
    chunked: BoolArray
    """The window is a chunk that begins anew."""
    most_blocks: IntArray
    """Blocks that a windowed group sets aside for one prompt at most; not read elsewhere."""
    state_blocks: IntArray
    """Blocks a sequence holds whatever its length; 0 where the group grows with it."""


class StepTimes(NamedTuple):
    """Iteration time of one replica; T grid points, S attention scopes."""

    grid_tokens: FloatArray
    body_s: FloatArray
    head_s: FloatArray
    decode_constant_s: float
    decode_per_sequence_s: float
    scope_tokens: FloatArray
    decode_per_token_s: FloatArray
    context_constant_s: float
    context_per_token_s: float
    context_per_pair_s: FloatArray
    context_per_past_s: FloatArray
    captured_tokens: FloatArray
    """CUDA-graph sizes: a smaller step is padded up to the next."""
    host_s: float
    host_per_sequence_s: float
    chain_s: float
    """Host work of a step that runs beside the GPU: no step is shorter."""
    chain_per_sequence_s: float
    front_s: float
    """Work of the front end on a request before the engine sees it, one request after the other."""
    front_per_token_s: float
    reply_s: float
    """From the end of a request to its client, who sends the next one of a closed loop."""
    larger_launch_s: float = 0.0
    """Host time of the launches of a step that is larger than the captured sizes, every one of an eager engine."""
    mixed_launch_s: float = 0.0
    """Of a captured step with prompts."""
    decode_launch_s: float = 0.0
    """Of a captured step without."""


class Outcome(NamedTuple):
    """What happened to each request [N], and to the replica."""

    sent_s: FloatArray
    scheduled_s: FloatArray
    first_token_s: FloatArray
    finished_s: FloatArray
    cached_tokens: IntArray
    """Prompt tokens found in the prefix cache at first admission."""
    preemptions: IntArray
    gaps: FloatArray
    """Gaps between tokens, counted by length [GAP_BINS]."""
    series: FloatArray
    """By time bin: seconds, and integrals of running, waiting, blocks in use and tokens scheduled
    [SERIES_BINS, SERIES_FIELDS]."""
    totals: FloatArray
    """Steps, busy seconds, tokens scheduled, most blocks in use, width of a time bin, end [6]."""
    lengths: FloatArray
    """Steps counted by length as gaps are, first those without prompts, then those with [2, GAP_BINS]; [0, GAP_BINS]
    where nobody asked."""
    log: IntArray
    """What was decided, as long as there is room [L, LOG_FIELDS]: the decision, how many equal steps it stands for, a
    request, its tokens (0: it was preempted), 1 where it was admitted; `UNWRITTEN` from the end of the log on."""


def empty_outcome(requests: int, log_rows: int = 0, *, lengths: bool = False) -> Outcome:
    """Room for the outcome of so many requests; what has not happened is negative."""
    return Outcome(
        sent_s=np.zeros(requests),
        scheduled_s=np.full(requests, -1.0),
        first_token_s=np.full(requests, -1.0),
        finished_s=np.full(requests, -1.0),
        cached_tokens=np.zeros(requests, dtype=np.int64),
        preemptions=np.zeros(requests, dtype=np.int64),
        gaps=np.zeros(GAP_BINS),
        series=np.zeros((SERIES_BINS, SERIES_FIELDS)),
        totals=np.array([0.0, 0.0, 0.0, 0.0, FIRST_BIN_S, 0.0]),
        lengths=np.zeros((2 if lengths else 0, GAP_BINS)),
        log=np.full((log_rows, LOG_FIELDS), UNWRITTEN, dtype=np.int64),
    )
