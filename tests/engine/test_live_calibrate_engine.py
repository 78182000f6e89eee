"""The engine process of `calibrate` on a live vLLM (CPU): its steps, its serving runs, and how it fails."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.calibrate.measure.engine_process import EngineDied, EngineProcess
from planner.calibrate.measure.engine_protocol import (
    Answer,
    Failed,
    FailureKind,
    Measure,
    Measured,
    Serve,
    Served,
    Start,
    Started,
)
from planner.domain.calibration import Device, ServingLoad, StepShape
from planner.domain.dtypes import WeightDtype
from planner.domain.units import GIB_BYTES
from tests.engine.live import ENGINE_PYTHON, run_in_engine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not ENGINE_PYTHON, reason="SKIPPED LOUDLY: live vLLM is asked by make engine-test"),
]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
COMMAND = (ENGINE_PYTHON, "-m", "planner.calibrate.measure.engine")


def start_message(folder: Path, **changed: Any) -> Start:
    (folder / "config.json").write_text(json.dumps(CONFIG | changed.pop("config", {})), encoding="utf-8")
    return Start(
        config_dir=str(folder),
        stored_dtype=WeightDtype.BF16,
        weight_dtype=WeightDtype.BF16,
        device=Device.CPU,
        max_model_len=2048,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        enforce_eager=True,
        threads=1,
        **changed,
    )


class Running:
    """A started engine and what it said."""

    def __init__(self, process: EngineProcess, started: Started) -> None:
        self.process = process
        self.started = started

    def ask(self, question: Measure | Serve) -> Answer:
        return self.process.ask(question, timeout_s=60)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("engine")
    with EngineProcess(folder / "log.txt", command=COMMAND) as process:
        started = process.start(start_message(folder), timeout_s=120)
        assert isinstance(started, Started), started
        yield Running(process, started)


def test_the_engine_says_how_it_runs(running: Running) -> None:
    setup, memory = running.started.engine, running.started.memory
    assert (setup.max_model_len, setup.max_num_seqs, setup.max_num_batched_tokens) == (2048, 8, 512)
    assert setup.enforce_eager
    assert setup.made_up_context
    assert not setup.async_scheduling
    assert setup.threads == 1
    assert 0 < setup.start_s < 120
    # Two layers, keys and values of 2 heads of 64 in bf16: 1,024 bytes a token.
    assert memory.kv_cache_tokens == GIB_BYTES // 1024
    assert memory.kv_blocks == GIB_BYTES // 1024 // setup.block_size
    assert memory.kv_cache_bytes == GIB_BYTES
    assert memory.weights_bytes is None
    assert any("KV cache size" in line for line in memory.log_lines)


@pytest.mark.parametrize(
    "shape",
    [
        StepShape(decodes=8, context_tokens=1500),
        StepShape(prompts=2, prompt_tokens=200),
        StepShape(prompts=1, prompt_tokens=64, past_tokens=1000),
        StepShape(prompts=1, prompt_tokens=300, decodes=4, context_tokens=200),
    ],
    ids=lambda shape: shape.label,
)
def test_every_kind_of_step_is_timed(running: Running, shape: StepShape) -> None:
    answer = running.ask(Measure(shape=shape, repetitions=4))
    assert isinstance(answer, Measured), answer
    assert len(answer.times_s) == 4
    assert all(time_s > 0 for time_s in answer.times_s)


def test_what_does_not_fit_is_refused_and_the_engine_goes_on(running: Running) -> None:
    answer = running.ask(Measure(shape=StepShape(decodes=9, context_tokens=10)))
    assert answer == Failed(kind=FailureKind.UNSUPPORTED, message="9 sequences are more than max_num_seqs 8")
    assert isinstance(running.ask(Measure(shape=StepShape(decodes=8, context_tokens=10))), Measured)


def test_a_closed_loop_is_served(running: Running) -> None:
    load = ServingLoad(concurrency=3, input_tokens=40, output_tokens=10, length_low_ratio=0.5, num_requests=7)
    answer = running.ask(Serve(load=load))
    assert isinstance(answer, Served)
    assert len(answer.requests) == 7
    for one in answer.requests:
        assert 0 < one.ttft_s <= one.e2e_s
        assert 20 <= one.input_tokens <= 40
        assert 5 <= one.output_tokens <= 10
    # Three send at once, the others when somebody's request ended.
    assert [one.sent_s < answer.requests[0].ttft_s for one in answer.requests] == [True] * 3 + [False] * 4
    ends = sorted(one.sent_s + one.e2e_s for one in answer.requests)
    assert all(one.sent_s >= end for one, end in zip(answer.requests[3:], ends, strict=False))
    assert answer.steps >= max(one.output_tokens for one in answer.requests)
    assert 0 < answer.submit_s < 0.1


def test_killing_the_engine_is_heard_and_leaves_nothing(tmp_path: Path) -> None:
    load = ServingLoad(concurrency=2, input_tokens=40, output_tokens=10, num_requests=4)
    with EngineProcess(tmp_path / "log.txt", command=COMMAND) as process:
        started = process.start(start_message(tmp_path, async_scheduling=True), timeout_s=120)
        assert isinstance(started, Started)
        # vLLM has no asynchronous scheduling on a CPU and turns it off: what runs is said, not what was asked for.
        assert not started.engine.async_scheduling
        assert process.pid is not None
        pid = process.pid
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(EngineDied, match="signal 9"):
            process.ask(Serve(load=load), timeout_s=60)
        assert time.monotonic() - begin < 5
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"architectures": ["NoSuchForCausalLM"]},
            "Model architectures ['NoSuchForCausalLM'] are not supported",
        ),
        ({"num_attention_heads": 7}, "is not a multiple of the number of attention heads (7)"),
    ],
)
def test_a_config_that_vllm_refuses_is_told_in_a_line(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    with EngineProcess(tmp_path / "log.txt", command=COMMAND) as process:
        answer = process.start(start_message(tmp_path, config=config), timeout_s=120)
        assert process.pid is None
    assert isinstance(answer, Failed)
    assert answer.kind == FailureKind.CONFIG
    assert words in answer.message
    assert "\n" not in answer.message


@pytest.mark.parametrize("made_up", [True, False], ids=["made-up context", "computed context"])
def test_steps_that_count_are_the_shape_and_no_other(tmp_path: Path, made_up: bool) -> None:
    shapes = [
        StepShape(decodes=4, context_tokens=300),
        StepShape(prompts=2, prompt_tokens=100),
        StepShape(prompts=1, prompt_tokens=100, decodes=3, context_tokens=50),
    ]
    if made_up:
        shapes.append(StepShape(prompts=2, prompt_tokens=70, past_tokens=1000))
    questions = [Measure(shape=shape, repetitions=3, warmups=1).model_dump() for shape in shapes]
    start = start_message(tmp_path, made_up_context=made_up)
    written = run_in_engine(
        "real_steps.py", json.dumps({"start": start.model_dump(mode="json"), "questions": questions})
    )
    found = json.loads(written.splitlines()[-1])
    assert [len(one["answer"]["times_s"]) for one in found] == [3] * len(shapes)
    decode, prefill, mixed = (one["steps"][-4:] for one in found[:3])
    # Tokens computed, tokens cached before, sequences; a warm-up and three repetitions centred on the context.
    assert decode == [[[1, context, 4]] for context in (298, 299, 300, 301)]
    assert prefill == [[[100, 0, 2]]] * 4
    assert mixed == [[[1, context, 3], [100, 0, 1]] for context in (48, 49, 50, 51)]
    if made_up:
        assert found[0]["steps"][0] == [[1, 297, 4]]
        assert found[3]["steps"] == [[[70, 1000, 2]]] * 4
