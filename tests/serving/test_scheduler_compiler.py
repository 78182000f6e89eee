"""Where the machine code of the scheduler is kept, and that it runs where it cannot be."""

import errno
import signal
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from numba.core.caching import FunctionCache

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


def test_it_runs_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler_notes() == []
    monkeypatch.setattr(scheduler_compiler, "FOLDER", None)

    def doubled(number: int) -> int:
        return 2 * number

    assert scheduler_compiler.allocating(doubled)(21) == 42
    assert "NUMBA_CACHE_DIR" in compiler_notes()[0]


def tripled(number: int) -> int:
    return 3 * number


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_file_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    monkeypatch.setattr(scheduler_compiler, "FOLDER", str(tmp_path))
    assert scheduler_compiler.allocating(tripled)(14) == 42
    (file,) = tmp_path.rglob(f"*.{kind}")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert scheduler_compiler.allocating(tripled)(14) == 42
    again: Any = scheduler_compiler.allocating(tripled)
    assert again(14) == 42
    assert sum(again.stats.cache_hits.values()) == 1
    assert compiler_notes() == []


def test_it_runs_where_the_disk_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scheduler_compiler, "FOLDER", str(tmp_path))
    monkeypatch.setattr(scheduler_compiler, "UNKEPT", {})
    monkeypatch.setattr(FunctionCache, "save_overload", full)
    assert scheduler_compiler.allocating(tripled)(14) == 42
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
