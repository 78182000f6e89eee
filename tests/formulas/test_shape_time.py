"""Times of single steps against the simulated scheduler's own parts, and pairs counted one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.assemble.run_serving import settings_of
from planner.calibrate.step_unknowns import tuned_step
from planner.domain.calibration import StepShape
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.operators.scales import PLAIN
from planner.formulas.shape_time import host_s, padded_tokens, shape_columns, shapes_s
from planner.formulas.step import SCOPES, StepModel
from planner.serving.scheduler_parts import (
    decode_attention_s,
    least_step_s,
    on_curve,
    padded,
    prompt_attention_s,
)
from planner.serving.simulation import step_times
from tests.calibrate.made_steps import ENGINE, deployment

HOST = NO_HOST_TIME.model_copy(update={"sync_step_s": 8e-4, "sync_per_sequence_s": 2e-5})
CAPTURED = (1, 2, 4, 8, 64, 256)


@pytest.fixture(scope="module")
def step() -> StepModel:
    """A small model with a window of 100 tokens beside what sees everything."""
    one = deployment()
    plain = tuned_step(one, PLAIN, np.zeros(len(one.knots)))
    scopes = plain.scope_tokens.copy()
    scopes[1] = 100.0
    return plain._replace(
        scope_tokens=scopes,
        decode_per_token_s=np.array([1e-8, 3e-8, 0.0])[:SCOPES],
        context_per_pair_s=np.array([1e-9, 2e-9, 0.0])[:SCOPES],
        context_per_past_s=np.array([1e-8, 5e-8, 0.0])[:SCOPES],
    )


def _scheduled_s(step: StepModel, shape: StepShape, captured: tuple[int, ...]) -> float:
    """The step as the simulated scheduler puts it together (`scheduler_loop._measure`)."""
    times = step_times(step, settings_of(ENGINE, async_scheduling=False), HOST, captured)
    sequences = shape.prompts + shape.decodes
    tokens = shape.scheduled_tokens
    time_s = on_curve(times.grid_tokens, times.body_s, padded(times, tokens))
    time_s += on_curve(times.grid_tokens, times.head_s, float(sequences))
    time_s += times.host_s + sequences * times.host_per_sequence_s
    if shape.prompts:
        chunk_s = prompt_attention_s(times, shape.past_tokens, shape.prompt_tokens)
        time_s += times.context_constant_s + shape.prompts * chunk_s
    if shape.decodes:
        seen = shape.decodes * np.minimum(shape.context_tokens + 1.0, times.scope_tokens)
        time_s += decode_attention_s(times, shape.decodes, seen)
    return max(time_s, least_step_s(times, sequences, tokens, shape.prompts > 0))


@pytest.mark.parametrize("captured", [(), CAPTURED])
@pytest.mark.parametrize(
    "shape",
    [
        StepShape(decodes=1, context_tokens=0),
        StepShape(decodes=5, context_tokens=99),
        StepShape(decodes=64, context_tokens=3000),
        StepShape(prompts=1, prompt_tokens=7),
        StepShape(prompts=3, prompt_tokens=60, past_tokens=70),
        StepShape(prompts=1, prompt_tokens=2048, past_tokens=500),
        StepShape(prompts=2, prompt_tokens=30, decodes=9, context_tokens=1234),
    ],
)
def test_a_step_takes_what_the_scheduler_says(
    step: StepModel, shape: StepShape, captured: tuple[int, ...]
) -> None:
    columns = shape_columns([shape])
    time_s = shapes_s(step, columns, captured) + host_s(HOST, columns)
    assert time_s == pytest.approx(_scheduled_s(step, shape, captured), rel=1e-12)


@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (50, 0), (50, 70), (50, 200), (130, 0), (1, 99)])
def test_pairs_are_those_counted_one_by_one(step: StepModel, tokens: int, past: int) -> None:
    free = step._replace(
        body_s=0 * step.body_s,
        head_s=0 * step.head_s,
        launch_s=0 * step.launch_s,
        context_constant_s=0.0,
        context_per_token_s=0.0,
        context_per_past_s=np.zeros(SCOPES),
        context_per_pair_s=np.array([0.0, 1.0, 0.0]),
    )
    columns = shape_columns([StepShape(prompts=2, prompt_tokens=tokens, past_tokens=past)])
    # The i-th new token sees what is before it and itself, at most 100 tokens.
    pairs = sum(min(past + i, 100) for i in range(1, tokens + 1))
    # Where the window fills within the chunk, the closed form and the sum are the same.
    assert shapes_s(free, columns)[0] == pytest.approx(2 * pairs, rel=1e-12)


def test_steps_are_padded_to_the_next_captured_size() -> None:
    tokens = np.array([1.0, 3.0, 4.0, 9.0, 256.0, 257.0])
    assert padded_tokens(tokens, CAPTURED).tolist() == [1, 4, 4, 64, 256, 257]
    assert padded_tokens(tokens, ()).tolist() == tokens.tolist()


SHAPES = st.one_of(
    st.builds(StepShape, decodes=st.integers(1, 500), context_tokens=st.integers(0, 5000)),
    st.builds(
        StepShape,
        prompts=st.integers(1, 8),
        prompt_tokens=st.integers(1, 2000),
        past_tokens=st.integers(0, 5000),
        decodes=st.integers(1, 200),
        context_tokens=st.integers(0, 5000),
    ),
)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 300), st.sampled_from([(), CAPTURED]))
def test_more_of_anything_never_takes_less(
    step: StepModel, shape: StepShape, more: int, captured: tuple[int, ...]
) -> None:
    fields = ["decodes", "context_tokens"]
    if shape.prompts:
        fields += ["prompts", "prompt_tokens", "past_tokens"]
    larger = [shape.model_copy(update={name: getattr(shape, name) + more}) for name in fields]
    columns = shape_columns([shape, *larger])
    # Beyond the captured sizes nothing is padded, and compiled steps may be the shorter ones.
    time_s = shapes_s(step._replace(launch_s=0 * step.launch_s), columns, captured)
    assert (time_s[1:] >= time_s[0] * (1 - 1e-12)).all()
