"""Memory of the dummy sampling that ends vLLM's profiling run."""

from planner.formulas.profile_rules import ProfileRules

LOGITS_BYTES = 2
"""16-bit, as the head makes them."""
FP32_BYTES = 4
CHOSEN_BYTES_PER_LOGIT = FP32_BYTES + FP32_BYTES
"""Probabilities, and the exponential noise they are divided by (FlashInfer: the filtered logits)."""
SORTED_BYTES_PER_LOGIT = 4 + 8 + 8 + 12
"""Sorted values, their 64-bit indices, the indices to begin with, and the radix sort's second copy of a value and
an index (PyTorch, segmented_sort_pairs)."""
DRAFTED_BYTES_PER_LOGIT = 4
"""Logits of one drafted token beside each sampled one, in 16 bit, twice."""
COUNT_BYTES_PER_TOKEN_ID = 4.125
"""The V2 sampler counts each output token in 32 bits and marks each prompt token with one."""
MASK_BYTES_PER_TOKEN_ID = 0.125
"""Grammar bit mask."""


def sampling_bytes(
    rows: int, vocab: int, rules: ProfileRules, *, tp: int = 1, sm_count: int = 0, drafts: bool = False
) -> int:
    """Peak of sampling one token in each of `rows` from a (padded) vocabulary, logits included [bytes].

    Gathering the logits of several ranks holds the own slice, all slices, and these put in order
    (vllm/distributed/device_communicators/base_device_communicator.py, all_gather).
    """
    gathered = LOGITS_BYTES / tp + 2 * LOGITS_BYTES if tp > 1 else LOGITS_BYTES
    per_logit: float = LOGITS_BYTES + (FP32_BYTES if rules.copies_logits else 0)
    if not rules.v2_runner:
        per_logit += SORTED_BYTES_PER_LOGIT if rules.sorts_logits else CHOSEN_BYTES_PER_LOGIT
    if drafts:
        per_logit += DRAFTED_BYTES_PER_LOGIT
    kept = min(rows, sm_count) * vocab * FP32_BYTES if rules.filters_logits else 0
    return int(rows * vocab * max(gathered, per_logit)) + kept


def sampler_state_bytes(max_num_seqs: int, vocab: int, rules: ProfileRules) -> int:
    """What the sampler keeps on the card from start to end [bytes]: vllm/v1/worker/gpu/sample/penalties.py and
    structured_outputs.py; the V1 runner makes such tables when they are asked for."""
    if not rules.v2_runner:
        return 0
    return int(max_num_seqs * vocab * (COUNT_BYTES_PER_TOKEN_ID + MASK_BYTES_PER_TOKEN_ID))
