"""What a replica is asked to serve, and the mean time of its steps: GPU, host, and padding to captured sizes."""

from math import exp
from typing import NamedTuple

import numpy as np

from planner.formulas.arrays import FloatArray, IntArray
from planner.formulas.launches import LaunchTime, launches_s
from planner.formulas.step import GRID_TOKENS, SCOPES, StepTable

SMALL_CAPTURES = (1, 2, 4, 8)
FINE_GAP, COARSE_GAP, COARSE_FROM = 8, 16, 256
"""CUDA graphs are captured every 8 tokens, from 256 on every 16 (vllm/config/vllm.py, _set_cudagraph_sizes)."""


class Load(NamedTuple):
    """What each element of a pass is asked to serve, and with what; arrays of one shape (or broadcastable)."""

    layout: IntArray
    """Row of the step table."""
    input_tokens: FloatArray
    """Prompt tokens computed (prefix-cache hits excluded)."""
    cached_tokens: FloatArray
    """Prompt tokens found in the prefix cache."""
    output_tokens: FloatArray
    length_low_ratio: FloatArray
    """Lengths are uniform in [r L, L] over the means given here."""
    batched_tokens: FloatArray
    """`max_num_batched_tokens`."""
    slots: FloatArray
    """`max_num_seqs`."""
    kv_requests: FloatArray
    """Requests of mean length the KV cache holds."""
    arrival_cv: FloatArray
    async_scheduling: FloatArray
    """1 where one step is already queued behind the running one, else 0."""
    captured_tokens: FloatArray
    """Largest CUDA-graph size; 0 where nothing is captured."""
    host_s: FloatArray
    """Host work of a step that the GPU waits for."""
    host_per_sequence_s: FloatArray
    """More of it for each sequence in the step."""
    chain_s: FloatArray
    """Host work beside the GPU's step: no step is shorter."""
    chain_per_sequence_s: FloatArray
    """More of it for each sequence in the step."""
    front_s: FloatArray
    """Work of the front end on one request, one after the other, before the engine sees it."""
    reply_s: FloatArray
    """From the step that makes the first token to the client."""
    reply_per_user_s: FloatArray
    """More of it for each request in flight."""

    @property
    def running_limit(self) -> FloatArray:
        """Requests that can run at once."""
        return np.minimum(self.slots, self.kv_requests)

    @property
    def length_cv_squared(self) -> FloatArray:
        """Squared coefficient of variation of a uniform length in [r L, L]."""
        return ((1.0 - self.length_low_ratio) / (1.0 + self.length_low_ratio)) ** 2 / 3.0

    @property
    def mean_inverse_gaps(self) -> FloatArray:
        """Mean of 1 / (O - 1) over answers of two tokens or more: what short answers average less over."""
        longest = 2.0 * self.output_tokens / (1.0 + self.length_low_ratio)
        most = np.maximum(longest - 1.0, 1.0)
        least = np.clip(longest * self.length_low_ratio - 1.0, 1.0, most)
        width = most - least
        return np.where(width > 1e-9, np.log(most / least) / np.maximum(width, 1e-9), 1.0 / most)


