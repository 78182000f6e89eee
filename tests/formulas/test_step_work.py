"""FLOP and bytes of steps against sums by hand."""

import numpy as np
import pytest

from planner.calibrate.plain_operators import EFFICIENCY
from planner.calibrate.step_deployment import deployment_of
from planner.domain.calibration import StepShape
from planner.formulas.shape_time import shape_columns
from planner.formulas.step_parts import Layout
from planner.formulas.step_work import attained_ceiling, datasheet_ceiling, step_work
from tests.export.made_run import made_operators, made_run


@pytest.fixture(scope="module")
def layout() -> Layout:
    run = made_run()
    assert run.engine is not None
    one = deployment_of(run.target, run.engine, made_operators(run))
    return Layout(one.model, one.parallelism, one.kv_dtype, one.operators, one.cluster, one.engine_version)


# 4 layers of hidden 512, 8 heads and 2 KV heads of 64, MLP 1408, vocabulary 32,000:
# qkv 512 x (512 + 2 x 128), out 512 x 512, gate and up 512 x 2816, down 1408 x 512 a layer; head 512 x 32,000.
LAYERS = 4 * (512 * 768 + 512 * 512 + 512 * 2816 + 1408 * 512)
HEAD = 512 * 32_000


def test_a_decode_step_is_its_weights_and_its_cache(layout: Layout) -> None:
    work = step_work(layout, shape_columns([StepShape(decodes=8, context_tokens=1023)]))
    # Scores and values: 2 x 8 heads x (64 + 64) FLOP for each of 1,024 keys of 8 sequences in 4 layers.
    attention = 4 * 8 * 1024 * 2 * 8 * 128
    assert work.flop[0] == pytest.approx(8 * 2 * (LAYERS + HEAD) + attention, rel=1e-6)
    cache = 4 * 8 * 1024 * 2 * 128 * 2
    # In and out of each product in 16 bit, for 8 tokens; norms move 4 x hidden x 2 x 2 bytes and the MLP 3 x 1408 x 2.
    products = 4 * (512 + 768 + 512 + 512 + 512 + 2816 + 1408 + 512) + 512 + 32_000
    between = 4 * (4 * 512 * 2 * 2 + 3 * 1408 * 2)
    moved = 2 * (LAYERS + HEAD) + cache + 8 * (2 * products + between)
    assert work.moved_bytes[0] == pytest.approx(moved, rel=1e-6)
    assert work.intensity[0] == pytest.approx(work.flop[0] / moved, rel=1e-6)


def test_a_prompt_chunk_computes_its_pairs_and_one_row_of_logits(layout: Layout) -> None:
    shape = StepShape(prompts=2, prompt_tokens=512, past_tokens=256)
    work = step_work(layout, shape_columns([shape]))
    pairs = 512 * 256 + 512 * 513 / 2
    flop = 1024 * 2 * LAYERS + 2 * 2 * HEAD + 4 * 2 * pairs * 2 * 8 * 128
    assert work.flop[0] == pytest.approx(flop, rel=1e-6)


def test_work_does_not_depend_on_how_fast_the_device_is(layout: Layout) -> None:
    shapes = shape_columns([StepShape(decodes=3, context_tokens=40), StepShape(prompts=1, prompt_tokens=99)])
    gpu = layout.ops.gpu.model_copy(update={"memory_bandwidth_bytes_per_s": 1.0})
    other = step_work(layout._replace(ops=layout.ops._replace(gpu=gpu)), shapes)
    here = step_work(layout, shapes)
    assert np.array_equal(other.flop, here.flop)
    assert np.array_equal(other.moved_bytes, here.moved_bytes)


def test_ceilings_are_the_data_sheet_and_what_is_reached_of_it(layout: Layout) -> None:
    sheet = datasheet_ceiling(layout.ops, layout.model.weight_dtype)
    reached = attained_ceiling(layout.ops, layout.model.weight_dtype)
    assert sheet == (160e9, 20e9)
    assert sheet.ridge == 8
    assert reached == (160e9 * EFFICIENCY, 20e9 * EFFICIENCY)
