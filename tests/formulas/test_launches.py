"""Launches of kernels: counted by hand, chosen by how a step runs, and priced as they were timed."""

import csv
from collections.abc import Mapping
from pathlib import Path
from statistics import linear_regression

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.models import load_model
from planner.domain.deployment import Parallelism
from planner.formulas.engine_defaults import parse_version
from planner.formulas.launches import (
    COMPILED_KERNEL_S,
    EAGER_KERNEL_S,
    PIECE_S,
    LaunchTime,
    launch_time,
    launches_s,
)
from planner.serving.scheduler_parts import least_step_s
from planner.serving.scheduler_types import StepTimes

MEASURED = Path(__file__).parents[2] / "calibration" / "host" / "vllm-dispatch-0.32.0.csv"
NEWEST = parse_version("")
TIMES = LaunchTime(eager_s=8.0, compiled_s=4.0, mixed_s=2.0, decode_s=1.0)
MOST_ATTENTION_US = 26.0
"""A layer whose attention took longer was timed beside other work."""
NARROW_LAYER_KERNELS = 11
"""Of a Llama layer: 4 products, 5 about attention, norm and activation of the feed-forward block."""


class TestCounts:
    def test_a_dense_model_by_hand(self) -> None:
        # 32 layers of 11 kernels, and one piece a layer; where pieces are captured, 4 kernels a layer are launched.
        found = launch_time(load_model("meta-llama/Llama-3.1-8B"), Parallelism(), NEWEST)
        assert found.eager_s == pytest.approx(352 * EAGER_KERNEL_S)
        assert found.compiled_s == pytest.approx(352 * COMPILED_KERNEL_S + 32 * PIECE_S)
        assert found.mixed_s == pytest.approx(32 * (4 * COMPILED_KERNEL_S + PIECE_S))
        assert found.decode_s == 0.0

    def test_every_rank_launches_its_own_and_stages_follow_each_other(self) -> None:
        model = load_model("meta-llama/Llama-3.1-8B")
        alone = launch_time(model, Parallelism(), NEWEST)
        # Two all-reduces a layer more, whatever the number of ranks.
        assert launch_time(model, Parallelism(tp=2), NEWEST).eager_s == pytest.approx(416 * EAGER_KERNEL_S)
        assert launch_time(model, Parallelism(tp=8), NEWEST).eager_s == pytest.approx(416 * EAGER_KERNEL_S)
        assert launch_time(model, Parallelism(pp=2), NEWEST) == alone

    def test_layers_without_a_mixer_make_no_piece(self) -> None:
        model = load_model("nvidia/Nemotron-H-56B-Base-8K")
        mixers = sum(model.layer_kinds[kind].attention is not None for kind in model.layer_pattern)
        assert 0 < mixers < model.layers
        mixed_s = launch_time(model, Parallelism(tp=4), NEWEST).mixed_s
        assert mixed_s == pytest.approx(mixers * (4 * COMPILED_KERNEL_S + PIECE_S))

    def test_whole_graphs_came_with_0_11(self) -> None:
        model = load_model("meta-llama/Llama-3.1-8B")
        old = launch_time(model, Parallelism(), parse_version("0.10.2"))
        assert old.decode_s == old.mixed_s
        assert launch_time(model, Parallelism(), parse_version("0.11.0")).decode_s == 0.0


class TestChoice:
    def test_what_holds_the_step_decides(self) -> None:
        tokens = np.array([1.0, 512.0, 513.0])
        assert launches_s(TIMES, tokens, 512.0, mixed=False).tolist() == [1.0, 1.0, 4.0]
        assert launches_s(TIMES, tokens, 512.0, mixed=True).tolist() == [2.0, 2.0, 4.0]
        assert launches_s(TIMES, tokens, 0.0, mixed=True).tolist() == [8.0, 8.0, 8.0]

    def test_layouts_of_one_pass_have_their_own(self) -> None:
        times = LaunchTime(*(np.array([[value], [10.0 * value]]) for value in TIMES))
        captured = np.array([[256.0], [0.0]])
        found = launches_s(times, np.array([8.0, 300.0]), captured, mixed=False)
        assert found.tolist() == [[1.0, 4.0], [80.0, 80.0]]

    @given(
        tokens=st.integers(1, 2000),
        captured=st.sampled_from([(), (1, 2, 4), (1, 2, 4, 8, 512)]),
        mixed=st.booleans(),
        sequences=st.integers(1, 300),
    )
    def test_the_simulated_scheduler_chooses_alike(
        self, tokens: int, captured: tuple[int, ...], mixed: bool, sequences: int
    ) -> None:
        """A step takes the launches and whatever the host does besides, before the GPU or beside it."""
        given_times = dict.fromkeys(StepTimes._fields, 0.0) | {
            "captured_tokens": np.array(captured, dtype=np.float64),
            "host_s": 0.25,
            "host_per_sequence_s": 0.01,
            "chain_s": 0.5,
            "chain_per_sequence_s": 0.001,
            "larger_launch_s": TIMES.compiled_s if captured else TIMES.eager_s,
            "mixed_launch_s": TIMES.mixed_s,
            "decode_launch_s": TIMES.decode_s,
        }
        found_s = least_step_s(StepTimes(**given_times), sequences, tokens, mixed)
        launch_s = float(launches_s(TIMES, float(tokens), float(max(captured, default=0)), mixed=mixed))
        beside_s = max(0.5 + 0.001 * sequences, 0.25 + 0.01 * sequences)
        assert found_s == pytest.approx(launch_s + beside_s)


class TestEvidence:
    """The prices are slopes over layers of what a live engine took, lower quartiles as the machine was shared."""

    def test_a_kernel_of_an_eager_engine(self) -> None:
        # The CPU computes norms and activation in many operators, a GPU in one each: they are taken out.
        others_us = (
            slope_us("forward", "eager") - slope_us("norms", "eager") - slope_us("activation", "eager")
        )
        assert 1e-6 * others_us / (NARROW_LAYER_KERNELS - 3) == pytest.approx(EAGER_KERNEL_S, rel=0.05)

    def test_a_compiled_kernel(self) -> None:
        layer_us = slope_us("forward", "compiled")
        assert 1e-6 * layer_us / NARROW_LAYER_KERNELS == pytest.approx(COMPILED_KERNEL_S, rel=0.05)

    def test_a_piece(self) -> None:
        """What a layer takes more where the graph is cut."""
        piece_us = slope_us("forward", "pieces") - slope_us("forward", "compiled")
        assert 1e-6 * piece_us == pytest.approx(PIECE_S, rel=0.1)


def slope_us(part: str, mode: str) -> float:
    """One layer's share of a part [us]."""
    attention_us = quartiles_us("attention", mode)
    taken_us = quartiles_us(part, mode)
    layers = [count for count in taken_us if attention_us[count] < MOST_ATTENTION_US * count]
    assert len(layers) >= 3
    return linear_regression(layers, [taken_us[count] for count in layers]).slope


def quartiles_us(part: str, mode: str) -> Mapping[int, float]:
    """Lower quartiles of narrow Llamas by their layers [us]."""
    chosen = {"part": part, "mode": mode, "model": "llama", "hidden": "64"}
    with MEASURED.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if chosen.items() <= row.items()]
    return {int(row["layers"]): float(row["q1_us"]) for row in rows}