class MeanStep(NamedTuple):
    """Step times of one load, linear but for the curves over tokens; S scopes, L layouts, G grid points."""

    layout: IntArray
    body_s: FloatArray
    """[L, G]"""
    head_s: FloatArray
    """[L, G]"""
    host_s: FloatArray
    decode_constant_s: FloatArray
    sequence_s: FloatArray
    """One decoding sequence at the mean context, its host work included."""
    context_constant_s: FloatArray
    prompt_token_s: FloatArray
    """One prompt token's attention."""
    prompt_host_s: FloatArray
    """Host work of each prompt in the step, and of each sequence."""
    chain_s: FloatArray
    """Host work beside the step, and more of it for each sequence."""
    chain_per_sequence_s: FloatArray
    launches: LaunchTime
    captured_tokens: FloatArray
    past_tokens_s: tuple[tuple[FloatArray, FloatArray], ...]
    """Of each scope that chunks read again: its length, and the time of one token."""
    input_tokens: FloatArray
    cached_tokens: FloatArray

    def decode_s(self, sequences: FloatArray, tokens: FloatArray) -> FloatArray:
        """A step in which `sequences` decode one token each, run at the size of `tokens`."""
        time_s = (
            _on_grid(self.body_s, self.layout, tokens)
            + _on_grid(self.head_s, self.layout, sequences)
            + (self.host_s + self.decode_constant_s)
            + sequences * self.sequence_s
        )
        return np.maximum(time_s, self._least_s(sequences, sequences, mixed=False))

    def mixed_s(self, sequences: FloatArray, prompt_tokens: FloatArray, tokens: FloatArray) -> FloatArray:
        """A step with `sequences` decoding and `prompt_tokens` of prompts, run at the size of `tokens`.

        A prompt token attends to the cached prefix and, on average, to half of its prompt; every chunk reads again
        what came before it.
        """
        chunk = np.minimum(prompt_tokens, self.input_tokens)
        chunks = prompt_tokens / np.maximum(chunk, 1e-12)
        past = self.cached_tokens + (self.input_tokens - chunk) / 2.0
        past_s: FloatArray | float = 0.0
        for scope_tokens, token_s in self.past_tokens_s:
            past_s = past_s + np.minimum(past, scope_tokens) * token_s
        time_s = (
            _on_grid(self.body_s, self.layout, tokens)
            + _on_grid(self.head_s, self.layout, sequences + prompt_tokens / self.input_tokens)
            + (self.host_s + self.context_constant_s)
            + np.minimum(sequences, 1.0) * self.decode_constant_s
            + sequences * self.sequence_s
            + prompt_tokens * self.prompt_token_s
            + chunks * (past_s + self.prompt_host_s)
        )
        return np.maximum(time_s, self._least_s(sequences + chunks, sequences + prompt_tokens, mixed=True))

    def _least_s(self, sequences: FloatArray, tokens: FloatArray, *, mixed: bool) -> FloatArray:
        """What the host needs for a step: its work beside the GPU, or before it, and launches."""
        beside_s = self.chain_s + sequences * self.chain_per_sequence_s
        before_s = self.host_s + sequences * self.prompt_host_s
        launch_s = launches_s(self.launches, tokens, self.captured_tokens, mixed=mixed)
        return np.asarray(np.maximum(beside_s, before_s) + launch_s, dtype=np.float64)


def mean_step(table: StepTable, load: Load) -> MeanStep:
    """Step times under a load; who runs is longer than who comes, as long answers stay longer."""
    layout = load.layout
    context = load.cached_tokens + load.input_tokens
    context = context + load.output_tokens * (1.0 + load.length_cv_squared) / 2.0
    sequence_s = table.decode_per_sequence_s[layout] + load.host_per_sequence_s
    prompt_token_s = table.context_per_token_s[layout]
    past_tokens_s = []
    for scope in range(SCOPES):
        scope_tokens = table.scope_tokens[layout, scope]
        sequence_s = sequence_s + np.minimum(context, scope_tokens) * table.decode_per_token_s[layout, scope]
        pair_s = table.context_per_pair_s[layout, scope]
        if pair_s.any():
            prompt_token_s = prompt_token_s + _mean_seen_tokens(load, scope_tokens) * pair_s
        if table.context_per_past_s[layout, scope].any():
            past_tokens_s.append((scope_tokens, table.context_per_past_s[layout, scope]))
    return MeanStep(
        layout=layout,
        body_s=table.body_s,
        head_s=table.head_s,
        host_s=load.host_s,
        decode_constant_s=table.decode_constant_s[layout],
        sequence_s=sequence_s,
        context_constant_s=table.context_constant_s[layout],
        prompt_token_s=prompt_token_s,
        prompt_host_s=load.host_per_sequence_s,
        chain_s=load.chain_s,
        chain_per_sequence_s=load.chain_per_sequence_s,
        launches=table.launches(layout),
        captured_tokens=load.captured_tokens,
        past_tokens_s=tuple(past_tokens_s),
        input_tokens=load.input_tokens,
        cached_tokens=load.cached_tokens,
    )


