"""Memory of the dummy sampling that ends vLLM's profiling run."""

from planner.formulas.profile_rules import ProfileRules

LOGITS_BYTES = 2
"""16-bit, as the head makes them."""
FP32_BYTES = 4
DRAWN_BYTES_PER_LOGIT = FP32_BYTES + FP32_BYTES
"""Probabilities, and the exponential noise they are divided by (FlashInfer: the filtered logits)."""
SORTED_BYTES_PER_LOGIT = 4 + 8 + 8 + 12
"""Sorted values, their 64-bit indices, the indices to begin with, and the radix sort's second copy of a value and
an index (PyTorch, segmented_sort_pairs)."""
VERIFYING_BYTES_PER_LOGIT = 2 * LOGITS_BYTES + LOGITS_BYTES + 3 * FP32_BYTES
"""What verifying one drafted token beside each sampled one keeps until it draws: logits of both tokens and a copy of
the sampled ones, these in fp32, and the drafted ones in fp32 twice (raw and filtered)."""
COUNT_BYTES_PER_TOKEN_ID = 4.125
"""The V2 sampler counts each output token in 32 bits and marks each prompt token with one."""
MASK_BYTES_PER_TOKEN_ID = 0.125
"""Grammar bit mask."""


def sampling_bytes(
    rows: int, vocab: int, rules: ProfileRules, *, tp: int = 1, sm_count: int = 0, drafts: bool = False
) -> int:
    """Peak of sampling one token in each of `rows` from a (padded) vocabulary, logits included [bytes].

    With `drafts` the V1 runner verifies one drafted token in each row after that, of which the peak is higher
    (vllm/v1/sample/rejection_sampler.py, RejectionSampler.forward and sample_recovered_tokens); the V2 runner does
    not profile it. Gathering the logits of several ranks holds the own slice, all slices, and these put in order
    (vllm/distributed/device_communicators/base_device_communicator.py, all_gather).
    """
    gathered = LOGITS_BYTES / tp + 2 * LOGITS_BYTES if tp > 1 else LOGITS_BYTES
    verifies = drafts and not rules.v2_runner
    per_logit = _verifying_bytes_per_logit(rules) if verifies else _drawing_bytes_per_logit(rules)
    kept = min(rows, sm_count) * vocab * FP32_BYTES if rules.has_filter_buffer(verifies=verifies) else 0
    return int(rows * vocab * max(gathered, per_logit)) + kept


def _drawing_bytes_per_logit(rules: ProfileRules) -> int:
    drawn = LOGITS_BYTES + (FP32_BYTES if rules.copies_logits else 0)
    if not rules.draws_filtered:
        return drawn
    return drawn + (SORTED_BYTES_PER_LOGIT if rules.sorts_logits else DRAWN_BYTES_PER_LOGIT)


def _verifying_bytes_per_logit(rules: ProfileRules) -> int:
    """Filtering the drafted tokens, or drawing from them: probabilities, noise, and since 0.17 its reciprocal."""
    drawn = SORTED_BYTES_PER_LOGIT if rules.sorts_logits else DRAWN_BYTES_PER_LOGIT + FP32_BYTES
    return VERIFYING_BYTES_PER_LOGIT + drawn


def sampler_state_bytes(max_num_seqs: int, vocab: int, rules: ProfileRules) -> int:
    """What the sampler keeps on the card from start to end [bytes]: vllm/v1/worker/gpu/sample/penalties.py and
    structured_outputs.py; the V1 runner makes such tables when they are asked for."""
    if not rules.v2_runner:
        return 0
    return int(max_num_seqs * vocab * (COUNT_BYTES_PER_TOKEN_ID + MASK_BYTES_PER_TOKEN_ID))
