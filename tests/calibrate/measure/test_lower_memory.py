"""What is asked of an engine that had too little memory to start."""

import pytest

from planner.calibrate.measure.engine_protocol import Start
from planner.calibrate.measure.lower_memory import lowered, what_changed
from planner.domain.calibration import Device
from planner.domain.dtypes import WeightDtype

START = Start(
    config_dir="nowhere",
    stored_dtype=WeightDtype.BF16,
    weight_dtype=WeightDtype.BF16,
    device=Device.CUDA,
    max_model_len=16_384,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    cpu_cache_gib=2,
)
"""Asks for 0.9 of the memory."""


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
            "max_num_seqs 128, max_num_batched_tokens 4096, gpu_memory_utilization 0.765",
        ),
        # 0.95 x 30 / 80.
        (
            "Free memory on device cuda:0 (30.0/80.0 GiB) on startup is less than desired GPU memory utilization "
            "(0.9, 72.0 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
            "gpu_memory_utilization 0.356",
        ),
        (
            "To serve at least one request with the models's max seq len (16384), (2.0 GiB KV cache is needed, which "
            "is larger than the available KV cache memory (1.2 GiB).",
            "max_model_len 8192, max_num_seqs 128, max_num_batched_tokens 4096",
        ),
        (
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "max_model_len 8192, max_num_seqs 128, max_num_batched_tokens 4096",
        ),
    ],
)
def test_what_is_lowered_follows_what_vllm_said(message: str, changed: str) -> None:
    assert what_changed(START, lowered(START, message, limits=True)) == changed


def test_limits_stay_where_points_were_measured_under_them() -> None:
    less = lowered(START, "CUDA out of memory", limits=False)
    assert what_changed(START, less) == "gpu_memory_utilization 0.765"
    assert lowered(START, "No available memory for the cache blocks", limits=False) == START


def test_a_cpu_has_its_cache_lowered() -> None:
    on_cpu = START.model_copy(update={"device": Device.CPU})
    assert what_changed(on_cpu, lowered(on_cpu, "killed by signal 9", limits=True)) == (
        "max_model_len 8192, max_num_seqs 128, max_num_batched_tokens 4096, cpu_cache_gib 1"
    )


def test_small_limits_are_left() -> None:
    small = START.model_copy(
        update={"max_model_len": 600, "max_num_seqs": 4, "max_num_batched_tokens": 64, "cpu_cache_gib": 1}
    )
    less = lowered(small, "No available memory for the cache blocks", limits=True)
    assert (less.max_model_len, less.max_num_seqs, less.max_num_batched_tokens) == (512, 4, 64)


def test_a_full_card_has_nothing_left_to_lower() -> None:
    message = "Free memory on device cuda:0 (0.5/80.0 GiB) on startup is less than desired"
    assert lowered(START, message, limits=True) == START
