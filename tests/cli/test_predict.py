"""`predict`: every row is answered, or says why not."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest

from planner.domain.evidence import Accuracy
from planner.export.predictions import PREDICTION_COLUMNS
from tests.cli.conftest import RUNS, Cli
from tests.export.test_predictions import BAND

HEADER = RUNS.splitlines()[0]
MODEL = "meta-llama/Llama-3.1-8B"
OPEN_LOOP = {"concurrency": "", "request_rate_per_s": "2"}


def predicted(cli: Cli, tmp_path: Path, content: str | bytes) -> pd.DataFrame:
    """The output of `predict`, every cell as text."""
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    result = cli("predict", source, "--output", out)
    assert result.code == 0, result.err
    return pd.read_csv(out, dtype=str, keep_default_na=False)


def one(cli: Cli, tmp_path: Path, **cells: str) -> pd.Series:
    """What becomes of one run."""
    base = {"model": MODEL, "gpu": "H100-SXM-80GB", "input_tokens": "1024", "output_tokens": "128"}
    row = base | {"concurrency": "8"} | cells
    stream = io.StringIO()
    writer = csv.DictWriter(stream, row)
    writer.writeheader()
    writer.writerow(row)
    return predicted(cli, tmp_path, stream.getvalue()).iloc[0]


def test_rows_come_back_in_order_with_their_cells(cli: Cli, runs_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    accuracy = Accuracy(source="", fitted_on="2026-11-01", bands=(BAND,))
    (tmp_path / "accuracy.json").write_text(accuracy.model_dump_json())
    result = cli("predict", runs_file, "--output", out, "--calibration-dir", tmp_path)
    assert result.code == 0
    assert "3 rows: 2 ok, 1 rejected, 0 error" in result.err
    table = pd.read_csv(out)
    assert list(table.columns) == [*HEADER.split(","), *PREDICTION_COLUMNS]
    assert table["run_id"].tolist() == ["a", "b", "c"]
    assert table["notes"].tolist() == ["first, of three", "does not fit", "open loop"]
    assert table["status"].tolist() == ["ok", "rejected", "ok"]
    rejected = table.iloc[1]
    assert rejected["pred_weights_gib_per_gpu"] > 100
    assert rejected["pred_kv_cache_gib_per_gpu"] < 0
    assert "GiB" in rejected["reason"]
    answered = table[table["status"] == "ok"]
    for measure in ("ttft_ms_mean", "tpot_ms_mean", "kv_cache_tokens"):
        assert (answered[f"pred_{measure}_low"] <= answered[f"pred_{measure}"]).all()
        assert (answered[f"pred_{measure}"] <= answered[f"pred_{measure}_high"]).all()
    assert (answered["pred_ttft_ms_p50"] <= answered["pred_ttft_ms_p99"]).all()


def test_a_measured_run_that_does_not_say_its_token_budget_has_a_wider_ttft(cli: Cli, tmp_path: Path) -> None:
    record = {"source": "somebody's log", "max_num_seqs": "64"}
    known = one(cli, tmp_path, **record, max_num_batched_tokens="8192")
    assumed, question = one(cli, tmp_path, **record), one(cli, tmp_path, max_num_seqs="64")
    for name, is_wider in (("ttft", True), ("tpot", False)):
        spans = [
            float(row[f"pred_{name}_ms_mean_high"]) / float(row[f"pred_{name}_ms_mean"])
            for row in (known, question, assumed)
        ]
        assert spans[0] == pytest.approx(spans[1], rel=1e-4)
        assert (spans[2] > 1.001 * spans[0]) == is_wider


def test_the_order_of_rows_does_not_matter(cli: Cli, runs_file: Path, tmp_path: Path) -> None:
    lines = RUNS.splitlines()
    there = predicted(cli, tmp_path, RUNS)
    back = predicted(cli, tmp_path, "\n".join([lines[0], *lines[:0:-1]]) + "\n")
    assert there.equals(back[::-1].reset_index(drop=True))


def test_predicting_a_prediction_replaces_it(cli: Cli, runs_file: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    assert cli("predict", runs_file, "--output", first).code == 0
    result = cli("predict", first, "--output", second)
    assert "earlier predictions in it are replaced" in result.err
    assert first.read_bytes() == second.read_bytes()


def test_a_table_may_be_predicted_in_place(cli: Cli, runs_file: Path) -> None:
    assert cli("predict", runs_file, "--output", runs_file).code == 0
    assert pd.read_csv(runs_file)["status"].tolist() == ["ok", "rejected", "ok"]


def test_json_and_screen(cli: Cli, runs_file: Path, tmp_path: Path) -> None:
    found = cli("predict", runs_file, "--json").json
    assert found["counts"] == {"rows": 3, "ok": 2, "rejected": 1, "error": 0}
    assert [row["run_id"] for row in found["rows"]] == ["a", "b", "c"]
    assert found["rows"][1]["pred_tpot_ms_mean"] is None
    assert cli("predict", runs_file, "--json", "--output", tmp_path / "o.csv").json["counts"]["rows"] == 3
    assert "rejected" in cli("predict", runs_file).out


@pytest.mark.parametrize(
    ("cells", "same"),
    [
        ({"tp": "2.0"}, {"tp": "2"}),
        ({"gpu": "NVIDIA H100 80GB HBM3"}, {}),
        ({"model": MODEL.upper()}, {}),
        ({"weight_dtype": "bfloat16"}, {"weight_dtype": ""}),
        ({"weight_dtype": "auto", "kv_dtype": "auto"}, {"kv_dtype": ""}),
        ({"prefix_hit_ratio": "0", "length_low_ratio": "1.0"}, {}),
        ({"request_rate_per_s": "inf"}, {"request_rate_per_s": ""}),
        ({"num_requests": "80"}, {}),
        ({"async_scheduling": "on", "enforce_eager": "False"}, {}),
        ({"max_num_batched_tokens": "8192", "gpu_memory_utilization": "0.92"}, {}),
        ({"pp": "", "dp": "1", "ep": "1", "engine": "vllm"}, {}),
        (
            {"concurrency": "", "request_rate_per_s": "2", "arrival": "poisson"},
            {"concurrency": "", "request_rate_per_s": "2"},
        ),
        (
            {"concurrency": "", "request_rate_per_s": "2", "arrival": "gamma:1"},
            {"concurrency": "", "request_rate_per_s": "2"},
        ),
    ],
)
def test_two_spellings_of_one_run(
    cli: Cli, tmp_path: Path, cells: dict[str, str], same: dict[str, str]
) -> None:
    columns = list(PREDICTION_COLUMNS)
    first, second = one(cli, tmp_path, **cells), one(cli, tmp_path, **same)
    assert first["status"] == "ok"
    assert first[columns].tolist() == second[columns].tolist()


def test_arrivals_and_hits_change_the_prediction(cli: Cli, tmp_path: Path) -> None:
    load = {"concurrency": "", "request_rate_per_s": "20"}
    tails = [
        float(one(cli, tmp_path, **load, arrival=arrival)["pred_tpot_ms_p95"])
        for arrival in ("constant", "poisson", "gamma:3")
    ]
    assert tails[0] < tails[1] < tails[2]
    cached = one(cli, tmp_path, prefix_hit_ratio="0.9")
    assert float(cached["pred_ttft_ms_mean"]) < float(one(cli, tmp_path)["pred_ttft_ms_mean"])


def test_the_tighter_of_two_limits_counts(cli: Cli, tmp_path: Path) -> None:
    by_users = one(cli, tmp_path, concurrency="4", request_rate_per_s="1000")
    assert by_users["pred_tpot_ms_mean"] == one(cli, tmp_path, concurrency="4")["pred_tpot_ms_mean"]
    by_rate = one(cli, tmp_path, concurrency="500", request_rate_per_s="1")
    alone = one(cli, tmp_path, concurrency="", request_rate_per_s="1")
    assert by_rate["pred_tpot_ms_mean"] == alone["pred_tpot_ms_mean"]


def test_a_row_without_load_is_answered_for_memory_alone(cli: Cli, tmp_path: Path) -> None:
    row = one(cli, tmp_path, concurrency="")
    assert row["status"] == "ok"
    assert row["pred_tpot_ms_mean"] == ""
    assert int(row["pred_kv_cache_tokens"]) > 100_000


def test_memory_of_the_card_may_be_given(cli: Cli, tmp_path: Path) -> None:
    less = one(cli, tmp_path, gpu_memory_gib="40")
    assert int(less["pred_kv_cache_tokens"]) < int(one(cli, tmp_path)["pred_kv_cache_tokens"])


def test_a_length_beyond_the_model_is_answered_with_a_warning(cli: Cli, tmp_path: Path) -> None:
    """A run that was measured at such a length had it allowed, or scaled its positions."""
    row = one(cli, tmp_path, max_model_len="131073")
    assert row["status"] == "ok"
    assert "beyond the model's 131072" in row["reason"]
    assert one(cli, tmp_path, max_model_len="131072")["reason"] == ""


@pytest.mark.parametrize(
    ("column", "notes"),
    [
        ("concurency", ["column concurency is not used; did you mean concurrency?"]),
        ("Concurrency", ["column Concurrency is not used; did you mean concurrency?"]),
        ("request_rate", ["column request_rate is not used; did you mean request_rate_per_s?"]),
        ("max_concurrency_x", []),
        ("output_tokens_per_s", []),
        ("weather", []),
        ("tps", []),
    ],
)
def test_a_misspelt_column_is_told_of_and_an_unrelated_one_is_not(
    cli: Cli, tmp_path: Path, column: str, notes: list[str]
) -> None:
    source = tmp_path / "in.csv"
    source.write_text(f"model,gpu,{column}\n{MODEL},L40S,8\n")
    err = cli("predict", source).err
    assert [line.removeprefix(f"{source}: ") for line in err.splitlines()[:-1]] == notes


@pytest.mark.parametrize("rate", ["1e-308", "9e-7", "1.1e7"])
def test_a_rate_out_of_range_is_an_error_of_its_row(cli: Cli, tmp_path: Path, rate: str) -> None:
    row = one(cli, tmp_path, concurrency="", request_rate_per_s=rate)
    assert (row["status"], row["reason"]) == (
        "error",
        f'column request_rate_per_s is "{rate}"; a number from 1e-06 up to 1e+07 is needed',
    )


def test_gaps_that_hardly_vary_are_answered(cli: Cli, tmp_path: Path) -> None:
    assert one(cli, tmp_path, **OPEN_LOOP, arrival="gamma:1e-200", num_requests="10")["status"] == "ok"


@pytest.mark.parametrize("method", ["steady", "simulate"])
def test_requests_longer_than_the_engine_takes_are_rejected_by_both_methods(
    cli: Cli, tmp_path: Path, method: str
) -> None:
    """Shortest: 90 + 20 tokens as given, 45 + 10 from half of that on."""
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    header = "model,gpu,input_tokens,output_tokens,concurrency,length_low_ratio,max_model_len"
    rows = [
        f"{MODEL},L40S,90,20,1,{ratio},{length}"
        for ratio, length in (("", 109), ("", 110), (0.5, 54), (0.5, 109))
    ]
    source.write_text("\n".join([header, *rows]), encoding="utf-8")
    assert cli("predict", source, "--method", method, "--output", out).code == 0
    found = pd.read_csv(out, keep_default_na=False)
    # A prompt of 90 tokens is too long for 54 by itself.
    assert found["status"].tolist() == ["rejected", "ok", "rejected", "ok"]
    assert found["reason"][0] == (
        "every request, prompt and answer, is longer than max_model_len 109: 110 tokens or more"
    )


def test_prompts_longer_than_the_engine_takes_are_rejected(cli: Cli, tmp_path: Path) -> None:
    row = one(cli, tmp_path, max_model_len="1024")
    assert (row["status"], row["reason"]) == (
        "rejected",
        "prompts of 1024 tokens leave no room for an answer in max_model_len 1024",
    )
    assert row["pred_weights_gib_per_gpu"]


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ({"model": ""}, "column model is"),
        ({"model": "no/such/model"}, "column model: "),
        ({"gpu": "H1000"}, 'column gpu: unknown GPU "H1000"'),
        ({"gpu": ""}, "column gpu: "),
        ({"gpu_memory_gib": "-1"}, "column gpu_memory_gib"),
        ({"tp": "0"}, 'column tp is "0"; a whole number from 1 to 64'),
        ({"tp": "1.5"}, 'column tp is "1.5"'),
        ({"tp": "two"}, 'column tp is "two"'),
        ({"tp": "1_0"}, 'column tp is "1_0"'),
        ({"pp": "-1"}, "column pp"),
        ({"dp": "1e9"}, "column dp"),
        ({"ep": "some"}, "column ep"),
        ({"weight_dtype": "fp9"}, 'column weight_dtype: unknown weight dtype "fp9"; did you mean'),
        ({"kv_dtype": "fp4"}, "column kv_dtype: unknown KV dtype"),
        ({"input_tokens": "0"}, "column input_tokens"),
        ({"input_tokens": "nan"}, "column input_tokens"),
        ({"input_tokens": ""}, "column input_tokens"),
        ({"output_tokens": "-5"}, "column output_tokens"),
        ({"output_tokens": "inf"}, "column output_tokens"),
        ({"length_low_ratio": "1.5"}, "column length_low_ratio"),
        ({"prefix_hit_ratio": "1"}, "column prefix_hit_ratio"),
        ({"concurrency": "0"}, "column concurrency"),
        ({"concurrency": "2.5"}, "column concurrency"),
        ({"request_rate_per_s": "-1"}, "column request_rate_per_s"),
        ({"concurrency": "", "request_rate_per_s": "inf"}, "column num_requests"),
        ({"arrival": "posson"}, "column arrival: unknown arrival"),
        ({"arrival": "gamma"}, "column arrival"),
        ({"arrival": "gamma:-1"}, "column arrival"),
        ({"num_requests": "0"}, "column num_requests"),
        ({"max_num_seqs": "none"}, "column max_num_seqs"),
        ({"gpu_memory_utilization": "92"}, "column gpu_memory_utilization"),
        ({"enforce_eager": "maybe"}, 'column enforce_eager is "maybe"; true or false'),
        ({"engine": "abacus"}, 'column engine is "abacus"; vllm'),
        ({"engine_version": "latest"}, "engine_version"),
    ],
)
def test_a_bad_cell_names_its_column(cli: Cli, tmp_path: Path, cells: dict[str, str], wanted: str) -> None:
    row = one(cli, tmp_path, **cells)
    assert row["status"] == "error"
    assert wanted in row["reason"]
    assert row["pred_tpot_ms_mean"] == row["basis"] == ""


GOOD = f"model,gpu,input_tokens,output_tokens,concurrency,notes\n{MODEL},H100-SXM-80GB,100,100,4,x\n"


@pytest.mark.parametrize(
    ("content", "statuses"),
    [
        (GOOD.replace("\n", "\r\n"), ["ok"]),
        (("\ufeff" + GOOD), ["ok"]),
        (GOOD + "\n\n", ["ok"]),
        (GOOD.rstrip("\n"), ["ok"]),
        (GOOD + "too,few\n" + GOOD.splitlines()[1], ["ok", "error", "ok"]),
        (GOOD + GOOD.splitlines()[1] + ",extra\n", ["ok", "error"]),
        (GOOD + ",,,,,\n", ["ok", "error"]),
        (GOOD.replace(",x", ",caf\xe9").encode("latin-1"), ["ok"]),
        (GOOD.replace(MODEL, "caf\xe9").encode("latin-1"), ["error"]),
        (GOOD + '"never closed,' + "x" * 100, ["ok", "error"]),
        (GOOD + "\0\0\0\n", ["ok", "error"]),
        (GOOD + '"' + "x" * 2_000_000 + '"\n' + GOOD.splitlines()[1] + "\n", ["ok", "error", "ok"]),
        ("model,gpu\n", []),
    ],
    ids=[
        *("crlf", "bom", "blank lines", "no last line end", "too few cells", "too many cells", "empty cells"),
        *("latin-1 note", "latin-1 model", "open quotation", "nul bytes", "huge cell", "header alone"),
    ],
)
def test_good_rows_of_a_half_broken_table_are_answered(
    cli: Cli, tmp_path: Path, content: str | bytes, statuses: list[str]
) -> None:
    found = predicted(cli, tmp_path, content)
    assert found["status"].tolist() == statuses
    assert (found["reason"] != "").tolist() == [status != "ok" for status in statuses]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"gpu,tp\nH100,1\n", "no column model"),
        (b"modle,gpu\nx,y\n", "no column model; is it modle?"),
        (b"model;gpu\nx;y\n", "no column model"),
        (b"model,gpu,tp,tp\n", "column tp stands twice"),
        ("model,gpu\n".encode("utf-16"), "no column model"),
        (bytes(range(256)) * 100, "no column model"),
    ],
)
def test_a_table_without_the_columns_is_refused(
    cli: Cli, tmp_path: Path, content: bytes, wanted: str
) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(content)
    out = tmp_path / "out.csv"
    assert wanted in cli("predict", source, "--output", out).error
    assert not out.exists()


def test_unknown_columns_may_repeat(cli: Cli, tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(f"x,model,gpu,x\n1,{MODEL},L4,2\n")
    assert cli("predict", source, "--output", out).code == 0
    assert out.read_text().splitlines()[0].startswith("x,model,gpu,x,pred_")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("/no/such.csv",), "/no/such.csv: cannot be read: No such file or directory"),
        (("/tmp",), "/tmp: cannot be read"),
        ((), "IN.csv"),
        (("x.csv", "--method", "stedy"), "--method"),
        (("x.csv", "--output", "/no/such/out.csv"), "there is no folder"),
        (("x.csv", "--calibration-dir", "/no/such"), "calibration folder /no/such is not there"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(cli: Cli, arguments: tuple[str, ...], wanted: str) -> None:
    assert wanted in cli("predict", *arguments).error


def test_a_length_nobody_recorded_is_as_long_as_the_load_needs(cli: Cli, tmp_path: Path) -> None:
    """131,072 tokens of Llama-3.1-70B take 40 GiB of cache, which a card of 82 GiB with fp8 weights has not."""
    cells = {
        "model": "meta-llama/Llama-3.1-70B",
        "weight_dtype": "fp8",
        "gpu": "H200",
        "gpu_memory_gib": "82",
    }
    silent = one(cli, tmp_path, **cells)
    assert silent["status"] == "ok"
    assert "max_model_len 1152" in silent["reason"]
    said = one(cli, tmp_path, **cells, max_model_len="131072")
    assert said["status"] == "rejected"


def test_another_engine_is_answered_and_named(cli: Cli, tmp_path: Path) -> None:
    row = one(cli, tmp_path, engine="SGLang", engine_version="0.5.5")
    assert (row["status"], row["reason"]) == ("ok", "sglang is predicted as if it were vLLM")
