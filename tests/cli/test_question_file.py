"""Questions kept in TOML files."""

from pathlib import Path

import pytest

from planner.cli.question_file import merged, previous_usd_per_month, read_question
from planner.domain.base import InputError
from tests.cli.conftest import Cli


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text('model = "a"\nrequests_per_s = 3\nprovider = ["aws"]\n')
    assert merged(file, {"requests_per_s": 5.0, "region": None}) == {
        "model": "a",
        "requests_per_s": 5.0,
        "provider": ["aws"],
    }


def test_files_are_looked_for_beside_the_question(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "q.toml"
    file.write_text('model = "config.json"\nprices = "mine.csv"\n')
    assert read_question(file) == {"model": str(tmp_path / "config.json"), "prices": tmp_path / "mine.csv"}


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b'modle = "x"', 'unknown key "modle"; did you mean model'),
        (b"model = ", "not a TOML file"),
        (b'model = "\xff"', "not UTF-8 text"),
        (b"#" * 2_000_000, "larger than 1 MB"),
        (b"a = " + b"[" * 100_000, "not a TOML file"),
        (b"top = " + b"9" * 5000, "not a TOML file"),
        (b"top = 0x" + b"f" * 9000, "top is a number of more than 18 digits"),
        (b"gpu = [[0x" + b"f" * 9000 + b"]]", "gpu is a number of more than 18 digits"),
        (b'prices = "a\\u0000b"', "prices holds a NUL character"),
        (b'previous = "a\\u0000b"', "previous holds a NUL character"),
        (b"requests_per_s = true", "requests_per_s is true; only include_untrusted may be"),
        (b'calibration_dir = ""', "calibration_dir is empty; name a file or folder"),
        (b"top = false", "top is false; only include_untrusted may be"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, content: bytes, wanted: str) -> None:
    file = tmp_path / "q.toml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=wanted) as caught:
        read_question(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "line", ["requests_per_s = nan", "requests_per_s = inf", "requests_per_s = []", "top = 1.5", "prices = 3"]
)
def test_a_wrong_value_is_refused_and_names_its_key(cli: Cli, tmp_path: Path, line: str) -> None:
    file = tmp_path / "q.toml"
    file.write_text(f'model = "meta-llama/Llama-3.1-8B"\npreset = "chat"\n{line}\n')
    error = cli("plan", file).error
    assert line.split(maxsplit=1)[0] in error or "file name" in error


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "no row with a usd_per_month column"),
        ("rank,usd_per_month\n", "no row with a usd_per_month column"),
        ("rank,usd_per_month\n1,cheap\n", '"cheap"; an amount above 0 is needed'),
        ("rank,usd_per_month\n1,-5\n", "an amount above 0 is needed"),
        ("rank,usd_per_month\n1\n", "an amount above 0 is needed"),
        ("rank,usd_per_month\n1,1_000\n", "an amount above 0 is needed"),
        ("rank,usd_per_month\n1,1,000\n", "more cells than the header"),
    ],
)
def test_an_earlier_recommendation_must_name_its_cost(tmp_path: Path, text: str, wanted: str) -> None:
    file = tmp_path / "earlier.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=wanted):
        previous_usd_per_month(file)
