"""The committed tables hold together, and each relation is broken once to see that it is tested."""

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from planner.catalog.check import EXCEPTIONS, SUCCESSORS, VARIANTS, CatalogReport, check_catalog
from planner.catalog.load import gpus, instances, prices
from planner.catalog.paths import data_dir
from planner.domain.base import InputError

ON = date(2026, 9, 1)


def test_the_committed_tables_have_no_problem() -> None:
    report = check_catalog()
    assert report.problems == ()
    assert report.ok


def test_there_is_as_much_as_was_promised() -> None:
    report = check_catalog()
    assert report.gpus >= 30
    assert report.prices >= 400
    assert report.presets >= 8
    assert report.releases >= 40
    assert {"aws", "gcp", "azure", "oci", "lambda", "coreweave", "nebius", "runpod"} <= set(report.providers)
    names = {gpu.name for gpu in gpus()}
    assert {
        "V100-16GB",
        "A100-SXM-80GB",
        "H100-SXM-80GB",
        "H200-SXM-141GB",
        "B200",
        "B300",
        "MI300X",
    } <= names


def test_every_row_has_a_source_and_every_trusted_price_a_date() -> None:
    assert all(row.source for table in (gpus(), instances(), prices()) for row in table)
    assert all(gpu.as_of for gpu in gpus())
    assert all(price.as_of for price in prices() if price.is_trusted)


def test_every_cuda_gpu_has_its_nvml_name_among_its_aliases() -> None:
    for gpu in gpus():
        if gpu.vendor == "NVIDIA":
            assert any(alias.startswith(("NVIDIA ", "Tesla ")) for alias in gpu.aliases), gpu.name


def test_lines_of_successors_and_variants_name_real_gpus() -> None:
    names = {gpu.name for gpu in gpus()}
    assert {name for line in (*SUCCESSORS, *VARIANTS) for name in line} <= names


def test_every_exception_is_still_needed() -> None:
    assert {text.split(":")[0] for text in check_catalog().exceptions} == set(EXCEPTIONS)


def test_the_age_of_prices_is_counted_from_today() -> None:
    assert check_catalog(today=ON).stale_prices == 0
    later = check_catalog(today=date(2027, 9, 1))
    assert later.stale_prices == later.trusted_prices
    assert later.oldest_price <= later.newest_price
    assert later.ok


Break = Callable[..., CatalogReport]


@pytest.fixture(name="after")
def _after(tmp_path: Path) -> Break:
    """Check a copy of the tables in which one text stands in place of another."""

    def check(table: str, old: str, new: str) -> CatalogReport:
        shutil.copytree(data_dir(), tmp_path / "data", ignore=shutil.ignore_patterns("models"))
        path = tmp_path / "data" / table
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return check_catalog(tmp_path / "data", today=ON)

    return check


