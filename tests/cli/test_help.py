"""Help of every verb, and what a wrong command line gets."""

import pytest

from planner import __version__
from tests.cli.conftest import Cli

VERBS = [
    (),
    ("plan",),
    ("predict",),
    ("validate",),
    ("memory",),
    ("simulate",),
    ("explain",),
    ("catalog",),
    ("catalog", "check"),
    ("catalog", "list"),
    ("export",),
    ("export", "vllm"),
    ("ui",),
    ("fit",),
    ("fit", "operators"),
    ("fit", "errors"),
]
QUIET = {(), ("catalog",), ("export",), ("fit",), ("ui",)}
"""Groups, and the verb that starts a server: nothing to print as JSON."""


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help(cli: Cli, verb: tuple[str, ...]) -> None:
    result = cli(*verb, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: {' '.join(('planner', *verb))}")
    assert result.err == ""
    if verb not in QUIET:
        assert "--json" in result.out
        assert "--csv" in result.out


def test_no_verb_shows_the_help(cli: Cli) -> None:
    result = cli()
    assert result.code == 0
    assert "plan " in result.out


def test_version(cli: Cli) -> None:
    assert cli("--version").out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("plna",), "'plan'"),
        (("--jsno",), '"--jsno"'),
        (("catalog", "lst"), "'list'"),
        (("memory", "--gpuu", "x"), "did you mean --gpu"),
        (("plan", "a.toml", "b.toml"), "b.toml"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_nearest(
    cli: Cli, arguments: tuple[str, ...], wanted: str
) -> None:
    assert wanted in cli(*arguments).error
