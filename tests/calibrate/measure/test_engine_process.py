"""The parent's handle, on small processes that behave as an engine may."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from planner.calibrate.measure import engine_process
from planner.calibrate.measure.engine_process import EngineDied, EngineProcess
from planner.calibrate.measure.engine_protocol import (
    Failed,
    FailureKind,
    Measure,
    Measured,
    Start,
    Started,
    encode,
)
from planner.domain.calibration import Device, EngineSetup, MemoryFacts, StepShape
from planner.domain.dtypes import WeightDtype

START = Start(
    config_dir="nowhere",
    stored_dtype=WeightDtype.BF16,
    weight_dtype=WeightDtype.BF16,
    device=Device.CPU,
    max_model_len=64,
    max_num_seqs=2,
    max_num_batched_tokens=64,
)
SETUP = EngineSetup(
    engine_version="0",
    torch_version="0",
    python_version="0",
    max_model_len=64,
    max_num_seqs=2,
    max_num_batched_tokens=64,
    block_size=16,
    enforce_eager=True,
    async_scheduling=False,
)
STARTED = encode(Started(engine=SETUP, memory=MemoryFacts(kv_blocks=7))).decode()
ASKED = Measure(shape=StepShape(decodes=1, context_tokens=8))


def process(tmp_path: Path, body: str) -> EngineProcess:
    script = f"import json, os, signal, subprocess, sys, time\nstarted = {STARTED!r}\n{body}"
    return EngineProcess(tmp_path / "log.txt", command=(sys.executable, "-c", script))


def runs(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def ends(pid: int) -> bool:
    until = time.monotonic() + 5
    while runs(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not runs(pid)


def test_a_question_is_answered_and_the_log_adds_to_what_the_engine_knows(tmp_path: Path) -> None:
    body = """
print("INFO 01-01 Model loading took 1.50 GiB memory and 0.1 seconds", file=sys.stderr, flush=True)
sys.stdin.readline(); print(started, end="", flush=True)
print(json.loads(sys.stdin.readline())["type"], file=sys.stderr)
print('{"type": "measured", "times_s": [0.5, 0.25]}', flush=True)
sys.stdin.readline()
"""
    with process(tmp_path, body) as engine:
        started = engine.start(START, timeout_s=20)
        assert isinstance(started, Started)
        assert started.memory.kv_blocks == 7
        assert started.memory.weights_bytes == 1.5 * 2**30
        assert started.memory.log_lines == ("INFO 01-01 Model loading took 1.50 GiB memory and 0.1 seconds",)
        assert engine.ask(ASKED, timeout_s=20) == Measured(times_s=(0.5, 0.25))
        pid = engine.pid
    assert pid is not None
    assert not runs(pid)
    assert engine.pid is None
    assert "measure" in (tmp_path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        ("os._exit(3)", "ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", "killed by signal 9 (SIGKILL), which is what the operating system does"),
        ("os.kill(os.getpid(), 11)", "killed by signal 11 (SIGSEGV)"),
        ("raise ValueError('the GPU\\nfell off')", "ended with exit code 1: ValueError: the GPU"),
        ("print('what', flush=True); time.sleep(60)", "wrote what is no answer: b'what'"),
        ("os.close(1); time.sleep(60)", "closed its output"),
    ],
)
def test_a_death_is_heard_and_another_engine_may_be_started(tmp_path: Path, death: str, reason: str) -> None:
    body = f"sys.stdin.readline(); print(started, end='', flush=True); sys.stdin.readline()\n{death}"
    with process(tmp_path, body) as engine:
        for _ in range(2):
            engine.start(START, timeout_s=20)
            begin = time.monotonic()
            with pytest.raises(EngineDied) as died:
                engine.ask(ASKED, timeout_s=20)
            assert reason in str(died.value)
            assert "\n" not in str(died.value)
            assert time.monotonic() - begin < 10
            with pytest.raises(EngineDied, match="no engine process runs"):
                engine.ask(ASKED, timeout_s=20)


@pytest.mark.parametrize(
    ("death", "out_of_memory"),
    [
        ("os._exit(3)", False),
        ("os.kill(os.getpid(), 11)", False),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')", True),
    ],
)
def test_a_death_for_lack_of_memory_is_told_from_others(
    tmp_path: Path, death: str, out_of_memory: bool
) -> None:
    with process(tmp_path, f"sys.stdin.readline()\n{death}") as engine:
        with pytest.raises(EngineDied) as died:
            engine.start(START, timeout_s=20)
        assert died.value.out_of_memory is out_of_memory


@pytest.mark.parametrize(("after", "out_of_memory"), [(7, None), (8, True)])
def test_a_kill_is_one_for_memory_where_the_system_counts_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, out_of_memory: bool | None
) -> None:
    counts = iter([7, after])
    monkeypatch.setattr(engine_process, "count_oom_kills", lambda: next(counts))
    with process(tmp_path, "sys.stdin.readline()\nos.kill(os.getpid(), 9)") as engine:
        with pytest.raises(EngineDied) as died:
            engine.start(START, timeout_s=20)
        assert died.value.out_of_memory is out_of_memory


def test_kills_for_memory_are_counted_where_linux_tells(tmp_path: Path) -> None:
    table = tmp_path / "vmstat"
    table.write_text("pgfault 12\noom_kill 3\ndrop_pagecache 0\n", encoding="ascii")
    assert engine_process.count_oom_kills(table) == 3
    table.write_text("pgfault 12\n", encoding="ascii")
    assert engine_process.count_oom_kills(table) is None
    assert engine_process.count_oom_kills(tmp_path / "absent") is None


def test_an_error_that_was_outlived_is_not_blamed_for_a_death(tmp_path: Path) -> None:
    body = """
