"""Bytes a logit of the dummy sampling, counted tensor by tensor from vllm/v1/sample."""

import pytest

from planner.catalog.models import load_model
from planner.formulas.profile_rules import ProfileRules, profile_rules
from planner.formulas.sampler import sampler_state_bytes, sampling_bytes

ROWS, VOCAB = 100, 1000
LOGITS = ROWS * VOCAB
BUFFER_BYTES = 80 * VOCAB * 4
"""A row of fp32 for each of 80 multiprocessors (topk_topp_triton.py)."""


def rules(version: str, *, drafts: bool = False) -> ProfileRules:
    return profile_rules(load_model("meta-llama/Llama-3.1-8B"), version, drafts=drafts)


def sampled(version: str, *, drafts: bool = False, tp: int = 1) -> int:
    return sampling_bytes(ROWS, VOCAB, rules(version, drafts=drafts), tp=tp, sm_count=80, drafts=drafts)


@pytest.mark.parametrize(
    ("version", "per_logit", "buffer"),
    [
        # 16-bit logits, fp32 copy (Sampler.forward); FlashInfer masks into a copy and takes its softmax
        ("0.11.0", 2 + 4 + 4 + 4, 0),
        # sort: values, 64-bit indices, and the radix sort's input indices and second buffer of both
        ("0.16.0", 2 + 4 + (4 + 8) + 8 + (4 + 8), 0),
        # masked in place; probabilities and exponential noise (random_sample)
        ("0.18.0", 2 + 4 + 4 + 4, BUFFER_BYTES),
        ("0.21.0", 2 + 4 + 4 + 4, 0),
        # V2: gumbel_sample reads the logits, from an fp32 copy at first
        ("0.25.1", 2 + 4, 0),
        ("0.32.0", 2, 0),
        # V2 with the parameters of the warm-up: copy, and FlashInfer as above
        ("0.33.0", 2 + 4 + 4 + 4, 0),
    ],
)
def test_bytes_a_logit(version: str, per_logit: int, buffer: int) -> None:
    assert sampled(version) == per_logit * LOGITS + buffer


def test_ranks_gather_their_slices() -> None:
    # own quarter of 2 bytes, all quarters, and these in order
    assert sampled("0.32.0", tp=4) == (2 / 4 + 2 + 2) * LOGITS
    assert sampled("0.21.0", tp=4) == 14 * LOGITS


@pytest.mark.parametrize(
    ("version", "then"),
    [
        # apply_top_k_top_p sorts the clone: values, indices, input indices, second buffer
        ("0.16.0", (4 + 8) + 8 + (4 + 8)),
        # target_probs, then q and inv_q of sample_recovered_tokens
        ("0.17.0", 4 + 4 + 4),
        ("0.20.0", 4 + 4 + 4),
        ("0.21.0", 4 + 4 + 4),
        ("0.30.0", 4 + 4 + 4),
    ],
)
def test_drafted_tokens_are_verified_after_sampling(version: str, then: int) -> None:
    """RejectionSampler.forward, each row with one drafted token and one more (_dummy_sampler_run)."""
    logits, bonus_logits, bonus_raw = 2 * 2, 2, 4
    raw_target, its_clone = 4, 4
    kept = logits + bonus_logits + bonus_raw + raw_target + its_clone
    # The Triton kernel filters drafted tokens since 0.17, also where FlashInfer draws the others.
    buffer = 0 if version == "0.16.0" else BUFFER_BYTES
    assert sampled(version, drafts=True) == (kept + then) * LOGITS + buffer


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0", "0.33.0"])
def test_the_second_runner_does_not_profile_verifying(version: str) -> None:
    assert sampled(version, drafts=True) == sampled(version)


def test_only_the_second_runner_keeps_tables() -> None:
    # 32-bit counts of output tokens, a bit for prompt tokens, a bit of grammar mask
    assert sampler_state_bytes(8, 1000, rules("0.21.0")) == 0
    assert sampler_state_bytes(8, 1000, rules("0.32.0")) == 8 * (4000 + 125 + 125)
    assert sampler_state_bytes(8, 1000, rules("0.30.0", drafts=True)) == 0
