"""`catalog check` and `catalog list`."""

from pathlib import Path

import pandas as pd
import pytest

from tests.cli.conftest import Cli

TOPICS = ("gpus", "instances", "prices", "models", "presets")


def test_the_shipped_catalog_hangs_together(cli: Cli) -> None:
    result = cli("catalog", "check")
    assert result.code == 0
    assert "nothing wrong" in result.out
    report = cli("catalog", "check", "--json").json
    assert report["ok"] is True
    assert report["problems"] == []


def test_a_broken_catalog_is_exit_1_and_named(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "presets").mkdir()
    for name in ("gpus", "instances", "vllm_releases"):
        (data / f"{name}.csv").write_text(Path(f"data/{name}.csv").read_text())
    prices = Path("data/prices.csv").read_text().splitlines(keepends=True)
    (data / "prices.csv").write_text("".join(prices[:3]) + prices[2])
    result = cli("catalog", "check", "--data-dir", data, "--csv", tmp_path / "problems.csv")
    assert result.code == 1
    assert "stands 2 times" in " ".join(result.out.split())
    assert len(pd.read_csv(tmp_path / "problems.csv")) >= 1


def test_an_unreadable_catalog_is_exit_2(cli: Cli, tmp_path: Path) -> None:
    assert str(tmp_path) in cli("catalog", "check", "--data-dir", tmp_path).error


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_lists_as_table_json_and_csv(cli: Cli, topic: str, tmp_path: Path) -> None:
    result = cli("catalog", "list", topic, "--csv", tmp_path / "list.csv")
    assert result.code == 0
    assert result.out
    rows = cli("catalog", "list", topic, "--json").json
    table = pd.read_csv(tmp_path / "list.csv")
    assert len(rows) == len(table) > 0
    assert list(rows[0]) == list(table.columns)


def test_gpus_without_bf16_have_a_rate(cli: Cli) -> None:
    rows = {row["name"]: row for row in cli("catalog", "list", "gpus", "--json").json}
    for name in ("V100-16GB", "T4"):
        assert rows[name]["bf16_tflop_per_s"] is None
        assert rows[name]["fp16_tflop_per_s"] > 0


def test_filter_narrows(cli: Cli) -> None:
    names = [row["name"] for row in cli("catalog", "list", "gpus", "--filter", "h100", "--json").json]
    assert "H100-SXM-80GB" in names
    assert all("h100" in name.lower() for name in names)


def test_an_unknown_topic_is_one_line(cli: Cli) -> None:
    assert "gpus" in cli("catalog", "list", "gpu").error
