"""`plan`: the answer on the screen, as CSV, as JSON and as an exit code."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from planner.assemble.question import Ask, facts_for
from planner.catalog.load import prices
from planner.cli.plan_report import RELAX
from planner.domain.evidence import Basis
from planner.domain.plan import Bottleneck
from planner.export.evidence import how_tested
from planner.export.recommendation import PLAN_COLUMNS, REJECTION_COLUMNS
from tests.cli.conftest import Cli

LLAMA = (
    *("plan", "--model", "meta-llama/Llama-3.1-70B", "--weight-dtype", "fp8", "--input-tokens", 1024),
    *("--output-tokens", 256, "--requests-per-s", 10, "--ttft-p95-ms", 2000, "--tpot-p95-ms", 60),
)
SMALL = ("plan", "--model", "meta-llama/Llama-3.1-8B", "--preset", "chat", "--gpu", "H100-SXM-80GB,L40S")


def test_the_question_of_the_readme(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    result = cli(*LLAMA, "--top", 5, "--csv", out)
    assert result.code == 0
    table = pd.read_csv(out)
    assert list(table.columns) == list(PLAN_COLUMNS)
    assert 1 <= len(table) <= 5
    first = table.iloc[0]
    assert first["tpot_ms_p95"] <= 60
    assert first["ttft_ms_p95"] <= 2000
    assert f"{first['instances']} x {first['instance_type']}" in result.out
    assert first["engine_command"] in result.out
    assert "--quantization fp8" in first["engine_command"]
    assert "Turned down" in result.out
    assert f"wrote {out}" in result.err
    assert max(len(line) for line in result.out.splitlines() if "vllm serve" not in line) <= 200


def test_json_counts_every_candidate_once(cli: Cli, tmp_path: Path) -> None:
    rejections = tmp_path / "no.csv"
    result = cli(*LLAMA, "--json", "--top", 3, "--rejections", rejections)
    assert result.code == 0
    found = result.json
    counts = found["counts"]
    assert counts["candidates"] == counts["answered"] + sum(counts["rejected"].values())
    assert len(found["plans"]) == 3
    assert set(PLAN_COLUMNS) <= set(found["plans"][0])
    assert found["plans"][0]["saving_usd_per_year"] == pytest.approx(
        12 * found["plans"][0]["saving_usd_per_month"], abs=0.01
    )
    assert found["pareto"]
    assert found["nearest_misses"] == []
    assert found["question"]["tpot_p95_ms"] == 60
    with rejections.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(REJECTION_COLUMNS)
    assert len(rows) == sum(counts["rejected"].values())


def test_a_config_file_with_a_preset_supply_and_reservation(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(Path("data/models/Qwen--Qwen3-8B.json").read_text())
    result = cli(
        *("plan", "--model", config, "--preset", "rag", "--requests-per-s", 3),
        *("--provider", "aws,gcp", "--purchase", "reserved_1y", "--json"),
    )
    assert result.code == 0
    plans = result.json["plans"]
    assert {plan["provider"] for plan in plans} <= {"aws", "gcp"}
    assert {plan["purchase"] for plan in plans} == {"reserved_1y"}
    assert f"vllm serve {tmp_path} " in plans[0]["engine_command"]


def test_a_budget_is_kept(cli: Cli) -> None:
    result = cli(
        *("plan", "--preset", "chat", "--model", "Qwen/Qwen3-32B", "--requests-per-s", 20),
        *("--budget-usd-per-month", 40000, "--json"),
    )
    assert result.code == 0
    assert all(plan["usd_per_month"] <= 40000 for plan in result.json["plans"])


def test_nothing_fits_is_exit_1_with_the_nearest_misses(cli: Cli) -> None:
    result = cli(*SMALL, "--tpot-p95-ms", 0.001)
    assert result.code == 1
    assert "Nothing fits" in result.out
    assert "Nearest misses" in result.out
    assert "hint: to get past tpot" in result.err
    found = cli(*SMALL, "--tpot-p95-ms", 0.001, "--json")
    assert found.code == 1
    assert found.json["plans"] == []
    assert found.json["nearest_misses"][0]["bottleneck"] == "tpot"


def test_every_reason_to_reject_has_a_way_out() -> None:
    binding_alone = {Bottleneck.KV_CACHE, Bottleneck.THROUGHPUT}
    assert set(RELAX) == set(Bottleneck) - binding_alone


def test_nothing_fits_writes_an_empty_recommendation(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert cli(*SMALL, "--budget-usd-per-month", 1, "--csv", out).code == 1
    assert pd.read_csv(out).empty
    assert list(pd.read_csv(out).columns) == list(PLAN_COLUMNS)


def test_savings_against_an_earlier_recommendation(cli: Cli, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.csv"
    assert cli(*SMALL, "--requests-per-s", 50, "--csv", earlier).code == 0
    result = cli(*SMALL, "--previous", earlier, "--json", "--top", 1)
    plan = result.json["plans"][0]
    before = pd.read_csv(earlier)["usd_per_month"][0]
    assert plan["saving_vs_previous_usd_per_month"] == pytest.approx(before - plan["usd_per_month"], abs=0.01)
    assert "the previous choice" in cli(*SMALL, "--previous", earlier).out


def test_the_screen_leads_with_cost_and_keeps_the_dearest_for_last(cli: Cli) -> None:
    lines = cli(*SMALL, "--previous-usd-per-month", 30_000).out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("First choice a month: "))
    assert lines[first + 1].startswith("Saves $")
    assert lines[first + 1].endswith("against the previous choice, $30,000")
    assert lines[first + 2].startswith("The dearest of ")


def test_the_basis_says_what_was_measured(cli: Cli) -> None:
    out = cli(*SMALL).out
    basis = Basis(next(line for line in out.splitlines() if line.startswith("  basis ")).split()[1])
    bands = [facts_for().accuracy.band(basis, simulated=simulated) for simulated in (True, False)]
    band = bands[0]
    assert band is not None
    assert any(how_tested(one) in out for one in bands)
    assert f"runs: {band.note}" in out


def test_one_of_something_is_singular_and_long_times_are_seconds(cli: Cli) -> None:
    out = cli(*SMALL, "--requests-per-s", 1, "--ttft-p95-ms", 1e6, "--top", 1).out
    assert " 1 request/s on average" in out
    assert "TTFT p95 within 1,000 s" in out
    assert "\nThe cheapest; *" in out
    assert "e+0" not in out


def test_a_command_is_a_command_and_its_warning_stands_beside_it(cli: Cli, tmp_path: Path) -> None:
    stored = (*SMALL, "--weight-dtype", "int4", "--top", 1)
    result = cli(*stored, "--csv", tmp_path / "out.csv")
    row = pd.read_csv(tmp_path / "out.csv").iloc[0]
    assert "#" not in row["engine_command"]
    assert row["warnings"].startswith("needs a checkpoint")
    lines = result.out.splitlines()
    command = next(index for index, line in enumerate(lines) if "vllm serve" in line)
    assert lines[command + 1].strip().startswith("# needs a checkpoint")


@pytest.mark.parametrize(
    "field", ["peak_ratio", "headroom_ratio", "purchase", "max_tp", "max_pp", "spare_replicas"]
)
def test_help_shows_the_defaults(cli: Cli, field: str) -> None:
    value = Ask.model_fields[field].default
    text = " ".join(cli("plan", "--help").out.split())
    option = text[text.index(f"--{field.replace('_', '-')} ") :]
    shown = value[0] if isinstance(value, tuple) else value
    assert option[option.index("[default: ") :].startswith(f"[default: {shown}]")


def test_hidden_prices_are_told_of(cli: Cli) -> None:
    providers = {price.provider for price in prices()}
    hidden = sorted(providers - {price.provider for price in prices() if price.is_trusted})
    if not hidden:
        pytest.skip("every provider of the catalog has a trusted price")
    count = sum(price.provider == hidden[0] for price in prices())
    error = cli(*SMALL, "--provider", hidden[0]).error
    assert f"{hidden[0]} has {count} price" in error
    assert error.endswith("all undated or second-hand: --include-untrusted")


def test_your_own_prices_are_used(cli: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "prices.csv"
    mine.write_text(
        "provider,instance_type,region,purchase,usd_per_hour,gpu,gpu_count\nbasement,box,cellar,on_demand,0.5,L40S,1\n"
    )
    plan = cli(*SMALL, "--prices", mine, "--provider", "basement", "--json").json["plans"][0]
    assert (plan["provider"], plan["region"], plan["usd_per_hour"]) == (
        "basement",
        "cellar",
        0.5 * plan["instances"],
    )


def test_lossy_formats_are_hinted_at_but_not_taken(cli: Cli) -> None:
    result = cli(*SMALL)
    assert "--weight-dtype any --kv-dtype any" in result.err
    assert cli(*SMALL, "--json").json["question"]["weight_dtypes"] == ["bf16"]
    wide = cli(*SMALL, "--weight-dtype", "any", "--kv-dtype", "any", "--json", "--top", 50).json
    assert {"bf16", "fp8", "int4"} <= set(wide["question"]["weight_dtypes"])
    stored = [plan for plan in wide["plans"] if plan["weight_dtype"] == "int4"]
    assert all("needs a checkpoint" in plan["warnings"] for plan in stored)


def test_repeated_options_add_up(cli: Cli) -> None:
    twice = cli(
        "plan",
        "--model",
        "meta-llama/Llama-3.1-8B",
        "--preset",
        "chat",
        "--gpu",
        "L4",
        "--gpu",
        "L40S",
        "--json",
    )
    assert twice.json["question"]["gpus"] == ["L4", "L40S"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), "plan needs a model"),
        (("--model", "meta-llama/Llama-3.1-8B"), "the traffic is incomplete: give input_tokens"),
        (("--model", "nobody/nothing.json", "--preset", "chat"), "neither a path nor a bundled name"),
        ((*SMALL[1:], "--preset", "chatt"), 'unknown preset "chatt"; did you mean chat?'),
        ((*SMALL[1:], "--gpu", "H1000"), 'unknown GPU "H1000"; did you mean'),
        ((*SMALL[1:], "--weight-dtype", "fp9"), 'unknown weight dtype "fp9"; did you mean fp8'),
        ((*SMALL[1:], "--kv-dtype", "fp9"), 'unknown KV dtype "fp9"'),
        ((*SMALL[1:], "--provider", "awz"), 'unknown provider "awz"'),
        ((*SMALL[1:], "--purchase", "spott"), 'unknown purchase "spott"; did you mean spot?'),
        ((*SMALL[1:], "--requests-per-s", "0"), "requests_per_s must be greater than or equal to 0.000001"),
        ((*SMALL[1:], "--requests-per-s", "-3"), "requests_per_s must be greater than or equal to 0.000001"),
        ((*SMALL[1:], "--requests-per-s", "inf"), "requests_per_s must be"),
        ((*SMALL[1:], "--requests-per-s", "nan"), "requests_per_s must be"),
        ((*SMALL[1:], "--requests-per-s", "1e300"), "requests_per_s must be"),
        ((*SMALL[1:], "--requests-per-s", "many"), "--requests-per-s"),
        ((*SMALL[1:], "--input-tokens", "0"), "input_tokens must be"),
        ((*SMALL[1:], "--output-tokens", "1e99"), "output_tokens must be"),
        ((*SMALL[1:], "--tpot-p95-ms", "-1"), "tpot_p95_ms must be"),
        ((*SMALL[1:], "--peak-ratio", "0.5"), "peak_ratio must be"),
        ((*SMALL[1:], "--headroom-ratio", "1"), "headroom_ratio must be"),
        ((*SMALL[1:], "--previous-usd-per-month", "inf"), "previous_usd_per_month"),
        ((*SMALL[1:], "--top", "0"), "top must be a whole number from 1"),
        ((*SMALL[1:], "--engine-version", "newest"), "newest"),
        ((*SMALL[1:], "--prices", "/no/such/prices.csv"), "/no/such/prices.csv"),
        ((*SMALL[1:], "--previous", "/no/such/earlier.csv"), "/no/such/earlier.csv: cannot be read"),
        ((*SMALL[1:], "--csv", "/no/such/out.csv"), "there is no folder /no/such"),
        ((*SMALL[1:], "--csv", "/tmp"), "it is a folder"),
        ((*SMALL[1:], "--csv", "/tmp/a.csv", "--rejections", "/tmp/a.csv"), "cannot write /tmp/a.csv twice"),
        ((*SMALL[1:], "--modle", "x"), 'unknown option "--modle"; did you mean --model'),
        (("/no/such/question.toml",), "/no/such/question.toml: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(cli: Cli, arguments: tuple[str, ...], wanted: str) -> None:
    assert wanted in cli("plan", *arguments).error


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full on this system")
def test_a_full_disk_is_exit_2(cli: Cli) -> None:
    assert cli(*SMALL, "--csv", "/dev/full").error == "cannot write /dev/full: No space left on device"
    assert Path("/dev/full").is_char_device()