@pytest.mark.parametrize(
    ("table", "old", "new", "row", "said"),
    [
        ("gpus.csv", "NVIDIA H200|", "NVIDIA H200|NVIDIA B200|", "B200", "a name of H200-SXM-141GB"),
        ("gpus.csv", "\nL40S,", "\nL40,", "L40", "stands 2 times"),
        ("gpus.csv", ",989.4,989.4,1978.9", ",989.4,989.4,3957.8", "H100-SXM-80GB", "fp8 is not twice bf16"),
        ("gpus.csv", ",989.4,989.4,", ",1978.9,989.4,", "H100-SXM-80GB", "bf16 and fp16 rates that differ"),
        ("gpus.csv", "4500,4500,9000", "4500,4500,4500", "B200", "fp4 is below twice fp8"),
        ("gpus.csv", ",79.19,yes", ",85.19,yes", "H100-SXM-80GB", "reports 85.19 GiB"),
        ("gpus.csv", ",4800,66.9", ",3000,66.9", "H200-SXM-141GB", "is slower than H100-SXM-80GB"),
        ("gpus.csv", "900,128,700,132,", "900,128,700,114,", "H200-SXM-141GB", "is not the chip of H100-SXM"),
        (
            "instances.csv",
            "p5.48xlarge,H100-SXM-80GB",
            "p5.48xlarge,H100",
            "aws p5.48xlarge",
            "unknown GPU H100",
        ),
        (
            "instances.csv",
            "g6e.48xlarge,L40S,8,pcie",
            "g6e.48xlarge,L40S,8,nvswitch",
            "aws g6e.48xlarge",
            "without it",
        ),
        (
            "instances.csv",
            "p5.48xlarge,H100-SXM-80GB,8,nvswitch",
            "p5.48xlarge,H100-SXM-80GB,8,none",
            "aws p5.48xlarge",
            "8 GPUs joined by none",
        ),
        (
            "instances.csv",
            "p5.48xlarge,H100-SXM-80GB,8,nvswitch",
            "p5.48xlarge,H100-SXM-80GB,8,infinity_fabric",
            "aws p5.48xlarge",
            "between NVIDIA GPUs",
        ),
        ("instances.csv", "aws,p4d.24xlarge", "aws,p4de.24xlarge", "aws p4de.24xlarge", "stands 2 times"),
        (
            "prices.csv",
            "aws,p5.48xlarge,us-east-1,on_demand",
            "aws,p5.49xlarge,us-east-1,on_demand",
            "aws p5.49xlarge us-east-1 on_demand",
            "unknown instance",
        ),
        (
            "prices.csv",
            "gcp,a3-highgpu-8g,us-central1,reserved_1y,61.3837",
            "gcp,a3-highgpu-8g,us-central1,reserved_1y,91.3837",
            "gcp a3-highgpu-8g us-central1 reserved_1y",
            "more than 88.49 on_demand",
        ),
        (
            "prices.csv",
            "gcp,a3-highgpu-8g,us-central1,spot,53.0936",
            "gcp,a3-highgpu-8g,us-central1,spot,93",
            "gcp a3-highgpu-8g us-central1 spot",
            "more than 88.49 on_demand",
        ),
        (
            "prices.csv",
            "gcp,a2-highgpu-8g,us-central1,on_demand,29.3871",
            "gcp,a2-highgpu-8g,us-central1,on_demand,58.7742",
            "gcp a2-highgpu-8g us-central1 on_demand",
            "its like 3.673",
        ),
        (
            "prices.csv",
            "aws,p5.4xlarge,us-east-1,on_demand,6.88",
            "aws,p5.4xlarge,us-east-1,on_demand,68.8",
            "aws p5.4xlarge us-east-1 on_demand",
            "a GPU and hour",
        ),
        (
            "prices.csv",
            "aws,p5.4xlarge,us-east-1,",
            "aws,p5.4xlarge,us east 1,",
            "aws p5.4xlarge us east 1 on_demand",
            "no region identifier",
        ),
        (
            "prices.csv",
            "aws,p4d.24xlarge,us-west-2,on_demand",
            "aws,p4d.24xlarge,us-east-2,on_demand",
            "aws p4d.24xlarge us-east-2 on_demand",
            "stands 2 times",
        ),
        ("vllm_releases.csv", "0.12.0,", "0.11.2,", "0.11.2", "stands after 0.11.2"),
        ("vllm_releases.csv", "0.12.0,", "0.12.1,", "0.12.0", "is not listed"),
        ("vllm_releases.csv", "0.8.0,", "0.7.4,", "0.7.4", "is older than vLLM 0.8.0"),
        ("vllm_releases.csv", "0.8.0,", "0.7.4,", "0.8.0", "is not listed"),
        ("vllm_releases.csv", "0.33.0,", "0.32.1,", "0.33.0", "is not listed"),
        ("vllm_releases.csv", "0.12.0,", "v0.12,", "v0.12", "is written 0.12.0 elsewhere"),
        ("vllm_releases.csv", "0.12.0,", "newest,", "newest", "is not a vLLM version"),
        ("vllm_releases.csv", ",2025-12-03,", ",2025-11-19,", "0.12.0", "came out before 0.11.2"),
        ("vllm_releases.csv", "0.16.0,2026-02-26", "0.16.0,2026-04-26", "0.17.0", "came out before 0.16.0"),
    ],
)
def test_one_wrong_figure_is_found(after: Break, table: str, old: str, new: str, row: str, said: str) -> None:
    found = [(problem.row, problem.message) for problem in after(table, old, new).problems]
    assert any(name == row and said in message for name, message in found), found


def test_a_row_that_does_not_parse_stops_the_check(after: Break) -> None:
    with pytest.raises(InputError, match=r"prices\.csv:2: column usd_per_hour"):
        after("prices.csv", "on_demand,3.06,", "on_demand,,")


@pytest.mark.parametrize("day", ["", "2025-12", "2025-13-03", "3 Dec 2025"])
def test_a_release_needs_a_whole_day(after: Break, day: str) -> None:
    with pytest.raises(
        InputError, match=r'vllm_releases\.csv:17: column released is ".*"; (an ISO date|a text)'
    ):
        after("vllm_releases.csv", "2025-12-03", day)
