"""Where the machine code of the scheduler is kept, and that it runs where it cannot be."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from numba.core.caching import FunctionCache

from planner.formulas.arrays import BoolArray
from planner.serving import scheduler_compiler
from planner.serving.simulation import compiler_notes


def no_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file stands where every folder would be made: that holds for root as well."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(scheduler_compiler, "HERE", file)
    monkeypatch.setattr(scheduler_compiler.CONFIG, "CACHE_DIR", str(file / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(file / "cache"))


def test_the_first_place_that_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_place(monkeypatch, tmp_path)
    assert scheduler_compiler._folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = scheduler_compiler._folder()
    assert found is not None
    assert Path(found).parent == tmp_path / "cache" / scheduler_compiler.NAME
    monkeypatch.setattr(scheduler_compiler.CONFIG, "CACHE_DIR", str(tmp_path / "given"))
    found = scheduler_compiler._folder()
    assert found is not None
    assert Path(found).parent == tmp_path / "given"


def test_without_a_home_the_folder_is_not_made_where_one_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_place(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.chdir(tmp_path)
    assert scheduler_compiler._folder() is None
    assert not (tmp_path / "cache").exists()


def test_a_change_in_any_file_of_the_scheduler_compiles_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("scheduler_loop.py", "scheduler_parts.py"):
        (tmp_path / name).write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(scheduler_compiler, "HERE", tmp_path)
    before = scheduler_compiler._digest()
    (tmp_path / "scheduler_parts.py").write_text("x = 2\n", encoding="utf-8")
    assert scheduler_compiler._digest() != before


def test_a_new_folder_drives_out_old_ones_of_this_program_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_place(monkeypatch, tmp_path)
    monkeypatch.setattr(scheduler_compiler.CONFIG, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(scheduler_compiler, "OTHERS_KEPT", 2)
    mine = [tmp_path / f"scheduler-{age:016x}" for age in range(4)]
    others = [tmp_path / name for name in ("scheduler-mine", f"scheduler-{0:015x}", "serving")]
    for age, folder in enumerate([*mine, *others]):
        (folder / "serving").mkdir(parents=True)
        (folder / "serving" / "run.nbi").touch()
        os.utime(folder, (1e9 - age, 1e9 - age))
    found = scheduler_compiler._folder()
    assert found is not None
    assert {one.name for one in tmp_path.iterdir() if one.is_dir()} == {
        one.name for one in (Path(found), *mine[:2], *others)
    }
    # One that was there already drives out none.
    mine[2].mkdir()
    assert scheduler_compiler._folder() == found
    assert mine[2].is_dir()


def test_an_old_folder_that_cannot_be_removed_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_place(monkeypatch, tmp_path)
    monkeypatch.setattr(scheduler_compiler.CONFIG, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(scheduler_compiler, "OTHERS_KEPT", 0)
    (tmp_path / f"scheduler-{1:016x}").touch()
    (tmp_path / f"scheduler-{2:016x}").symlink_to(tmp_path / "nowhere")
    found = scheduler_compiler._folder()
    assert found is not None
    assert Path(found).parent == tmp_path


def test_it_runs_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler_notes() == []
    monkeypatch.setattr(scheduler_compiler, "FOLDER", None)

    def doubled(number: int) -> int:
        return 2 * number

    assert scheduler_compiler.entry(doubled)(21) == 42
    assert "NUMBA_CACHE_DIR" in compiler_notes()[0]


def tripled(number: int) -> int:
    return 3 * number


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_file_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    monkeypatch.setattr(scheduler_compiler, "FOLDER", str(tmp_path))
    assert scheduler_compiler.entry(tripled)(14) == 42
    (file,) = tmp_path.rglob(f"*.{kind}")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert scheduler_compiler.entry(tripled)(14) == 42
    again: Any = scheduler_compiler.entry(tripled)
    assert again(14) == 42
    assert sum(again.stats.cache_hits.values()) == 1
    assert compiler_notes() == []


def test_it_runs_where_the_disk_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scheduler_compiler, "FOLDER", str(tmp_path))
    monkeypatch.setattr(scheduler_compiler, "UNKEPT", {})
    monkeypatch.setattr(FunctionCache, "save_overload", full)
    assert scheduler_compiler.entry(tripled)(14) == 42
    (note,) = compiler_notes()
    assert f"{tmp_path} cannot keep it (No space left on device)" in note


def test_ctrl_c_is_not_lost_where_llvm_calls_back() -> None:
    reached = []

    def callback() -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append(True)

    names = {"__name__": "llvmlite.binding.executionengine", "signal": signal, "__builtins__": __builtins__}
    inside = FunctionType(callback.__code__, names, closure=callback.__closure__)
    with pytest.raises(KeyboardInterrupt), scheduler_compiler.interruptible():
        inside()
    assert reached == [True]
    with pytest.raises(KeyboardInterrupt), scheduler_compiler.interruptible():
        callback()
    assert reached == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@scheduler_compiler.compiled
def fourfold(number: int) -> int:
    return 4 * number


def test_an_inner_function_runs_uncompiled_where_python_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # What was kept by an earlier run would not compile it again.
    monkeypatch.setattr(scheduler_compiler, "FOLDER", None)
    dispatcher: Any = fourfold
    assert fourfold(3) == 12
    assert dispatcher.signatures == []

    def plus_two(number: int) -> int:
        return fourfold(number) + 2

    assert scheduler_compiler.entry(plus_two)(10) == 42
    assert len(dispatcher.signatures) == 1


def test_work_in_a_thread_hears_ctrl_c_and_passes_errors_on() -> None:
    ended = []

    def long(stop: BoolArray) -> None:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        began_s = time.monotonic()
        while not stop[0] and time.monotonic() - began_s < 60.0:
            time.sleep(0.01)
        ended.append(bool(stop[0]))

    with pytest.raises(KeyboardInterrupt):
        scheduler_compiler.stoppable(long)
    assert ended == [True]

    def wrong(_stop: BoolArray) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scheduler_compiler.stoppable(wrong)


LONG = """
import sys
import numpy as np
from planner.cli.run import main
from planner.planning import simulate as asked
from planner.serving import simulation

