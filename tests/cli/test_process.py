"""What only a real process shows: imports, pipes, exit codes."""

import subprocess
import sys

import pytest

HEAVY = (
    *("pandas", "pyarrow", "streamlit", "plotly", "huggingface_hub", "vllm", "numba"),
    *("scipy", "scipy.optimize", "scipy.sparse"),
)
PLAN = ("plan", "--model", "meta-llama/Llama-3.1-8B", "--preset", "chat", "--gpu", "L40S")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def heavy_after(*arguments: str) -> list[str]:
    """Heavy packages that a command line imported; raises where it failed."""
    code = (
        "import sys; from planner.cli import main; code = main(sys.argv[1:]); "
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    result = python(code, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stderr.splitlines()[-1].split()


def test_the_help_of_all_verbs_imports_nothing_heavy() -> None:
    assert heavy_after("--help") == []


def test_a_plan_in_closed_form_imports_nothing_heavy() -> None:
    assert heavy_after(*PLAN, "--json", "--method", "steady") == []


def test_a_plan_that_simulates_imports_the_compiler_alone() -> None:
    # numba takes BLAS from scipy as it loads; none of ours is asked for.
    assert heavy_after(*PLAN, "--json") == ["numba", "scipy"]


def test_a_verb_imports_no_other() -> None:
    code = "import sys; from planner.cli import main; main(['memory', '--help']); " + (
        "print(*[name for name in sys.modules if name.startswith('planner.cli.')], file=sys.stderr)"
    )
    imported = python(code).stderr.split()
    assert "planner.cli.memory" in imported
    assert not {"planner.cli.plan", "planner.cli.simulate", "planner.cli.fit"} & set(imported)


@pytest.mark.parametrize(
    ("arguments", "code"), [(PLAN, 0), ((*PLAN, "--tpot-p95-ms", "0.001"), 1), (("plan",), 2)]
)
def test_exit_codes_of_the_module(arguments: tuple[str, ...], code: int) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "planner", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == code
    assert "Traceback" not in result.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "planner", "catalog", "list", "prices"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read().count("\n") <= 1
    assert process.returncode == 0


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only input errors become one line; anything else is a defect and must be seen."""
    from planner.cli import catalog, main

    def broken() -> None:
        raise AssertionError("a defect")

    monkeypatch.setitem(catalog.LISTINGS, catalog.Topic.GPUS, broken)
    with pytest.raises(AssertionError, match="a defect"):
        main(["catalog", "list", "gpus"])


def test_an_interruption_is_exit_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.cli import catalog, main

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(catalog.LISTINGS, catalog.Topic.GPUS, interrupted)
    assert main(["catalog", "list", "gpus"]) == 130


def test_an_interruption_of_the_imports_is_exit_130() -> None:
    code = (
        "import sys, signal; from planner.__main__ import start; "
        "sys.setprofile(lambda *_: 'planner.cli' in sys.modules "
        "and (sys.setprofile(None), signal.raise_signal(signal.SIGINT))); sys.exit(start())"
    )
    result = python(code, "--help")
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("verb", ["plan", "memory"])
def test_names_that_are_no_text_are_refused_in_one_harmless_line(verb: str) -> None:
    name = b"caf\xe9\x1b[31m.json"
    result = subprocess.run(
        [sys.executable, "-m", "planner", verb, "--model", name, "--gpu", "L4"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith(b"error: ")
    assert result.stderr.count(b"\n") == 1
    assert b"\x1b" not in result.stderr
