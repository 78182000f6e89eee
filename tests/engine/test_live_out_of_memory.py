"""A live vLLM (CPU) without memory: in a step it says so and goes on, in its start it is tried once more."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from planner.calibrate.measure.engine_protocol import Measure, Serve, Start
from planner.domain.calibration import Device, ServingLoad, StepShape
from planner.domain.dtypes import WeightDtype
from tests.engine.live import ENGINE_PYTHON, run_in_engine
from tests.engine.test_live_calibrate import SMALL, calibrate, engine_of, litter, model, only_run, start

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
QUESTIONS = [
    Measure(shape=StepShape(decodes=4, context_tokens=300), repetitions=3),
    Measure(shape=StepShape(prompts=2, prompt_tokens=100), repetitions=3),
    Measure(shape=StepShape(prompts=1, prompt_tokens=64, past_tokens=500), repetitions=3),
    Serve(load=ServingLoad(concurrency=3, input_tokens=40, output_tokens=6, num_requests=6)),
]


@pytest.mark.parametrize(
    ("method", "call", "failed"),
    # Admission, a warm-up and three repetitions make five steps of the first question; each later one takes four.
    [("_model_forward", 3, 0), ("_sample", 4, 0), ("execute_model", 7, 1)],
)
def test_the_engine_outlives_a_step_without_memory(
    tmp_path: Path, method: str, call: int, failed: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    asked = Start(
        config_dir=str(tmp_path),
        stored_dtype=WeightDtype.BF16,
        weight_dtype=WeightDtype.BF16,
        device=Device.CPU,
        max_model_len=2048,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        enforce_eager=True,
        threads=1,
    )
    given = {
        "start": asked.model_dump(mode="json"),
        "questions": [one.model_dump(mode="json") for one in QUESTIONS],
        "method": method,
        "call": call,
    }
    written = run_in_engine("real_out_of_memory.py", json.dumps(given))
    answers: list[dict[str, Any]] = json.loads(written.splitlines()[-1])
    lost = answers.pop(failed)
    assert lost["kind"] == "out_of_memory"
    assert lost["message"].startswith("OutOfMemoryError: CUDA out of memory.")
    assert not lost["engine_lost"]
    assert [one["type"] for one in answers] == ["measured", "measured", "served"]
    assert len(answers[-1]["requests"]) == 6


def test_an_engine_that_is_killed_while_it_starts_is_tried_once_more_with_less(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(calibrate(model(tmp_path, "small", SMALL), out))
    until = time.monotonic() + 60
    while not list(out.glob("run-*.log")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(engine_of(process), signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    run = only_run(out)
    assert run["end"] == "finished"
    # Half of the limits that a CPU is given.
    assert (run["engine"]["max_num_seqs"], run["engine"]["max_num_batched_tokens"]) == (32, 1024)
    (note,) = [line for line in run["notes"] if line.startswith("started with ")]
    assert "cpu_cache_gib 1" in note
    assert "SIGKILL" in note
    assert run["points"]
    assert litter(out) == []