outcomes = []
empty_outcome = simulation.empty_outcome

def kept(requests, **named):
    outcomes.append(empty_outcome(requests, **named))
    return outcomes[-1]

def told(one, stream, **named):
    # What is to be compiled is compiled, so that Ctrl-C finds the loop.
    simulation.simulate(one, asked.chosen(stream, np.arange(1)), **named)
    print("simulating", flush=True)
    return simulation.simulate(one, stream, **named)

simulation.empty_outcome = kept
asked.simulate = told
code = main()
print((outcomes[-1].finished_s >= 0.0).mean())
sys.exit(code)
"""
LONG_LOAD = "simulate --model Qwen/Qwen3-8B --gpu H100 --concurrency 500 --num-requests 1000000"
LONG_LOAD += " --input-tokens 1000 --output-tokens 500 --length-low-ratio 0.1"
"""Runs for ten seconds."""


@pytest.mark.skipif(sys.platform == "win32", reason="no other process can be sent Ctrl-C there")
def test_ctrl_c_ends_a_long_simulation() -> None:
    command = [sys.executable, "-c", LONG, *LONG_LOAD.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        begun = process.stdout.readline()
        assert begun == "simulating\n", process.stderr.read()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == ""
    assert float(out) < 1.0


def test_a_python_without_the_compiler_is_told_so() -> None:
    """An environment for the engine alone has none."""
    program = (
        "import sys; sys.modules['numba'] = None; from planner.cli import main; sys.argv[1:] = ["
        "'simulate', '--model', 'Qwen/Qwen3-32B', '--gpu', 'H100', '--tp', '4', '--concurrency', '1',"
        " '--input-tokens', '64', '--output-tokens', '8']; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: this Python has no numba, which simulating needs" in done.stderr
    assert "Traceback" not in done.stderr
