"""`calibrate` end to end on a live vLLM (CPU): a fit predicts what it has not seen, runs that are cut short go on."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.live import ENGINE_PYTHON

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not ENGINE_PYTHON, reason="SKIPPED LOUDLY: live vLLM is asked by make engine-test"),
]
SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
OTHER = SMALL | {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
}
MOST_DISTURBED = 0.5
"""Of a run's steps: above that the machine was not ours, and errors say nothing of the fit."""


def command(python: str, *arguments: object) -> list[str]:
    return [python, "-m", "planner", *map(str, arguments)]


def calibrate(model: Path, out: Path, *more: object, budget: str = "40s") -> list[str]:
    return command(
        ENGINE_PYTHON,
        "calibrate",
        "--device",
        "cpu",
        "--model",
        model,
        "--budget",
        budget,
        "--threads",
        1,
        "--out",
        out,
        *more,
    )


def done(arguments: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == code, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    return result


def planner(*arguments: object) -> Any:
    import sys

    return json.loads(done(command(sys.executable, *arguments, "--json")).stdout)


def model(folder: Path, name: str, config: dict[str, Any]) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def only_run(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("run-*.json")
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return run


def points(folder: Path) -> int:
    found = list(folder.glob("run-*.json"))
    return len(json.loads(found[0].read_text(encoding="utf-8")).get("points", [])) if found else 0


def wait_for_points(folder: Path, count: int, process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 120
    while points(folder) < count and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert points(folder) >= count, process.communicate()[1] if process.poll() is not None else "too slow"


def engine_of(process: "subprocess.Popen[str]") -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    named = [int(pid) for pid in children if b"measure.engine" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(named) == 1
    return named[0]


def gone(pid: int) -> bool:
    until = time.monotonic() + 20
    state = Path(f"/proc/{pid}/stat")
    while time.monotonic() < until:
        if not state.exists() or state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def litter(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix not in {".json", ".log", ".html"}]


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that put us in the background made us deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


def test_a_fit_predicts_shapes_and_a_model_it_has_not_seen(tmp_path: Path) -> None:
    """Within 15 % (median) and a third of the mean's error on other shapes, within 35 % on another model.

    Nothing is asked here against the nearest point measured. The second run chooses its shapes as the first did,
    mostly right beside them, so that the nearest point is off by little more than the two runs differ in speed on a
    machine that others use, and no model can be below a third of that. tests/benchmarks/test_calibration.py asks it of
    shapes drawn at random, on recorded engines, where it is decided once and for all.
    """
    fitted, unseen, second, known = (tmp_path / name for name in ("fitted", "unseen", "second", "known"))
    small = model(tmp_path, "small", SMALL)
    done(calibrate(small, fitted))
    run = only_run(fitted)
    assert run["format"] == 1
    assert run["end"] == "finished"
    assert len(run["points"]) >= 12
    done(
        calibrate(
            small,
            unseen,
            "--seed",
            7,
            "--max-model-len",
            3000,
            "--max-num-batched-tokens",
            1500,
            "--max-num-seqs",
            40,
            budget="30s",
        )
    )
    done(calibrate(model(tmp_path, "other", OTHER), second, budget="30s"))
    fit = planner("fit", "runs", fitted, "--calibration-dir", known)
    assert any(parameter["identified"] for parameter in fit["gpus"][0]["parameters"])
    share = max(_disturbed(folder) for folder in (fitted, unseen, second))
    errors = {name: _exam(folder, known, fitted) for name, folder in (("unseen", unseen), ("second", second))}
    if share > MOST_DISTURBED:
        pytest.skip(f"SKIPPED LOUDLY: others used this machine in {share:.0%} of the steps: {errors}")
    own, mean = errors["unseen"]
    assert own <= 0.15, errors
    assert own <= mean / 3, errors
    assert errors["second"][0] <= 0.35, errors


def _disturbed(folder: Path) -> float:
    steps = only_run(folder)["points"]
    return sum(bool(point.get("disturbed")) for point in steps) / len(steps)


def _exam(folder: Path, known: Path, fitted: Path) -> tuple[float, float]:
    """Median error of undisturbed steps that were not fitted, and of a guess: the mean of those fitted."""
    (path,) = folder.glob("run-*.json")
    report = planner("validate", "--run", path, "--calibration-dir", known)
    for served in report["serving"]:
        assert abs(served["tpot_error_ratio"]) < 1.0
    quiet = {_label(point) for point in only_run(folder)["points"] if not point.get("disturbed")}
    mean_s = float(
        np.mean([np.median(point["times_s"]) for point in only_run(fitted)["points"] if point.get("times_s")])
    )
    predicted = {step["step"]: step for step in report["steps"] if not step["known"]}
    steps = [
        (float(np.median(point["times_s"])), predicted[_label(point)]["error_ratio"])
        for point in only_run(folder)["points"]
        if _label(point) in predicted
        and _label(point) in quiet
        and not point.get("disturbed")
        and point.get("times_s")
    ]
    if not steps:
        return np.nan, np.nan
    return (
        float(np.median([abs(error) for _, error in steps])),
        float(np.median([abs(mean_s / actual_s - 1.0) for actual_s, _ in steps])),
    )


def _label(point: dict[str, Any]) -> str:
    from planner.domain.calibration import StepShape

    return StepShape(**point["shape"]).label


def test_a_killed_run_loses_the_point_in_flight_and_is_resumed(tmp_path: Path) -> None:
    small, out = model(tmp_path, "small", SMALL), tmp_path / "out"
    process = start(calibrate(small, out))
    wait_for_points(out, 5, process)
    engine = engine_of(process)
    process.kill()
    process.communicate()
    assert gone(engine)
    before = only_run(out)
    assert "end" not in before, "a run that goes on is the default"
    resumed = start(calibrate(small, out, "--resume", budget="30s"))
    wait_for_points(out, len(before["points"]) + 1, resumed)
    refused = done(calibrate(small, out, "--resume"), code=2)
    assert refused.stderr.splitlines()[-1].endswith("another calibration is writing it; let it end first")
    os.kill(engine_of(resumed), signal.SIGKILL)
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode in {0, 2}, err
    after = only_run(out)
    assert after["points"][: len(before["points"])] == before["points"]
    assert any("SIGKILL" in point.get("failed", "") for point in after["points"] + after.get("serving", []))
    assert litter(out) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_there(tmp_path: Path, number: int) -> None:
    small, out = model(tmp_path, "small", SMALL), tmp_path / "out"
    process = start(calibrate(small, out, "--json"))
    wait_for_points(out, 3, process)
    engine = engine_of(process)
    process.send_signal(number)
    stdout, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "--resume goes on" in err
    assert json.loads(stdout)["end"] == "interrupted"
    assert only_run(out)["end"] == "interrupted"
    assert len(only_run(out)["points"]) >= 3
    assert gone(engine)
    assert litter(out) == []


def test_an_interrupt_while_the_engine_starts(tmp_path: Path) -> None:
    small, out = model(tmp_path, "small", SMALL), tmp_path / "out"
    process = start(calibrate(small, out))
    until = time.monotonic() + 60
    while not list(out.glob("run-*.log")) and time.monotonic() < until:
        time.sleep(0.05)
    engine = engine_of(process)
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, ""), err
    assert only_run(out)["end"] == "interrupted"
    assert gone(engine)
    assert litter(out) == []


def test_two_at_once_write_a_file_each(tmp_path: Path) -> None:
    small, out = model(tmp_path, "small", SMALL), tmp_path / "out"
    both = [start(calibrate(small, out, budget="45s")) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("run-*.json")]
    assert len({run["run_id"] for run in runs}) == 2
    assert all(run["end"] == "finished" and run["points"] for run in runs)
    assert litter(out) == []


def test_a_config_that_vllm_refuses_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = done(calibrate(model(tmp_path, "odd", SMALL | {"head_dim": 7}), out), code=2)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("error: odd: ")
    assert "head_dim" in result.stderr.splitlines()[-1]
    assert only_run(out)["end"] == "failed"
    assert litter(out) == []


def test_a_full_disk_leaves_the_last_whole_file(tmp_path: Path) -> None:
    import resource

    small, out = model(tmp_path, "small", SMALL), tmp_path / "out"
    process = subprocess.Popen(
        calibrate(small, out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),  # noqa: PLW1509
    )
    stdout, err = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (2, "")
    assert err.splitlines()[-1].startswith("error: cannot write ")
    assert err.splitlines()[-1].endswith("File too large")
    assert only_run(out)["points"]
    assert litter(out) == []