sys.stdin.readline(); print(started, end="", flush=True); sys.stdin.readline()
print("RuntimeError: CUDA out of memory", file=sys.stderr, flush=True)
print('{"type": "failed", "kind": "out_of_memory", "message": "CUDA out of memory"}', flush=True)
sys.stdin.readline(); os._exit(3)
"""
    with process(tmp_path, body) as engine:
        engine.start(START, timeout_s=20)
        answer = engine.ask(ASKED, timeout_s=20)
        assert answer == Failed(kind=FailureKind.OUT_OF_MEMORY, message="CUDA out of memory")
        with pytest.raises(EngineDied) as died:
            engine.ask(ASKED, timeout_s=20)
    assert str(died.value) == "the engine process ended with exit code 3"
    assert died.value.out_of_memory is False


def test_a_death_is_heard_though_a_worker_holds_the_pipe_and_the_worker_goes_too(tmp_path: Path) -> None:
    body = """
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("worker", worker.pid, file=sys.stderr, flush=True)
os.kill(os.getpid(), 9)
"""
    with process(tmp_path, body) as engine, pytest.raises(EngineDied, match="signal 9"):
        engine.start(START, timeout_s=20)
    assert ends(int((tmp_path / "log.txt").read_text(encoding="utf-8").split()[-1]))


def test_silence_is_ended(tmp_path: Path) -> None:
    with process(tmp_path, "signal.signal(15, signal.SIG_IGN); time.sleep(60)") as engine:
        with pytest.raises(EngineDied, match="no answer within 1 s"):
            engine.start(START, timeout_s=1)
        assert engine.pid is None


def test_an_error_in_the_parent_ends_the_engine_at_once(tmp_path: Path) -> None:
    body = "sys.stdin.readline(); print(started, end='', flush=True); time.sleep(60)"
    pids = []

    def interrupted() -> None:
        with process(tmp_path, body) as engine:
            engine.start(START, timeout_s=20)
            pids.append(engine.pid)
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begin < 10
    assert not runs(pids[0])


def test_an_engine_that_refuses_made_up_context_is_started_without(tmp_path: Path) -> None:
    body = """
if json.loads(sys.stdin.readline())["made_up_context"]:
    print('{"type": "failed", "kind": "context", "message": "no connector"}', flush=True)
else:
    print(started, end="", flush=True)
    sys.stdin.readline()
"""
    with process(tmp_path, body) as engine:
        assert isinstance(engine.start(START, timeout_s=20), Started)


def test_a_failure_that_points_at_the_log_is_told_in_the_logs_words(tmp_path: Path) -> None:
    body = """
chatter = "(Worker pid=7) ERROR 11-23 20:08:34 [core.py:5]"
print(chatter, "ValueError: No available memory for the cache blocks.", file=sys.stderr)
print("RuntimeError: Engine core initialization failed. See root cause above.", file=sys.stderr, flush=True)
message = "WorkerProc initialization failed in a background process. See stack trace for root cause."
print(json.dumps({"type": "failed", "kind": "engine", "message": message}), flush=True)
"""
    with process(tmp_path, body) as engine:
        answer = engine.start(START, timeout_s=20)
    assert answer == Failed(
        kind=FailureKind.OUT_OF_MEMORY, message="ValueError: No available memory for the cache blocks."
    )


def test_only_the_end_and_the_beginning_of_a_long_log_are_read(tmp_path: Path) -> None:
    body = """
print("Model loading took 2.00 GiB", file=sys.stderr)
for _ in range(60_000):
    print("x" * 99, file=sys.stderr)
raise ValueError("at the end")
"""
    with process(tmp_path, body) as engine, pytest.raises(EngineDied, match="ValueError: at the end"):
        engine.start(START, timeout_s=30)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_real_engine_process_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with EngineProcess(tmp_path / "log.txt") as engine:
        answer = engine.start(START.model_copy(update={"config_dir": str(tmp_path)}), timeout_s=60)
    assert isinstance(answer, Failed)
    assert answer.message.startswith(f"vLLM is not installed for {sys.executable}: ")


def test_the_real_engine_process_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "planner.calibrate.measure.engine"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.close()
    assert child.wait(30) == -signal.SIGKILL
    assert child.stdout.read() == b""
    child.stdout.close()


def test_the_first_message_must_start_an_engine() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "planner.calibrate.measure.engine"],
        input=encode(ASKED) + b'{"type": "stop"}\n',
        capture_output=True,
        check=False,
        env=dict(os.environ),
    )
    assert json.loads(done.stdout)["message"] == "the first message must start an engine"
    assert done.returncode == 2