def _mean_seen_tokens(load: Load, scope_tokens: FloatArray) -> FloatArray:
    """Keys a prompt token attends to, averaged over positions [cached, cached + input] and cut at the scope.

    Of prompts of random length the long ones have more of the tokens.
    """
    start = load.cached_tokens
    length = load.input_tokens * (1.0 + load.length_cv_squared)
    end = start + length
    growing = np.clip(scope_tokens, start, end)
    area = (growing**2 - start**2) / 2.0 + (end - growing) * scope_tokens
    return np.asarray(np.where(scope_tokens <= start, scope_tokens, area / length))


def padded(tokens: FloatArray, captured_tokens: FloatArray) -> FloatArray:
    """The captured size that a step of so many tokens runs at; a larger step runs as it is.

    >>> padded(np.array([1.0, 3.0, 9.0, 300.0, 600.0]), np.array(512.0)).tolist()
    [1.0, 4.0, 16.0, 304.0, 600.0]
    """
    fine = np.ceil(tokens / FINE_GAP) * FINE_GAP
    small = np.exp2(np.ceil(np.log2(np.maximum(tokens, 1.0))))
    coarse = np.ceil(tokens / COARSE_GAP) * COARSE_GAP
    size = np.where(tokens <= SMALL_CAPTURES[-1], small, np.where(tokens <= COARSE_FROM, fine, coarse))
    return np.where(size <= captured_tokens, size, np.maximum(tokens, 1.0))


def _expected_padding(mean: float) -> float:
    """Tokens that a step of one sequence and Poisson many others is padded with, on average."""
    probability, expected = exp(-mean), 0.0
    for others in range(64):
        tokens = others + 1
        size = next((size for size in SMALL_CAPTURES if size >= tokens), -(-tokens // FINE_GAP) * FINE_GAP)
        expected += probability * (size - tokens)
        probability *= mean / (others + 1)
    return expected


_MEAN_OTHERS = np.array([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0])
_PADDING = np.array([_expected_padding(mean) for mean in _MEAN_OTHERS.tolist()])


def padded_on_average(tokens: FloatArray, captured_tokens: FloatArray) -> FloatArray:
    """The mean size that steps run at whose tokens come and go around a mean, themselves among them.

    >>> padded_on_average(np.array([1.0, 100.0, 300.0, 600.0]), np.array(512.0)).round(1).tolist()
    [1.0, 103.5, 307.5, 600.0]
    """
    padding = np.interp(tokens - 1.0, _MEAN_OTHERS, _PADDING)
    padding = np.where(tokens > COARSE_FROM, (COARSE_GAP - 1) / 2.0, padding)
    return np.maximum(tokens, 1.0) + np.where(tokens <= captured_tokens, padding, 0.0)


_GRID_GAPS = np.diff(GRID_TOKENS)
_GRID_LEFT = np.searchsorted(GRID_TOKENS[1:-1], np.arange(GRID_TOKENS[-1] + 1.0))
"""Where each number of tokens stands between grid points: three times as fast as looking for it."""


def _on_grid(curves_s: FloatArray, layout: IntArray, tokens: FloatArray) -> FloatArray:
    """Each layout's curve [L, G] at `tokens` [any shape], linear between grid points and beyond the last."""
    whole = np.minimum(np.ceil(tokens), GRID_TOKENS[-1]).astype(np.intp)
    left = _GRID_LEFT.take(whole, mode="clip")
    share = (np.maximum(tokens, GRID_TOKENS[0]) - GRID_TOKENS.take(left)) / _GRID_GAPS.take(left)
    at = layout * GRID_TOKENS.size + left
    low_s = curves_s.take(at)
    return np.asarray(low_s + share * (curves_s.take(at + 1) - low_s), dtype=np.float64)
