"""The Simulate page, run as Streamlit runs it, against what the core says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.assemble.traffic import TrafficAsked, traffic_asked
from planner.domain.workload import Slo
from planner.export.evidence import spanned
from planner.export.format import milliseconds, number, percent, rounded
from planner.export.simulation import SPREADS
from planner.planning.simulate import Simulation, simulated
from planner.serving.measures import Measures
from planner.ui.memory_answers import MemoryAsk
from planner.ui.simulation_answers import SimulationAsk, simulation_answered

Page = Callable[..., AppTest]

MODEL, GPU = "meta-llama/Llama-3.1-8B", "H100-SXM-80GB"
VIEWS = Path("planner/ui/views")
LENGTHS = {"input_tokens": "300", "output_tokens": "40"}
PLAIN = {"model": MODEL, "simulate_tp": "1", **LENGTHS}
PROMISE = {"ttft_p95_ms": "1000", "tpot_p95_ms": "50"}
CSV_TRACE = b"""\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.0000000,374,44
2023-11-16 18:15:50.0000000,396,109
2023-11-16 18:15:51.0000000,500,0
2023-11-16 18:15:52.0000000,500000,5
"""
JSON_TRACE = b"".join(
    b'{"timestamp": %d, "input_length": 1100, "output_length": 4, "hash_ids": [3, 1, %d]}\n'
    % (turn * 9000, 10 + turn)
    for turn in range(4)
)


def core(slo: Slo | None = None, *, engine: Engine | None = None, tp: int = 1, **load: object) -> Simulation:
    """What the core says of the model under a load."""
    case = deployment(MODEL, gpu_named(GPU), parallelism_of(tp), Formats(), engine or Engine())
    traffic, _ = traffic_asked(TrafficAsked(**load))
    return simulated(case, traffic, slo or Slo(ttft_p95_s=1.0, tpot_p95_s=0.05), facts_for())


def measured(found: Simulation) -> Measures:
    assert found.measures is not None
    return found.measures


def metrics(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def shown(app: AppTest) -> tuple[dict[str, str], list[list[object]]]:
    """Everything that a load decides."""
    return metrics(app), app.dataframe[0].value.to_numpy().tolist()


def upload(app: AppTest, name: str, raw: bytes) -> AppTest:
    app.file_uploader(key="simulate_trace").set_value((name, raw, "text/plain"))
    return app.run()


def assert_clean(app: AppTest) -> None:
    assert not app.exception
    assert not app.error


def test_users_at_once_have_the_numbers_of_the_core(page: Page) -> None:
    app = page("simulate", **PLAIN, simulate_users="8")
    assert_clean(app)
    found = core(concurrency=8, input_tokens=300, output_tokens=40)
    measures = measured(found)
    assert app.subheader[0].value.startswith(f"80 requests in {number(measures.duration_s)} s: ")
    assert metrics(app) == {
        "TTFT p95": milliseconds(1e3 * measures.ttft.p95_s),
        "TPOT p95": milliseconds(1e3 * measures.tpot.p95_s),
        "Output tokens/s": number(measures.output_tokens_per_s),
        "Goodput, req/s": number(measures.goodput_requests_per_s),
        "Engine busy": percent(measures.utilization_ratio),
        "KV cache, peak": percent(measures.peak_kv_used_ratio),
        "Preemptions": "0",
        "Prefix hits": "0.0 %",
    }
    table = app.dataframe[0].value.set_index("Latency")
    assert list(table.columns) == ["mean", "p50", "p90", "p95", "p99", "90 % of means"]
    ranges = table.pop("90 % of means")
    for name, title in SPREADS.items():
        wanted = [rounded(1e3 * value) for value in getattr(measures, name)]
        assert list(table.loc[title]) == pytest.approx(wanted)
        known = name in ("ttft", "tpot")
        assert ranges[title] == (spanned(getattr(found.ranges, name)) if known else "")
    assert len(app.get("plotly_chart")) == 2
    assert len(app.get("download_button")) == 2


@pytest.mark.parametrize(("cv", "number_of"), [("0", 0.0), ("1", 1.0), ("3", 3.0)])
def test_constant_poisson_and_gamma_arrivals(page: Page, cv: str, number_of: float) -> None:
    query = PLAIN | {"simulate_load": "rate", "simulate_requests_per_s": "4", "simulate_arrival_cv": cv}
    app = page("simulate", **query, simulate_num_requests="60", simulate_seed="7")
    assert_clean(app)
    load = {"requests_per_s": 4.0, "arrival_cv": number_of, "num_requests": 60, "seed": 7}
    measures = measured(core(**load, input_tokens=300, output_tokens=40))
    assert metrics(app)["TTFT p95"] == milliseconds(1e3 * measures.ttft.p95_s)
    assert app.subheader[0].value.startswith("60 requests")


def test_empty_fields_are_the_sidebar_s(page: Page) -> None:
    query = PLAIN | {"prefix_hit_ratio": "0.5", "arrival_cv": "2", "requests_per_s": "3"}
    app = page("simulate", **query, simulate_load="rate", simulate_num_requests="50")
    assert_clean(app)
    load = {"requests_per_s": 3.0, "arrival_cv": 2.0, "prefix_hit_ratio": 0.5, "num_requests": 50}
    measures = measured(core(**load, input_tokens=300, output_tokens=40))
    assert metrics(app)["TTFT p95"] == milliseconds(1e3 * measures.ttft.p95_s)
    assert metrics(app)["Prefix hits"] == percent(measures.prefix_hit_ratio) != "0.0 %"
    assert app.number_input(key="simulate_requests_per_s").placeholder == "3.00"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tp", 2),
        ("pp", 2),
        ("users", 64),
        ("input_tokens", 2000.0),
        ("output_tokens", 80.0),
        ("prefix_hit_ratio", 0.9),
        ("length_low_ratio", 0.1),
        ("num_requests", 400),
        ("max_num_seqs", 4),
        ("max_num_batched_tokens", 512),
        ("gpu_memory_utilization", 0.5),
    ],
)
def test_every_number_changes_the_answer(page: Page, key: str, value: float) -> None:
    app = page("simulate", **PLAIN)
    before = shown(app)
    app.number_input(key=f"simulate_{key}").set_value(value).run()
    assert_clean(app)
    assert shown(app) != before


def test_seed_model_length_and_switches_reach_the_core(page: Page) -> None:
    app = page("simulate", **PLAIN, simulate_length_low_ratio="0.2", simulate_prefix_hit_ratio="0.5")
    before = shown(app)
    app.number_input(key="simulate_seed").set_value(1).run()
    assert shown(app) != before
    app.number_input(key="simulate_seed").set_value(0).run()
    assert shown(app) == before
    app.toggle(key="simulate_prefix_caching").set_value(False).run()
    assert metrics(app)["Prefix hits"] == "0.0 %"
    assert any("Prefix caching is off" in caption.value for caption in app.caption)
    app.number_input(key="simulate_max_model_len").set_value(50).run()
    assert not app.exception
    assert "longer than max_model_len, 50 tokens" in app.error[0].value


def test_the_promise_of_the_sidebar_is_judged(page: Page) -> None:
    app = page("simulate", **(PLAIN | PROMISE))
    assert app.subheader[0].value.endswith("keeps the promise")
    app = page("simulate", **(PLAIN | {"ttft_p95_ms": "0.01", "tpot_p95_ms": "50"}))
    assert app.subheader[0].value.endswith("misses the promised TTFT")
    assert metrics(app)["Goodput, req/s"] == "0"
    app = page("simulate", **(PLAIN | {"ttft_p95_ms": "0", "tpot_p95_ms": "0"}))
    assert ":" not in app.subheader[0].value
    assert {metric.delta for metric in app.metric if metric.label == "TPOT p95"} == {"no promise"}


def test_without_a_tp_the_smallest_that_fits_is_taken(page: Page) -> None:
    app = page("simulate", **(LENGTHS | {"model": "meta-llama/Llama-3.1-70B", "simulate_users": "4"}))
    assert_clean(app)
    assert any(" · TP 4 · " in markdown.value for markdown in app.markdown)


def test_what_does_not_start_says_why(page: Page) -> None:
    app = page("simulate", model="meta-llama/Llama-3.1-70B", simulate_tp="1")
    assert_clean(app)
    assert app.subheader[0].value == "Does not start"
    assert any(caption.value.startswith("Weights ") for caption in app.caption)
    assert not app.metric
    assert not app.get("plotly_chart")


def test_a_trace_is_awaited_then_simulated(page: Page) -> None:
    app = page("simulate", **PLAIN, simulate_load="trace")
    assert_clean(app)
    assert app.info[0].value == "Upload a trace to simulate it."
    upload(app, "conversations.csv", CSV_TRACE)
    assert_clean(app)
    assert not app.info
    assert app.subheader[0].value.startswith("3 requests")
    said = " ".join(caption.value for caption in app.caption)
    assert "taken for one token: 1" in said
    assert "longer than max_model_len, 131072 tokens: 1 of 4 requests" in said
    before = metrics(app)["Output tokens/s"]
    app.number_input(key="simulate_rate_scale").set_value(4.0).run()
    assert float(metrics(app)["Output tokens/s"]) > 2 * float(before)
    app.number_input(key="simulate_num_requests").set_value(2).run()
    assert app.subheader[0].value.startswith("2 requests")


def test_a_trace_of_prefixes(page: Page) -> None:
    app = upload(page("simulate", **PLAIN, simulate_load="trace"), "turns.jsonl", JSON_TRACE)
    assert_clean(app)
    # Of four prompts of 1,100 tokens three find two blocks of 512.
    assert metrics(app)["Prefix hits"] == percent(3 * 1024 / 4400)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("t.csv", b"", "trace.csv"),
        ("t.csv", b"a,b\n1,2\n", 'trace.csv:1: unknown column "a"'),
        ("t.csv", CSV_TRACE + b"x,1,1\n", 'trace.csv:6: column TIMESTAMP is "x"'),
        ("t.csv", CSV_TRACE + b"2023-11-16 18:15:53,-1,1\n", "trace.csv:6: column ContextTokens"),
        ("t.csv", CSV_TRACE.partition(b"\n")[0], "trace.csv: no requests in it"),
        ("t.csv", b"\xff\xfe\0", "trace.csv"),
        ("../../t.csv", b"\0", "trace.csv"),
        ("t.jsonl", b"{", 'trace.jsonl:1: "{" is not a JSON object'),
        ("t.JSONL", b"[1]\n", "trace.jsonl:1"),
        ("t.jsonl", b'{"timestamp": 1, "input_length": "x"}', "trace.jsonl:1: input_length"),
        ("t.jsonl", b'{"timestamp": 0, "input_length": 9000000, "output_length": 1}', "every request"),
    ],
)
def test_a_bad_trace_is_one_clear_line(page: Page, name: str, raw: bytes, message: str) -> None:
    app = upload(page("simulate", **PLAIN, simulate_load="trace"), name, raw)
    assert not app.exception
    assert len(app.error) == 1
    assert message in app.error[0].value
    assert "\n" not in app.error[0].value
    assert "/" not in app.error[0].value.partition(":")[0]
    upload(app, "good.csv", CSV_TRACE)
    assert_clean(app)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"model": "no-such-model"}, "neither a path nor a bundled name"),
        ({"engine_version": "1999"}, "is not a vLLM version"),
        ({"simulate_max_model_len": "9999999"}, "max_model_len must be at most 131072"),
        ({"simulate_gpu_memory_utilization": "0"}, "gpu_memory_utilization must be greater than 0"),
        ({"simulate_length_low_ratio": "0"}, "length_low_ratio must be greater than 0"),
        ({"input_tokens": "0"}, "input_tokens must be greater than or equal to 1"),
        (
            {"simulate_load": "rate", "requests_per_s": "0"},
            "requests_per_s must be greater than or equal to 0.000001",
        ),
        ({"simulate_input_tokens": "200000"}, "longer than max_model_len"),
    ],
)
def test_bad_input_is_one_clear_line(page: Page, query: dict[str, str], message: str) -> None:
    app = page("simulate", **(PLAIN | query))
    assert not app.exception
    assert len(app.error) == 1
    assert message in app.error[0].value
    assert "\n" not in app.error[0].value


def test_values_that_mean_nothing_in_the_url_are_dropped(page: Page) -> None:
    query = {"simulate_gpu": "abacus", "simulate_users": "-3", "simulate_load": "flood"}
    app = page("simulate", **(PLAIN | query))
    assert_clean(app)
    assert app.segmented_control(key="simulate_load").value == "users"


def test_the_page_starts_from_the_plan_on_size(page: Page) -> None:
    app = page("size", gpu="H200-SXM-141GB")
    app.switch_page(str(VIEWS / "simulate.py")).run()
    assert_clean(app)
    assert app.selectbox(key="simulate_gpu").placeholder == "H200-SXM-141GB"
    tp = app.number_input(key="simulate_tp").placeholder
    assert any(f"{tp} × H200-SXM-141GB" in markdown.value for markdown in app.markdown)
    app.segmented_control(key="simulate_load").set_value("rate").run()
    assert_clean(app)
    # At most the peak of all replicas: 1.5 times what the sidebar sends.
    share = float(app.number_input(key="simulate_requests_per_s").placeholder)
    assert 0 < share <= 1.5 * app.number_input(key="requests_per_s").value
    app.selectbox(key="simulate_gpu").set_value("L40S").run()
    assert app.number_input(key="simulate_tp").placeholder == "smallest"


def test_every_field_has_help(page: Page) -> None:
    for load in ("users", "rate", "trace"):
        app = page("simulate", **PLAIN, simulate_load=load)
        fields = [*app.number_input, *app.selectbox, *app.toggle, *app.segmented_control, *app.file_uploader]
        assert [field.label for field in fields if not field.help] == []


def test_equal_questions_are_simulated_once() -> None:
    deployed = MemoryAsk(MODEL, GPU, 1, 1, ep=False, formats=Formats(), engine=Engine())
    ask = SimulationAsk(deployed, TrafficAsked(concurrency=2, input_tokens=100.0, output_tokens=9.0))
    assert simulation_answered(ask) is simulation_answered(ask)
    other = simulation_answered(ask._replace(ttft_p95_ms=1e-3))
    assert other is not simulation_answered(ask)
    assert measured(other.found).goodput_requests_per_s == 0
